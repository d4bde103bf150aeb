"""May this HTTP/1.1 request turn its connection into HTTP/2? RFC 7540 section 3.2, narrowed.

Cargo asks on every cleartext request. So would a request that was smuggled through a reverse proxy
which passes `Upgrade` on (nginx's stock websocket snippet does): after a 101 such a proxy tunnels
whatever follows, past its own rules. An upgrade is therefore granted only to a request that nothing
in between can have touched:

- `Connection` names both Upgrade and HTTP2-Settings, `Upgrade` names h2c, and there is exactly one
  HTTP2-Settings, which decodes to whole SETTINGS entries;
- it is a GET or HEAD without a body (cargo sends the same header on a publish, whose body would
  have to be read first: ignored there);
- the peer is no trusted proxy, and no Via, Forwarded or X-Forwarded-* is present;
- the fields stand where libcurl puts them, which cargo and curl are made with: HTTP2-Settings right
  behind Upgrade, User-Agent somewhere before. nginx writes what it sets itself (Upgrade, since that
  is what makes it tunnel) before all that it passes on, and is known by that even where it passes
  `Connection` on as it came and adds nothing.

What is read here is only whether to upgrade, and the request if so. Whoever does not upgrade is
handed on byte for byte to a real HTTP/1.1 parser, so that a disagreement over framing cannot arise:
anything unusual in the head means "no".
"""

import base64
import re
import struct
from dataclasses import dataclass
from typing import Final

HEAD_MAX_BYTES: Final = 16 * 1024

_REQUEST_LINE: Final = re.compile(rb"(GET|HEAD) (/[!-~]*) HTTP/1\.1")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
# Whole entries of 6 bytes are whole groups of 8 letters: there is never any padding.
_SETTINGS: Final = re.compile(rb"(?:[0-9A-Za-z_-]{8})*")
_SETTINGS_ENTRY: Final = struct.Struct(">HI")
# RFC 9113 section 6.5.2, RFC 8441 section 3: what values have bounds.
_BOUNDS: Final = {2: (0, 1), 4: (0, 2**31 - 1), 5: (2**14, 2**24 - 1), 8: (0, 1)}
_SPEAKS_FOR_OTHERS: Final = (b"via", b"forwarded", b"x-real-ip")
# RFC 9113 section 8.2.2: what belongs to the connection and does not go into a stream.
_OF_THE_CONNECTION: Final = frozenset(
    {
        b"connection",
        b"upgrade",
        b"http2-settings",
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"te",
        b"content-length",
    }
)


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A granted upgrade: the peer's settings as sent, and its request as HTTP/2 would write it."""

    settings: bytes
    headers: tuple[tuple[str, str], ...]


def upgrade_of(head: bytes, *, peer_is_trusted_proxy: bool) -> Upgrade | None:
    """Return the upgrade that a request head (up to and without its blank line) is granted."""
    line, *rest = head.split(b"\r\n")
    request = _REQUEST_LINE.fullmatch(line)
    if request is None or peer_is_trusted_proxy:
        return None
    fields: list[tuple[bytes, bytes]] = []
    for text in rest:
        field = _FIELD.fullmatch(text)
        if field is None:
            return None
        fields.append((field[1].lower(), field[2]))
    hosts = _values(fields, b"host")
    settings = _values(fields, b"http2-settings")
    if (
        len(hosts) != 1
        or len(settings) != 1
        or not _asks_for_h2c(fields)
        or not _stand_as_libcurl_writes_them([name for name, _ in fields])
        or _may_be_relayed(fields)
        or not _are_settings(settings[0])
    ):
        return None
    return Upgrade(
        settings=settings[0],
        headers=(
            (":method", request[1].decode()),
            (":scheme", "http"),
            (":authority", hosts[0].decode("latin-1")),
            (":path", request[2].decode()),
            *(
                (name.decode(), value.decode("latin-1"))
                for name, value in fields
                if name not in _OF_THE_CONNECTION
            ),
        ),
    )


def may_become_upgrade(beginning: bytes) -> bool:
    """Tell whether a head that begins so may still be granted an upgrade when it is complete."""
    line, end_of_line, _ = beginning.partition(b"\n")
    if not end_of_line:
        return line[:5] in (b"GET /"[: len(line)], b"HEAD "[: len(line)])
    if beginning.count(b"\n") != beginning.count(b"\r\n"):
        return False
    return _REQUEST_LINE.fullmatch(line[:-1]) is not None


def _values(fields: list[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    return [value for name, value in fields if name == wanted]


def _tokens(fields: list[tuple[bytes, bytes]], wanted: bytes) -> set[bytes]:
    joined = b",".join(_values(fields, wanted))
    return {token.strip().lower() for token in joined.split(b",")}


def _asks_for_h2c(fields: list[tuple[bytes, bytes]]) -> bool:
    return b"h2c" in _tokens(fields, b"upgrade") and _tokens(fields, b"connection") >= {
        b"upgrade",
        b"http2-settings",
    }


def _may_be_relayed(fields: list[tuple[bytes, bytes]]) -> bool:
    """Tell whether somebody stands in between, or a body follows."""
    for name, value in fields:
        if name in _SPEAKS_FOR_OTHERS or name.startswith(b"x-forwarded-"):
            return True
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            return True
        if name == b"expect":
            return True
    return False


def _stand_as_libcurl_writes_them(names: list[bytes]) -> bool:
    if names.count(b"upgrade") != 1 or b"user-agent" not in names:
        return False
    at = names.index(b"upgrade")
    return names.index(b"user-agent") < at and names.index(b"http2-settings") == at + 1


def _are_settings(encoded: bytes) -> bool:
    if not _SETTINGS.fullmatch(encoded):
        return False
    for name, value in _SETTINGS_ENTRY.iter_unpack(base64.urlsafe_b64decode(encoded)):
        lowest, highest = _BOUNDS.get(name, (0, value))
        if not lowest <= value <= highest:
            return False
    return True
