"""HTTP/1.1: aiohttp's own protocol, and in front of it the answers that need no handler.

A connection is aiohttp's. A whole plain GET that arrives while aiohttp waits for one, and that can
be answered from memory, is answered here, and aiohttp never hears of it. That is sound only while
aiohttp's parser stands between two requests: from the first bytes on that are anything but one
plain GET, all is left to aiohttp, for the rest of the connection.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from proxy.core.forwarded import peer_address
from proxy.core.simple_get import read_simple_get
from proxy.web.hot import LOOKED_AT, Asked, Dialect, HotPath

_REASONS: Final = {200: "OK", 304: "Not Modified"}
# Above this, joining costs more than two writes.
_JOINED_MAX_BYTES: Final = 32 * 1024


def _head(status: int, headers: Mapping[str, str], length: int | None) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    lines.append("Date: ")
    return "\r\n".join(lines).encode("latin-1")


HTTP1: Final = Dialect("http1", _head)


class Http1Connection(web.RequestHandler):
    """One connection of HTTP/1.1. For one event loop."""

    __slots__ = ("_hot", "_in_step", "_peer")

    def __init__(
        self,
        server: web.Server,
        hot: HotPath,
        loop: asyncio.AbstractEventLoop,
        *,
        keep_alive_s: float,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type] # as aiohttp's own runner says it
            keepalive_timeout=keep_alive_s,
        )
        self._hot = hot
        self._in_step = True
        self._peer = "local"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, and note who is there."""
        super().connection_made(transport)
        peername = transport.get_extra_info("peername")
        self._peer = peer_address(str(peername[0])) if isinstance(peername, tuple) else "local"

    def data_received(self, data: bytes) -> None:
        """Answer at once what can be; all else is aiohttp's."""
        if self._in_step:
            request = read_simple_get(data)
            if request is None:
                # The parser may hold the beginning of something from now on.
                self._in_step = False
            elif self._is_idle() and self._answer_at_once(request.target, request.fields):
                return
        super().data_received(data)

    def _is_idle(self) -> bool:
        """Whether aiohttp waits for a request, and the client has read what it was sent."""
        waiter = self._waiter
        return waiter is not None and not waiter.done() and not self._paused

    def _answer_at_once(self, target: str, fields: Mapping[str, str]) -> bool:
        asked = Asked(target, *[fields.get(name) for name in LOOKED_AT])
        hot = self._hot.answer(asked, self._peer, HTTP1)
        transport = self.transport
        if hot is None or transport is None or self._force_close or self._close:
            return False
        head = b"%b%b\r\n\r\n" % (hot.head, hot.date.encode())
        if len(hot.body) <= _JOINED_MAX_BYTES:
            transport.write(head + hot.body)
        else:
            transport.writelines((head, hot.body))
        # aiohttp closes what it takes for idle.
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        self._hot.sent(hot)
        return True
