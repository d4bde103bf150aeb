"""Is this exactly one plain GET of HTTP/1.1, whole and without a body? RFC 9112, the plain part.

Read for answers that need no handler. Whoever gets None has learned nothing and hands all of the
bytes to a real HTTP/1.1 parser; so what is read here must be a subset of what that parser reads,
with the same meaning: strict lines, visible ASCII, one Host, nothing that frames a body or speaks
of the connection. Where two readers could disagree, this one says None.
"""

import re
from typing import Final, NamedTuple

_HEAD_MAX_BYTES: Final = 4096
_FIELDS_MAX: Final = 64
_HEAD: Final = re.compile(
    rb"GET (/[!-~]*) HTTP/1\.1\r\n((?:[!$%&'*+.^_`|~0-9A-Za-z-]+: [!-~](?:[ -~]*[!-~])?\r\n)+)\r\n",
    re.ASCII,
)
# They frame a body, speak of the connection, or change what an answer is.
_NOT_PLAIN: Final = frozenset(
    {
        *("content-length", "transfer-encoding", "trailer", "te", "upgrade", "http2-settings"),
        *("expect", "range", "if-range", "keep-alive", "proxy-connection", "content-encoding"),
        *("sec-websocket-key", "sec-websocket-key1"),
    }
)


class SimpleGet(NamedTuple):
    """The target and the fields, names in lower case, each there once."""

    target: str
    fields: dict[str, str]


def read_simple_get(data: bytes) -> SimpleGet | None:
    """Return the request, if `data` is one and nothing else."""
    if data[:5] != b"GET /" or data[-4:] != b"\r\n\r\n" or len(data) > _HEAD_MAX_BYTES:
        return None
    head = _HEAD.fullmatch(data)
    if head is None:
        return None
    fields: dict[str, str] = {}
    lines = head[2].decode("ascii").split("\r\n")
    del lines[-1]
    for line in lines:
        name, _, value = line.partition(": ")
        fields[name.lower()] = value
    if len(fields) != len(lines) or len(lines) > _FIELDS_MAX or "host" not in fields:
        return None
    if not _NOT_PLAIN.isdisjoint(fields):
        return None
    connection = fields.get("connection")
    if connection is not None and connection.lower() != "keep-alive":
        return None
    return SimpleGet(head[1].decode("ascii"), fields)
