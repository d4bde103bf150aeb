"""Request heads of HTTP/2: which are well formed, what the hot path and aiohttp read of them.

The library checks most of RFC 9113 section 8; here is what it lets through, and what lets a client
pass that asks the same kind of question over and over: once the library has accepted a list of
field names, the same names in the same order need no second look, only their values do.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from aiohttp.http import HttpVersion11, RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from proxy.web.hot import LOOKED_AT, OUT_OF_THE_ORDINARY, Asked, Dialect

# A field as the library's decoder gives it: name, value, and whether it must never be indexed.
RawField = tuple[bytes, bytes, bool]

_NAME: Final = re.compile(r":?[!#$%&'*+.^_`|~0-9a-z-]+")
_NOT_IN_A_VALUE: Final = re.compile(r"[\0\r\n]")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_PATH: Final = re.compile(r"/[!-~]*")
_SHAPES_MAX: Final = 256
# No value can begin or end with what stands between two of them.
_BETWEEN: Final = b"\x1f"


def _fields(status: int, headers: Mapping[str, str], length: int | None) -> list[RawField]:
    fields = [(b":status", str(status).encode(), False)]
    fields += [(name.lower().encode(), value.encode(), False) for name, value in headers.items()]
    if length is not None:
        fields.append((b"content-length", str(length).encode(), False))
    return fields


HTTP2: Final = Dialect("h2", _fields)


class _Shape(NamedTuple):
    """Where the fields stand that are looked at; `places` has those of `Asked` behind the path."""

    method: int
    path: int
    places: tuple[int | None, ...]


class Shapes:
    """The lists of field names that the library has accepted in whole requests. For one loop.

    Bounded; the oldest goes first, and is learned again when it is asked so again.
    """

    __slots__ = ("_shapes",)

    def __init__(self) -> None:
        self._shapes: dict[tuple[bytes, ...], _Shape | None] = {}

    def learn(self, headers: Sequence[tuple[str, str]]) -> None:
        """Remember the names of a request that has passed every check."""
        names = [name for name, _ in headers]
        key = tuple([name.encode("latin-1") for name in names])
        if key in self._shapes:
            return
        if len(self._shapes) >= _SHAPES_MAX:
            del self._shapes[next(iter(self._shapes))]
        self._shapes[key] = _shape(names)

    def read(self, fields: Sequence[RawField]) -> Asked | None:
        """Read a GET that the hot path may answer; None: look at it the ordinary way."""
        shape = self._shapes.get(tuple([name for name, _, _ in fields]))
        if shape is None or fields[shape.method][1] != b"GET":
            return None
        joined = _BETWEEN.join([value for _, value, _ in fields])
        # Bytes that are no ASCII, controls and blanks at an end are for somebody with more time.
        if not joined.isascii():
            return None
        text = joined.decode("ascii")
        values = text.split("\x1f")
        if len(values) != len(fields) or not text.replace("\x1f", "").isprintable():
            return None
        if " \x1f" in text or "\x1f " in text or text[:1] == " " or text[-1:] == " ":
            return None
        path = values[shape.path]
        if path[:1] != "/" or " " in path:
            return None
        rest = [None if place is None else values[place] for place in shape.places]
        return Asked(path, *rest)


def _shape(names: list[str]) -> _Shape | None:
    if not OUT_OF_THE_ORDINARY.isdisjoint(names) or ":method" not in names:
        return None
    looked_at = [":authority" if name == "host" else name for name in LOOKED_AT]
    # Whether there may be a protocol is told by the method (RFC 8441), which is a value.
    if ":protocol" in names:
        return None
    if "host" in names or ":path" not in names or any(names.count(name) > 1 for name in looked_at):
        return None
    places = tuple(names.index(name) if name in names else None for name in looked_at)
    return _Shape(names.index(":method"), names.index(":path"), places)


def is_well_formed(headers: Sequence[tuple[str, str]], *, ended: bool) -> bool:
    """Check what the library lets through (RFC 9113 sections 8.1.1 and 8.2.1)."""
    names = [name for name, _ in headers]
    if not all(_NAME.fullmatch(name) for name in names):
        return False
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


def message_of(headers: Sequence[tuple[str, str]]) -> RawRequestMessage | None:
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
            case "expect":
                # aiohttp would answer in HTTP/1.1. Who expects goes on unasked (RFC 9110 10.1.1).
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
