"""The listeners of one application: every protocol on every port, and the drain of them all.

One aiohttp application is behind all of it. HTTP/1.1 connections are aiohttp's own; HTTP/2 ones are
`proxy.web.http2`. Both are drained together: no new connections, GOAWAY or `Connection: close` to
those that are open, and time for what they have asked for.
"""

import asyncio
import socket
import ssl
from typing import Final

from aiohttp import web

from proxy.core.forwarded import AddressRules
from proxy.web.doors import Doorman, Rooms
from proxy.web.hot import HotPath
from proxy.web.http1 import Http1Connection
from proxy.web.http2.connection import Http2Connection
from proxy.web.http2.heads import Shapes
from proxy.web.http2.limits import Http2Limits

HANDSHAKE_TIMEOUT_S: Final = 15.0
_BACKLOG: Final = 1024
_TURNS_TO_CLOSE: Final = 3
_KEEP_ALIVE_S: Final = 75.0
_EVERYWHERE: Final = "::"


class Entrance:
    """Listens for one application. `hot` answers what needs no handler; made in its event loop."""

    def __init__(
        self,
        app: web.Application,
        hot: HotPath,
        addresses: AddressRules,
        *,
        h2c: bool,
        tls: ssl.SSLContext | None,
        drain_s: float,
    ) -> None:
        self._hot = hot
        self._addresses = addresses
        self._h2c = h2c
        self._tls = tls
        self._limits = Http2Limits()
        self._shapes = Shapes()
        self._crowd: set[Http2Connection] = set()
        self._waiting: set[Doorman] = set()
        self._errands: set[asyncio.Task[None]] = set()
        self._listeners: list[asyncio.Server] = []
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            handler_cancellation=False,
            shutdown_timeout=drain_s,
            keepalive_timeout=_KEEP_ALIVE_S,
        )

    async def open(self) -> None:
        """Make the application ready."""
        await self._runner.setup()

    async def listen(self, host: str, port: int, *, both_families: bool = False) -> int:
        """Listen on one address; returns the port, the kernel's choice for 0. Raises OSError.

        `both_families` makes `::` take IPv4 clients too, if the system can.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = both_families and host == _EVERYWHERE and socket.has_dualstack_ipv6()
        try:
            listener = socket.create_server(
                (host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both
            )
        except OSError as error:
            reason = (error.strerror or str(error)).partition(" (while ")[0]
            shown = f"[{host}]" if ":" in host else host
            raise OSError(f"cannot listen on {shown}:{port}: {reason}") from error
        listener.setblocking(False)
        self._listeners.append(
            await asyncio.get_running_loop().create_server(
                self._doorman,
                sock=listener,
                backlog=_BACKLOG,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S if self._tls is not None else None,
            )
        )
        chosen = listener.getsockname()[1]
        assert isinstance(chosen, int), "an inet socket has a port"
        return chosen

    def http1_connections(self) -> int:
        """How many HTTP/1.1 connections are open."""
        return len(self._server.connections)

    def http2_connections(self) -> int:
        """How many HTTP/2 connections are open."""
        return len(self._crowd)

    async def close(self, patience_s: float) -> None:
        """Accept nothing new, let what is under way end, then end it."""
        for listener in self._listeners:
            listener.close()
        for doorman in tuple(self._waiting):
            doorman.abort()
        await asyncio.gather(self._drain_http2(patience_s), self._runner.cleanup())
        # Aborted connections are told so in the loop's next turns; after that nothing is open.
        for _ in range(_TURNS_TO_CLOSE):
            await asyncio.sleep(0)

    async def _drain_http2(self, patience_s: float) -> None:
        until = asyncio.get_running_loop().time() + patience_s
        drains = [asyncio.create_task(connection.drain()) for connection in self._crowd]
        if drains:
            _, late = await asyncio.wait(drains, timeout=patience_s)
            for drain in late:
                drain.cancel()
        for connection in tuple(self._crowd):
            connection.abort()
        if self._errands:
            # Their clients are gone; what they use is closed next.
            left_s = until - asyncio.get_running_loop().time()
            _, late_errands = await asyncio.wait(self._errands, timeout=max(0.0, left_s))
            for errand in late_errands:
                errand.cancel()
            await asyncio.gather(*late_errands, return_exceptions=True)

    @property
    def _server(self) -> web.Server:
        server = self._runner.server
        assert server is not None, "opened"
        return server

    def _doorman(self) -> Doorman:
        rooms = Rooms(http1=self._http1, http2=self._http2)
        return Doorman(rooms, self._addresses, self._waiting, h2c=self._h2c)

    def _http1(self) -> Http1Connection:
        loop = asyncio.get_running_loop()
        return Http1Connection(self._server, self._hot, loop, keep_alive_s=_KEEP_ALIVE_S)

    def _http2(self) -> Http2Connection:
        return Http2Connection(
            self._server, self._hot, self._shapes, self._limits, self._crowd, self._errands
        )
