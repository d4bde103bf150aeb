"""A relay for TCP that is far away: every byte arrives half a round trip later.

It delays and does nothing else. There is no limit to the bytes on their way but one that no test
here reaches, so that throughput is what the servers make of it. A connection costs its client the
round trip of the handshake too: what is sent at once is held as if the answer to the SYN were
still on its way.

Half of a round trip of one millisecond is less than epoll can wait for, so the event loop selects
by `select`, which counts in microseconds. That bounds it to some five hundred connections.

It runs as a process of its own, `python -m benchmarks.relay`, and is told what to do by JSON lines
on its standard input, each of which it answers with one line:

    {"target": 8080, "rtt_ms": 5}      -> {"port": 40001}
    {"count": 40001}                   -> {"to_server": 812, "to_client": 20480, "connections": 1}

It ends with its standard input, so it never outlives who started it.
"""

import asyncio
import contextlib
import json
import selectors
import sys
from collections import deque
from enum import Enum, auto
from typing import Final

_HOST: Final = "127.0.0.1"
_MOST_UNDER_WAY_BYTES: Final = 64 * 1024 * 1024


class Route:
    """One listening port, where it leads, how far away that is, and what went through."""

    __slots__ = ("connections", "rtt_s", "target", "to_client", "to_server")

    def __init__(self, target: int, rtt_s: float) -> None:
        self.target = target
        self.rtt_s = rtt_s
        self.connections = 0
        self.to_server = 0
        self.to_client = 0

    def counters(self) -> dict[str, int]:
        """Return what went through so far."""
        return {
            "to_server": self.to_server,
            "to_client": self.to_client,
            "connections": self.connections,
        }


class _End(Enum):
    """How a connection ends, in its place among the bytes: one side of it, or all."""

    SENDING = auto()
    ALL = auto()


class _Side(asyncio.Protocol):
    """One of the two sockets of a connection; what it receives, `other` sends later.

    Times that are equal may fire in any order, so a timer delivers whatever is next and not what
    it was set for.
    """

    def __init__(self, route: Route, *, faces_client: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._route = route
        self._faces_client = faces_client
        self._under_way: deque[bytes | _End] = deque()
        self._under_way_bytes = 0
        self._earliest = 0.0
        self.has_ended = False
        self._connecting: asyncio.Task[None] | None = None
        self.other: _Side
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if not self._faces_client:
            return
        self._route.connections += 1
        self._earliest = self._loop.time() + self._route.rtt_s
        self.other = _Side(self._route, faces_client=False)
        self.other.other = self
        transport.pause_reading()
        self._connecting = self._loop.create_task(self._connect(transport))

    async def _connect(self, transport: asyncio.Transport) -> None:
        try:
            await self._loop.create_connection(lambda: self.other, _HOST, self._route.target)
        except OSError:
            transport.abort()
            return
        if not transport.is_closing():
            transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._faces_client:
            self._route.to_server += len(data)
        else:
            self._route.to_client += len(data)
        self._under_way_bytes += len(data)
        self._send_off(data)
        if self._under_way_bytes > _MOST_UNDER_WAY_BYTES and self.transport is not None:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._send_off(_End.SENDING)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._send_off(_End.ALL)

    def _send_off(self, data: bytes | _End) -> None:
        self._under_way.append(data)
        starts = max(self._loop.time(), self._earliest)
        self._loop.call_at(starts + self._route.rtt_s / 2, self._arrive)

    def _arrive(self) -> None:
        data = self._under_way.popleft()
        receiver = self.other.transport
        if isinstance(data, _End):
            if receiver is not None and not receiver.is_closing():
                self._pass_on(data, receiver)
            return
        was_full = self._under_way_bytes > _MOST_UNDER_WAY_BYTES
        self._under_way_bytes -= len(data)
        if receiver is not None and not receiver.is_closing():
            receiver.write(data)
        if was_full and self._under_way_bytes <= _MOST_UNDER_WAY_BYTES:
            assert self.transport is not None
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def _pass_on(self, end: _End, receiver: asyncio.Transport) -> None:
        """End what goes to the receiver; if nothing comes from it either, close both."""
        self.has_ended = True
        if end is _End.ALL or self.other.has_ended:
            receiver.close()
            if self.transport is not None:
                self.transport.close()
        else:
            with contextlib.suppress(OSError):  # the peer has gone without a word
                receiver.write_eof()


async def open_route(route: Route) -> asyncio.Server:
    """Listen on a port of the kernel's choosing and relay what comes to the route's target."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: _Side(route, faces_client=True), _HOST, 0)


async def obey() -> None:
    """Do what the lines of the standard input say, until it ends."""
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    routes: dict[int, Route] = {}
    servers: list[asyncio.Server] = []
    while line := await orders.readline():
        order = json.loads(line)
        if "count" in order:
            answer = routes[order["count"]].counters()
        else:
            route = Route(order["target"], order["rtt_ms"] / 1000)
            server = await open_route(route)
            servers.append(server)
            port = server.sockets[0].getsockname()[1]
            routes[port] = route
            answer = {"port": port}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def precise_loop() -> asyncio.SelectorEventLoop:
    """Return an event loop whose timers are finer than a millisecond."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(obey())
