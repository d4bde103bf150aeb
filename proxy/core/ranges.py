"""Byte ranges of a body whose length is known: RFC 9110 section 14, one range at a time.

Cargo never asks for a range; download accelerators and resuming mirrors do. Several ranges in one
request are answered with the whole body, as 14.2 allows: no client of a registry needs multipart.
"""

import re
from dataclasses import dataclass
from typing import Final

_SINGLE: Final = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from `start` up to, not including, `stop`; never empty."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Unsatisfiable:
    """A well-formed range that lies outside the body: 416."""


def parse_range(header: str, length: int) -> ByteRange | Unsatisfiable | None:
    """Read a Range header against a body of `length` bytes; None means "send it all" (200)."""
    match = _SINGLE.fullmatch(header.strip())
    if match is None:
        return None
    first, last = match[1], match[2]
    if not first:
        if not last:
            return None
        suffix = int(last)
        if suffix == 0 or length == 0:
            return Unsatisfiable()
        return ByteRange(max(0, length - suffix), length)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= length:
        return Unsatisfiable()
    return ByteRange(start, min(int(last) + 1, length) if last else length)
