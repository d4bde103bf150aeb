"""The ledger's database file: made, opened, moved aside when it is no good.

What SQLite cannot understand, or what is no ledger of this format, is renamed to
`ledger.unreadable`, for whoever wants to know what happened, and an empty one takes its place. What
cannot be reached just now (locked, no space, no permission) may be perfectly good: it is left
alone, and rows live in memory for this run.

The lock is exclusive, which spares SQLite its shared memory file: nothing is mapped here. Commits
do not wait for the disk; a crash of the machine may take the last of them, and nothing else.
"""

import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FORMAT: Final = 1
_SUMS: Final = 4
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
class OpenedLedger:
    """A database with the tables in it, and what stood in the way of a better one."""

    db: sqlite3.Connection
    is_lasting: bool
    trouble: sqlite3.Error | None = None


def is_damage(error: sqlite3.Error) -> bool:
    """Tell whether an error says that the database itself is no good."""
    return _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def open_ledger(path: Path) -> OpenedLedger:
    """Open the database at `path`, or make one there, or else one in memory."""
    try:
        return OpenedLedger(_connected(path), is_lasting=True)
    except sqlite3.Error as error:
        if _code(error) in _UNREACHABLE:
            return OpenedLedger(ledger_in_memory(), is_lasting=False, trouble=error)
        anew = begin_ledger_anew(path)
        return OpenedLedger(anew.db, anew.is_lasting, anew.trouble or error)


def begin_ledger_anew(path: Path) -> OpenedLedger:
    """Move whatever is at `path` aside, and make an empty database there or in memory."""
    with suppress(OSError):
        path.replace(path.with_name(f"{path.name}.unreadable"))
    for suffix in ("-wal", "-shm", "-journal"):
        with suppress(OSError):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    try:
        return OpenedLedger(_connected(path), is_lasting=True)
    except sqlite3.Error as error:
        return OpenedLedger(ledger_in_memory(), is_lasting=False, trouble=error)


def ledger_in_memory() -> sqlite3.Connection:
    """Make a database that ends with the process."""
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    db.executescript(_SCHEMA)
    return db


def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(
        path, timeout=_LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False
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


def _lay_out(db: sqlite3.Connection) -> None:
    """Make the tables in an empty database; raise if it is somebody else's, or a later one."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not version and not tables:
        db.executescript(_SCHEMA)
    elif version != _FORMAT:
        raise sqlite3.DatabaseError("not a ledger of this format")
    (sums,) = db.execute("SELECT count(*) FROM meta WHERE typeof(value) = 'integer'").fetchone()
    if sums != _SUMS:
        raise sqlite3.DatabaseError("a ledger without its sums")


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 for an error that was not SQLite's own."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
