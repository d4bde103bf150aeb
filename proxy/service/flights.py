"""One running fetch per key, owned by the application and shared by everybody who wants it.

A client that leaves cancels its own waiting and nothing else; a fetch that has begun is finished,
because the next client will want it. Waiters share one outcome, success or failure, through the
task itself. At shutdown the running flights are given a moment, then cancelled.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Flights(Generic[K, T]):
    """The running fetches of one kind, by key. For one event loop; `join` never awaits."""

    def __init__(self) -> None:
        self._running: dict[K, asyncio.Task[T]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, key: K) -> bool:
        return key in self._running

    def join(
        self, key: K, start: Callable[[], Coroutine[Any, Any, T]]
    ) -> tuple[asyncio.Task[T], bool]:
        """Return the flight for `key` and whether this call began it, by calling `start`.

        Wait for the task with `outcome`, never with a bare await: that would cancel it for all.
        """
        task = self._running.get(key)
        if task is not None:
            return task, False
        task = asyncio.create_task(start())
        self._running[key] = task
        task.add_done_callback(lambda done: self._landed(key, done))
        return task, True

    def _landed(self, key: K, task: asyncio.Task[T]) -> None:
        del self._running[key]
        if not task.cancelled():
            # A background flight has nobody who waits; retrieving the exception says "seen".
            task.exception()

    async def close(self, patience_s: float) -> None:
        """Wait `patience_s` for what is running, then cancel the rest and wait for that."""
        tasks = list(self._running.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=patience_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


async def outcome(task: asyncio.Task[T], patience_s: float | None) -> T:
    """Return a flight's result, or raise its failure; TimeoutError when patience runs out first.

    Cancelling this call leaves the flight alone.
    """
    done, _ = await asyncio.wait({task}, timeout=patience_s)
    if not done:
        raise TimeoutError
    return task.result()
