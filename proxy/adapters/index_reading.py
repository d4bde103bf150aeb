"""The index database of a disk that takes no writes: what is held can still be read.

SQLite wants to write before it reads: a file of shared memory beside the database, and, in the mode
that the store uses, a log. On a full or read-only disk that fails at the first step, though all the
rows are there. So here nothing is made and nothing is changed:

- Without a log beside it the database is complete, and read as one that nobody changes.
- With a log (the last stop was not a clean one) it is read together with the log, which needs the
  lock on the whole database, and no shared memory.

Nothing here trusts the file more than `index_disk` does, which says what a row may be. For one
process that owns the directory, and one thread. Raises DISK_ERRORS.
"""

import contextlib
import sqlite3
from pathlib import Path
from typing import Final
from urllib.parse import quote

from proxy.adapters.index_disk import DATABASE, ForeignRow, RowDisk, inspect, only_files

_LOG: Final = DATABASE + "-wal"


class ReadOnlyRows:
    """The rows of a database, for as long as it cannot be written. Raises DISK_ERRORS."""

    def __init__(self, directory: Path) -> None:
        only_files(directory)
        has_log = (directory / _LOG).exists()
        address = f"file:{quote(str(directory / DATABASE))}"
        self._disk = RowDisk(str(directory))
        self._connection = sqlite3.connect(
            f"{address}?mode=rw" if has_log else f"{address}?mode=ro&immutable=1",
            uri=True,
            isolation_level=None,
        )
        try:
            for pragma in ("trusted_schema = OFF", "query_only = ON", "mmap_size = 0"):
                self._connection.execute(f"PRAGMA {pragma}")
            if has_log:
                self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            inspect(self._connection)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the database and of the lock."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def get(self, key: str) -> bytes | None:
        """Return the value of a row; None if there is none, or none of ours."""
        row = self._connection.execute(
            "SELECT mode, filename, value FROM Cache WHERE key = ? AND raw = 1", (key,)
        ).fetchone()
        if row is None:
            return None
        mode, filename, value = row
        try:
            return self._disk.fetch(mode, filename, value, read=False)
        except ForeignRow:
            return None

    def keys_between(self, after: str, before: str, limit: int) -> list[str]:
        """Return the first keys between two others, in order."""
        rows = self._connection.execute(
            "SELECT key FROM Cache WHERE key > ? AND key < ? AND raw = 1 ORDER BY key LIMIT ?",
            (after, before, limit),
        )
        return [key for (key,) in rows]

    def count_between(self, after: str, before: str) -> int:
        """Return how many keys there are between two others."""
        ((count,),) = self._connection.execute(
            "SELECT COUNT(*) FROM Cache WHERE key > ? AND key < ? AND raw = 1", (after, before)
        )
        return int(count)

    def drop(self, *_: str) -> int:
        """Leave a bad row where it is: it is a miss again next time."""
        return 0
