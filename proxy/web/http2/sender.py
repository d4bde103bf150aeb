"""What goes out on one HTTP/2 connection: bodies as the windows allow, and all of it in order.

Bytes come from two sides: the library's frames, and ready answers that are written past it. Both
are compressed with one table, so they are written in the order in which they were made. When the
socket is full nobody writes. A stream is lost to who waits longer than a stall for the socket, or
opens its windows for less than the least number of bytes in the time of one.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from proxy.web.http2.library import Library
from proxy.web.http2.limits import Http2Limits
from proxy.web.http2.stream import Stream

_FLUSH_BYTES: Final = 256 * 1024
# libcurl gives up on an upgrade (error 16) when more than its buffer, 32 KiB in version 7, comes in
# one piece with the 101.
_EARLY_BYTES: Final = 12 * 1024
# Above this, joining costs more than handing the pieces over one by one.
_JOINED_MAX_BYTES: Final = 32 * 1024


class Sender:
    """Writes to one transport. `reset` ends one stream whose client does not read."""

    __slots__ = (
        "_early_bytes",
        "_h2",
        "_limits",
        "_pieces",
        "_reset",
        "_transport",
        "_unflushed",
        "_writable",
    )

    def __init__(self, h2: Library, limits: Http2Limits, reset: Callable[[Stream], None]) -> None:
        self._h2 = h2
        self._limits = limits
        self._reset = reset
        self._transport: asyncio.Transport
        self._writable = asyncio.Event()
        self._writable.set()
        self._pieces: list[bytes | memoryview] = []
        self._unflushed = 0
        self._early_bytes: int | None = None

    def begin(self, transport: asyncio.Transport, *, upgraded: bool) -> None:
        """Write to this transport from now on; after an upgrade, little until `greeted`."""
        self._transport = transport
        self._early_bytes = _EARLY_BYTES if upgraded else None

    def greeted(self) -> None:
        """The client has begun to speak HTTP/2."""
        self._early_bytes = None

    @property
    def is_writable(self) -> bool:
        """Whether the socket takes bytes."""
        return self._writable.is_set()

    def pause(self) -> None:
        """The socket is full."""
        self._writable.clear()

    def resume(self) -> None:
        """There is room again, or nobody to write for any more."""
        self._writable.set()

    def add(self, pieces: Iterable[bytes | memoryview], count: int) -> None:
        """Keep `count` bytes, made past the library, for the next flush; many are flushed now.

        So a full socket is noticed before all that was asked for at once is in memory.
        """
        self._pieces += pieces
        self._unflushed += count
        if self._unflushed > _FLUSH_BYTES:
            self.flush()

    def collect(self) -> None:
        """Put what the library has made so far behind what is kept already."""
        data = self._h2.data_to_send()
        if data:
            self._pieces.append(data)
            self._unflushed += len(data)

    def flush(self) -> None:
        """Write everything."""
        self.collect()
        pieces, count = self._pieces, self._unflushed
        if not pieces:
            return
        self._pieces, self._unflushed = [], 0
        if self._transport.is_closing():
            return
        if len(pieces) == 1:
            self._transport.write(pieces[0])
        elif count <= _JOINED_MAX_BYTES:
            self._transport.write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)

    async def send(
        self, stream: Stream, data: bytes | bytearray | memoryview, *, end: bool
    ) -> None:
        """Send on a stream, waiting for its window and for the socket.

        Raises ConnectionResetError if the stream is gone, or goes.
        """
        view = memoryview(data)
        await self._turn(stream)
        if stream.head is not None:
            head, stream.head = stream.head, None
            self._h2.send_headers(stream.id, head, end_stream=end and not view)
            if end and not view:
                stream.ended = True
                self.flush()
                return
        unflushed = 0
        until, owed = self._stall()
        while view:
            size = self._send_frame(stream, view, end=end)
            if not size:
                self.flush()
                await self._wait_for_window(stream, until)
                continue
            view = view[size:]
            owed -= size
            if owed <= 0:
                until, owed = self._stall()
            unflushed += size
            if unflushed >= _FLUSH_BYTES:
                self.flush()
                unflushed = 0
                if view:
                    # Others get their turn between the stretches of a long body.
                    await asyncio.sleep(0)
                    await self._turn(stream)
        if end and not stream.ended:
            self._h2.end_stream(stream.id)
            stream.ended = True
        self.flush()

    def _send_frame(self, stream: Stream, view: memoryview, *, end: bool) -> int:
        """Make one frame of what the windows let through; returns how many bytes that were."""
        window: int = self._h2.local_flow_control_window(stream.id)
        if self._early_bytes is not None:
            window = min(window, self._early_bytes)
        size = max(0, min(window, len(view), int(self._h2.max_outbound_frame_size)))
        if size:
            stream.ended = end and size == len(view)
            self._h2.send_data(stream.id, view[:size], end_stream=stream.ended)
            if self._early_bytes is not None:
                self._early_bytes -= size
        return size

    async def _turn(self, stream: Stream) -> None:
        """Wait until the socket takes bytes. Raises ConnectionResetError if the stream is gone."""
        until = self._stall()[0]
        while not self._writable.is_set():
            # All who wait are woken together, and the first of them may fill the socket again.
            await self._no_longer_than(until, stream, self._writable)
        if stream.gone:
            raise ConnectionResetError("the stream is gone")

    async def _wait_for_window(self, stream: Stream, until: float) -> None:
        stream.window_opened.clear()
        await self._no_longer_than(until, stream, stream.window_opened)
        await self._turn(stream)

    def _stall(self) -> tuple[float, int]:
        """Return when a stall that begins now is over, and how many bytes a client takes in it."""
        until = asyncio.get_running_loop().time() + self._limits.stall_timeout_s
        return until, self._limits.stall_least_bytes

    async def _no_longer_than(self, until: float, stream: Stream, event: asyncio.Event) -> None:
        try:
            async with asyncio.timeout_at(until):
                await event.wait()
        except TimeoutError:
            self._reset(stream)
            raise ConnectionResetError("the client does not read") from None
