"""Who is granted HTTP/2 by Upgrade: cargo and curl as they are, and nobody that is relayed."""

import base64
import struct
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.upgrade import Upgrade, may_become_upgrade, upgrade_of

LINE = "GET /crates-io/index/config.json HTTP/1.1"
SETTINGS = "AAMAAABkAAQAAQAAAAIAAAAA"
STABLE = (
    "Host: 127.0.0.1:8080",
    "User-Agent: cargo/1.95.0 (f2d3ce0bd 2026-03-21)",
    "Accept-Encoding: deflate, gzip",
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    f"HTTP2-Settings: {SETTINGS}",
    "cargo-protocol: version=1",
    "accept: text/plain",
)
NIGHTLY = (*STABLE[:3], *STABLE[4:], STABLE[3])
BOTH, LAST = STABLE[3], STABLE[5]
CURL = (STABLE[0], "User-Agent: curl/7.88.1", "Accept: */*", *STABLE[3:6])


def decided(
    lines: Sequence[str], *, line: str = LINE, peer_is_trusted_proxy: bool = False
) -> Upgrade | None:
    head = "\r\n".join([line, *lines]).encode("latin-1")
    return upgrade_of(head, peer_is_trusted_proxy=peer_is_trusted_proxy)


def without(name: str) -> list[str]:
    return [line for line in STABLE if not line.lower().startswith(f"{name.lower()}:")]


def replaced(name: str, value: str) -> list[str]:
    return [
        f"{name}: {value}" if line.lower().startswith(f"{name.lower()}:") else line
        for line in STABLE
    ]


@pytest.mark.parametrize("head", [STABLE, NIGHTLY, CURL], ids=["stable", "nightly", "curl"])
def test_cargos_and_curls_own_heads_are_granted(head: Sequence[str]) -> None:
    granted = decided(head)
    assert granted is not None
    assert granted.settings == SETTINGS.encode()


def test_the_request_goes_on_without_what_was_the_connections() -> None:
    granted = decided(STABLE)
    assert granted is not None
    assert granted.headers == (
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "127.0.0.1:8080"),
        (":path", "/crates-io/index/config.json"),
        ("user-agent", "cargo/1.95.0 (f2d3ce0bd 2026-03-21)"),
        ("accept-encoding", "deflate, gzip"),
        ("cargo-protocol", "version=1"),
        ("accept", "text/plain"),
    )


@pytest.mark.parametrize(
    "line",
    ["HEAD / HTTP/1.1", "GET /a?b=c#d HTTP/1.1", "GET /crates-io/index/1/%61 HTTP/1.1"],
)
def test_a_request_for_reading_is_granted(line: str) -> None:
    granted = decided(STABLE, line=line)
    assert granted is not None
    method, path, _ = line.split(" ")
    assert {(":method", method), (":path", path)} <= set(granted.headers)


@pytest.mark.parametrize(
    "line",
    [
        "PUT /crates-io/api/v1/crates/new HTTP/1.1",
        "POST / HTTP/1.1",
        "get / HTTP/1.1",
        "GET / HTTP/1.0",
        "GET / HTTP/2.0",
        "GET * HTTP/1.1",
        "GET http://127.0.0.1/ HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /\xe9 HTTP/1.1",
        "GET /\x00 HTTP/1.1",
        "",
        "PRI * HTTP/2.0",
    ],
)
def test_another_request_line_is_not(line: str) -> None:
    assert decided(STABLE, line=line) is None


@pytest.mark.parametrize("name", ["Host", "Connection", "Upgrade", "HTTP2-Settings", "User-Agent"])
def test_each_field_is_needed(name: str) -> None:
    assert decided(without(name)) is None


@pytest.mark.parametrize(
    "sign",
    [
        "Via: 1.1 proxy",
        "VIA:",
        "Forwarded: for=192.0.2.1",
        "X-Forwarded-For: 192.0.2.1",
        "x-forwarded-proto: https",
        "X-Forwarded-Anything: at all",
        "X-Real-IP: 192.0.2.1",
        "Content-Length: 3",
        "Content-Length: 00",
        "Content-Length: 0, 3",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: identity",
        "Expect: 100-continue",
        f"HTTP2-Settings: {SETTINGS}",
        "http2-settings:",
        "Host: 127.0.0.1:8080",
        "Upgrade: websocket",
        "folded: a\r\n b",
        "no colon",
        "space : before",
        "NUL: a\x00b",
        "line: feed\nalone: x",
        "return: \ralone",
        ": no name",
    ],
)
@pytest.mark.parametrize("at", [0, 4, len(STABLE)])
def test_one_line_too_many_is_enough_to_refuse(sign: str, at: int) -> None:
    assert decided([*STABLE[:at], sign, *STABLE[at:]]) is None


def test_a_trusted_proxy_gets_no_upgrade() -> None:
    assert decided(STABLE, peer_is_trusted_proxy=True) is None


@pytest.mark.parametrize(
    "value",
    ["upgrade", "Upgrade", "HTTP2-Settings", "close", "Upgrade HTTP2-Settings", "keep-alive", ""],
)
def test_connection_names_both(value: str) -> None:
    assert decided(replaced("Connection", value)) is None


@pytest.mark.parametrize("value", ["upgrade,http2-settings", "HTTP2-SETTINGS ,\tUPGRADE, close"])
def test_connection_is_a_list_of_words_in_any_case(value: str) -> None:
    assert decided(replaced("Connection", value)) is not None


@pytest.mark.parametrize("value", ["websocket", "h2", "h2c/1", "xh2c", ""])
def test_upgrade_names_h2c(value: str) -> None:
    assert decided(replaced("Upgrade", value)) is None


@pytest.mark.parametrize(
    "value",
    [
        "AAMAAABk=",
        "AAMAAAB",
        "AAMAAABkA",
        "AAM AABk",
        "AAMAAAB+",
        "AAMAAAB/",
        "====",
        "AAMAAA==",
        "é",
    ],
)
def test_settings_that_are_not_whole_entries_are_refused(value: str) -> None:
    assert decided(replaced("HTTP2-Settings", value)) is None


def entry(name: int, value: int) -> str:
    return base64.urlsafe_b64encode(struct.pack(">HI", name, value)).decode()


@pytest.mark.parametrize(
    ("name", "value", "is_granted"),
    [
        (2, 1, True),
        (2, 2, False),
        (4, 2**31 - 1, True),
        (4, 2**31, False),
        (5, 2**14 - 1, False),
        (5, 2**14, True),
        (5, 2**24 - 1, True),
        (5, 2**24, False),
        (8, 2, False),
        (1, 2**32 - 1, True),
        (0xABCD, 2**32 - 1, True),
    ],
)
def test_settings_out_of_bounds_are_refused(name: int, value: int, *, is_granted: bool) -> None:
    encoded = SETTINGS + entry(name, value)
    assert (decided(replaced("HTTP2-Settings", encoded)) is not None) is is_granted


def test_no_settings_at_all_are_settings() -> None:
    assert decided(replaced("HTTP2-Settings", "")) is not None


@pytest.mark.parametrize(
    "head",
    [
        # nginx puts what it sets before what it passes on.
        (*("Upgrade: h2c", BOTH, "Host: a"), LAST, "User-Agent: x"),
        (*("Host: a", BOTH, "Upgrade: h2c"), LAST, "User-Agent: x"),
        (*("Upgrade: h2c", BOTH, "Host: a"), "User-Agent: x", LAST),
        (*("Host: a", BOTH, "Upgrade: h2c"), "User-Agent: x", LAST),
    ],
)
def test_fields_in_the_order_of_a_proxy_are_refused(head: Sequence[str]) -> None:
    assert decided(head) is None


names = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)
telling = st.sampled_from(["via", "forwarded", "x-forwarded-for", "x-forwarded-x", "expect"])


@given(telling, st.data())
def test_nobody_that_is_spoken_for_is_granted_wherever_it_says_so(
    name: str, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(STABLE)))
    spelled = "".join(data.draw(st.sampled_from([c, c.upper()])) for c in name)
    line = f"{spelled}:{data.draw(values)}"
    assert decided([*STABLE[:at], line, *STABLE[at:]]) is None


@given(st.lists(st.tuples(names.map(lambda name: f"our-{name}"), values), max_size=5))
def test_fields_of_no_concern_change_nothing_and_go_on(fields: list[tuple[str, str]]) -> None:
    granted = decided([*STABLE, *(f"{name}: {value}" for name, value in fields)])
    assert granted is not None
    ours = [(name, value) for name, value in granted.headers if name.startswith("our-")]
    assert ours == [(name, value.strip(" ")) for name, value in fields]


@given(st.binary(max_size=200))
@example(b"")
@example(b"\r\n")
def test_no_bytes_are_granted_by_accident(head: bytes) -> None:
    assert upgrade_of(head, peer_is_trusted_proxy=False) is None


@given(st.permutations(STABLE))
def test_whoever_is_granted_has_the_marks_of_libcurl(lines: list[str]) -> None:
    granted = decided(lines) is not None
    at = [line.partition(":")[0] for line in lines].index("Upgrade")
    assert granted == (lines[at + 1 : at + 2] == [STABLE[5]] and lines.index(STABLE[1]) < at)


@given(st.sampled_from([STABLE, NIGHTLY, CURL]), st.data())
def test_no_beginning_of_a_granted_head_is_given_up(
    head: Sequence[str], data: st.DataObject
) -> None:
    whole = "\r\n".join([LINE, *head, "", ""]).encode()
    # A cut between the two bytes of a line's end is among them.
    assert may_become_upgrade(whole[: data.draw(st.integers(0, len(whole)))])


@pytest.mark.parametrize(
    "beginning",
    [b"P", b"GEX", b"GET x", b"get", b"\r\n", b"\x16\x03", b"GET / HTTP/1.1\nHost", b"SSH-2.0"],
)
def test_what_cannot_become_an_upgrade_is_known_by_its_beginning(beginning: bytes) -> None:
    assert not may_become_upgrade(beginning)
