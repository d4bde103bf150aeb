"""What RFC 9113 and RFC 7541 forbid, one sequence of frames after the other.

Each case is what a client sends after the exchange of SETTINGS, and what the standard makes of it.
A server may always do more than the standard demands: end the connection where the stream would do.
Where the demanded code is not what comes, the case says what comes and why it is let be. Whatever
is sent: an answer comes within a bounded time, no error is logged, and a neighbour on a connection
of its own does not notice.
"""

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.web.doorstep import Door, doorstep
from tests.world import http2
from tests.world.http2 import (
    END_HEADERS,
    END_STREAM,
    PADDED,
    PRIORITY_FLAG,
    Closed,
    Code,
    Kind,
    Peer,
    Setting,
    asking,
    block,
    connected,
    data,
    frame,
    get,
    headers,
    literal,
)
from tests.world.registry import Registry
from tests.world.server import RegistryServer

CONFIG = "/crates-io/index/config.json"
PUBLISH = asking("/crates-io/api/v1/crates/new", "PUT")
REQUEST = block(asking(CONFIG))
ALL = END_STREAM | END_HEADERS


@dataclass(frozen=True, slots=True)
class Case:
    """`codes` are what the standard allows; none: the connection must live and streams too."""

    name: str
    sent: bytes
    codes: frozenset[Code] = frozenset()
    deviation: tuple[Code | None, str] | None = None

    def __str__(self) -> str:
        return self.name


def fine(name: str, *sent: bytes) -> Case:
    return Case(name, b"".join(sent))


def wrong(
    name: str, *sent: bytes, codes: set[Code], deviation: tuple[Code | None, str] | None = None
) -> Case:
    return Case(name, b"".join(sent), frozenset(codes), deviation)


PROTOCOL = {Code.PROTOCOL_ERROR}
CLOSED = {Code.STREAM_CLOSED}
SIZE = {Code.FRAME_SIZE_ERROR}
FLOW = {Code.FLOW_CONTROL_ERROR}
COMPRESSION = {Code.COMPRESSION_ERROR}
# What the test of a case must see instead: the connection's end with a code, or no harm at all.
LENIENT = (None, "the library does not look at padding: there is only one thing it can mean")
LATE_SIZE = (None, "the library takes a table's new size anywhere in a block, within its bound")
ONE_CODE = (Code.PROTOCOL_ERROR, "the library closes the connection, with its general code")


def fields(*pairs: tuple[str, str], end: bool = True) -> bytes:
    """Write a HEADERS frame of stream 1 with exactly these fields."""
    return headers(1, pairs, end=end)


def with_fields(*pairs: tuple[str, str]) -> bytes:
    return fields(*asking(CONFIG), *pairs)


def hpack(encoded: bytes) -> bytes:
    return frame(Kind.HEADERS, ALL, 1, REQUEST + encoded)


def huffman(value: bytes) -> bytes:
    """Write a request with `x-test` and a value that is in Huffman's code."""
    return hpack(b"\x00\x85\xf2\xb2\x4a\x84\xff" + value)


METHOD, SCHEME, PATH, AUTHORITY = asking(CONFIG)
# A request of which the server does not know yet whether it is complete.
OPEN = headers(1, PUBLISH, end=False)
HALF = headers(1, asking(CONFIG), end_headers=False)

CASES = [
    # RFC 9113 section 4: frames
    fine("4.1 unknown type", frame(0x16, 0, 0, bytes(8))),
    fine("4.1 undefined flags", frame(Kind.PING, 0x16, 0, bytes(8))),
    fine("4.1 reserved bit", frame(Kind.PING, 0, 1 << 31, bytes(8))),
    wrong("4.2 DATA too large", OPEN, data(1, bytes(16_385)), codes=SIZE),
    wrong("4.2 HEADERS too large", frame(Kind.HEADERS, ALL, 1, bytes(16_385)), codes=SIZE),
    wrong("4.2 unknown too large", frame(0x16, 0, 0, bytes(16_385)), codes=SIZE),
    wrong(
        "4.3 block of nonsense",
        hpack(b"\x82\x84\xff\xff\xff\xff\xff\xff"),
        codes=COMPRESSION,
        deviation=ONE_CODE,
    ),
    wrong(
        "4.3 block cut short",
        hpack(literal(b"a", b"bc")[:-1]),
        codes=COMPRESSION,
        deviation=ONE_CODE,
    ),
    wrong("4.3 PRIORITY in a block", HALF, http2.priority(1), codes=PROTOCOL),
    wrong("4.3 HEADERS in a block", HALF, get(3, CONFIG), codes=PROTOCOL),
    wrong("4.3 PING in a block", HALF, http2.ping(), codes=PROTOCOL),
    # section 5.1: the states of a stream
    wrong("5.1 idle: DATA", data(1, b"x", end=True), codes=PROTOCOL),
    wrong("5.1 idle: RST_STREAM", http2.rst_stream(1), codes=PROTOCOL),
    wrong("5.1 idle: WINDOW_UPDATE", http2.window_update(1, 1), codes=PROTOCOL),
    wrong("5.1 idle: CONTINUATION", frame(Kind.CONTINUATION, 4, 1, REQUEST), codes=PROTOCOL),
    fine("5.1 idle: PRIORITY", http2.priority(1)),
    wrong("5.1 half-closed: DATA", get(1, CONFIG), data(1, b"x", end=True), codes=CLOSED),
    wrong("5.1 half-closed: HEADERS", get(1, CONFIG), get(1, CONFIG), codes=CLOSED),
    wrong(
        "5.1 half-closed: CONTINUATION",
        get(1, CONFIG),
        frame(Kind.CONTINUATION, END_HEADERS, 1, REQUEST),
        codes=CLOSED | PROTOCOL,
    ),
    wrong("5.1 closed by reset: DATA", OPEN, http2.rst_stream(1), data(1, b"x"), codes=CLOSED),
    wrong("5.1 closed by reset: HEADERS", OPEN, http2.rst_stream(1), get(1, CONFIG), codes=CLOSED),
    fine("5.1 closed by reset: PRIORITY", OPEN, http2.rst_stream(1), http2.priority(1)),
    fine(
        "5.1 closed by reset: WINDOW_UPDATE",
        get(1, CONFIG),
        http2.rst_stream(1),
        http2.window_update(1, 1),
    ),
    fine("5.1 closed by reset: RST_STREAM", OPEN, http2.rst_stream(1), http2.rst_stream(1)),
    wrong("5.1.1 even number", get(2, CONFIG), codes=PROTOCOL),
    wrong("5.1.1 number below the last", get(5, CONFIG), get(3, CONFIG), codes=PROTOCOL),
    wrong(
        "5.1.2 too many at once",
        *(headers(each, PUBLISH, end=False) for each in range(1, 515, 2)),
        codes=PROTOCOL | {Code.REFUSED_STREAM},
    ),
    wrong(
        "5.3.1 HEADERS depends on itself",
        frame(Kind.HEADERS, ALL | PRIORITY_FLAG, 1, b"\x00\x00\x00\x01\x0f" + REQUEST),
        codes=PROTOCOL,
    ),
    wrong("5.3.1 PRIORITY depends on itself", http2.priority(3, 3), codes=PROTOCOL),
    wrong("5.5 unknown frame in a block", HALF, frame(0x16, 0, 0, bytes(8)), codes=PROTOCOL),
    # section 6: each frame
    wrong("6.1 DATA on the connection", data(0, b"x"), codes=PROTOCOL),
    wrong("6.1 DATA with too much padding", OPEN, frame(0, PADDED, 1, b"\x05abc"), codes=PROTOCOL),
    wrong("6.1 DATA padded with nothing", OPEN, frame(0, PADDED, 1), codes=PROTOCOL | SIZE),
    wrong("6.2 HEADERS on the connection", frame(Kind.HEADERS, ALL, 0, REQUEST), codes=PROTOCOL),
    wrong(
        "6.2 HEADERS with too much padding",
        frame(Kind.HEADERS, ALL | PADDED, 1, b"\xff" + REQUEST[:50]),
        codes=PROTOCOL,
    ),
    wrong(
        "6.2 HEADERS with half a priority", frame(1, ALL | PRIORITY_FLAG, 1, b"\0\0"), codes=SIZE
    ),
    wrong("6.3 PRIORITY on the connection", http2.priority(0, 1), codes=PROTOCOL),
    wrong("6.3 PRIORITY of four bytes", OPEN, frame(Kind.PRIORITY, 0, 1, bytes(4)), codes=SIZE),
    wrong("6.4 RST_STREAM on the connection", http2.rst_stream(0), codes=PROTOCOL),
    wrong(
        "6.4 RST_STREAM of three bytes", OPEN, frame(Kind.RST_STREAM, 0, 1, bytes(3)), codes=SIZE
    ),
    wrong(
        "6.5 SETTINGS acknowledged at length",
        frame(Kind.SETTINGS, 1, 0, bytes(6)),
        codes=SIZE,
        deviation=ONE_CODE,
    ),
    wrong("6.5 SETTINGS on a stream", frame(Kind.SETTINGS, 0, 1), codes=PROTOCOL),
    wrong("6.5 SETTINGS of three bytes", frame(Kind.SETTINGS, 0, 0, bytes(3)), codes=SIZE),
    wrong("6.5.2 ENABLE_PUSH of 2", http2.settings({Setting.ENABLE_PUSH: 2}), codes=PROTOCOL),
    wrong(
        "6.5.2 INITIAL_WINDOW_SIZE too large",
        http2.settings({Setting.INITIAL_WINDOW_SIZE: 2**31}),
        codes=FLOW,
    ),
    wrong(
        "6.5.2 MAX_FRAME_SIZE too small",
        http2.settings({Setting.MAX_FRAME_SIZE: 2**14 - 1}),
        codes=PROTOCOL,
    ),
    wrong(
        "6.5.2 MAX_FRAME_SIZE too large",
        http2.settings({Setting.MAX_FRAME_SIZE: 2**24}),
        codes=PROTOCOL,
    ),
    fine("6.5.2 unknown setting", http2.settings([(0xFF, 1)])),
    fine("6.5.3 one setting twice", http2.settings([(4, 2**31 - 1), (4, 1)])),
    wrong(
        "6.6 PUSH_PROMISE",
        OPEN,
        frame(Kind.PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + REQUEST),
        codes=PROTOCOL,
    ),
    fine("6.7 PING answered unasked", http2.ping(ack=True)),
    wrong("6.7 PING on a stream", frame(Kind.PING, 0, 1, bytes(8)), codes=PROTOCOL),
    wrong("6.7 PING of six bytes", frame(Kind.PING, 0, 0, bytes(6)), codes=SIZE),
    wrong("6.8 GOAWAY on a stream", frame(Kind.GOAWAY, 0, 1, bytes(8)), codes=PROTOCOL),
    wrong("6.8 GOAWAY of four bytes", frame(Kind.GOAWAY, 0, 0, bytes(4)), codes=SIZE),
    wrong("6.9 WINDOW_UPDATE of 0 for all", http2.window_update(0), codes=PROTOCOL),
    wrong("6.9 WINDOW_UPDATE of 0 for a stream", OPEN, http2.window_update(0, 1), codes=PROTOCOL),
    wrong(
        "6.9 WINDOW_UPDATE of three bytes", frame(Kind.WINDOW_UPDATE, 0, 0, bytes(3)), codes=SIZE
    ),
    wrong("6.9.1 window of all too large", http2.window_update(2**31 - 1), codes=FLOW),
    wrong(
        "6.9.1 window of a stream too large", OPEN, http2.window_update(2**31 - 1, 1), codes=FLOW
    ),
    wrong(
        "6.9.2 window too large by SETTINGS",
        http2.settings({Setting.INITIAL_WINDOW_SIZE: 100}),
        OPEN,
        http2.window_update(2**31 - 200, 1),
        http2.settings({Setting.INITIAL_WINDOW_SIZE: 2**31 - 1}),
        codes=FLOW,
    ),
    fine(
        "6.10 CONTINUATIONs",
        frame(Kind.HEADERS, END_STREAM, 1, REQUEST[:5]),
        frame(Kind.CONTINUATION, 0, 1, REQUEST[5:9]),
        frame(Kind.CONTINUATION, 0, 1),
        frame(Kind.CONTINUATION, END_HEADERS, 1, REQUEST[9:]),
    ),
    wrong(
        "6.10 CONTINUATION, then DATA",
        HALF,
        frame(Kind.CONTINUATION, 0, 1),
        data(1, b"x"),
        codes=PROTOCOL,
    ),
    wrong("6.10 CONTINUATION on the connection", HALF, frame(9, 4, 0), codes=PROTOCOL),
    wrong("6.10 CONTINUATION of another stream", HALF, frame(9, 4, 3), codes=PROTOCOL),
    wrong("6.10 CONTINUATION of nothing", OPEN, frame(9, 4, 1, REQUEST), codes=PROTOCOL),
    wrong("6.10 CONTINUATION of DATA", OPEN, data(1), frame(9, 4, 1, REQUEST), codes=PROTOCOL),
    # section 7: error codes
    fine("7 RST_STREAM with an unknown code", OPEN, http2.rst_stream(1, 0xFFFF)),
    # section 8: requests
    wrong("8.1 HEADERS twice before the end", OPEN, fields(("a", "b"), end=False), codes=PROTOCOL),
    wrong("8.1 pseudo-field in the trailers", OPEN, fields(METHOD), codes=PROTOCOL),
    wrong("8.2 capitals", with_fields(("X-Test", "a")), codes=PROTOCOL),
    wrong("8.2.1 space in a name", with_fields(("x test", "a")), codes=PROTOCOL),
    wrong("8.2.1 colon in a name", with_fields(("x:test", "a")), codes=PROTOCOL),
    wrong("8.2.1 no name", with_fields(("", "a")), codes=PROTOCOL),
    wrong("8.2.1 line feed in a value", with_fields(("x", "a\nb: c")), codes=PROTOCOL),
    wrong("8.2.1 return in a value", with_fields(("x", "a\rb")), codes=PROTOCOL),
    wrong("8.2.1 NUL in a value", with_fields(("x", "a\0b")), codes=PROTOCOL),
    wrong("8.2.1 space around a value", with_fields(("x", " a")), codes=PROTOCOL),
    fine("8.2.1 bytes in a value", hpack(literal(b"x", b"\xff\xfe"))),
    wrong("8.2.1 bytes in a name", hpack(literal(b"\xff\xfe", b"x")), codes=PROTOCOL),
    wrong("8.2.2 Connection", with_fields(("connection", "keep-alive")), codes=PROTOCOL),
    wrong("8.2.2 Transfer-Encoding", with_fields(("transfer-encoding", "chunked")), codes=PROTOCOL),
    wrong("8.2.2 Upgrade", with_fields(("upgrade", "h2c")), codes=PROTOCOL),
    wrong("8.2.2 TE of chunks", with_fields(("te", "chunked")), codes=PROTOCOL),
    fine("8.2.2 TE of trailers", with_fields(("te", "trailers"))),
    wrong("8.3 unknown pseudo-field", with_fields((":test", "a")), codes=PROTOCOL),
    wrong("8.3 pseudo-field of a response", with_fields((":status", "200")), codes=PROTOCOL),
    wrong(
        "8.3 pseudo-field behind a field",
        fields(METHOD, SCHEME, ("a", "b"), PATH, AUTHORITY),
        codes=PROTOCOL,
    ),
    wrong("8.3.1 no method", fields(SCHEME, PATH, AUTHORITY), codes=PROTOCOL),
    wrong("8.3.1 no scheme", fields(METHOD, PATH, AUTHORITY), codes=PROTOCOL),
    wrong("8.3.1 no path", fields(METHOD, SCHEME, AUTHORITY), codes=PROTOCOL),
    wrong("8.3.1 empty path", fields(METHOD, SCHEME, (":path", ""), AUTHORITY), codes=PROTOCOL),
    wrong(
        "8.3.1 path without a slash",
        fields(METHOD, SCHEME, (":path", "a"), AUTHORITY),
        codes=PROTOCOL,
    ),
    wrong(
        "8.3.1 space in the path",
        fields(METHOD, SCHEME, (":path", "/a b"), AUTHORITY),
        codes=PROTOCOL,
    ),
    wrong("8.3.1 two methods", fields(METHOD, METHOD, SCHEME, PATH, AUTHORITY), codes=PROTOCOL),
    wrong("8.3.1 two schemes", fields(METHOD, SCHEME, SCHEME, PATH, AUTHORITY), codes=PROTOCOL),
    wrong("8.3.1 two paths", fields(METHOD, SCHEME, PATH, PATH, AUTHORITY), codes=PROTOCOL),
    wrong("8.3.1 Host of another authority", with_fields(("host", "evil.example")), codes=PROTOCOL),
    wrong("8.5 CONNECT", fields((":method", "CONNECT"), (":authority", "a:1")), codes=PROTOCOL),
    wrong(
        "8.1.1 length that the body has not",
        headers(1, [*PUBLISH, ("content-length", "1")], end=False),
        data(1, b"four", end=True),
        codes=PROTOCOL,
    ),
    wrong(
        "8.1.1 length that two pieces have not",
        headers(1, [*PUBLISH, ("content-length", "3")], end=False),
        data(1, b"ab"),
        data(1, b"cd", end=True),
        codes=PROTOCOL,
    ),
    wrong("8.1.1 length without a body", with_fields(("content-length", "3")), codes=PROTOCOL),
    wrong("8.1.1 length that is none", with_fields(("content-length", "-3")), codes=PROTOCOL),
    # RFC 7541
    wrong(
        "HPACK 2.3.3 index beyond the tables", hpack(b"\xc6"), codes=COMPRESSION, deviation=ONE_CODE
    ),
    wrong(
        "HPACK 2.3.3 name beyond the tables",
        hpack(b"\x7e\x01a"),
        codes=COMPRESSION,
        deviation=ONE_CODE,
    ),
    wrong(
        "HPACK 4.2 table size behind a field",
        hpack(b"\x20"),
        codes=COMPRESSION,
        deviation=LATE_SIZE,
    ),
    wrong(
        "HPACK 5.1 number without an end",
        hpack(b"\xff" + b"\x80" * 200),
        codes=COMPRESSION,
        deviation=ONE_CODE,
    ),
    wrong(
        "HPACK 5.1 number too large",
        hpack(b"\xff" + b"\xff" * 20 + b"\x01"),
        codes=COMPRESSION,
        deviation=ONE_CODE,
    ),
    wrong(
        "HPACK 5.2 too much padding",
        huffman(b"\x84\x49\x50\x9f\xff"),
        codes=COMPRESSION,
        deviation=ONE_CODE,
    ),
    wrong(
        "HPACK 5.2 padding of zeroes",
        huffman(b"\x83\x49\x50\x90"),
        codes=COMPRESSION,
        deviation=LENIENT,
    ),
    wrong(
        "HPACK 5.2 end of string",
        huffman(b"\x84\xff\xff\xff\xff"),
        codes=COMPRESSION,
        deviation=ONE_CODE,
    ),
    fine("HPACK 5.2 padding of ones", huffman(b"\x83\x49\x50\x9f")),
    wrong("HPACK 6.1 index 0", hpack(b"\x80"), codes=COMPRESSION, deviation=ONE_CODE),
    wrong(
        "HPACK 6.3 table size beyond the limit",
        frame(Kind.HEADERS, ALL, 1, b"\x3f\xe1\xff\x3f" + REQUEST),
        codes=COMPRESSION,
        deviation=ONE_CODE,
    ),
]


@pytest_asyncio.fixture
async def door(tmp_path: Path, stocked: Registry, upstream: RegistryServer) -> AsyncIterator[Door]:
    async with doorstep(tmp_path, upstream) as opened:
        yield opened


async def outcome(peer: Peer, sent: bytes) -> tuple[str, int | None]:
    """Send, and tell what became of it: the connection's end, a stream's end, or neither."""
    peer.send(sent)
    try:
        # What is answered to the frames of one segment may come behind the answer to a PING in it.
        await peer.pong()
        await peer.pong()
        resets = [reply.reset for reply in peer.replies.values() if reply.reset is not None]
    except Closed:
        return "closed", None if peer.goaway is None else peer.goaway[1]
    return ("reset", resets[0]) if resets else ("alive", None)


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_what_the_standard_demands_is_done(
    door: Door,
    case: Case,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with connected(door.port) as neighbour, connected(door.port) as peer:
        end, code = await outcome(peer, case.sent)
        neighbour.send(get(1, CONFIG))
        assert (await neighbour.reply(1)).status == 200
    if case.deviation is not None:
        assert (end, code) == (
            "alive" if case.deviation[0] is None else "closed",
            case.deviation[0],
        )
    elif case.codes:
        assert end != "alive"
        assert code in case.codes
    else:
        assert end == "alive"
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == []
    # A library has its own ways to say that it is surprised.
    assert capfd.readouterr().err == ""
