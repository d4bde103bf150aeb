"""One HTTP/2 connection: asyncio on one side, a sans-IO library on the other.

The library keeps the protocol (`proxy.web.http2.library`). Here its events become requests to the
same aiohttp application that HTTP/1.1 is served by. A hot answer needs neither a task nor a handler
nor the library: one look-up, one write. What is written, and when, is `proxy.web.http2.sender`'s.

What is bounded: streams, header lists, what a peer may do for free, how long a stalled stream or an
idle connection lives, and what waits to be written (when the socket is full, nothing is read).
"""

import asyncio
import logging
from typing import Final

from aiohttp import streams, web
from aiohttp.http import RawRequestMessage
from jh2.errors import ErrorCodes
from jh2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from jh2.exceptions import ProtocolError

from proxy.core.forwarded import peer_address
from proxy.core.upgrade import Upgrade
from proxy.web.guests import Guest
from proxy.web.hot import HotPath
from proxy.web.http2 import frames
from proxy.web.http2.errands import Errands
from proxy.web.http2.frames import Cutter, Question, TooLarge
from proxy.web.http2.handling import NO_ROOM, Streams, handle
from proxy.web.http2.heads import HTTP2, Shapes, is_well_formed, message_of
from proxy.web.http2.idleness import Idleness
from proxy.web.http2.library import Library, goaway
from proxy.web.http2.limits import COSTS, Http2Limits, Nuisances, cost_of_silence
from proxy.web.http2.sender import Sender
from proxy.web.http2.stream import Stream

logger = logging.getLogger(__name__)

_PREFACE_BYTES: Final = 24
# What never waits for its turn, since answers may wait for it: a preface, settings, windows.
_CONTROL_MAX_BYTES: Final = 256


class Http2Connection(asyncio.Protocol):
    """One connection. `crowd` has all that are open, for the drain and the gauge.

    `shapes` is what all connections have learned about heads.
    `errands` has the handlers that run for any of them: a handler may outlive its connection.
    """

    def __init__(
        self,
        server: web.Server,
        hot: HotPath,
        shapes: Shapes,
        limits: Http2Limits,
        crowd: set["Http2Connection"],
        errands: Errands,
        guest: Guest,
    ) -> None:
        self._server = server
        self._hot = hot
        self._shapes = shapes
        self._limits = limits
        self._crowd = crowd
        self._errands = errands
        self._guest = guest
        self._loop = asyncio.get_running_loop()
        self._h2 = Library(limits)
        self._cutter = Cutter(_PREFACE_BYTES)
        self._sender = Sender(self._h2, limits, self.reset)
        self._streams = Streams()
        self._nuisances = Nuisances(limits, self._loop.time())
        self._transport: asyncio.Transport
        self._client = "local"
        self._greeted = False
        self._closing = False
        self._last_stream_id = 0
        self._begun = 0.0
        # What has come and is not looked at yet: see `_hold`.
        self._held: list[bytes | Question] = []
        self._idleness = Idleness(limits, self._is_unused, self.dismiss)

    # The beginning and the end

    def begin(self, transport: asyncio.Transport, upgrade: Upgrade | None, received: bytes) -> None:
        """Take over a connection; `received` is what has come on it already."""
        self._transport = transport
        self._sender.begin(transport, upgraded=upgrade is not None)
        peername = transport.get_extra_info("peername")
        self._client = peer_address(str(peername[0])) if isinstance(peername, tuple) else "local"
        transport.set_protocol(self)
        self._begun = self._loop.time()
        self._crowd.add(self)
        self._guest.sit(self)
        if upgrade is None:
            self._h2.initiate_connection()
        else:
            self._h2.initiate_upgrade_connection(upgrade.settings)
        window = self._limits.connection_window_bytes - self._h2.inbound_flow_control_window
        if window > 0:
            self._h2.increment_flow_control_window(window)
        self._flush()
        self._idleness.watch()
        if upgrade is not None:
            self._request(1, list(upgrade.headers), ended=True)
            self._flush()
        if received:
            self.data_received(received)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: whatever was written for it is in vain."""
        del exc
        self._guest.leave()
        self._held.clear()
        self._crowd.discard(self)
        self._idleness.end()
        self._closing = True
        self._sender.resume()
        # Their handlers end by that, and take them from the list.
        for stream in tuple(self._streams.values()):
            stream.lose()

    def pause_writing(self) -> None:
        """The socket is full: write no more, and take on no more."""
        self._sender.pause()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """There is room again."""
        self._sender.resume()
        if not self._held and not self._transport.is_closing():
            self._transport.resume_reading()

    async def drain(self) -> None:
        """Tell the client to go elsewhere, and wait until every accepted stream has ended."""
        if not self._closing:
            self._closing = True
            self._goaway(ErrorCodes.NO_ERROR)
        await self._streams.all_handled()
        self._end()

    def abort(self) -> None:
        """End the connection and all its streams at once."""
        self._transport.abort()

    def is_idle(self) -> bool:
        """Whether the client waits for nothing and is owed nothing."""
        at_rest = not self._streams and not self._held
        return at_rest and not self._transport.get_write_buffer_size()

    def dismiss(self) -> None:
        """Tell the client to come again on another connection, and close."""
        if not self._closing:
            self._goaway(ErrorCodes.NO_ERROR)
        self._end()

    def look(self, now: float) -> None:
        """Leave a client that does not begin, and cut streams whose body does not get on."""
        patience = self._guest.patience
        if not self._greeted and now - self._begun >= patience.head_s:
            self.dismiss()
            return
        for stream in tuple(self._streams.values()):
            if stream.dawdles(now, patience.least):
                self._streams.lose(stream.id)
                self._reset(stream.id, ErrorCodes.CANCEL)

    def _end(self) -> None:
        """Close the connection; who does not read what is left for it waits no longer than that."""
        if self._transport.is_closing():
            return
        self._closing = True
        self._flush()
        self._transport.close()
        self._idleness.end(self.abort)

    def _goaway(self, code: ErrorCodes) -> None:
        self._flush()
        self._transport.write(goaway(self._last_stream_id, int(code)))

    def _is_unused(self) -> bool:
        return not self._streams

    # What comes in

    def data_received(self, data: bytes) -> None:
        """Answer what can be answered at once, feed the library the rest, write all of it."""
        try:
            whole = self._cutter.cut(data)
        except TooLarge:
            self._break(ErrorCodes.FRAME_SIZE_ERROR)
            return
        if self._held:
            self._held += whole
        else:
            self._take(whole)

    def _take(self, parts: list[bytes | Question]) -> None:
        for at, part in enumerate(parts):
            if isinstance(part, Question) and self._answer_at_once(part):
                continue
            is_short = not isinstance(part, Question) and len(part) <= _CONTROL_MAX_BYTES
            if self._errands.is_crowded() and not is_short:
                self._hold(parts[at:])
                break
            self._feed(part.frame if isinstance(part, Question) else part)
            if self._transport.is_closing():
                return
        self._flush()

    def _hold(self, parts: list[bytes | Question]) -> None:
        """Keep what asks for more than can be seen to now, and read no more until then."""
        self._held = parts
        self._transport.pause_reading()
        self._errands.hold(self._take_up)

    def _take_up(self) -> None:
        """Go on with what was kept; the first of it is known not to be at hand."""
        parts, self._held = self._held, []
        if not parts or self._transport.is_closing():
            return
        part = parts[0]
        self._feed(part.frame if isinstance(part, Question) else part)
        if self._transport.is_closing():
            return
        self._take(parts[1:])
        if not self._held and self._sender.is_writable:
            self._transport.resume_reading()

    def _feed(self, data: bytes) -> None:
        """Feed the library whole frames, and do what its events say."""
        try:
            happened = self._h2.receive_data(data)
        except ProtocolError as error:
            # The library has prepared the GOAWAY that says why.
            logger.debug("a client broke the protocol of HTTP/2: %s", error)
            self._close_broken()
            return
        self._count(cost_of_silence(len(data), len(happened)))
        for event in happened:
            self._happened(event)
            if self._transport.is_closing():
                return
        self._sender.collect()

    def _happened(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._nuisances.excuse()
                self._request(event.stream_id, event.headers, ended=event.stream_ended is not None)
            case DataReceived():
                self._data(event)
            case StreamEnded():
                stream = self._streams.get(event.stream_id)
                if stream is not None:
                    stream.end_request()
            case WindowUpdated():
                self._count(COSTS[WindowUpdated])
                self._streams.open_windows(event.stream_id)
            case _:
                self._control(event)

    def _control(self, event: Event) -> None:
        """Events that a peer can cause for nothing, and that no request waits for."""
        self._count(COSTS.get(type(event), 0))
        match event:
            case StreamReset():
                self._streams.lose(event.stream_id)
            case RemoteSettingsChanged():
                self._greeted = True
                self._sender.greeted()
                self._h2.learn_settings()
                self._streams.open_windows(0)
            case ConnectionTerminated():
                self._closing = True
                if not self._streams:
                    self._end()
            case _:
                pass

    def _count(self, nuisances: float) -> None:
        if self._nuisances.too_many(self._loop.time(), nuisances) and not self._closing:
            logger.debug("a client sent too much that costs nothing to send")
            self._break(ErrorCodes.ENHANCE_YOUR_CALM)

    def _break(self, code: ErrorCodes) -> None:
        self._goaway(code)
        self._close_broken()

    def _close_broken(self) -> None:
        self._closing = True
        self._streams.lose_all()
        self._end()

    def _data(self, event: DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if not event.data:
            self._count(1)
        if stream is None or stream.ended:
            # Nobody reads it; the connection's window must not shrink for that.
            self.acknowledge(event.stream_id, event.flow_controlled_length)
            return
        stream.receive(event.data, event.flow_controlled_length)

    def acknowledge(self, stream_id: int, count: int) -> None:
        """Open the windows for what has been taken of a request's body."""
        if self._transport.is_closing():
            return
        try:
            self._h2.acknowledge_received_data(count, stream_id)
        except ProtocolError:
            return  # the stream has ended meanwhile, and with it its window
        self._flush()

    # Requests

    def _answer_at_once(self, question: Question) -> bool:
        """Answer past the library, without a task, if the answer is at hand and there is room."""
        if self._closing or not self._greeted or not self._sender.is_writable:
            return False
        fields = self._h2.look(question.stream_id, question.block)
        asked = self._shapes.read(fields) if fields is not None else None
        hot = self._hot.answer(asked, self._client, HTTP2) if asked is not None else None
        if hot is None or len(hot.body) > self._h2.room():
            return False
        date = (b"date", hot.date.encode(), False)
        block = self._h2.skip(question.stream_id, [*hot.head, date], len(hot.body))
        pieces = frames.answer(
            question.stream_id, block, hot.body, self._h2.max_outbound_frame_size
        )
        self._sender.add(pieces, len(block) + len(hot.body))
        self._last_stream_id = question.stream_id
        self._idleness.interrupt()
        self._nuisances.excuse()
        self._hot.sent(hot)
        return True

    def _request(self, stream_id: int, headers: list[tuple[str, str]], *, ended: bool) -> None:
        self._idleness.interrupt()
        if self._closing:
            self._reset(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        self._last_stream_id = max(self._last_stream_id, stream_id)
        if self._errands.is_full():
            self._turn_away(stream_id, ended=ended)
            return
        message = message_of(headers) if is_well_formed(headers, ended=ended) else None
        if message is None:
            self._reset(stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        if ended:
            self._shapes.learn(headers)
        stream = Stream(self, stream_id, self._transport)
        self._streams[stream_id] = stream
        if ended:
            stream.request_ended = True
        else:
            stream.payload = streams.StreamReader(
                stream.protocol, self._limits.stream_window_bytes // 2, loop=self._loop
            )
        self._errands.begin(lambda: None if stream.gone else self._serve(stream, message))

    def _turn_away(self, stream_id: int, *, ended: bool) -> None:
        """Answer that there is no room for another request, without a handler."""
        self._h2.send_headers(stream_id, list(NO_ROOM), end_stream=True)
        if not ended:
            self._reset(stream_id, ErrorCodes.NO_ERROR)

    async def _serve(self, stream: Stream, message: RawRequestMessage) -> None:
        """See one stream to the end of its response."""
        try:
            await handle(self._server, stream, message)
        finally:
            self._finish(stream)

    def _finish(self, stream: Stream) -> None:
        """The handler is done: nothing may remain of the stream."""
        if not stream.gone and not stream.ended:
            self.reset(stream)
        elif stream.ended and not stream.request_ended and not stream.gone:
            # RFC 9113 section 8.1: answered without the whole request; no need to send the rest.
            self._reset(stream.id, ErrorCodes.NO_ERROR)
        stream.acknowledge()
        self._streams.pop(stream.id, None)
        self._idleness.interrupt()
        if self._closing and not self._streams:
            self._end()

    def reset(self, stream: Stream) -> None:
        """Reset one stream; the others do not notice."""
        stream.lose()
        self._streams.pop(stream.id, None)
        self._reset(stream.id, ErrorCodes.INTERNAL_ERROR)

    def _reset(self, stream_id: int, code: ErrorCodes) -> None:
        if self._transport.is_closing():
            return
        try:
            self._h2.reset_stream(stream_id, code)
        except ProtocolError:
            return  # it has ended meanwhile
        self._flush()

    # What goes out

    async def send(
        self, stream: Stream, data: bytes | bytearray | memoryview, *, end: bool
    ) -> None:
        """Send on a stream, waiting for its window and for the socket."""
        await self._sender.send(stream, data, end=end)

    def _flush(self) -> None:
        self._sender.flush()
