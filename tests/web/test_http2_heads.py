"""What the hot path reads of a request's head, the ordinary way reads too: nothing more."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jh2.events import RequestReceived
from jh2.exceptions import ProtocolError
from yarl import URL

from proxy.core import routes
from proxy.web.hot import Asked
from proxy.web.http2.heads import RawField, Shapes, is_well_formed, message_of
from proxy.web.http2.library import Library
from proxy.web.http2.limits import Http2Limits
from tests.world.http2 import (
    END_HEADERS,
    END_STREAM,
    PREFACE,
    Kind,
    asking,
    frame,
    literal,
)
from tests.world.http2 import (
    settings as settings_frame,
)

INDEX = "/crates-io/index/se/rd/serde"
Fields = list[tuple[bytes, bytes]]


def by_the_library(fields: Fields) -> list[tuple[str, str]] | None:
    """Return a whole request's head as the library gives it; None if it refuses it."""
    library = Library(Http2Limits())
    library.initiate_connection()
    block = b"".join(literal(name, value) for name, value in fields)
    sent = PREFACE + settings_frame() + frame(Kind.HEADERS, END_STREAM | END_HEADERS, 1, block)
    try:
        happened = library.receive_data(sent)
    except ProtocolError:
        return None
    received = [event for event in happened if isinstance(event, RequestReceived)]
    return list(received[0].headers) if received else None


def in_the_ordinary_way(fields: Fields) -> Asked | None:
    """Read what the hot path reads of a head, where the library and our own checks accept it."""
    headers = by_the_library(fields)
    if headers is None or not is_well_formed(headers, ended=True):
        return None
    message = message_of(headers)
    if message is None:
        return None
    found = message.headers
    assert message.method == "GET"
    return Asked(
        message.path,
        found.get("Host"),
        found.get("Accept-Encoding"),
        found.get("If-None-Match"),
        found.get("If-Modified-Since"),
        found.get("X-Forwarded-For"),
        found.get("X-Forwarded-Host"),
    )


def raw(fields: Fields) -> list[RawField]:
    return [(name, value, False) for name, value in fields]


def as_text(fields: Fields) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]


def learned(fields: Fields) -> Shapes:
    """Return what is known once such a head has passed every check."""
    shapes = Shapes()
    headers = by_the_library(fields)
    if headers is not None and is_well_formed(headers, ended=True) and message_of(headers):
        shapes.learn(headers)
    return shapes


PSEUDO: Fields = [(n.encode(), v.encode()) for n, v in asking(INDEX)]
GOOD = st.from_regex(rb"[!-~]([ -~]{0,6}[!-~])?", fullmatch=True) | st.just(b"")
BAD = st.sampled_from([b" a", b"a ", b"a\t", b"\ta", b"a\xe9", b"\x80", b"a\0b", b"a\nb", b"\x1f"])
BAD_TOO = st.sampled_from([b"a\x1fb", b"\x7f", b"\r", b" ", b"a\xa0", b"\xff\xfe", b"a\x1f\x1f"])
VALUES = st.one_of(*[GOOD] * 6, BAD, BAD_TOO, st.binary(max_size=5))
PATHS = st.sampled_from(
    [INDEX, "/", "//a/b", "/a?b=c", "/a#b", "/%zz", "/..", "a", "*", "", "/a b"]
)
NAMES = st.sampled_from(
    [
        *("accept-encoding", "if-none-match", "if-modified-since", "x-forwarded-for", "accept"),
        *("x-forwarded-host", "user-agent", "host", "te", "range", "expect", "content-length"),
        *("if-range", "connection", "cookie", ":protocol", ":method", ":status", "A", "", "a b"),
    ]
).map(str.encode)


@st.composite
def heads(draw: st.DrawFn) -> Fields:
    """Write a head of a request, right more often than not."""
    method = draw(st.sampled_from(["GET"] * 6 + ["HEAD", "get", "", "CONNECT"]))
    fields = [
        (b":method", method.encode()),
        (b":scheme", draw(st.just(b"http") | VALUES)),
        (b":path", draw(PATHS.map(str.encode) | VALUES)),
        (b":authority", draw(st.just(b"127.0.0.1") | VALUES)),
    ]
    fields += draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    if draw(st.integers(0, 5)) == 0:
        del fields[draw(st.integers(0, len(fields) - 1))]
    if draw(st.integers(0, 3)) == 0:
        fields[:4] = draw(st.permutations(fields[:4]))
    return fields


@settings(max_examples=1500, derandomize=True, deadline=None)
@given(heads(), st.data())
@example([*PSEUDO, (b"accept", b"\xe9")], None)
@example([(b":authority", b" a"), *PSEUDO[:3]], None)
@example([(b":path", b" /"), *PSEUDO[:2], PSEUDO[3]], None)
@example([*PSEUDO[:2], (b":path", b"/a b"), PSEUDO[3]], None)
@example([*PSEUDO, (b"accept", b"a\x1fb")], None)
@example([*PSEUDO, (b"accept", b"a "), (b"dnt", b"")], None)
def test_what_is_read_hot_is_read_alike_by_the_ordinary_way(
    fields: Fields, data: st.DataObject | None
) -> None:
    """Whoever has taught the shape: here a head with the same names, or this very one."""
    plain: dict[bytes, bytes] = {b":path": INDEX.encode(), b":method": b"GET"}
    taught = [(name, plain.get(name, b"a")) for name, _ in fields]
    if data is not None and data.draw(st.booleans()):
        values = {b":method": b"CONNECT", b"te": b"trailers", b"content-length": b"0"}
        taught = [(name, values.get(name, value)) for name, value in taught]
    for teacher in (taught, fields):
        read = learned(teacher).read(raw(fields))
        if read is not None:
            assert read == in_the_ordinary_way(fields)


CRATE = "/crates-io/crates/serde/1.0.0+b/download"
PIECES = ["/", "//", "%2F", "%65", "?", "#", "?a=b", "#a?b", "..", "/./", ";", ":", "@", "\\", "+"]


@settings(max_examples=500, derandomize=True, deadline=None)
@given(
    st.sampled_from([INDEX, CRATE]),
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from(PIECES)), max_size=2),
)
def test_a_path_leads_the_handler_where_it_leads_the_hot_path(
    path: str, put_in: list[tuple[int, str]]
) -> None:
    """The one takes a target as it came, the other what aiohttp makes of it."""
    for at, piece in put_in:
        path = path[:at] + piece + path[at:]
    route = routes.route(path)
    match route:
        case routes.IndexFile(name=str()) | routes.CrateFile(crate=str()):
            message = message_of([(":method", "GET"), (":path", path)])
            assert message is not None
            assert routes.route(message.url.raw_path) == route
            # As the parsers of HTTP/1.1 take it apart.
            target, _, query = path.partition("#")[0].partition("?")
            url = URL.build(path=target, query_string=query, encoded=True)
            assert routes.route(url.raw_path) == route
        case _:
            assert put_in


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(NAMES.filter(lambda name: name.isalpha()), GOOD), max_size=4))
def test_nothing_is_read_before_such_a_head_was_accepted(fields: Fields) -> None:
    assert Shapes().read(raw([*PSEUDO, *fields])) is None


def test_a_head_of_a_known_shape_is_read() -> None:
    fields = [
        *PSEUDO,
        (b"user-agent", b"cargo/1.95.0"),
        (b"if-none-match", b'"a"'),
        (b"accept-encoding", b"gzip"),
        (b"x-forwarded-for", b"192.0.2.1"),
        (b"x-forwarded-host", b"a.example"),
        (b"if-modified-since", b"Sat, 21 Nov 2026 01:00:00 GMT"),
        (b"empty", b""),
    ]
    assert learned(fields).read(raw(fields)) == Asked(
        INDEX,
        "127.0.0.1",
        "gzip",
        '"a"',
        "Sat, 21 Nov 2026 01:00:00 GMT",
        "192.0.2.1",
        "a.example",
    )


def test_what_one_client_taught_tells_another_nothing_but_where_fields_stand() -> None:
    theirs = [*PSEUDO[:2], (b":path", b"/private/index/a"), PSEUDO[3], (b"authorization", b"token")]
    shapes = learned(theirs)
    mine = [*PSEUDO, (b"authorization", b"")]
    assert shapes.read(raw(mine)) == Asked(INDEX, "127.0.0.1")
    # Other names, another order, one more, one less: not known.
    for other in (mine[::-1], [*mine, (b"a", b"")], mine[:-1], [*PSEUDO, (b"cookie", b"")]):
        assert shapes.read(raw(other)) is None
    kept = repr(shapes._shapes)
    assert "token" not in kept
    assert "private" not in kept


@pytest.mark.parametrize("method", [b"HEAD", b"POST", b"get", b"GET ", b""])
def test_a_known_shape_is_no_other_method(method: bytes) -> None:
    shapes = learned(PSEUDO)
    assert shapes.read(raw(PSEUDO)) is not None
    assert shapes.read(raw([(b":method", method), *PSEUDO[1:]])) is None


@pytest.mark.parametrize(
    "field",
    [
        *((b"range", b"bytes=0-1"), (b"if-range", b"a"), (b"expect", b"a"), (b"te", b"trailers")),
        *((b"content-length", b"0"), (b"host", b"127.0.0.1")),
    ],
)
def test_what_needs_more_than_a_look_is_never_read(field: tuple[bytes, bytes]) -> None:
    fields = [*PSEUDO, field]
    assert by_the_library(fields) is not None
    assert learned(fields).read(raw(fields)) is None


@pytest.mark.parametrize(
    "name", [b"accept-encoding", b"if-none-match", b"x-forwarded-for", b"x-forwarded-host"]
)
def test_a_field_that_is_looked_at_and_comes_twice_is_left_alone(name: bytes) -> None:
    fields = [*PSEUDO, (name, b"a"), (name, b"b")]
    assert learned(fields).read(raw(fields)) is None


def test_what_is_remembered_is_bounded_and_the_newest_is_known() -> None:
    shapes = Shapes()
    for number in range(1000):
        fields = [*PSEUDO, (b"x-%d" % number, b"a")]
        shapes.learn(as_text(fields))
        shapes.learn(as_text(fields))
        assert shapes.read(raw(fields)) is not None
    assert len(shapes._shapes) == 256
    assert shapes.read(raw([*PSEUDO, (b"x-0", b"a")])) is None
