"""What is read as a plain GET here, aiohttp's parsers read in the same way: both, and nothing else.

A reader of HTTP in front of another one is how requests are smuggled: where the two disagree over
what a head says or where it ends, somebody else's request begins. So the law is that of a subset.
"""

import asyncio
from collections.abc import Iterator

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.http_parser import HttpRequestParserC, HttpRequestParserPy
from aiohttp.streams import EMPTY_PAYLOAD
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.core.simple_get import SimpleGet, read_simple_get

INDEX = "/crates-io/index/se/rd/serde"
CARGO = (
    b"GET /crates-io/index/se/rd/serde HTTP/1.1\r\n"
    b"Host: 127.0.0.1:8080\r\n"
    b"User-Agent: cargo/1.95.0 (f2d3ce0bd 2026-03-21)\r\n"
    b"Accept: */*\r\n"
    b"Accept-Encoding: gzip\r\n"
    b'If-None-Match: "abc"\r\n'
    b"cargo-protocol: version=1\r\n\r\n"
)
CURL = (
    b"GET /crates-io/crates/a/1.0.0%2Bb/download?x=1#y HTTP/1.1\r\n"
    b"Host: localhost:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"
)
WRK = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"
NGINX = (
    b"GET /crates-io/index/se/rd/serde HTTP/1.1\r\n"
    b"X-Forwarded-For: 192.0.2.7, 10.0.0.1\r\nX-Forwarded-Host: crates.example\r\n"
    b"X-Forwarded-Proto: https\r\nHost: holdfast\r\nConnection: Keep-Alive\r\n\r\n"
)
REAL = {"cargo": CARGO, "curl": CURL, "wrk": WRK, "nginx's upstream": NGINX}


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that aiohttp's parsers can name; nothing runs in it."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


def read_by_aiohttp(
    data: bytes, loop: asyncio.AbstractEventLoop
) -> Iterator[tuple[RawRequestMessage, SimpleGet]]:
    """Return the one message that each of aiohttp's parsers makes of it, and what it says."""
    assert HttpRequestParserC is not HttpRequestParserPy, "the compiled parser is there"
    for parser_class in (HttpRequestParserC, HttpRequestParserPy):
        parser = parser_class(
            BaseProtocol(loop),
            loop,
            2**16,
            max_line_size=8190,
            max_headers=128,
            max_field_size=8190,
        )
        messages, upgraded, rest = parser.feed_data(data)
        assert (len(messages), upgraded, rest) == (1, False, b"")
        # Nothing is kept for later: what comes next is a request by itself.
        (again, _), *more = parser.feed_data(WRK)[0]
        assert (again.path, more) == ("/", [])
        message, payload = messages[0]
        assert payload is EMPTY_PAYLOAD
        fields = {name.lower(): value for name, value in message.headers.items()}
        assert len(fields) == len(message.headers)
        yield message, SimpleGet(message.path, fields)


def assert_read_alike(data: bytes, read: SimpleGet, loop: asyncio.AbstractEventLoop) -> None:
    for message, same in read_by_aiohttp(data, loop):
        assert same == read
        assert (message.method, message.version) == ("GET", HttpVersion11)
        assert (message.should_close, message.upgrade, message.chunked) == (False, False, False)
        assert message.compression is None


NAMES = st.sampled_from(
    [
        *("Host", "host", "Accept", "Accept-Encoding", "If-None-Match", "X-Forwarded-For", "a"),
        *("Connection", "Content-Length", "Transfer-Encoding", "Upgrade", "Expect", "TE", "Range"),
        *("Trailer", "HTTP2-Settings", "Keep-Alive", "Content-Encoding", "Sec-WebSocket-Key1"),
        *("Accept-Language", "If-Modified-Since", "X-Forwarded-Host", "DNT", "Via", "b", "C"),
        *("User-Agent", "Cookie", "X_Y", "!#$%&'*+.^_`|~-", "", " Host", "Host ", "H\u00f6st"),
    ]
) | st.text("abXY01-_!#$%&'*+.^`|~", min_size=1, max_size=8)
VALUES = st.sampled_from(
    [
        "127.0.0.1",
        "keep-alive",
        "close",
        "chunked",
        "0",
        "5",
        "gzip",
        "a, b",
        'W/"x"',
        "",
        " a",
        "a ",
    ]
) | st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12)
ODD = st.text(st.characters(max_codepoint=0xFF), max_size=4)
FIELDS = st.tuples(
    NAMES, st.sampled_from([": "] * 40 + [":", ":  ", " : ", ":\t"]), st.one_of(*[VALUES] * 9, ODD)
)
LINES = st.lists(FIELDS, max_size=3)
ENDS = st.sampled_from(["\r\n"] * 60 + ["\n", "\r", "\r\n ", "\r\n\r\n"])
TARGETS = st.sampled_from(
    [INDEX, "/", "//a/b", "/a?b=c", "/a#b", "/..", "*", "http://a/b"]
) | st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12).map("/".__add__)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Write something like a GET, right more often than not, with a few bytes changed at times."""
    method = draw(st.sampled_from(["GET"] * 30 + ["HEAD", "get", "GET "]))
    version = draw(st.sampled_from(["HTTP/1.1"] * 30 + ["HTTP/1.0", "HTTP/2.0", "HTTP/1.1 "]))
    text = f"{method} {draw(TARGETS)} {version}" + draw(ENDS)
    if draw(st.integers(0, 9)):
        text += "Host: 127.0.0.1" + draw(ENDS)
    for name, colon, value in draw(LINES):
        text += name + colon + value + draw(ENDS)
    data = bytearray((text + draw(ENDS)).encode("latin-1"))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.integers(0, 2)):
            case 0:
                data[at] = draw(st.integers(0, 255))
            case 1:
                data.insert(at, draw(st.sampled_from(b"\r\n\t :\0\x7f\x80,;#?")))
            case _:
                del data[at]
    return bytes(data)


@settings(max_examples=1000)
@given(heads())
@example(CARGO)
@example(CURL)
@example(WRK)
@example(NGINX)
def test_what_is_read_is_read_alike_by_aiohttp(
    loop: asyncio.AbstractEventLoop, data: bytes
) -> None:
    read = read_simple_get(data)
    if read is not None:
        assert_read_alike(data, read, loop)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.from_regex(r"x-[!$%&'*+.^_`|~0-9A-Za-z-]{1,8}", fullmatch=True),
            st.from_regex(r"[!-~]([ -~]{0,9}[!-~])?", fullmatch=True),
        ),
        max_size=8,
        unique_by=lambda field: field[0].lower(),
    ),
    st.from_regex(r"/[!-~]{0,30}", fullmatch=True),
)
def test_every_head_of_its_grammar_is_read(
    loop: asyncio.AbstractEventLoop, fields: list[tuple[str, str]], target: str
) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    data = f"GET {target} HTTP/1.1\r\nHost: h\r\n{lines}\r\n".encode()
    read = read_simple_get(data)
    expected = {name.lower(): value for name, value in fields}
    assert read == SimpleGet(target, {"host": "h", **expected})
    assert_read_alike(data, read, loop)


@pytest.mark.parametrize("data", REAL.values(), ids=REAL.keys())
def test_what_real_clients_send_is_read(loop: asyncio.AbstractEventLoop, data: bytes) -> None:
    read = read_simple_get(data)
    assert read is not None
    assert_read_alike(data, read, loop)


def test_the_target_and_the_fields_are_told() -> None:
    read = read_simple_get(CARGO)
    assert read is not None
    assert read.target == INDEX
    assert read.fields == {
        "host": "127.0.0.1:8080",
        "user-agent": "cargo/1.95.0 (f2d3ce0bd 2026-03-21)",
        "accept": "*/*",
        "accept-encoding": "gzip",
        "if-none-match": '"abc"',
        "cargo-protocol": "version=1",
    }


LINE, HOST = b"GET / HTTP/1.1\r\n", b"Host: h\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n" + WRK,
        WRK + WRK,
        WRK + b"\r\n",
        WRK[:-1],
        WRK[:-2],
        WRK.replace(b"GET", b"HEAD"),
        WRK.replace(b"GET", b"get"),
        WRK.replace(b"1.1", b"1.0"),
        WRK.replace(b"GET /", b"GET  /"),
        WRK.replace(b"GET /", b"GET *"),
        WRK.replace(b"GET /", b"GET http://a/"),
        WRK.replace(b" /", b" /\x7f"),
        WRK.replace(b" /", b" /\xe9"),
        WRK.replace(b"\r\n", b"\n"),
        LINE + b"\r\n",
        LINE + b"Accept: a\r\n\r\n",
        LINE + HOST + HOST + b"\r\n",
        LINE + HOST + b"HOST: h\r\n\r\n",
        LINE + HOST + b"Accept: a\r\naccept: b\r\n\r\n",
        LINE + b"Host:h\r\n\r\n",
        LINE + b"Host:  h\r\n\r\n",
        LINE + b"Host: h \r\n\r\n",
        LINE + b"Host: \r\n\r\n",
        LINE + b"Host : h\r\n\r\n",
        LINE + b" Host: h\r\n\r\n",
        LINE + HOST + b"A: b\r\n c\r\n\r\n",
        LINE + HOST + b"A: b\tc\r\n\r\n",
        LINE + HOST + b"A: \xe9\r\n\r\n",
        LINE + HOST + b"A: b\rGET /x HTTP/1.1\r\n\r\n",
        LINE + HOST + b"A: b\0c\r\n\r\n",
        LINE + HOST + b"A#B: c\r\n\r\n",
        LINE + HOST + b"nonsense\r\n\r\n",
    ],
)
def test_what_is_not_one_strict_head_is_not_read(data: bytes) -> None:
    assert read_simple_get(data) is None


@pytest.mark.parametrize(
    "line",
    [
        *("Content-Length: 0", "content-length: 5", "Transfer-Encoding: chunked", "Trailer: a"),
        *("TE: trailers", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk", "Expect: 100-continue"),
        *("Range: bytes=0-1", 'If-Range: "a"', "Keep-Alive: timeout=5", "Content-Encoding: gzip"),
        *("Proxy-Connection: close", "Sec-WebSocket-Key: a", "Sec-WebSocket-Key1: a"),
        *("Connection: close", "Connection: keep-alive, close", "Connection: keep-alive, te"),
        *("Connection: Upgrade", "connection: x"),
    ],
)
def test_what_speaks_of_more_than_a_plain_get_is_not_read(line: str) -> None:
    assert read_simple_get(WRK[:-2] + line.encode() + b"\r\n\r\n") is None


@pytest.mark.parametrize("said", ["keep-alive", "Keep-Alive", "KEEP-ALIVE"])
def test_a_connection_that_is_kept_alive_is_plain(said: str) -> None:
    assert read_simple_get(WRK[:-2] + f"Connection: {said}\r\n\r\n".encode()) is not None


def padded_to(size: int) -> bytes:
    begin = LINE + HOST + b"A: "
    return begin + b"a" * (size - len(begin) - 4) + b"\r\n\r\n"


def with_fields(count: int) -> bytes:
    return LINE + HOST + b"".join(b"X-%d: a\r\n" % n for n in range(count - 1)) + b"\r\n"


def test_a_large_head_is_left_to_others() -> None:
    assert read_simple_get(padded_to(4096)) is not None
    assert read_simple_get(padded_to(4097)) is None
    assert read_simple_get(with_fields(64)) is not None
    assert read_simple_get(with_fields(65)) is None


@pytest.mark.parametrize(
    ("begin", "filler"),
    [
        (b"GET /", b"/"),
        (b"GET /", b" "),
        (b"GET / HTTP/1.1\r\n", b"a"),
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n"),
        (b"GET / HTTP/1.1\r\nHost: ", b" "),
        (b"GET / HTTP/1.1\r\nHost: ", b"a "),
        (b"GET / HTTP/1.1\r\nHost: a", b" a: a"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b": "),
    ],
)
@pytest.mark.parametrize("end", [b"\r\n\r\n", b" \r\n\r\n", b"\0\r\n\r\n", b"\r\na\r\n\r\n"])
def test_a_head_that_almost_fits_is_refused_in_time(
    begin: bytes, filler: bytes, end: bytes
) -> None:
    """An expression that tries every way to cut a line would not come to an end here."""
    room = 4096 - len(begin) - len(end)
    data = begin + filler * (room // len(filler)) + end
    for _ in range(50):
        read_simple_get(data)
