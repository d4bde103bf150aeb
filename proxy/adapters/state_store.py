"""The state store: what must survive the cache, in one SQLite file.

`<state.dir>/state.db`, readable by its owner alone. Nothing in it can be fetched again, so it is
never moved aside, never thrown away and never evicted: a file that cannot be read stops the start.
Commits are on the disk when a call returns.

The version of the schema is SQLite's own `user_version`. `_LADDER` leads from each version to the
next; steps are only ever added. A file from a newer Holdfast is refused and left as it is, unless
it says itself, in the one row of its table `compatible`, that programs of our schema may write it;
its version is then left standing. `_OLDEST_WRITER` is what we say there: it stays where it is as
long as the steps behind it only add what an older program does not look at.

All calls run on one thread, in the order in which they were asked for.
"""

import asyncio
import contextlib
import math
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

from proxy.core.failures import StoreFailure
from proxy.ports import StateStore, Tombstone

_FILE: Final = "state.db"
_BUSY_TIMEOUT_S: Final = 5.0
_LADDER: Final[tuple[tuple[str, ...], ...]] = (
    (
        """
        CREATE TABLE tombstones (
            id INTEGER PRIMARY KEY,
            upstream TEXT NOT NULL,
            name TEXT NOT NULL,
            removed_at REAL NOT NULL,
            returned_at REAL
        )
        """,
        # Of one name there is at most one removal that has not ended.
        """
        CREATE UNIQUE INDEX tombstones_open ON tombstones (upstream, name)
        WHERE returned_at IS NULL
        """,
    ),
)
SCHEMA_VERSION: Final = len(_LADDER)
_OLDEST_WRITER: Final = 1
_COMPATIBLE: Final = (
    "CREATE TABLE IF NOT EXISTS compatible (oldest INTEGER NOT NULL)",
    "DELETE FROM compatible",
    f"INSERT INTO compatible VALUES ({_OLDEST_WRITER})",  # noqa: S608 - a number of ours
)

T = TypeVar("T")


class SqliteStateStore(StateStore):
    """The state in the folder `directory`. One process at a time writes it."""

    def __init__(self, directory: Path, ladder: tuple[tuple[str, ...], ...] = _LADDER) -> None:
        self._path = directory / _FILE
        self._ladder = ladder
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    async def open(self) -> Self:
        """Create or migrate the file. Raises StoreFailure, also for a newer Holdfast's file."""
        try:
            await self._run("open the state store", self._open)
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Finish what was asked for, and close the file. Calls from now on raise StoreFailure."""
        if self._closed:
            return
        closing = self._run("close the state store", self._close)
        self._closed = True
        with contextlib.suppress(StoreFailure):
            await closing
        self._executor.shutdown(wait=False)

    async def removed(self, upstream: str, name: str, at: float) -> None:
        """See the port. A name that is already known to be removed stays as it is."""
        await self._execute(
            f"record the removal of {upstream}/{name}",
            "INSERT INTO tombstones (upstream, name, removed_at) VALUES (?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            (upstream, name, at),
        )

    async def returned(self, upstream: str, name: str, at: float) -> None:
        """See the port. Nothing happens for a name that is not known to be removed."""
        await self._execute(
            f"record the return of {upstream}/{name}",
            "UPDATE tombstones SET returned_at = ?"
            " WHERE upstream = ? AND name = ? AND returned_at IS NULL",
            (at, upstream, name),
        )

    async def tombstones(self) -> tuple[Tombstone, ...]:
        """See the port."""
        rows = await self._execute(
            "read the tombstones",
            "SELECT upstream, name, removed_at, returned_at FROM tombstones"
            " ORDER BY removed_at DESC, id DESC",
        )
        return tuple(Tombstone(*row) for row in rows)

    async def _execute(
        self, doing: str, statement: str, values: tuple[object, ...] = ()
    ) -> list[tuple[str, str, float, float | None]]:
        return await self._run(doing, partial(self._fetch, statement, values))

    async def _run(self, doing: str, job: Callable[[], T]) -> T:
        if self._closed:
            raise StoreFailure(f"cannot {doing}: the state store is closed")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, job)
        except (sqlite3.Error, OSError) as error:
            reason = " ".join(str(error).split())
            raise StoreFailure(f"cannot {doing} ({self._path}): {reason}") from error

    # From here on, everything runs on the thread.

    def _fetch(
        self, statement: str, values: tuple[object, ...]
    ) -> list[tuple[str, str, float, float | None]]:
        if self._connection is None:
            raise sqlite3.ProgrammingError("it is not open")
        return self._connection.execute(statement, values).fetchall()

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its own files beside this one the same permissions.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(descriptor)
        connection = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        try:
            self._check_version(connection)
            self._path.chmod(0o600)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _check_version(self, connection: sqlite3.Connection) -> int:
        ((version,),) = connection.execute("PRAGMA user_version")
        ours = len(self._ladder)
        if version < 0 or (version > ours and _oldest_writer(connection) > ours):
            raise StoreFailure(
                f"{self._path} has schema version {version}, and this Holdfast knows"
                f" {ours}: it was written by a newer one"
            )
        return int(version)

    def _migrate(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        version = self._check_version(connection)
        ours = len(self._ladder)
        if version < ours:
            steps = self._ladder[version:]
            for step in steps if ours == _OLDEST_WRITER else (*steps, _COMPATIBLE):
                for statement in step:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {ours}")
        connection.execute("COMMIT")

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _oldest_writer(connection: sqlite3.Connection) -> float:
    """Return the oldest schema whose programs may write this file, by its own word."""
    if not connection.execute("PRAGMA table_info(compatible)").fetchall():
        return math.inf
    row = connection.execute("SELECT oldest FROM compatible").fetchone()
    return row[0] if row is not None and isinstance(row[0], int) else math.inf
