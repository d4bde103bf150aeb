"""One stream as an aiohttp handler sees it: a request, a payload, a writer, a transport.

The handler does not know that this is HTTP/2. What it does to its transport (`abort`) happens to
the stream alone; what it writes waits for the stream's window and for the connection's turn.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import streams
from aiohttp.abc import AbstractStreamWriter
from aiohttp.base_protocol import BaseProtocol
from multidict import CIMultiDict

from proxy.core.pace import LeastPace, Pace

if TYPE_CHECKING:
    from proxy.web.http2.connection import Http2Connection

_NOT_IN_HTTP2 = frozenset({"connection", "keep-alive", "proxy-connection", "transfer-encoding"})


class StreamTransport(asyncio.Transport):
    """The connection's transport, for reading facts; ending it ends the stream."""

    def __init__(self, stream: "Stream", transport: asyncio.Transport) -> None:
        super().__init__()
        self._stream = stream
        self._connection_transport = transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the connection knows."""
        return self._connection_transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Whether the stream is gone."""
        return self._stream.gone

    def close(self) -> None:
        """Reset the stream."""
        self._stream.reset()

    def abort(self) -> None:
        """Reset the stream."""
        self._stream.reset()


class StreamProtocol(BaseProtocol):
    """What aiohttp's request asks its protocol for; pausing it withholds the stream's window."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, stream: "Stream", transport: asyncio.Transport
    ) -> None:
        super().__init__(loop)
        self._stream = stream
        self.transport = StreamTransport(stream, transport)
        self.ssl_context = transport.get_extra_info("sslcontext")
        self.peername = transport.get_extra_info("peername")
        self.sockname = transport.get_extra_info("sockname")

    def pause_reading(self) -> None:
        """Keep back what the client may send."""
        self._reading_paused = True

    def resume_reading(self, *args: object, **kwargs: object) -> None:
        """Let the client send on."""
        del args, kwargs
        self._reading_paused = False
        self._stream.acknowledge()


class StreamWriter(AbstractStreamWriter):
    """Sends a response on a stream. The head goes with the first bytes of the body."""

    def __init__(self, stream: "Stream") -> None:
        self._stream = stream

    async def write_headers(self, status_line: str, headers: "CIMultiDict[str]") -> None:
        """Keep the head for the first write."""
        fields = [(":status", status_line.split(" ", 2)[1])]
        fields += [
            (lowered, value)
            for name, value in headers.items()
            if (lowered := name.lower()) not in _NOT_IN_HTTP2
        ]
        self._stream.head = fields

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Send some of the body. Raises ConnectionResetError when the stream is gone."""
        self.output_size += len(chunk)
        await self._stream.send(chunk, end=False)

    async def write_eof(self, chunk: bytes = b"") -> None:
        """Send the rest and end the stream."""
        self.output_size += len(chunk)
        await self._stream.send(chunk, end=True)

    async def drain(self) -> None:
        """Nothing is kept back here."""

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        """Refuse: what we send is compressed when it is made."""
        del encoding, strategy
        raise AssertionError("no handler compresses")

    def enable_chunking(self) -> None:
        """HTTP/2 frames its bodies itself."""


class Stream:
    """One stream of a connection, from its request to the end of its response."""

    __slots__ = (
        "_connection",
        "_pace",
        "_received",
        "_unacknowledged",
        "ended",
        "gone",
        "head",
        "id",
        "payload",
        "protocol",
        "request_ended",
        "task",
        "window_opened",
    )

    def __init__(
        self, connection: "Http2Connection", stream_id: int, transport: asyncio.Transport
    ) -> None:
        loop = asyncio.get_running_loop()
        self._connection = connection
        self._unacknowledged = 0
        self._pace = Pace()
        self._received = 0
        self.id = stream_id
        self.gone = False
        self.ended = False
        self.request_ended = False
        self.head: list[tuple[str, str]] | None = None
        self.window_opened = asyncio.Event()
        self.protocol = StreamProtocol(loop, self, transport)
        self.payload: streams.StreamReader = streams.EMPTY_PAYLOAD
        self.task: asyncio.Task[None] | None = None

    def receive(self, data: bytes, flow_controlled_bytes: int) -> None:
        """Take some of the request's body."""
        self._unacknowledged += flow_controlled_bytes
        self._received += len(data)
        if data:
            self.payload.feed_data(data)
        if not self.protocol._reading_paused:  # noqa: SLF001 - aiohttp's own flag between its parts
            self.acknowledge()

    def dawdles(self, now: float, least: LeastPace) -> bool:
        """Tell whether the request's body comes too slowly, and nobody but the client delays it."""
        if self.request_ended or self.protocol._reading_paused:  # noqa: SLF001 - as in `receive`
            self._pace.rest()
            return False
        return self._pace.is_too_slow(now, self._received, least)

    def acknowledge(self) -> None:
        """Open the window again for what has been taken."""
        count, self._unacknowledged = self._unacknowledged, 0
        if count:
            self._connection.acknowledge(self.id, count)

    def end_request(self) -> None:
        """The client has sent all of its request."""
        self.request_ended = True
        if self.payload is not streams.EMPTY_PAYLOAD:
            self.payload.feed_eof()

    async def send(self, data: bytes | bytearray | memoryview, *, end: bool) -> None:
        """Send body bytes, as the windows allow. Raises ConnectionResetError."""
        await self._connection.send(self, data, end=end)

    def reset(self) -> None:
        """End the stream so that nobody can take its body for complete."""
        if not self.gone and not self.ended:
            self._connection.reset(self)

    def lose(self) -> None:
        """The stream is gone: wake whoever waits for it."""
        self.gone = True
        self.window_opened.set()
        if self.payload is not streams.EMPTY_PAYLOAD and not self.payload.is_eof():
            self.payload.set_exception(ConnectionResetError("the stream is gone"))
