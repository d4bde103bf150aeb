"""What the laws are tried on: names, versions, index files, snapshots and times, as they may come.

Everything here is made from the written rules (the Cargo Book, Semantic Versioning, RFC 9110) and
not from `proxy.core`, whose types are used only to hold values.
"""

import json
import string
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from hypothesis import strategies as st

from proxy.core.answers import NO_VALIDATORS, Absent, Answer, Found, Snapshot, Unchanged, Validators
from proxy.core.freshness import Terms

_ALNUM = string.ascii_letters + string.digits
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# Anything that can reach a Python string, lone surrogates (undecodable bytes) included.
any_text = st.text(st.characters(exclude_categories=()))


def crate_names() -> st.SearchStrategy[str]:
    """Make names that a registry may hold, short ones often: their paths are special."""
    first = st.sampled_from(_ALNUM + "_")
    rest = st.text(_ALNUM + "_-", max_size=63)
    short = st.text(_ALNUM + "_-", max_size=3)
    return st.builds(str.__add__, first, short | rest)


def registry_names() -> st.SearchStrategy[str]:
    alphabet = string.ascii_lowercase + string.digits
    return st.builds(str.__add__, st.sampled_from(alphabet), st.text(alphabet + "-", max_size=20))


def versions() -> st.SearchStrategy[str]:
    """Make semantic versions with and without prerelease and build metadata."""
    number = st.integers(0, 10**6).map(str) | st.integers(0, 3).map(str)
    # With a letter or a hyphen in it, an identifier may begin with zeros.
    word = st.builds(
        "".join,
        st.tuples(
            st.text(string.digits, max_size=2),
            st.sampled_from(string.ascii_letters + "-"),
            st.text(_ALNUM + "-", max_size=3),
        ),
    )
    build_word = st.text(_ALNUM + "-", min_size=1, max_size=4)

    def dotted(part: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.lists(part, min_size=1, max_size=3).map(".".join)

    return st.builds(
        lambda core, pre, build: ".".join(core) + pre + build,
        st.tuples(number, number, number),
        st.just("") | dotted(number | word).map("-".__add__),
        st.just("") | dotted(build_word).map("+".__add__),
    )


def checksums() -> st.SearchStrategy[str]:
    return st.binary(min_size=32, max_size=32).map(bytes.hex)


def percent_encoded(text: str) -> st.SearchStrategy[str]:
    """Make spellings of a path segment: any of its characters as `%XX`."""
    last = len(text) - 1

    def spell(encoded: dict[int, str]) -> str:
        return "".join(
            encoded[at].format(ord(char)) if at in encoded else char for at, char in enumerate(text)
        )

    forms = st.sampled_from(["%{:02x}", "%{:02X}"])
    return st.dictionaries(st.integers(0, last) | st.sampled_from([0, last]), forms).map(spell)


@dataclass(frozen=True, slots=True)
class Row:
    """One version as a registry means it, and the line of JSON that it writes."""

    name: str
    vers: str
    cksum: str
    line: bytes


# What stands beside name, version and checksum: as registries write it, and as they may one day.
_extra_fields = st.lists(
    st.sampled_from(
        [
            '"deps":[]',
            '"deps": [{"name":"serde","vers":"1.0.0","req":"^1.0.0","registry":null}]',
            r'"deps":[{"name":"x","req":">=1","target":"cfg(target_arch = \"wasm32\")"}]',
            r'"deps":[{"name":"x","req":"\u003e=1, \u003c2"}]',
            '"features":{"default":["std"],"std":[]}',
            '"features2":{"serde":["dep:serde"]}',
            '"yanked":false',
            '"yanked" : true',
            '"links":null',
            '"rust_version":"1.0.0"',
            '"pubtime":"2026-01-01T00:00:00Z"',
            '"v":2',
            '"v":3e0',
            '"new é":{"name":"other","vers":"9.9.9","cksum":["{", "\\\\"]}',
            r'"new\u0020é":"\ud83d\ude00"',
        ]
    ),
    max_size=4,
    unique_by=lambda field: field.partition(":")[0].strip(),
)


def _escape_all(text: str) -> str:
    r"""Write a JSON string with every ASCII letter, digit and sign as `\uXXXX`."""
    return '"' + "".join(f"\\u{ord(char):04x}" for char in text) + '"'


def _escape_signs(text: str) -> str:
    r"""Write a JSON string as .NET and Go do: `+`, `<`, `>` and `&` as `\uXXXX`."""
    plain = json.dumps(text)
    for sign in "+<>&":
        plain = plain.replace(sign, f"\\u{ord(sign):04x}")
    return plain


_string_writers: list[Callable[[str], str]] = [json.dumps, _escape_signs, _escape_all]
_spacings = [(",", ":"), (", ", ": "), (" , ", " : "), ("\t,", ":\t")]


@st.composite
def rows(
    draw: st.DrawFn,
    names: st.SearchStrategy[str],
    vers: st.SearchStrategy[str],
) -> Row:
    """Make a line with `name`, `vers` and `cksum` anywhere among fields we know nothing of."""
    name, version, cksum = draw(names), draw(vers), draw(checksums())
    write = draw(st.sampled_from(_string_writers))
    comma, colon = draw(st.sampled_from(_spacings))
    fields = [
        (write("name"), write(name)),
        (write("vers"), write(version)),
        (write("cksum"), write(cksum.upper() if draw(st.booleans()) else cksum)),
    ]
    members = [f"{key}{colon}{value}" for key, value in fields] + draw(_extra_fields)
    line = "{" + comma.join(draw(st.permutations(members))) + "}"
    return Row(name, version, cksum, line.encode())


@dataclass(frozen=True, slots=True)
class IndexFile:
    """The rows of an index file, and its bytes."""

    rows: tuple[Row, ...]
    body: bytes


@st.composite
def index_files(
    draw: st.DrawFn,
    names: st.SearchStrategy[str],
    vers: st.SearchStrategy[str],
) -> IndexFile:
    """Make a file with blank lines, CRLF, padding and a missing last newline here and there."""
    lines = draw(st.lists(rows(names, vers), min_size=1, max_size=6))
    body = draw(st.sampled_from([b"", b"\n", b"\r\n"]))
    for row in lines:
        padding = draw(st.sampled_from([b"", b"", b" ", b"\t"]))
        ending = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n", b" \n\r\n"]))
        body += padding + row.line + ending
    if draw(st.booleans()):
        body = body.rstrip(b"\r\n")
    return IndexFile(tuple(lines), body)


moments = st.floats(1e9, 2e9)
durations = st.sampled_from([0.0, 1.0, 10.0, 60.0, 600.0, 7 * 86400.0]) | st.floats(0, 1e7)


def imf_fixdate(seconds: int) -> str:
    """Write a date as RFC 9110 section 5.6.7 prefers it, digit by digit."""
    at = datetime.fromtimestamp(seconds, UTC)
    day, month = _DAYS[at.weekday()], _MONTHS[at.month - 1]
    return f"{day}, {at.day:02} {month} {at.year} {at.hour:02}:{at.minute:02}:{at.second:02} GMT"


def terms() -> st.SearchStrategy[Terms]:
    return st.builds(Terms, durations, durations, durations | st.just(float("inf")))


def validators() -> st.SearchStrategy[Validators]:
    return st.builds(
        Validators,
        etag=st.none() | st.sampled_from(['"a"', '"b"', 'W/"a"']),
        last_modified=st.none()
        | st.integers(8 * 10**8, 2 * 10**9).map(imf_fixdate)
        | st.just("once"),
    )


bodies = st.sampled_from([b"one\n", b"two\n", b"three\n"])


@st.composite
def snapshots(draw: st.DrawFn, *, purged: bool = True) -> Snapshot:
    """Make snapshots with bodies and tombstones, confirmed at once or later, softly purged too."""
    learned_at = draw(moments)
    confirmed_at = learned_at + draw(durations)
    if purged and draw(st.integers(0, 4)) == 0:
        confirmed_at = 0.0
    body = draw(st.none() | bodies)
    known = NO_VALIDATORS if body is None else draw(validators())
    return Snapshot(body, known, learned_at, confirmed_at)


def answers() -> st.SearchStrategy[Answer]:
    return (
        st.builds(Found, bodies, validators())
        | st.just(Unchanged())
        | st.builds(Absent, st.sampled_from([404, 410, 451]))
    )
