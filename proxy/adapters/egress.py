"""The way out to one upstream: connections, TLS, forward proxy, and the guard at the door.

The guard judges addresses at the moment of connecting, in the resolver, because a name that was
harmless when it was looked at may lead elsewhere when it is dialled. aiohttp does not ask a
resolver about a literal address, so those are judged before. Through a forward proxy names are
resolved out there; only literals can be judged here.

Connections are kept for a while after their last request, and when many requests come at once, as
they do when cargo begins to resolve, more are opened than are needed yet. Crates may not have all
of them: some are left to the index.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Self
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from proxy.core.addresses import AddressGuard, literal_address

_KEEP_ALIVE_S: Final = 75.0
_HEAD_LINE_MAX_BYTES: Final = 16 * 1024
_HOSTS_REMEMBERED: Final = 256
_KEPT_FROM_CRATES: Final = 8
# As many requests at once are the beginning of a resolve, whose next level is wider.
_BURST: Final = 8
_SPARES_MAX: Final = 64


class ForbiddenByGuard(OSError):
    """The address guard objected; the message names host, address and key."""


@dataclass(frozen=True, slots=True)
class EgressTerms:
    """How connections are made. `proxy` is a URL, or None for what the environment says."""

    connections: int
    connect_timeout_s: float
    idle_timeout_s: float
    proxy: str | None = None
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None


class Egress:
    """Sends GET requests for one upstream. Made and used in one event loop; must be closed.

    One of `turns` is to be held around each request, to the end of its body: the limit of
    connections.
    `tls` is what `tls_context` made for equal terms, where somebody has it already.
    """

    def __init__(
        self, terms: EgressTerms, guard: AddressGuard, tls: ssl.SSLContext | None = None
    ) -> None:
        self._terms = terms
        self._guard = guard
        self._tls = tls_context(terms) if tls is None else tls
        self._timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=terms.connect_timeout_s,
            sock_read=terms.idle_timeout_s,
        )
        # Waiting here is nobody's fault; waiting inside a session would count as the upstream's.
        self.turns = Turns(terms.connections)
        self._spares: asyncio.Task[None] | None = None
        self._warm_until = 0.0
        # Asking costs a walk through the whole environment, and the answer does not change.
        self._proxy_of_environment = lru_cache(_HOSTS_REMEMBERED)(_proxy_of_environment)
        self._pooled = self._session(keep_alive=True)
        self._unpooled = self._session(keep_alive=False)

    def _session(self, *, keep_alive: bool) -> aiohttp.ClientSession:
        common = {
            "limit": self._terms.connections,
            "ssl": self._tls,
            "resolver": GuardedResolver(self._guard, aiohttp.ThreadedResolver()),
            "ttl_dns_cache": 10,
        }
        connector = (
            aiohttp.TCPConnector(keepalive_timeout=_KEEP_ALIVE_S, **common)  # type: ignore[arg-type]
            if keep_alive
            else aiohttp.TCPConnector(force_close=True, **common)  # type: ignore[arg-type]
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            max_line_size=_HEAD_LINE_MAX_BYTES,
            max_field_size=_HEAD_LINE_MAX_BYTES,
        )

    def get(
        self, url: URL, headers: Mapping[str, str], *, new_connection: bool
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send one GET, following nothing. Raises ForbiddenByGuard before any socket is opened."""
        self._refuse_forbidden_literal(url.host or "")
        session = self._unpooled if new_connection else self._pooled
        return session.get(url, headers=headers, allow_redirects=False, proxy=self._proxy_for(url))

    def _refuse_forbidden_literal(self, host: str) -> None:
        literal = literal_address(host)
        if literal is not None:
            objection = self._guard.objection(host, literal)
            if objection is not None:
                raise ForbiddenByGuard(objection)
        elif _is_disguised(host):
            raise ForbiddenByGuard(f"{host} is an address that is not written as one")

    def expect_more(self, url: URL) -> None:
        """Open connections to where `url` leads if a burst has begun; nobody waits for them.

        Cargo learns the graph level by level, and each level that is wider than those before would
        pay for its new connections with a round trip, or three with TLS.
        """
        if self._in_use < _BURST:
            return
        now = asyncio.get_running_loop().time()
        if now >= self._warm_until:
            self._warm_until = now + _KEEP_ALIVE_S
            self._spares = asyncio.create_task(self._open_spares(url))

    @property
    def _in_use(self) -> int:
        return self._terms.connections - self.turns.free

    async def _open_spares(self, url: URL) -> None:
        count = min(_SPARES_MAX, self._terms.connections) - self._in_use
        await asyncio.gather(*(self._open_spare(url) for _ in range(count)))

    async def _open_spare(self, url: URL) -> None:
        # What hinders a spare connection is told by the next request that needs one.
        with contextlib.suppress(_Opened, aiohttp.ClientError, OSError, ValueError):
            self._refuse_forbidden_literal(url.host or "")
            await self._pooled.get(url, proxy=self._proxy_for(url), middlewares=(_only_connect,))

    def _proxy_for(self, url: URL) -> str | None:
        if self._terms.proxy is not None:
            return self._terms.proxy
        return self._proxy_of_environment(url.scheme, url.host or "")

    async def close(self) -> None:
        """Close all connections."""
        if self._spares is not None:
            self._spares.cancel()
            await asyncio.gather(self._spares, return_exceptions=True)
        await self._pooled.close()
        await self._unpooled.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Turns:
    """The right to have a connection in use. `for_crates` leaves some of it to the others.

    A crate may take minutes; whoever wants an index file then must not wait for one to end.
    """

    def __init__(self, count: int) -> None:
        self.free = count
        self._all = asyncio.Semaphore(count)
        self._crates = asyncio.Semaphore(count - min(_KEPT_FROM_CRATES, count // 4))

    @contextlib.asynccontextmanager
    async def for_index(self) -> AsyncIterator[None]:
        """Hold a turn."""
        async with self._all:
            self.free -= 1
            try:
                yield
            finally:
                self.free += 1

    @contextlib.asynccontextmanager
    async def for_crates(self) -> AsyncIterator[None]:
        """Hold one of the turns that crates may have."""
        async with self._crates, self.for_index():
            yield


class _Opened(Exception):
    """A connection was opened and lies in the pool; nothing was sent."""


async def _only_connect(
    request: aiohttp.ClientRequest, _: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    session = request.session
    assert session.connector is not None, "its session is open"
    connection = await session.connector.connect(request, [], session.timeout)
    connection.release()
    raise _Opened


class GuardedResolver(AbstractResolver):
    """What another resolver finds, less the addresses that the guard objects to."""

    def __init__(self, guard: AddressGuard, inner: AbstractResolver) -> None:
        self._guard = guard
        self._inner = inner

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        """Resolve a name. Raises ForbiddenByGuard if nothing that it leads to is allowed."""
        results = await self._inner.resolve(host, port, family)  # type: ignore[arg-type]
        allowed: list[ResolveResult] = []
        objection: str | None = None
        for result in results:
            found = self._guard.objection(host, result["host"])
            if found is None:
                allowed.append(result)
            else:
                objection = found
        if not allowed and objection is not None:
            raise ForbiddenByGuard(objection)
        return allowed

    async def close(self) -> None:
        """Release the resolver."""
        await self._inner.close()


def _proxy_of_environment(scheme: str, host: str) -> str | None:
    return None if proxy_bypass(host) else getproxies().get(scheme)


def _is_disguised(host: str) -> bool:
    """Tell whether the C library takes `host` for an address: `127.1`, `2130706433`, `0x7f.1`."""
    try:
        socket.inet_aton(host)
    except (OSError, UnicodeError):
        return False
    return True


class TlsContexts:
    """The client's TLS of several upstreams: made once for those that name the same files.

    Loading the system's trust store takes tens of milliseconds, and memory for each copy.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[Path | None, ...], ssl.SSLContext] = {}

    def context(self, terms: EgressTerms) -> ssl.SSLContext:
        """Return the context for these terms. Raises OSError as `tls_context` does."""
        files = (terms.ca_file, terms.client_cert, terms.client_key)
        made = self._made.get(files)
        if made is None:
            made = self._made[files] = tls_context(terms)
        return made


def tls_context(terms: EgressTerms) -> ssl.SSLContext:
    """Build the client's TLS: the system's trust store, and what the operator adds.

    Raises OSError (ssl.SSLError is one) when a file cannot be read or is not what it should be.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if terms.ca_file is not None:
        context.load_verify_locations(cafile=terms.ca_file)
    if terms.client_cert is not None:
        context.load_cert_chain(terms.client_cert, terms.client_key)
    return context
