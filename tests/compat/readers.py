"""What each release can read, written down apart from the program that is being tested.

A release cannot be run from here, but what it accepts is known: its rules are kept as a table and
applied by code of their own. `Reader.refusals` goes over a cache and a state directory and tells
everything that the release would refuse, set aside, or take for a miss. An entry is made at a
release, from its sources, and is not touched afterwards.
"""

import gzip
import hashlib
import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Reader:
    """The rules of one release.

    `format` is matched against all of the file. Tables are given with their columns in order. More
    columns are refused everywhere, more tables in the index. `metadata` are the fields that a row
    of an index file must have, `times` those that must be numbers.
    """

    format: str
    blob: str
    ledger_version: int
    ledger: Mapping[str, tuple[str, ...]]
    ledger_sums: frozenset[str]
    index: Mapping[str, tuple[str, ...]]
    row: bytes
    metadata: frozenset[str]
    times: frozenset[str]
    state_version: int
    state: Mapping[str, tuple[str, ...]]

    def refusals(self, cache: Path, state: Path) -> Iterator[str]:
        """Tell what this release would not take as it is."""
        if re.fullmatch(self.format, (cache / "format").read_text()) is None:
            yield "format"
        for path in (cache / "blobs").rglob("*"):
            if path.is_file() and not self._knows_blob(path.relative_to(cache).as_posix(), path):
                yield path.name
        with closing(sqlite3.connect(cache / "ledger")) as ledger:
            yield from self._ledger(ledger)
        with closing(sqlite3.connect(cache / "index" / "cache.db")) as index:
            yield from self._index(index)
        with closing(sqlite3.connect(state / "state.db")) as database:
            yield from self._state(database)

    def _knows_blob(self, name: str, path: Path) -> bool:
        match = re.fullmatch(self.blob, name)
        return match is not None and hashlib.sha256(path.read_bytes()).hexdigest() == match[1]

    def _ledger(self, ledger: sqlite3.Connection) -> Iterator[str]:
        if ledger.execute("PRAGMA user_version").fetchone() != (self.ledger_version,):
            yield "ledger: version"
        yield from _tables(ledger, "ledger", self.ledger, others=True)
        sums = dict(ledger.execute("SELECT key, value FROM meta"))
        if sums.keys() != self.ledger_sums or not all(isinstance(n, int) for n in sums.values()):
            yield "ledger: sums"

    def _index(self, index: sqlite3.Connection) -> Iterator[str]:
        yield from _tables(index, "index", self.index, others=False)
        rows = index.execute("SELECT key, raw, mode, filename, value FROM Cache").fetchall()
        values: dict[str, bytes] = {}
        for key, raw, mode, filename, value in rows:
            if (raw, mode, filename) != (1, 1, None) or not isinstance(value, bytes):
                yield f"index: {key}"
            else:
                values[key] = value
        for key in values:
            if key.startswith("m:") and not self._knows_pair(key[2:], values):
                yield f"index: {key}"

    def _knows_pair(self, key: str, values: Mapping[str, bytes]) -> bool:
        row = values[f"m:{key}"]
        header, digest, content = row[:6], row[14:46], row[46:]
        fields = json.loads(content)
        if (
            header != self.row + b"m"
            or hashlib.sha256(content).digest() != digest
            or not self.metadata <= fields.keys()
            or not all(isinstance(fields[name], int | float) for name in self.times)
            or fields["key"] != key
        ):
            return False
        if fields["body"] is None:
            return True
        body = values.get(f"b:{key}", b"")
        inflated = gzip.decompress(body[46:])
        return (
            body[:6] == self.row + b"b"
            and int.from_bytes(body[6:14], "big") == len(inflated) == fields["body"]["length"]
            and hashlib.sha256(inflated).hexdigest()
            == fields["body"]["sha256"]
            == body[14:46].hex()
        )

    def _state(self, state: sqlite3.Connection) -> Iterator[str]:
        (version,) = state.execute("PRAGMA user_version").fetchone()
        if version > self.state_version:
            (oldest,) = state.execute("SELECT oldest FROM compatible").fetchone()
            if oldest > self.state_version:
                yield "state: version"
        yield from _tables(state, "state", self.state, others=True)


def _tables(
    database: sqlite3.Connection,
    what: str,
    known: Mapping[str, tuple[str, ...]],
    *,
    others: bool,
) -> Iterator[str]:
    names = {
        name
        for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        if not name.startswith("sqlite_")
    }
    if not (known.keys() <= names if others else known.keys() == names):
        yield f"{what}: tables {sorted(names)}"
        return
    for table, columns in known.items():
        found = database.execute(f"PRAGMA table_xinfo({table})").fetchall()
        if tuple(column[1] for column in found) != columns:
            yield f"{what}: columns of {table}"


READERS: Final[Mapping[str, Reader]] = {
    "0.1.0": Reader(
        format=r"1(\.[01])?\n?",
        blob=r"blobs/sha256/[0-9a-f]{2}/[0-9a-f]{2}/([0-9a-f]{64})",
        ledger_version=1,
        ledger={
            "meta": ("key", "value"),
            "blobs": ("digest", "size", "last_used", "epoch"),
            "named": ("digest", "upstream", "crate", "version"),
        },
        ledger_sums=frozenset({"epoch", "blobs", "stored_bytes", "surveyed"}),
        index={
            "Settings": ("key", "value"),
            "Cache": (
                *("rowid", "key", "raw", "store_time", "expire_time", "access_time"),
                *("access_count", "tag", "size", "mode", "filename", "value"),
            ),
        },
        row=b"HFix\x01",
        metadata=frozenset(
            {"key", "body", "etag", "last_modified", "learned_at", "confirmed_at", "older_since"}
        ),
        times=frozenset({"learned_at", "confirmed_at"}),
        state_version=1,
        state={"tombstones": ("id", "upstream", "name", "removed_at", "returned_at")},
    )
}
