"""An event loop in which waiting takes no time.

Whenever nothing can happen but a timer, the loop's clock jumps to it: a patience of two seconds
runs out at once, and exactly then. While work is under way in a thread the clock stands still. When
nothing can happen any more at all, that is an error and not a test that hangs.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, Final, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_REAL_PATIENCE_S: Final = 10.0


class Stuck(RuntimeError):
    """Everybody waits for somebody else."""


class _Selector(selectors.DefaultSelector):
    """Looks at the sockets, and lets time pass where there is nothing to see."""

    def __init__(self) -> None:
        super().__init__()
        self.elapsed_s = 0.0
        self.threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is not None and not self.threads:
            self.elapsed_s += timeout
            return []
        ready = super().select(_REAL_PATIENCE_S)
        if not ready:
            raise Stuck("nothing is left to wait for")
        return ready


class TimelessLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 0."""

    def __init__(self) -> None:
        self._clockwork = _Selector()
        super().__init__(self._clockwork)

    def time(self) -> float:
        return self._clockwork.elapsed_s

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self._clockwork.threads += 1
        future.add_done_callback(self._came_back)
        return future

    def _came_back(self, _: asyncio.Future[Any]) -> None:
        self._clockwork.threads -= 1


def play(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end in a loop of its own in which waiting takes no time."""
    with asyncio.Runner(loop_factory=TimelessLoop) as runner:
        return runner.run(work)
