"""What is remembered of each blob beside its bytes: size, last use, epoch, and what named it.

A SQLite database that is a cache of the disk, never the only truth: whatever is lost here is found
again by looking at the files. What it is for is that nobody has to look at a million files to
start, to know how much is stored, or to find the one that was used longest ago.

The *epoch* grows by one at every start that follows an unclean stop. A row of an earlier epoch
tells of a file whose bytes may never have reached the disk; it is hashed before its first use, and
then gets the current epoch. Totals are kept by triggers, in the transactions that change them.
Times of use are microseconds that only grow, whatever the clock does, so that their order is the
order of use. Names outlive their blobs: that an index once named a digest stays true.

A database that cannot be understood is moved aside and begun anew; one that cannot be reached
(locked, no space, no permission) is left alone, and rows live in memory for this run. Everything
here blocks, belongs in one thread, and raises sqlite3.Error. The lock is exclusive, which spares
SQLite the shared memory file: nothing is mapped here either.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proxy.ports import Named

_FORMAT: Final = 1
_SCHEMA: Final = """
BEGIN;
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('epoch', 0), ('blobs', 0), ('stored_bytes', 0), ('surveyed', 0);
CREATE TABLE blobs (
    digest BLOB PRIMARY KEY, size INTEGER NOT NULL, last_used INTEGER NOT NULL,
    epoch INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX blobs_by_use ON blobs (last_used);
CREATE TABLE named (
    digest BLOB, upstream TEXT, crate TEXT, version TEXT,
    PRIMARY KEY (digest, upstream, crate, version)
) WITHOUT ROWID;
CREATE INDEX named_by_crate ON named (upstream, lower(crate));
CREATE TRIGGER blob_added AFTER INSERT ON blobs BEGIN
    UPDATE meta SET value = value + 1 WHERE key = 'blobs';
    UPDATE meta SET value = value + (new.size + 4095) / 4096 * 4096 WHERE key = 'stored_bytes';
END;
CREATE TRIGGER blob_removed AFTER DELETE ON blobs BEGIN
    UPDATE meta SET value = value - 1 WHERE key = 'blobs';
    UPDATE meta SET value = value - (old.size + 4095) / 4096 * 4096 WHERE key = 'stored_bytes';
END;
CREATE TRIGGER blob_resized AFTER UPDATE OF size ON blobs BEGIN
    UPDATE meta SET value = value + (new.size + 4095) / 4096 * 4096
        - (old.size + 4095) / 4096 * 4096 WHERE key = 'stored_bytes';
END;
PRAGMA user_version = 1;
COMMIT;
"""
_PUT: Final = """
INSERT INTO blobs VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE
SET size = excluded.size, last_used = max(last_used, excluded.last_used), epoch = excluded.epoch
"""
_UNREACHABLE: Final = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    }
)
_LOCK_TIMEOUT_S: Final = 0.1


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


def is_damage(error: sqlite3.Error) -> bool:
    """Tell whether an error says that the database itself is no good."""
    return _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 for an error that was not SQLite's own."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


class Ledger:
    """The open database. `lasting` is false while rows live in memory alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.trouble: sqlite3.Error | None = None
        self.lasting = True
        try:
            self._db = self._connected()
        except sqlite3.Error as error:
            self.trouble = error
            if _code(error) in _UNREACHABLE:
                self._live_in_memory()
            else:
                self._begin_anew()
        self.epoch = self._meta("epoch")

    def start_over(self) -> None:
        """Move a damaged database aside and begin with an empty one."""
        self._db.close()
        self._begin_anew()
        self._db.execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (self.epoch,))

    def next_epoch(self) -> None:
        """Distrust every row there is until its blob is hashed, and have the blobs counted."""
        with self._transaction():
            self._db.execute("UPDATE meta SET value = value + 1 WHERE key = 'epoch'")
            self._db.execute("UPDATE meta SET value = 0 WHERE key = 'surveyed'")
        self.epoch = self._meta("epoch")

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

    def put(self, digest: str, size_bytes: int, used_us: int, named: Named | None) -> None:
        """Record a blob proven in this epoch."""
        key = bytes.fromhex(digest)
        with self._transaction():
            self._db.execute(_PUT, (key, size_bytes, used_us, self.epoch))
            if named is not None:
                self._note([(digest, named)])

    def forget(self, digests: Iterable[str]) -> None:
        """Remove the rows of blobs that are gone; what named them stays."""
        with self._transaction():
            self._db.executemany(
                "DELETE FROM blobs WHERE digest = ?",
                [(bytes.fromhex(digest),) for digest in digests],
            )

    def use(self, uses: Mapping[str, int]) -> None:
        """Record last uses, in microseconds; blobs unknown here stay so."""
        with self._transaction():
            self._db.executemany(
                "UPDATE blobs SET last_used = ?1 WHERE digest = ?2 AND last_used < ?1",
                [(used_us, bytes.fromhex(digest)) for digest, used_us in uses.items()],
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

    def _connected(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self._path, timeout=_LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            _lay_out(db)
            # Takes the lock, and finds out now whether anything can be written.
            db.execute("UPDATE meta SET value = value WHERE key = 'epoch'")
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _begin_anew(self) -> None:
        with suppress(OSError):
            self._path.replace(self._path.with_name("ledger.unreadable"))
        for suffix in ("-wal", "-shm", "-journal"):
            with suppress(OSError):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        try:
            self._db = self._connected()
        except sqlite3.Error as error:
            self.trouble = error
            self._live_in_memory()

    def _live_in_memory(self) -> None:
        self.lasting = False
        self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        _lay_out(self._db)


def _lay_out(db: sqlite3.Connection) -> None:
    """Make the tables in an empty database; raise if it is somebody else's, or a later one."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == _FORMAT:
        return
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if version or tables:
        raise sqlite3.DatabaseError("not a ledger of this format")
    db.executescript(_SCHEMA)
