"""What went wrong on the way to an upstream: from aiohttp's and the socket's words to the port's.

Each message is one line, names the upstream, and names the configuration's key wherever a key may
be the remedy: `proxy` (or the variable) where a forward proxy is on the way, `ca_file` where a
certificate was not believed, `client_cert` where ours was not. None has an address with its query
in it, nor a credential. A forward proxy that is away or refuses is the upstream out of reach.
"""

import re
import ssl
from dataclasses import dataclass
from typing import Final

import aiohttp

from proxy.adapters.egress import ForbiddenByGuard
from proxy.adapters.forward_proxy import ForwardProxy, UnusableProxy
from proxy.core.failures import (
    ForbiddenAddress,
    Misbehaved,
    TimedOut,
    Unreachable,
    UpstreamFailure,
)

TRANSIENT_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_PROXY_AUTHENTICATION_REQUIRED: Final = 407
_FORBIDDEN: Final = 403
_BAD_REQUEST: Final = 400
# X509_V_ERR_*: self-signed, alone or in the chain; an issuer that is nowhere to be found.
_UNKNOWN_ISSUER: Final = frozenset({18, 19, 20, 21})
# TLS alerts by which a server refuses a client's certificate or the lack of one (RFC 8446, 6.2).
_REFUSES_OURS: Final = re.compile(
    r"ALERT_(?:CERTIFICATE_\w+|BAD_CERTIFICATE|UNSUPPORTED_CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED"
    r"|HANDSHAKE_FAILURE|DECRYPT_ERROR)"
)


@dataclass(frozen=True, slots=True)
class Way:
    """How an upstream was asked: its name, through which proxy, with a certificate or without."""

    upstream: str
    proxy: ForwardProxy | None
    shows_certificate: bool

    @property
    def through(self) -> str:
        """The proxy as the end of a message, if there is one."""
        return "" if self.proxy is None else f", through {self.proxy.described(self.upstream)}"

    def key(self, name: str) -> str:
        """Name a key of this upstream."""
        return f"upstreams.{self.upstream}.{name}"


def led_astray(upstream: str) -> Misbehaved:
    """Say that an upstream's own words lead to no address."""
    return Misbehaved(f"{upstream}: it leads to what is no http(s) address")


def timed_out(way: Way) -> TimedOut:
    """Say that nothing came."""
    return TimedOut(f"{way.upstream} did not answer in time{way.through}")


def refused_by_proxy(way: Way, response: aiohttp.ClientResponse) -> Unreachable | None:
    """Tell whether an answer is the forward proxy's own; None if it may be the upstream's.

    To a plain http upstream there is no tunnel, and both speak in the same place.
    """
    if way.proxy is None:
        return None
    said = response.headers.get("Proxy-Status", "")
    own = "X-Squid-Error" in response.headers or re.search(r";\s*error=", said) is not None
    if not own and response.status != _PROXY_AUTHENTICATION_REQUIRED:
        return None
    return _refused(way, way.proxy, response.status)


def _refused(way: Way, proxy: ForwardProxy, status: int) -> Unreachable:
    hint = ""
    if status == _PROXY_AUTHENTICATION_REQUIRED:
        hint = ": it wants a user name and a password, or others"
    elif status == _FORBIDDEN:
        hint = ": it does not let this through"
    return Unreachable(
        f"{way.upstream}: {proxy.described(way.upstream)} answered {status}{hint}",
        transient=status in TRANSIENT_STATUSES,
    )


def doubts_about(status: int, scheme: str, way: Way) -> str:
    """Say, as the end of a message, which keys a status may be about."""
    hint = ""
    if status in (401, 403):
        hint = f" (is {way.key('token')} right?)"
    elif status == _BAD_REQUEST and scheme == "https":
        # What nginx and those like it say of a client's certificate, or of none.
        hint = f" (does it want {way.key('client_cert')}, or another one?)"
    # In a tunnel nobody but the upstream speaks.
    return hint if scheme == "https" else hint + way.through


def failure_of(error: Exception, way: Way) -> UpstreamFailure:
    """Say in the port's words what aiohttp or the socket said."""
    name = way.upstream
    forbidden = _forbidden_in(error)
    if forbidden is not None:
        return ForbiddenAddress(f"{name}: {forbidden}")
    tls = _tls_error_in(error)
    if tls is not None:
        return _tls_failed(tls, way)
    match error:
        case aiohttp.ServerTimeoutError():
            return timed_out(way)
        case aiohttp.ClientConnectorError():
            return _not_connected(error, way)
        case aiohttp.ClientHttpProxyError() if way.proxy is not None:
            return _refused(way, way.proxy, error.status)
        case aiohttp.ClientPayloadError():
            return Unreachable(f"{name} broke off in the middle of a body{way.through}")
        case aiohttp.ClientResponseError():
            # Its text has the whole URL in it, and that may be a presigned one.
            said = " ".join(error.message.split())[:200]
            return Misbehaved(f"{name} does not speak HTTP: {said}{way.through}")
        case UnusableProxy():
            return Unreachable(f"{name} cannot be reached: {error}", transient=False)
        case aiohttp.InvalidURL() | ValueError():
            return led_astray(name)
        case _:
            return Unreachable(f"{name} broke off: {_one_line(error)}{way.through}")


def _not_connected(error: aiohttp.ClientConnectorError, way: Way) -> Unreachable:
    """Name what could not be reached: with a proxy on the way, that is the only one dialled."""
    what = way.upstream
    if way.proxy is not None:
        what += f": {way.proxy.described(way.upstream)}"
    return Unreachable(f"{what} cannot be reached: {_one_line(error.os_error)}")


def _tls_error_in(error: BaseException) -> BaseException | None:
    """Find what TLS said, wherever aiohttp put it."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            found: object = error.certificate_error
        case aiohttp.ClientConnectorSSLError():
            found = error.os_error
        case ssl.SSLError():
            found = error
        case _:
            cause = error.__cause__ or error.__context__
            found = cause if isinstance(cause, ssl.SSLError) else None
    return found if isinstance(found, BaseException) else None


def _tls_failed(error: BaseException, way: Way) -> Unreachable:
    """Say what TLS said. Certificates do not change from one attempt to the next."""
    about_certificates = True
    text = _one_line(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        said = f"its certificate is not believed: {error.verify_message}"
        if error.verify_code in _UNKNOWN_ISSUER:
            said += f" (a private authority goes into {way.key('ca_file')})"
    elif _REFUSES_OURS.search(text.upper().replace(" ", "_")) is None:
        said, about_certificates = text, False
    elif way.shows_certificate:
        said = f"it refuses our certificate, {way.key('client_cert')}: {text}"
    else:
        said = f"it seems to want a certificate of ours ({way.key('client_cert')}, not set): {text}"
    message = f"{way.upstream}: TLS failed: {said}{way.through}"
    return Unreachable(message, transient=not about_certificates)


def _forbidden_in(error: BaseException) -> str | None:
    """Find the address guard's objection in what aiohttp made of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ForbiddenByGuard):
            return str(seen)
        if isinstance(seen, aiohttp.ClientConnectorError):
            inner = seen.os_error
            if isinstance(inner, ForbiddenByGuard):
                return str(inner)
        seen = seen.__cause__ or seen.__context__
    return None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]
