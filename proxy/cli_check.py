"""What `config check` looks at beyond the configuration: the files that it names.

`load` reads no certificates, since what they say changes with the clock and without it. Here each
is opened as `serve` would, under the key that names it, and a certificate of ours that has expired
is a problem too: `serve` starts with one, and then its upstream refuses us.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from proxy.adapters.client_tls import CertificateRefused, client_context, expiry
from proxy.config import ConfigError, Settings, UpstreamSettings
from proxy.config_sources import Problem
from proxy.web import tls as tls_towards_clients


def check(settings: Settings, now: float) -> None:
    """Look at the files that the settings name, `now` being Unix time. Raises ConfigError."""
    problems = tuple(_problems(settings, now))
    if problems:
        raise ConfigError(problems)


def _problems(settings: Settings, now: float) -> Iterator[Problem]:
    served = settings.server.tls
    if served is not None:
        try:
            tls_towards_clients.server_context(served.certificate, served.key)
        except tls_towards_clients.CertificateRefused as refused:
            yield "server.tls", refused.reason
    for name, upstream in settings.upstreams.items():
        yield from _problems_of(name, upstream, now)


def _problems_of(name: str, upstream: UpstreamSettings, now: float) -> Iterator[Problem]:
    if upstream.offline:
        return
    try:
        client_context(upstream.ca_file, upstream.client_cert, upstream.client_key)
    except CertificateRefused as refused:
        yield f"upstreams.{name}.{refused.key}", str(refused)
        return
    for key, path in (("client_cert", upstream.client_cert), ("ca_file", upstream.ca_file)):
        until = None if path is None else expiry(path)
        if until is not None and until < datetime.fromtimestamp(now, UTC):
            yield f"upstreams.{name}.{key}", f"{path}: expired on {until:%Y-%m-%d %H:%M} UTC"
