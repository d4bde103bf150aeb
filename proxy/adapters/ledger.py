"""What is remembered of each blob beside its bytes: size, last use, epoch, and what named it.

A SQLite database that is a cache of the disk, never the only truth: whatever is lost here is found
again by looking at the files. What it is for is that nobody has to look at a million files to
start, to know how much is stored, or to find the one that was used longest ago.

The *epoch* grows by one at every start that follows an unclean stop. A row of an earlier epoch
tells of a file whose bytes may never have reached the disk; it is hashed before its first use, and
then gets the current epoch. Totals are kept by triggers, in the transactions that change them.
Times of use are microseconds that only grow, whatever the clock does, so that their order is the
order of use. Names outlive their blobs: that an index once named a digest stays true.

Everything here blocks, belongs in one thread, and raises sqlite3.Error.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proxy.adapters.ledger_file import (
    OpenedLedger,
    begin_ledger_anew,
    is_damage,
    ledger_in_memory,
    open_ledger,
)
from proxy.ports import Named

_PUT: Final = """
INSERT INTO blobs VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE
SET size = excluded.size, last_used = excluded.last_used, epoch = excluded.epoch
"""
_PROVE: Final = """
INSERT INTO blobs VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE
SET size = excluded.size, epoch = excluded.epoch
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of a blob. `epoch` says since when its bytes are proven."""

    digest: str
    size_bytes: int
    last_used_us: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Totals:
    """How many blobs there are, and the whole blocks that they take up."""

    blobs: int = 0
    stored_bytes: int = 0


class Ledger:
    """The rows. `is_lasting` is false while they live in memory alone; `trouble` says why."""

    def __init__(self, path: Path, *, stopped_cleanly: bool, lasting: bool) -> None:
        self._path = path
        self.trouble: sqlite3.Error | None = None
        if lasting:
            self._take(open_ledger(path))
        else:
            self._take(OpenedLedger(ledger_in_memory(), is_lasting=False))
        try:
            self._begin(stopped_cleanly=stopped_cleanly)
        except sqlite3.Error as error:
            # Rows whose epoch could not be ended must not be believed.
            self._db.close()
            if is_damage(error):
                self._take(begin_ledger_anew(path))
            else:
                self._take(OpenedLedger(ledger_in_memory(), is_lasting=False))
            self.trouble = error
            self._begin(stopped_cleanly=stopped_cleanly)

    def start_over(self) -> None:
        """Move a damaged database aside and begin with an empty one, in the same epoch."""
        self._db.close()
        self._take(begin_ledger_anew(self._path))
        self._db.execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (self.epoch,))

    def close(self) -> None:
        """Write out and close."""
        self._db.close()

    def totals(self) -> Totals:
        """Return what is stored, by the rows."""
        return Totals(self._meta("blobs"), self._meta("stored_bytes"))

    def is_surveyed(self) -> bool:
        """Tell whether the rows were compared with the files since the last doubt."""
        return self._meta("surveyed") == 1

    def mark_surveyed(self) -> None:
        """Note that they were."""
        self._db.execute("UPDATE meta SET value = 1 WHERE key = 'surveyed'")

    def last_use_us(self) -> int:
        """Return the latest time of use in any row."""
        (latest,) = self._db.execute("SELECT max(last_used) FROM blobs").fetchone()
        return int(latest or 0)

    def row(self, digest: str) -> Row | None:
        """Return what is known of a blob."""
        found = self._db.execute(
            "SELECT size, last_used, epoch FROM blobs WHERE digest = ?", (bytes.fromhex(digest),)
        ).fetchone()
        return found and Row(digest, *found)

    def put(self, digest: str, size_bytes: int, used_us: int, named: Named) -> None:
        """Record a blob proven in this epoch, and what it is named."""
        key = bytes.fromhex(digest)
        with self._transaction():
            self._db.execute(_PUT, (key, size_bytes, used_us, self.epoch))
            self._note([(digest, named)])

    def prove(self, digest: str, size_bytes: int, used_us: int) -> None:
        """Record that a blob is proven in this epoch; `used_us` if nothing is known of its use."""
        with self._transaction():
            self._db.execute(_PROVE, (bytes.fromhex(digest), size_bytes, used_us, self.epoch))

    def forget(self, digests: Iterable[str]) -> None:
        """Remove the rows of blobs that are gone; what named them stays."""
        with self._transaction():
            self._db.executemany(
                "DELETE FROM blobs WHERE digest = ?",
                [(bytes.fromhex(digest),) for digest in digests],
            )

    def use(self, uses: Iterable[tuple[str, int]]) -> None:
        """Record last uses, in microseconds; blobs unknown here stay so."""
        with self._transaction():
            self._db.executemany(
                "UPDATE blobs SET last_used = ? WHERE digest = ?",
                [(used_us, bytes.fromhex(digest)) for digest, used_us in uses],
            )

    def note(self, names: Iterable[tuple[str, Named]]) -> None:
        """Record what named which digest."""
        with self._transaction():
            self._note(names)

    def oldest(self, count: int) -> list[Row]:
        """Return the rows used longest ago."""
        rows = self._db.execute(
            "SELECT digest, size, last_used, epoch FROM blobs ORDER BY last_used LIMIT ?", (count,)
        )
        return [Row(digest.hex(), *rest) for digest, *rest in rows]

    def digests_in(self, folder: int) -> set[str]:
        """Return the digests that begin with this byte."""
        bounds = bytes([folder]), bytes([folder]) + b"\xff" * 32
        rows = self._db.execute("SELECT digest FROM blobs WHERE digest BETWEEN ? AND ?", bounds)
        return {digest.hex() for (digest,) in rows}

    def adopt(self, rows: Iterable[Row]) -> None:
        """Record files found on the disk, unless they are known; they are not proven by that."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?)",
                [
                    (bytes.fromhex(row.digest), row.size_bytes, row.last_used_us, row.epoch)
                    for row in rows
                ],
            )

    def names_of(self, digest: str) -> list[Named]:
        """Return what named a digest."""
        return [
            Named(*row)
            for row in self._db.execute(
                "SELECT upstream, crate, version FROM named WHERE digest = ?",
                (bytes.fromhex(digest),),
            )
        ]

    def digests_of(self, upstream: str, crate: str | None) -> list[tuple[str, Named]]:
        """Return what an upstream named, all of it or one crate."""
        query = "SELECT digest, upstream, crate, version FROM named WHERE upstream = ?"
        values: tuple[str, ...] = (upstream,)
        if crate is not None:
            query, values = f"{query} AND lower(crate) = lower(?)", (upstream, crate)
        return [(digest.hex(), Named(*rest)) for digest, *rest in self._db.execute(query, values)]

    def _note(self, names: Iterable[tuple[str, Named]]) -> None:
        self._db.executemany(
            "INSERT OR IGNORE INTO named VALUES (?, ?, ?, ?)",
            [
                (bytes.fromhex(digest), named.upstream, named.crate, named.version)
                for digest, named in names
            ],
        )

    def _meta(self, key: str) -> int:
        (value,) = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return int(value)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _begin(self, *, stopped_cleanly: bool) -> None:
        if not stopped_cleanly:
            with self._transaction():
                self._db.execute("UPDATE meta SET value = value + 1 WHERE key = 'epoch'")
                self._db.execute("UPDATE meta SET value = 0 WHERE key = 'surveyed'")
        self.epoch = self._meta("epoch")

    def _take(self, opened: OpenedLedger) -> None:
        self._db = opened.db
        self.is_lasting = opened.is_lasting
        self.trouble = opened.trouble
