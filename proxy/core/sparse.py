r"""One file of a sparse index: lines of JSON, one version each.

The bytes are the upstream's own and travel unchanged (cargo skips what it does not understand, and
fields unknown to us must survive), so nothing here writes a line. Three things are read from them:

- `check`: may these bytes be believed to be the index file of this crate at all? A login page, an
  empty body, half a file and another crate's file may not. Cargo would take each of them with a
  200 for "no matching package", and keep it.
- `checksums_of`: which SHA-256 do they give for a version? One line is parsed, not the file: the
  largest files have thousands of lines.
- `compare`: does a copy from elsewhere agree with the one that is held?

JSON is decoded as UTF-8 and nothing else, as cargo does; left to itself, `json` would guess.

Blank lines, CRLF and a missing last newline are what cargo accepts, so they are accepted.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from proxy.core.names import is_sha256


@dataclass(frozen=True, slots=True)
class NotAnIndexFile:
    """Why a body cannot be this crate's index file, in one line for a log or an error."""

    reason: str


_REASON_MAX_CHARS: Final = 80


def check(body: bytes, name: str) -> NotAnIndexFile | None:
    """Return why `body` is not the index file of `name`, or None if it is.

    Every line must be a JSON object, and every line that has a `name` must have this one (in any
    case). At least one line must have `name` and `vers`.
    """
    versions = 0
    for number, line in enumerate(body.split(b"\n"), start=1):
        text = line.strip()
        if not text:
            continue
        try:
            entry: object = json.loads(text.decode())
        except (ValueError, RecursionError):
            shown = text[:_REASON_MAX_CHARS].decode("utf-8", "replace")
            return NotAnIndexFile(f"line {number} is not JSON: {shown!r}")
        if not isinstance(entry, dict):
            return NotAnIndexFile(f"line {number} is not a JSON object")
        found = entry.get("name")
        if found is None:
            continue
        if not isinstance(found, str) or found.lower() != name.lower():
            shown = str(found)[:_REASON_MAX_CHARS]
            return NotAnIndexFile(f"line {number} is about {shown!r}, not {name!r}")
        versions += isinstance(entry.get("vers"), str)
    if versions == 0:
        return NotAnIndexFile("it has no version in it")
    return None


def checksums_of(body: bytes, crate: str, version: str) -> tuple[str, ...]:
    """Return the checksums that `body` gives for `version` of `crate`, in the order of the lines.

    Usually one or none. A line counts if cargo could choose it: the name in its original case, the
    version to the letter (`1.0.0+a` is not `1.0.0`), a `cksum` of 64 hexadecimal digits. Those in
    capitals come out lowered.
    """
    checksums = (
        _checksum_of_line(line, crate, version)
        for line in _lines_with(body, json.dumps(version).encode())
    )
    return tuple(checksum for checksum in checksums if checksum is not None)


def _lines_with(body: bytes, needle: bytes) -> Iterator[bytes]:
    r"""Yield the lines that hold `needle`, or an escape (`1.0.0\u002bx`) that may hide it."""
    if b"\\u" in body:
        yield from (line for line in body.split(b"\n") if needle in line or b"\\u" in line)
        return
    at = body.find(needle)
    while at >= 0:
        end = body.find(b"\n", at)
        end = len(body) if end < 0 else end
        yield body[body.rfind(b"\n", 0, at) + 1 : end]
        at = body.find(needle, end)


def _checksum_of_line(line: bytes, crate: str, version: str) -> str | None:
    try:
        entry: object = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.get("name") != crate or entry.get("vers") != version:
        return None
    cksum = entry.get("cksum")
    if not isinstance(cksum, str) or not is_sha256(cksum.lower()):
        return None
    return cksum.lower()


def versions_of(body: bytes) -> tuple[tuple[str, str, str], ...]:
    """Return (name, version, checksum) of every line that has all three, in order.

    This parses the whole file: for maintenance, never for answering a request.
    """
    rows = []
    for line in body.split(b"\n"):
        try:
            entry: object = json.loads(line.decode())
        except (ValueError, RecursionError):
            continue
        if not isinstance(entry, dict):
            continue
        name, vers, cksum = entry.get("name"), entry.get("vers"), entry.get("cksum")
        if (
            isinstance(name, str)
            and isinstance(vers, str)
            and isinstance(cksum, str)
            and is_sha256(cksum.lower())
        ):
            rows.append((name, vers, cksum.lower()))
    return tuple(rows)


class Agreement(Enum):
    """How another copy of an index file stands to the one that is held."""

    AGREES = "agrees"
    BEHIND = "behind"
    CONTRADICTS = "contradicts"


def compare(held: bytes, other: bytes) -> Agreement:
    """Compare two copies by what may never change: versions stay, and so do their checksums.

    Yanking and what else a registry may amend is left out. Both bodies have passed `check`.
    """
    offered: dict[tuple[str, str], set[str]] = {}
    for name, version, checksum in versions_of(other):
        offered.setdefault((name, version), set()).add(checksum)
    agreement = Agreement.AGREES
    for name, version, checksum in versions_of(held):
        checksums = offered.get((name, version))
        if checksums is None:
            agreement = Agreement.BEHIND
        elif checksum not in checksums:
            return Agreement.CONTRADICTS
    return agreement
