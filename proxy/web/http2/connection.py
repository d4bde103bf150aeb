"""One HTTP/2 connection: asyncio on one side, a sans-IO library (`jh2`) on the other.

The library keeps the protocol: framing, HPACK, the states of RFC 9113. Here its events become
requests to the same aiohttp application that HTTP/1.1 is served by, and responses become frames as
the windows allow. A hot answer needs neither a task nor a handler: one look-up, one write.

What is bounded: streams, header lists, what a peer may do for free, how long a stalled stream or an
idle connection lives, and what waits to be written (when the socket is full, nothing is read).
"""

import asyncio
import logging
import re
from typing import Final

from aiohttp import streams, web
from aiohttp.http import HttpVersion11, RawRequestMessage
from jh2.config import H2Configuration
from jh2.connection import H2Connection
from jh2.errors import ErrorCodes
from jh2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    PingReceived,
    PriorityUpdated,
    RemoteSettingsChanged,
    RequestReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
    UnknownFrameReceived,
    WindowUpdated,
)
from jh2.exceptions import ProtocolError, StreamClosedError
from jh2.hyperframe.frame import Frame, GoAwayFrame
from jh2.settings import SettingCodes, Settings
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from proxy.core.forwarded import peer_address
from proxy.core.upgrade import Upgrade
from proxy.web.hot import HotPath, HotReply
from proxy.web.http2.blocks import CarefulDecoder
from proxy.web.http2.limits import Http2Limits, Nuisances
from proxy.web.http2.stream import Stream, StreamWriter

logger = logging.getLogger(__name__)

# What each event costs its peer, in nuisances: see `proxy.web.http2.limits`.
_COST: Final = {
    WindowUpdated: 0.02,
    StreamReset: 2.0,
    RemoteSettingsChanged: 10.0,
    SettingsAcknowledged: 10.0,
    PingReceived: 1.0,
    PingAckReceived: 1.0,
    PriorityUpdated: 1.0,
    UnknownFrameReceived: 1.0,
}
# Frames that lead to nothing, such as those for streams that have ended, are counted by their size;
# no frame that leads to something is larger than this.
_BYTES_PER_EVENT: Final = 20_000
_COST_OF_A_SILENT_BYTE: Final = 0.001
_FLUSH_BYTES: Final = 256 * 1024
# What a client allows for compressing heads is a bound, and ours to stay below.
_ENCODER_TABLE_BYTES: Final = 4096
_NAME: Final = re.compile(r":?[!#$%&'*+.^_`|~0-9a-z-]+")
_NOT_IN_A_VALUE: Final = re.compile(r"[\0\r\n]")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_PATH: Final = re.compile(r"/[!-~]*")
_CONFIG: Final = H2Configuration(
    client_side=False,
    # Every byte has a meaning in it; what may not be in a field is the library's to refuse.
    header_encoding="latin-1",
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)


class _Library(H2Connection):  # type: ignore[misc]
    """The library, but for one thing: a client's GOAWAY is no end to what it still waits for."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        event = ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        return [], [event]


class Http2Connection(asyncio.Protocol):
    """One connection. `crowd` has all that are open, for the drain and the gauge.

    `errands` has the handlers that run for any of them: a handler may outlive its connection.
    """

    def __init__(
        self,
        server: web.Server,
        hot: HotPath,
        limits: Http2Limits,
        crowd: set["Http2Connection"],
        errands: set[asyncio.Task[None]],
    ) -> None:
        self._server = server
        self._hot = hot
        self._limits = limits
        self._crowd = crowd
        self._errands = errands
        self._loop = asyncio.get_running_loop()
        self._h2 = _Library(config=_CONFIG)
        self._h2.decoder = CarefulDecoder(self._h2.decoder)
        self._h2.decoder.max_header_list_size = limits.header_list_bytes
        self._h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: limits.max_streams,
                SettingCodes.MAX_HEADER_LIST_SIZE: limits.header_list_bytes,
                SettingCodes.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                SettingCodes.ENABLE_PUSH: 0,
            },
        )
        self._streams: dict[int, Stream] = {}
        self._nuisances = Nuisances(limits, self._loop.time())
        self._transport: asyncio.Transport
        self._client = "local"
        self._writable = asyncio.Event()
        self._writable.set()
        self._closing = False
        self._unflushed = 0
        self._names_seen: list[str] = []
        self._last_stream_id = 0
        self._last_activity = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    # The beginning and the end

    def begin(self, transport: asyncio.Transport, upgrade: Upgrade | None, received: bytes) -> None:
        """Take over a connection; `received` is what has come on it already."""
        self._transport = transport
        peername = transport.get_extra_info("peername")
        self._client = peer_address(str(peername[0])) if isinstance(peername, tuple) else "local"
        transport.set_protocol(self)
        self._crowd.add(self)
        if upgrade is None:
            self._h2.initiate_connection()
        else:
            self._h2.initiate_upgrade_connection(upgrade.settings)
        window = self._limits.connection_window_bytes - self._h2.inbound_flow_control_window
        if window > 0:
            self._h2.increment_flow_control_window(window)
        self._flush()
        self._watch_idleness()
        if upgrade is not None:
            self._request(1, list(upgrade.headers), ended=True)
            self._flush()
        if received:
            self.data_received(received)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: whatever was written for it is in vain."""
        del exc
        self._crowd.discard(self)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._closing = True
        self._writable.set()
        for stream in tuple(self._streams.values()):
            stream.lose()

    def pause_writing(self) -> None:
        """The socket is full: write no more, and take on no more."""
        self._writable.clear()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """There is room again."""
        self._writable.set()
        if not self._transport.is_closing():
            self._transport.resume_reading()

    async def drain(self) -> None:
        """Tell the client to go elsewhere, and wait until every accepted stream has ended.

        The library would close the connection with its GOAWAY, so the frame is written past it
        (RFC 9113 section 6.8): streams above the last one named are refused, the others go on.
        """
        if not self._closing:
            self._closing = True
            self._goaway(ErrorCodes.NO_ERROR)
        tasks = [stream.task for stream in self._streams.values() if stream.task is not None]
        if tasks:
            await asyncio.wait(tasks)
        self._end()

    def abort(self) -> None:
        """End the connection and all its streams at once."""
        self._transport.abort()

    def _end(self) -> None:
        """Close the connection; who does not read what is left for it waits no longer than that."""
        if self._transport.is_closing():
            return
        self._closing = True
        self._flush()
        self._transport.close()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._idle_timer = self._loop.call_later(self._limits.stall_timeout_s, self.abort)

    def _goaway(self, code: ErrorCodes) -> None:
        frame = GoAwayFrame(0, last_stream_id=self._last_stream_id, error_code=int(code))
        self._flush()
        self._transport.write(frame.serialize())

    def _watch_idleness(self) -> None:
        """Close a connection on which nothing has been asked for a while."""
        now = self._loop.time()
        if not self._streams and now - self._last_activity >= self._limits.idle_timeout_s:
            if self._last_activity:
                self._goaway(ErrorCodes.NO_ERROR)
                self._end()
                return
            self._last_activity = now
        self._idle_timer = self._loop.call_later(
            self._limits.idle_timeout_s / 2, self._watch_idleness
        )

    # What comes in

    def data_received(self, data: bytes) -> None:
        """Feed the library, do what its events say, write what they led to."""
        try:
            happened = self._h2.receive_data(data)
        except ProtocolError as error:
            # The library has prepared the GOAWAY that says why.
            logger.debug("a client broke the protocol of HTTP/2: %s", error)
            self._close_broken()
            return
        silent_bytes = len(data) - _BYTES_PER_EVENT * len(happened)
        if silent_bytes > 0:
            self._count(silent_bytes * _COST_OF_A_SILENT_BYTE)
        for event in happened:
            self._happened(event)
            if self._transport.is_closing():
                return
        self._flush()

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
                self._count(_COST[WindowUpdated])
                self._opened(event.stream_id)
            case _:
                self._control(event)

    def _control(self, event: Event) -> None:
        """Events that a peer can cause for nothing, and that no request waits for."""
        self._count(_COST.get(type(event), 0))
        match event:
            case StreamReset():
                stream = self._streams.pop(event.stream_id, None)
                if stream is not None:
                    stream.lose()
            case RemoteSettingsChanged():
                self._h2.encoder.header_table_size = min(
                    self._h2.encoder.header_table_size, _ENCODER_TABLE_BYTES
                )
                self._opened(0)
            case ConnectionTerminated():
                self._closing = True
                if not self._streams:
                    self._end()
            case _:
                pass

    def _count(self, nuisances: float) -> None:
        if self._nuisances.too_many(self._loop.time(), nuisances) and not self._closing:
            logger.debug("a client sent too much that costs nothing to send")
            self._goaway(ErrorCodes.ENHANCE_YOUR_CALM)
            self._close_broken()

    def _close_broken(self) -> None:
        self._closing = True
        for stream in tuple(self._streams.values()):
            stream.lose()
        self._streams.clear()
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

    def _opened(self, stream_id: int) -> None:
        if stream_id:
            stream = self._streams.get(stream_id)
            if stream is not None:
                stream.window_opened.set()
            return
        for stream in self._streams.values():
            stream.window_opened.set()

    # Requests

    def _request(self, stream_id: int, headers: list[tuple[str, str]], *, ended: bool) -> None:
        self._last_activity = self._loop.time()
        if self._closing:
            self._reset(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        self._last_stream_id = max(self._last_stream_id, stream_id)
        if not self._is_well_formed(headers, ended=ended):
            self._reset(stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        if ended and self._writable.is_set():
            hot = self._hot.answer(headers, self._client)
            try:
                if hot is not None and self._answer_at_once(stream_id, hot.reply):
                    self._hot.sent(hot)
                    return
            except StreamClosedError:
                return  # reset in the same breath
        stream = Stream(self, stream_id, self._transport)
        message = _message(headers)
        if message is None:
            self._reset(stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        self._streams[stream_id] = stream
        if ended:
            stream.request_ended = True
        else:
            stream.payload = streams.StreamReader(
                stream.protocol, self._limits.stream_window_bytes // 2, loop=self._loop
            )
        stream.task = self._loop.create_task(self._serve(stream, message))
        self._errands.add(stream.task)
        stream.task.add_done_callback(self._errands.discard)

    def _is_well_formed(self, headers: list[tuple[str, str]], *, ended: bool) -> bool:
        """Check what the library lets through (RFC 9113 sections 8.1.1 and 8.2.1).

        A client's requests have the same names over and over: they are looked at once.
        """
        names = [name for name, _ in headers]
        if names != self._names_seen:
            if not all(_NAME.fullmatch(name) for name in names):
                return False
            self._names_seen = names
        if _NOT_IN_A_VALUE.search("".join([value for _, value in headers])):
            return False
        if "content-length" not in names:
            return True
        lengths = {value for name, value in headers if name == "content-length"}
        return (
            len(lengths) == 1
            and bool(_LENGTH.fullmatch(length := lengths.pop()))
            and (not ended or int(length) == 0)
        )

    def _answer_at_once(self, stream_id: int, reply: HotReply) -> bool:
        """Send a whole answer, if the windows have room for it now."""
        body = reply.body
        if not body:
            self._h2.send_headers(stream_id, reply.fields, end_stream=True)
            return True
        if len(body) > self._h2.local_flow_control_window(stream_id):
            return False
        self._unflushed += len(body)
        if self._unflushed > _FLUSH_BYTES:
            # A full socket must be noticed before all that was asked for at once is in memory.
            self._flush()
        self._h2.send_headers(stream_id, reply.fields)
        frame_bytes = self._h2.max_outbound_frame_size
        if len(body) <= frame_bytes:
            self._h2.send_data(stream_id, body, end_stream=True)
            return True
        view = memoryview(body)
        for at in range(0, len(body), frame_bytes):
            last = at + frame_bytes >= len(body)
            self._h2.send_data(stream_id, view[at : at + frame_bytes], end_stream=last)
        return True

    async def _serve(self, stream: Stream, message: RawRequestMessage) -> None:
        """Run the application's handler for one stream, to the end of its response."""
        task = asyncio.current_task()
        assert task is not None, "this is a task"
        try:
            request = self._server.request_factory(
                message,
                stream.payload,
                stream.protocol,  # type: ignore[arg-type]
                StreamWriter(stream),
                task,
            )
            response = await self._server.request_handler(request)
            await response.prepare(request)
            await response.write_eof()
        except ConnectionError:
            pass  # the stream is gone, or the client is
        except Exception:
            # The boundary: what the handler let through is ours.
            logger.exception("a request over HTTP/2 failed: %s", message.path)
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
        self._last_activity = self._loop.time()
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
        view = memoryview(data)
        await self._turn(stream)
        if stream.head is not None:
            head, stream.head = stream.head, None
            self._h2.send_headers(stream.id, head, end_stream=end and not view)
            if end and not view:
                stream.ended = True
                self._flush()
                return
        unflushed = 0
        while view:
            window = self._h2.local_flow_control_window(stream.id)
            if window <= 0:
                self._flush()
                await self._wait_for_window(stream)
                continue
            size = min(window, len(view), self._h2.max_outbound_frame_size)
            last = size == len(view)
            self._h2.send_data(stream.id, view[:size], end_stream=end and last)
            stream.ended = end and last
            view = view[size:]
            unflushed += size
            if unflushed >= _FLUSH_BYTES:
                self._flush()
                unflushed = 0
                if view:
                    # Others get their turn between the stretches of a long body.
                    await asyncio.sleep(0)
                    await self._turn(stream)
        if end and not stream.ended:
            self._h2.end_stream(stream.id)
            stream.ended = True
        self._flush()

    async def _turn(self, stream: Stream) -> None:
        """Wait until the socket takes bytes. Raises ConnectionResetError if the stream is gone."""
        if not self._writable.is_set():
            await self._no_longer_than_a_stall(stream, self._writable)
        if stream.gone:
            raise ConnectionResetError("the stream is gone")

    async def _wait_for_window(self, stream: Stream) -> None:
        stream.window_opened.clear()
        await self._no_longer_than_a_stall(stream, stream.window_opened)
        await self._turn(stream)

    async def _no_longer_than_a_stall(self, stream: Stream, event: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(self._limits.stall_timeout_s):
                await event.wait()
        except TimeoutError:
            self.reset(stream)
            raise ConnectionResetError("the client does not read") from None

    def _flush(self) -> None:
        self._unflushed = 0
        data = self._h2.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)


def _message(headers: list[tuple[str, str]]) -> RawRequestMessage | None:
    """Write a request's head as HTTP/1.1's parser would have read it; None if it has no path."""
    method = path = ""
    fields: CIMultiDict[str] = CIMultiDict()
    for name, value in headers:
        match name:
            case ":method":
                method = value
            case ":path":
                path = value
            case ":authority":
                fields["Host"] = value
            case _ if name.startswith(":"):
                pass
            case _:
                fields.add(name, value)
    if not _PATH.fullmatch(path) or not method.isascii() or not method.isalpha():
        return None
    target, _, query = path.partition("?")
    try:
        url = URL.build(path=target, query_string=query, encoded=True)
    except ValueError:
        return None
    return RawRequestMessage(
        method=method,
        path=path,
        version=HttpVersion11,
        headers=CIMultiDictProxy(fields),
        raw_headers=(),
        should_close=False,
        compression=None,
        upgrade=False,
        chunked=False,
        url=url,
    )
