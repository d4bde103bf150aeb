"""A client of HTTP/2 that obeys nobody: frames as the test writes them, one by one.

`frame` writes any frame, well-formed or not; the other writers are for those that tests need often.
`Peer` is one connection. It reads what the server sends, keeps it by stream, and does nothing of
its own accord but acknowledge SETTINGS and, unless told otherwise, give back window for what came.
Every wait is bounded: a server that says nothing fails the test.
"""

import asyncio
import base64
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple, Self

from jh2.hpack import Decoder, Encoder

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATIENCE_SECONDS: Final = 10.0
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY_FLAG = 0x1, 0x1, 0x4, 0x8, 0x20
_LARGEST_WINDOW: Final = 2**31 - 1
_HEAD_BYTES: Final = 9


class Kind(IntEnum):
    """The frame types of RFC 9113."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Setting(IntEnum):
    """The settings of RFC 9113 that tests set."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Code(IntEnum):
    """The error codes of RFC 9113."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


class Frame(NamedTuple):
    """One frame as it was read."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class NotGranted(Exception):
    """The server answered an Upgrade with something else than 101; carries the head."""


class Closed(Exception):
    """The server has closed the connection before what was waited for came."""


def frame(
    kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", *, length: int | None = None
) -> bytes:
    """Write a frame; `length` for one that lies about its own."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(values: Mapping[Setting, int] | Iterable[tuple[int, int]] = ()) -> bytes:
    """Write a SETTINGS frame."""
    return frame(Kind.SETTINGS, 0, 0, settings_payload(values))


def settings_payload(values: Mapping[Setting, int] | Iterable[tuple[int, int]]) -> bytes:
    """Write the entries of a SETTINGS frame."""
    pairs: Iterable[tuple[int, int]] = values.items() if isinstance(values, Mapping) else values
    return b"".join(struct.pack(">HI", name, value) for name, value in pairs)


def window_update(increment: int, stream: int = 0) -> bytes:
    """Write a WINDOW_UPDATE frame."""
    return frame(Kind.WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def rst_stream(stream: int, code: int = Code.CANCEL) -> bytes:
    """Write a RST_STREAM frame."""
    return frame(Kind.RST_STREAM, 0, stream, struct.pack(">I", code))


def ping(payload: bytes = b"12345678", *, ack: bool = False) -> bytes:
    """Write a PING frame."""
    return frame(Kind.PING, ACK if ack else 0, 0, payload)


def goaway(last_stream: int = 0, code: int = Code.NO_ERROR) -> bytes:
    """Write a GOAWAY frame."""
    return frame(Kind.GOAWAY, 0, 0, struct.pack(">II", last_stream, code))


def priority(stream: int, depends_on: int = 0, weight: int = 15) -> bytes:
    """Write a PRIORITY frame."""
    return frame(Kind.PRIORITY, 0, stream, struct.pack(">IB", depends_on, weight))


def data(stream: int, payload: bytes = b"", *, end: bool = False) -> bytes:
    """Write a DATA frame."""
    return frame(Kind.DATA, END_STREAM if end else 0, stream, payload)


def literal(name: bytes, value: bytes) -> bytes:
    """Write one header field in HPACK without tables or Huffman codes, whatever it contains."""
    return b"\x00" + _integer(len(name)) + name + _integer(len(value)) + value


def _integer(value: int) -> bytes:
    if value < 127:
        return bytes([value])
    written, value = b"\x7f", value - 127
    while value >= 128:
        written += bytes([value % 128 + 128])
        value //= 128
    return written + bytes([value])


def block(fields: Iterable[tuple[str, str]]) -> bytes:
    """Write a header block of literals."""
    return b"".join(literal(name.encode(), value.encode()) for name, value in fields)


def asking(path: str, method: str = "GET") -> list[tuple[str, str]]:
    """Return the pseudo-header fields of a request."""
    return [
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "127.0.0.1"),
    ]


def headers(
    stream: int,
    fields: Iterable[tuple[str, str]],
    *,
    end: bool = True,
    end_headers: bool = True,
) -> bytes:
    """Write a HEADERS frame."""
    flags = (END_STREAM if end else 0) | (END_HEADERS if end_headers else 0)
    return frame(Kind.HEADERS, flags, stream, block(fields))


def get(stream: int, path: str, fields: Mapping[str, str] | None = None) -> bytes:
    """Write a whole GET request."""
    return headers(stream, [*asking(path), *(fields or {}).items()])


def upgrade_head(
    path: str,
    *,
    method: str = "GET",
    host: str = "127.0.0.1",
    fields: Iterable[tuple[str, str]] = (),
    values: Mapping[Setting, int] | None = None,
) -> bytes:
    """Write the HTTP/1.1 request by which cargo asks for HTTP/2; `values` are its settings."""
    wanted = {Setting.MAX_CONCURRENT_STREAMS: 100} if values is None else values
    encoded = base64.urlsafe_b64encode(settings_payload(wanted)).rstrip(b"=").decode()
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {host}",
        "User-Agent: cargo/1.95.0",
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        f"HTTP2-Settings: {encoded}",
        *(f"{name}: {value}" for name, value in fields),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@dataclass(slots=True)
class Reply:
    """What has come on one stream. `fields` are as sent; `reset` is the code of a RST_STREAM."""

    fields: list[tuple[str, str]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more can come."""
        return self.ended or self.reset is not None

    @property
    def headers(self) -> dict[str, str]:
        """The fields without `:status`."""
        return {name: value for name, value in self.fields if name != ":status"}

    @property
    def status(self) -> int:
        """The status; fails if no head has come."""
        return int(dict(self.fields)[":status"])


class Peer:
    """One connection of a client. Made by `connected`, `upgraded` or from its parts."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()
        self._encoder = Encoder()
        self.replies: dict[int, Reply] = {}
        self.settings: dict[int, int] = {}
        self.acknowledged = 0
        self.pongs: list[bytes] = []
        self.goaway: tuple[int, int] | None = None
        self.windows: dict[int, int] = {}
        self.closed = False
        self.gives_window = True

    @classmethod
    async def connect(cls, port: int, tls: ssl.SSLContext | None = None) -> Self:
        """Open a connection, over `tls` if that is given, and send nothing."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        if tls is not None:
            chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
            assert chosen == "h2", f"ALPN chose {chosen}"
        return cls(reader, writer)

    def send(self, *frames: bytes) -> None:
        """Send bytes; an error of the connection shows when it is read."""
        self._writer.write(b"".join(frames))

    async def flush(self) -> None:
        """Wait until what was sent has left this process. Raises Closed."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._writer.drain()
        except ConnectionError:
            raise Closed from None

    def compressed(self, stream: int, fields: Iterable[tuple[str, str]]) -> bytes:
        """Write a whole request as a real client does, with the tables of HPACK."""
        encoded = self._encoder.encode([(n.encode(), v.encode(), False) for n, v in fields])
        return frame(Kind.HEADERS, END_STREAM | END_HEADERS, stream, encoded)

    async def read(self) -> Frame:
        """Read one frame and note what it says. Raises Closed, and TimeoutError for silence."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                head = await self._reader.readexactly(_HEAD_BYTES)
                kind, flags, stream = struct.unpack(">BBI", head[3:])
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed = True
            raise Closed(f"GOAWAY {self.goaway}, {self.replies}") from None
        got = Frame(kind, flags, stream, payload)
        self._note(got)
        return got

    async def until(self, holds: Callable[[Self], bool]) -> Self:
        """Read until `holds`. Raises Closed if the connection ends before."""
        while not holds(self):
            await self.read()
        return self

    async def reply(self, stream: int) -> Reply:
        """Read until a stream is over."""
        await self.until(lambda self: stream in self.replies and self.replies[stream].is_over)
        return self.replies[stream]

    async def pong(self) -> None:
        """Read until the server has seen all that was sent: its answer to a PING of its own."""
        before = len(self.pongs)
        self.send(ping(b"are you?"))
        await self.until(lambda self: len(self.pongs) > before)

    async def end(self) -> int | None:
        """Read until the server closes; returns the code of its GOAWAY if one came."""
        try:
            while True:
                await self.read()
        except Closed:
            return None if self.goaway is None else self.goaway[1]

    def leave(self) -> None:
        """Close the connection from this side, without a word."""
        self._writer.transport.abort()

    def _note(self, got: Frame) -> None:
        match got.kind:
            case Kind.HEADERS:
                assert got.flags & END_HEADERS, "the proxy's heads fit one frame"
                reply = self.replies.setdefault(got.stream, Reply())
                reply.fields += [(_text(h[0]), _text(h[1])) for h in self._decoded(got.payload)]
                reply.ended |= bool(got.flags & END_STREAM)
            case Kind.DATA:
                reply = self.replies[got.stream]
                assert not reply.is_over, "nothing comes after the end"
                reply.body += got.payload
                reply.ended |= bool(got.flags & END_STREAM)
                if self.gives_window and got.payload:
                    self.send(window_update(len(got.payload)))
                    if not reply.ended:
                        self.send(window_update(len(got.payload), got.stream))
            case Kind.RST_STREAM:
                self.replies.setdefault(got.stream, Reply()).reset = _number(got.payload)
            case Kind.SETTINGS if got.flags & ACK:
                self.acknowledged += 1
            case Kind.SETTINGS:
                self.settings.update(struct.iter_unpack(">HI", got.payload))
                self.send(frame(Kind.SETTINGS, ACK))
            case Kind.PING:
                assert got.flags & ACK
                self.pongs.append(got.payload)
            case Kind.GOAWAY:
                self.goaway = (_number(got.payload[:4]), _number(got.payload[4:8]))
            case Kind.WINDOW_UPDATE:
                total = self.windows.get(got.stream, 0) + _number(got.payload)
                self.windows[got.stream] = total
            case _:
                raise AssertionError(f"a server does not send {got}")

    def _decoded(self, payload: bytes) -> list[tuple[bytes, bytes]]:
        decoded: list[tuple[bytes, bytes]] = self._decoder.decode(payload, raw=True)
        return decoded


def _text(value: bytes) -> str:
    return bytes(value).decode("latin-1")


def _number(payload: bytes) -> int:
    return int.from_bytes(payload, "big") & _LARGEST_WINDOW


@asynccontextmanager
async def connected(port: int, values: Mapping[Setting, int] | None = None) -> AsyncIterator[Peer]:
    """Speak HTTP/2 by prior knowledge; `values` are the client's settings."""
    peer = await Peer.connect(port)
    try:
        peer.send(PREFACE, settings(values or {}))
        await peer.until(lambda peer: bool(peer.settings) and peer.acknowledged == 1)
        yield peer
    finally:
        peer.leave()


@asynccontextmanager
async def upgraded(
    port: int,
    path: str,
    *,
    method: str = "GET",
    host: str = "127.0.0.1",
    fields: Iterable[tuple[str, str]] = (),
    values: Mapping[Setting, int] | None = None,
) -> AsyncIterator[Peer]:
    """Ask for HTTP/2 as cargo does; the request is stream 1. Raises NotGranted."""
    peer = await Peer.connect(port)
    try:
        peer.send(upgrade_head(path, method=method, host=host, fields=fields, values=values))
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = await peer._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise NotGranted(head)
        peer.send(PREFACE, settings(values or {}))
        yield peer
    finally:
        peer.leave()
