"""diskcache, trusted with bytes and with nothing else.

diskcache was written for caches whose files nobody else touches. Left as it is, it unpickles keys
and values that it finds (CVE-2025-69872), opens and deletes the files that a row names, wherever
they are, takes its settings from the file it has been given (attributes of the cache object and
arguments of PRAGMA statements among them), and evicts at 1 GiB. A cache directory may be shared,
restored from a backup, or damaged, so here:

- `RowDisk` keeps every value in its row as bytes under a text key. It neither writes nor reads
  pickles, names no file, opens none and removes none. A row of another kind is a miss.
- `disarm` goes over a database before diskcache sees it: no triggers, no settings, no tables or
  views but ours, no symbolic links.
- `RowCache` fixes every setting. Nothing is evicted, culled or counted; memory stays flat however
  many rows there are, and no file is mapped: a mapped file that somebody truncates kills the
  process.

What the bytes mean is not known here, and neither is what to do about a broken database.
"""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from diskcache import UNKNOWN, Cache, Disk, Timeout

DATABASE: Final = "cache.db"
BUSY_TIMEOUT_S: Final = 5.0

_MODE_RAW: Final = 1
_NEVER: Final = 2**62
_SETTINGS: Final = {
    "statistics": 0,
    "tag_index": 0,
    "eviction_policy": "none",
    "size_limit": _NEVER,
    "cull_limit": 0,
    # Only taken up while the file is empty; gives the space of a purge back to the disk.
    "sqlite_auto_vacuum": 1,
    "sqlite_cache_size": -4096,  # KiB
    "sqlite_cell_size_check": 1,
    "sqlite_journal_size_limit": 2**24,
    "sqlite_journal_mode": "wal",
    "sqlite_mmap_size": 0,
    # A commit outlives the process; after a power cut the last ones may be missing, whole.
    "sqlite_synchronous": 1,
    "sqlite_trusted_schema": 0,
    "disk_min_file_size": _NEVER,
}
_COLUMNS: Final = {
    b"Settings": [b"key", b"value"],
    b"Cache": [
        b"rowid",
        b"key",
        b"raw",
        b"store_time",
        b"expire_time",
        b"access_time",
        b"access_count",
        b"tag",
        b"size",
        b"mode",
        b"filename",
        b"value",
    ],
}
_INDEXES: Final = frozenset({b"Cache_key_raw", b"Cache_expire_time"})
# Ours break no constraint: rows that do are not where the index says.
_DAMAGE: Final = frozenset(
    {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT}
)
_ENVIRONMENT: Final = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    }
)


class Unusable(Exception):
    """The database is damaged, or not one of ours."""


DISK_ERRORS: Final = (Unusable, sqlite3.Error, Timeout, OSError, ValueError)
"""What any operation of a `RowCache` may raise.

ValueError comes from databases that contradict themselves: two rows where diskcache unpacks one, an
error message of SQLite that quotes a damaged name and is not UTF-8.
"""


class ForeignRow(OSError):
    """A row that we did not write. diskcache takes an OSError for a miss."""


class RowDisk(Disk):  # type: ignore[misc]  # diskcache has no types
    """Bytes under text keys, in the row, and no file ever."""

    def put(self, key: object) -> tuple[str, bool]:
        """Return the key for the table."""
        if type(key) is not str:
            raise TypeError("keys are text")
        return key, True

    def get(self, key: object, raw: object) -> str:
        """Return the key of a row. Raises ForeignRow for a pickled one."""
        if not raw or type(key) is not str:
            raise ForeignRow("the key of this row is not text")
        return key

    def store(
        self,
        value: object,
        read: object,
        key: object = UNKNOWN,  # noqa: ARG002 - diskcache passes it
    ) -> tuple[int, int, None, memoryview]:
        """Return the columns for a value."""
        if read or type(value) is not bytes:
            raise TypeError("values are bytes")
        return 0, _MODE_RAW, None, memoryview(value)

    def fetch(self, mode: object, filename: object, value: object, read: object) -> bytes:
        """Return the value of a row. Raises ForeignRow for one that holds anything but bytes."""
        if read or mode != _MODE_RAW or filename is not None or type(value) is not bytes:
            raise ForeignRow("the value of this row is not bytes")
        return value

    def filename(self, *_: object) -> tuple[str, str]:
        """Refuse: no value is large enough for a file of its own."""
        raise ForeignRow("values are kept in their rows")

    def remove(self, file_path: object) -> None:
        """Leave alone whatever a row named: we write no files, so it is not ours."""


class RowCache(Cache):  # type: ignore[misc]  # diskcache has no types
    """A diskcache of bytes with our settings, on one thread. Raises DISK_ERRORS.

    `len` means nothing here: diskcache's own count is among what `disarm` throws away.
    """

    def __init__(self, directory: Path) -> None:
        try:
            super().__init__(str(directory), timeout=BUSY_TIMEOUT_S, disk=RowDisk, **_SETTINGS)
            self._identity = self._identity_on_disk()
        except BaseException:
            self.close()
            raise

    def is_in_place(self) -> bool:
        """Tell whether what is open is still what has its name: SQLite would go on without."""
        try:
            return self._identity == self._identity_on_disk()
        except OSError:
            return False

    def _identity_on_disk(self) -> tuple[int, int]:
        status = Path(self.directory, DATABASE).stat()
        return status.st_dev, status.st_ino

    def drop(self, *keys: str) -> int:
        """Delete rows without looking at them; returns how many there were."""
        marks = ", ".join("?" * len(keys))
        deleted: int = self._sql(
            f"DELETE FROM Cache WHERE raw = 1 AND key IN ({marks})",  # noqa: S608 - question marks
            keys,
        ).rowcount
        return deleted

    def keys_between(self, after: str, before: str, limit: int) -> list[str]:
        """Return the first keys between two others, in order, without loading a value."""
        rows = self._sql(
            "SELECT key FROM Cache WHERE key > ? AND key < ? AND raw = 1 ORDER BY key LIMIT ?",
            (after, before, limit),
        )
        return [key for (key,) in rows]

    def count_between(self, after: str, before: str) -> int:
        """Return how many keys there are between two others."""
        ((count,),) = self._sql(
            "SELECT COUNT(*) FROM Cache WHERE key > ? AND key < ? AND raw = 1", (after, before)
        )
        return int(count)

    def abandon(self) -> None:
        """Leave the transaction that a failed COMMIT left open: diskcache does not."""
        connection: Any = self._con
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")


def open_rows(directory: Path) -> RowCache:
    """Open or begin the database in `directory`. Raises DISK_ERRORS; Unusable if it never will."""
    if os.path.expandvars(directory) != str(directory):
        raise OSError(f"{directory}: diskcache would expand the $ in this name")
    directory.mkdir(mode=0o700, exist_ok=True)
    try:
        disarm(directory)
        return RowCache(directory)
    except ValueError as error:
        raise Unusable(str(error)) from error
    except sqlite3.Error as error:
        if _is_environment(error, directory / DATABASE):
            raise
        raise Unusable(str(error)) from error


def cause_of(error: BaseException) -> BaseException:
    """Return the error that came first.

    Whatever keeps diskcache from beginning a transaction it calls a Timeout, and where SQLite has
    rolled back on its own, the failure of diskcache's ROLLBACK takes the place of the reason.
    """
    while error.__context__ is not None:
        error = error.__context__
    return error


def is_damage(error: BaseException) -> bool:
    """Tell whether an error of a database in use means that the database is broken."""
    cause = cause_of(error)
    return isinstance(cause, Unusable | ValueError) or _code(cause) in _DAMAGE


def is_lack_of_room(error: BaseException) -> bool:
    """Tell whether an error means a full disk, which leaves the connection as good as it was."""
    return _code(cause_of(error)) == sqlite3.SQLITE_FULL


def _code(error: BaseException) -> int | None:
    # The high bits refine the error; what it is about is in the low ones.
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _is_environment(error: sqlite3.Error, database: Path) -> bool:
    code = _code(error)
    if code == sqlite3.SQLITE_READONLY:
        # A damaged header makes a database read-only too, and that will not go away.
        return not os.access(database, os.W_OK)
    return code in _ENVIRONMENT


def disarm(directory: Path) -> None:
    """Take everything out of a database that would make diskcache or SQLite do what we did not ask.

    Raises Unusable for what cannot be one of ours.
    """
    database = directory / DATABASE
    only_files(directory)
    if not database.exists():
        return
    connection = sqlite3.connect(database, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    with contextlib.closing(connection):
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("BEGIN IMMEDIATE")
        for name in inspect(connection):
            connection.execute(f"DROP TRIGGER {_quoted(name)}")
        if any(True for _ in _schema(connection, b"Settings")):
            connection.execute("DELETE FROM Settings")
        connection.execute("COMMIT")


def only_files(directory: Path) -> None:
    """Refuse a database that is not a file, or has something else beside it. Raises Unusable."""
    for path in directory.glob(DATABASE + "*"):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise Unusable(f"{path.name} is not a file")


def inspect(connection: sqlite3.Connection) -> list[bytes]:
    """Return the triggers of a database. Raises Unusable for what cannot be one of ours."""
    triggers = []
    for kind, name in _schema(connection):
        if kind == b"trigger":
            triggers.append(name)
        elif kind == b"table" and name in _COLUMNS:
            _check_columns(connection, name)
        elif not (kind == b"index" and name in _INDEXES):
            raise Unusable(f"it has a {kind!r} called {name!r}")
    return triggers


def _schema(
    connection: sqlite3.Connection, name: bytes | None = None
) -> Iterator[tuple[bytes, bytes]]:
    rows = _as_bytes(connection, "SELECT type, name FROM sqlite_master")
    for kind, found in rows:
        # SQLite keeps these names for itself: statistics and the indexes behind UNIQUE.
        if found.startswith(b"sqlite_"):
            continue
        if name is None or name == found:
            yield kind, found


def _check_columns(connection: sqlite3.Connection, table: bytes) -> None:
    columns = _as_bytes(connection, f"PRAGMA table_xinfo({table.decode()})")
    if [name for _, name, *_ in columns] != _COLUMNS[table]:
        raise Unusable(f"the columns of {table!r} are not diskcache's")


def _as_bytes(connection: sqlite3.Connection, statement: str) -> list[Any]:
    """Return rows whose texts are bytes: names in a damaged schema need not be UTF-8."""
    before = connection.text_factory
    connection.text_factory = bytes
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.text_factory = before


def _quoted(name: bytes) -> str:
    try:
        return '"' + name.decode().replace('"', '""') + '"'
    except UnicodeDecodeError:
        raise Unusable(f"it has a trigger called {name!r}") from None
