"""HTTP/1.1: aiohttp's own protocol, and in front of it the answers that need no handler.

A connection is aiohttp's. A whole plain GET that arrives while aiohttp waits for one, and that can
be answered from memory, is answered here, and aiohttp never hears of it. That is sound only while
aiohttp's parser stands between two requests: from the first bytes on that are anything but one
plain GET, all is left to aiohttp, for the rest of the connection.

What aiohttp does not bound is bounded here: how long a head may take, how large it may become in
all, how slowly a body may come. What it cannot read it would answer in its own name, and with a
stack in the log; here that is one line, and none.
"""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from proxy.core.forwarded import peer_address
from proxy.core.pace import Pace
from proxy.core.simple_get import read_simple_get
from proxy.web import replies
from proxy.web.guests import Guest
from proxy.web.hot import LOOKED_AT, Asked, Dialect, HotPath

_REASONS: Final = {200: "OK", 304: "Not Modified"}
# Above this, joining costs more than two writes.
_JOINED_MAX_BYTES: Final = 32 * 1024
# As much as over HTTP/2; aiohttp bounds lines, and how many there are, each for itself.
HEAD_MAX_BYTES: Final = 32 * 1024
_FIELDS_MAX: Final = 128
_TOO_MANY_FIELDS: Final = "Too many headers received"
_TOO_LARGE_LINE: Final = "the head of the request is too large\n"
_TOO_LARGE: Final = (
    "HTTP/1.1 431 Request Header Fields Too Large\r\n"
    f"Server: {replies.SERVER}\r\nConnection: close\r\n"
    f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(_TOO_LARGE_LINE)}\r\n\r\n"
    f"{_TOO_LARGE_LINE}"
).encode()


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

    __slots__ = (
        "_guest",
        "_head_bytes",
        "_head_since",
        "_hot",
        "_in_step",
        "_pace",
        "_peer",
        "_received",
    )

    def __init__(
        self,
        server: web.Server,
        hot: HotPath,
        loop: asyncio.AbstractEventLoop,
        guest: Guest,
        *,
        keep_alive_s: float,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type] # as aiohttp's own runner says it
            keepalive_timeout=keep_alive_s,
            max_headers=_FIELDS_MAX,
        )
        self._guest = guest
        self._head_since: float | None = None
        self._head_bytes = self._received = 0
        self._pace = Pace()
        self._hot = hot
        self._in_step = True
        self._peer = "local"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, and note who is there."""
        super().connection_made(transport)
        self._guest.sit(self)
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
        awaited_a_head = self._awaits_head()
        super().data_received(data)
        self._received += len(data)
        if awaited_a_head and self._awaits_head():
            self._had_part_of_a_head(len(data))
        else:
            self._head_since, self._head_bytes = None, 0

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone."""
        self._guest.leave()
        super().connection_lost(exc)

    def _awaits_head(self) -> bool:
        waiter = self._waiter
        if self._messages:
            return False
        return not waiter.done() if waiter is not None else self._request_count == 0

    def _had_part_of_a_head(self, count: int) -> None:
        if self._head_since is None:
            self._head_since = self._loop.time()
        self._head_bytes += count
        if self._head_bytes > HEAD_MAX_BYTES and self.transport is not None:
            self.transport.write(_TOO_LARGE)
            self.force_close()

    def is_idle(self) -> bool:
        """Whether no request is under way, and nothing waits to be written."""
        transport = self.transport
        return transport is None or (
            self._is_idle() and not self._messages and not transport.get_write_buffer_size()
        )

    def dismiss(self) -> None:
        """Close."""
        self.force_close()

    def look(self, now: float) -> None:
        """Leave a client whose head does not end, or whose body does not get on."""
        patience = self._guest.patience
        if self._head_since is not None and now - self._head_since >= patience.head_s:
            self.force_close()
            return
        request = self._current_request
        if request is None or request.content.is_eof() or self._reading_paused:
            self._pace.rest()
        elif self._pace.is_too_slow(now, self._received, patience.least):
            self.force_close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer in our name, also one that aiohttp has made itself."""
        resp.headers.setdefault("Server", replies.SERVER)
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp could not read, in one line and without one in the log."""
        if exc is None or status != HTTPStatus.BAD_REQUEST:
            return super().handle_error(request, status, exc, message)
        if isinstance(exc, LineTooLong) or message == _TOO_MANY_FIELDS:
            line = "a line of the request's head is too long, or there are too many of them"
            response = replies.plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, line)
        else:
            response = replies.plain(HTTPStatus.BAD_REQUEST, "this is no request of HTTP/1.1")
        response.force_close()
        return response

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
