"""Upstreams from their settings to objects, and what a reload changes of them.

A part of the composition root (`proxy.compose`): the adapters towards upstreams are named here. An
upstream has one way for itself and one for each of its mirrors, with connections of their own.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from proxy import version
from proxy.adapters.client_tls import CertificateRefused, expiry
from proxy.adapters.credentials import Credentials
from proxy.adapters.egress import Egress, EgressTerms, TlsContexts
from proxy.adapters.offline import OfflineUpstream
from proxy.adapters.telemetry import Telemetry
from proxy.adapters.upstream import HttpUpstream, UpstreamTerms
from proxy.config import ConfigError, Settings, UpstreamSettings
from proxy.config_changes import Adoption, Change
from proxy.core.addresses import AddressGuard, Origin
from proxy.core.events import Kind
from proxy.core.freshness import Terms
from proxy.ports import Clock, Upstream
from proxy.service.source import Source

logger = logging.getLogger(__name__)

_FIRST_BYTE_TIMEOUT_S: Final = 15.0
_FIRST_BYTE_BESIDE_MIRRORS_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Way:
    """What asking one address takes, as far as a reload changes it."""

    upstream: HttpUpstream
    egress: Egress


@dataclass(frozen=True, slots=True)
class Wired:
    """An upstream's objects; `ways` are of its addresses, none if it is offline."""

    source: Source
    credentials: Credentials
    ways: tuple[_Way, ...]


async def wire(
    stack: AsyncExitStack,
    name: str,
    settings: Settings,
    clock: Clock,
    telemetry: Telemetry,
    contexts: TlsContexts,
) -> Wired:
    """Build one upstream; its connections are closed with `stack`. Raises ConfigError."""
    upstream = settings.upstreams[name]
    credentials = Credentials(None)
    _set_token(credentials, upstream)
    ways: list[_Way] = []
    adapter: Upstream = OfflineUpstream(name)
    mirrors: list[tuple[str, Upstream]] = []
    if not upstream.offline:
        _warn_of_expiry(name, upstream.client_cert, clock)
        tls = _client_tls(name, upstream, contexts)
        terms = _upstream_terms(name, upstream, settings)
        egress = await _egress(stack, upstream, upstream.index_url, tls)
        own = HttpUpstream(terms, egress, credentials)
        adapter = own
        ways.append(_Way(own, egress))
        for url in upstream.mirror_urls:
            egress = await _egress(stack, upstream, url, tls)
            # The token is the upstream's own origin's and goes nowhere else.
            called = replace(terms, name=f"{name} (mirror {url})", index_url=url)
            mirror = HttpUpstream(called, egress)
            mirrors.append((url, mirror))
            ways.append(_Way(mirror, egress))
    source = Source(
        upstream=adapter,
        terms=_terms(upstream),
        clock=clock,
        observer=telemetry,
        offline=upstream.offline,
        mirrors=tuple(mirrors),
        api_interval_s=upstream.api_interval_s,
    )
    telemetry.watch_upstream(
        name,
        source.state(Kind.INDEX, source.first),
        source.state(Kind.CRATE, source.first),
        {one.mirror: source.state(Kind.INDEX, one) for one in source.endpoints[1:]},
    )
    return Wired(source, credentials, tuple(ways))


async def _egress(
    stack: AsyncExitStack, upstream: UpstreamSettings, url: str, tls: ssl.SSLContext
) -> Egress:
    guard = AddressGuard(Origin.of(url), upstream.allow_hosts)
    return await stack.enter_async_context(Egress(_egress_terms(upstream), guard, tls))


def _terms(upstream: UpstreamSettings) -> Terms:
    return Terms(
        fresh_for_s=upstream.fresh_for_s,
        stale_while_revalidate_s=upstream.stale_while_revalidate_s,
        stale_if_error_s=float("inf") if upstream.offline else upstream.stale_if_error_s,
    )


def _client_tls(name: str, upstream: UpstreamSettings, contexts: TlsContexts) -> ssl.SSLContext:
    try:
        return contexts.context(_egress_terms(upstream))
    except CertificateRefused as refused:
        raise ConfigError(((f"upstreams.{name}.{refused.key}", str(refused)),)) from None


def _warn_of_expiry(name: str, client_cert: Path | None, clock: Clock) -> None:
    until = None if client_cert is None else expiry(client_cert)
    if until is not None and until.timestamp() < clock.now():
        logger.warning(
            "upstreams.%s.client_cert: %s expired on %s", name, client_cert, until.date()
        )


def _egress_terms(upstream: UpstreamSettings) -> EgressTerms:
    return EgressTerms(
        connections=upstream.connections,
        connect_timeout_s=upstream.connect_timeout_s,
        idle_timeout_s=upstream.idle_timeout_s,
        proxy=upstream.proxy,
        ca_file=upstream.ca_file,
        client_cert=upstream.client_cert,
        client_key=upstream.client_key,
    )


def _set_token(credentials: Credentials, upstream: UpstreamSettings) -> None:
    token = upstream.token
    if token is None:
        credentials.replace(None)
    else:
        credentials.replace(token.reveal(), token.file, token.parse)


def _upstream_terms(name: str, upstream: UpstreamSettings, settings: Settings) -> UpstreamTerms:
    contact = f" ({settings.server.contact})" if settings.server.contact else ""
    return UpstreamTerms(
        name=name,
        index_url=upstream.index_url,
        user_agent=f"holdfast/{version.VERSION}{contact}",
        absent_statuses=upstream.absent_statuses,
        index_max_bytes=settings.limits.index_bytes,
        crate_max_bytes=settings.limits.crate_bytes,
        first_byte_timeout_s=min(
            # With somebody else to ask there is less reason to wait.
            _FIRST_BYTE_BESIDE_MIRRORS_S if upstream.mirrors else _FIRST_BYTE_TIMEOUT_S,
            upstream.idle_timeout_s,
        ),
        idle_timeout_s=upstream.idle_timeout_s,
    )


def asking(wired: Sequence[Wired]) -> Adoption:
    """Have the upstreams asked by other terms: freshness, tokens, certificates, ceilings."""

    async def adopt(change: Change) -> Callable[[], None]:
        settings = change.settings
        made = await asyncio.to_thread(_made_anew, [one.source.name for one in wired], change)

        def put_in_place() -> None:
            for one in wired:
                name = one.source.name
                upstream = settings.upstreams[name]
                one.source.set_terms(_terms(upstream))
                _set_token(one.credentials, upstream)
                for way in one.ways:
                    way.upstream.set_limits(
                        index_max_bytes=settings.limits.index_bytes,
                        crate_max_bytes=settings.limits.crate_bytes,
                    )
                    if name in made:
                        way.egress.set_tls(_egress_terms(upstream), made[name])

        return put_in_place

    return adopt


def _made_anew(names: Sequence[str], change: Change) -> dict[str, ssl.SSLContext]:
    """Load the certificates of those upstreams whose files have changed. Raises ConfigError."""
    contexts = TlsContexts()
    keys = ("ca_file", "client_cert", "client_key")
    return {
        name: _client_tls(name, change.settings.upstreams[name], contexts)
        for name in names
        if not change.settings.upstreams[name].offline
        and change.touches(*(f"upstreams.{name}.{key}" for key in keys))
    }
