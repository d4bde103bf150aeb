"""Blocking work off the event loop, in threads that belong to one store.

The threads are few and not the loop's default ones, so that a slow disk holds up its own store and
nobody's name resolution. A job that was begun is always finished: cancelling whoever waits for it
only means that nobody looks at the result. Where the result must be looked at (a descriptor to be
closed, a row to be written), the journey around it runs as a task of its own by `see_through`, and
`close` waits for those.

Operating system and SQLite errors leave here as `StoreFailure` with one line and no path in it.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from proxy.core.events import StoreFailed
from proxy.core.failures import StoreFailure

T = TypeVar("T")


def reason_of(error: OSError | sqlite3.Error) -> str:
    """Say what happened in one line, without the path that an OSError may carry."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return " ".join(str(error).split()) or type(error).__name__


def told(doing: str, failure: StoreFailure) -> StoreFailed:
    """Return the event of a failure, which says what was done only once."""
    cause = failure.__cause__
    if isinstance(cause, (OSError, sqlite3.Error)):
        return StoreFailed(doing, reason_of(cause))
    return StoreFailed(doing, str(failure))


class DiskThreads:
    """A handful of threads, and the tasks that must outlive their callers."""

    def __init__(self, name: str, workers: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix=name)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, doing: str, work: Callable[[], T]) -> T:
        """Return what `work` returns, called in a thread. Raises StoreFailure, naming `doing`."""
        try:
            future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        except RuntimeError as error:
            raise StoreFailure(f"{doing}: the store is closed") from error
        try:
            return await asyncio.shield(future)
        except (OSError, sqlite3.Error) as error:
            raise StoreFailure(f"{doing}: {reason_of(error)}") from error

    def soon(self, work: Callable[[], object]) -> None:
        """Have `work` done in a thread, and do not wait; what goes wrong in it is lost."""
        try:
            self._pool.submit(work)
        except RuntimeError:
            with contextlib.suppress(OSError):
                work()

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that `close` waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def see_through(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`, which runs to its end even if the caller is cancelled."""
        return await asyncio.shield(self.begin(work))

    async def drain(self) -> None:
        """Wait for the tasks begun here, and for those that they begin."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        """Take no more work, and wait for what was begun. Blocks: only jobs in threads are left."""
        self._pool.shutdown(wait=True)
