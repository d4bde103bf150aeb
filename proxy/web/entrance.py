"""The listeners of one application: every protocol on every port, and the drain of them all.

One aiohttp application is behind all of it. HTTP/1.1 connections are aiohttp's own; HTTP/2 ones are
`proxy.web.http2`. Both are drained together: no new connections, GOAWAY or `Connection: close` to
those that are open, and time for what they have asked for.
"""

import asyncio
import logging
import socket
import ssl
from functools import partial
from typing import Final

from aiohttp import web

from proxy.core.forwarded import AddressRules
from proxy.web.doors import Doorman, Rooms
from proxy.web.guests import Guest, Guests, Patience
from proxy.web.hot import HotPath
from proxy.web.http1 import Http1Connection
from proxy.web.http2.connection import Http2Connection
from proxy.web.http2.errands import Errands
from proxy.web.http2.heads import Shapes
from proxy.web.http2.limits import Http2Limits
from proxy.web.listener import Listener

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S: Final = 15.0
CONNECTIONS_MAX: Final = 16_384
# How long a client may take to answer our farewell over TLS.
_FAREWELL_TIMEOUT_S: Final = 5.0
_TURNS_TO_CLOSE: Final = 3
_PATIENCE: Final = Patience()
_KEEP_ALIVE_S: Final = 75.0
_EVERYWHERE: Final = "::"


class Entrance:
    """Listens for one application. `hot` answers what needs no handler; made in its event loop.

    `connections` is how many may be open at once.
    """

    def __init__(
        self,
        app: web.Application,
        hot: HotPath,
        addresses: AddressRules,
        *,
        h2c: bool,
        tls: ssl.SSLContext | None,
        drain_s: float,
        connections: int = CONNECTIONS_MAX,
        patience: Patience = _PATIENCE,
    ) -> None:
        self._guests = Guests(connections, patience)
        self._hot = hot
        self._addresses = addresses
        self._h2c = h2c
        self._tls = tls
        self._limits = Http2Limits()
        self._shapes = Shapes()
        self._crowd: set[Http2Connection] = set()
        self._errands = Errands()
        self._rooms = Rooms(http1=self._http1, http2=self._http2)
        self._listeners: list[Listener] = []
        self._welcomes: set[asyncio.Task[None]] = set()
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            handler_cancellation=False,
            shutdown_timeout=drain_s,
            keepalive_timeout=_KEEP_ALIVE_S,
        )

    def set_connections(self, connections: int) -> None:
        """Let so many connections be open at once from now on."""
        self._guests.set_ceiling(connections)

    async def open(self) -> None:
        """Make the application ready."""
        await self._runner.setup()
        self._guests.open()

    async def listen(self, host: str, port: int, *, both_families: bool = False) -> int:
        """Listen on one address; returns the port, the kernel's choice for 0. Raises OSError.

        `both_families` makes `::` take IPv4 clients too, if the system can.
        """
        both = both_families and host == _EVERYWHERE and socket.has_dualstack_ipv6()
        receive, make_room = self._receive, self._guests.make_room
        listener = Listener(host, port, receive, make_room, both_families=both)
        self._listeners.append(listener)
        return listener.port

    def http1_connections(self) -> int:
        """How many HTTP/1.1 connections are open."""
        return len(self._server.connections)

    def http2_connections(self) -> int:
        """How many HTTP/2 connections are open."""
        return len(self._crowd)

    async def close(self, patience_s: float) -> None:
        """Accept nothing new, let what is under way end, then end it."""
        while self._listeners:
            self._listeners.pop().close()
        self._guests.close()
        await asyncio.gather(self._drain_http2(patience_s), self._runner.cleanup())
        await asyncio.gather(*self._welcomes)
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
        if self._errands.running:
            # Their clients are gone; what they use is closed next.
            left_s = until - asyncio.get_running_loop().time()
            _, late_errands = await asyncio.wait(self._errands.running, timeout=max(0.0, left_s))
            for errand in late_errands:
                errand.cancel()
            await asyncio.gather(*late_errands, return_exceptions=True)

    @property
    def _server(self) -> web.Server:
        server = self._runner.server
        assert server is not None, "opened"
        return server

    def _receive(self, connection: socket.socket) -> None:
        guest = self._guests.enter(connection)
        if guest is None:
            connection.close()
            return
        guest.welcome = asyncio.create_task(self._welcome(guest, connection))
        self._welcomes.add(guest.welcome)
        guest.welcome.add_done_callback(partial(self._welcomed, guest, connection))

    async def _welcome(self, guest: Guest, connection: socket.socket) -> None:
        """Give a connection its doorman, behind the TLS handshake if there is to be one."""
        tls = self._tls
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Doorman(self._rooms, self._addresses, guest, h2c=self._h2c),
                connection,
                ssl=tls,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S if tls is not None else None,
                ssl_shutdown_timeout=_FAREWELL_TIMEOUT_S if tls is not None else None,
            )
        except OSError as error:
            logger.debug("a connection came to nothing: %s", error)
            guest.leave()
        except asyncio.CancelledError:
            # It was asked to leave, or we are: there is nobody who waits for this.
            guest.leave()
        finally:
            guest.welcome = None

    def _welcomed(
        self, guest: Guest, connection: socket.socket, welcome: asyncio.Task[None]
    ) -> None:
        self._welcomes.discard(welcome)
        if welcome.cancelled():
            # Before it had begun: nothing else knows of the connection.
            guest.leave()
            connection.close()

    def _http1(self, guest: Guest) -> Http1Connection:
        loop = asyncio.get_running_loop()
        return Http1Connection(self._server, self._hot, loop, guest, keep_alive_s=_KEEP_ALIVE_S)

    def _http2(self, guest: Guest) -> Http2Connection:
        return Http2Connection(
            self._server, self._hot, self._shapes, self._limits, self._crowd, self._errands, guest
        )
