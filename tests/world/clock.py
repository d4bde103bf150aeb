"""Time that stands still until a test moves it, and chance that does as it is told."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from proxy.ports import Clock

PATIENCE_SECONDS = 10.0
"""How long a test waits, in real time, for something that must happen at once."""


@dataclass(eq=False, slots=True)
class _Sleeper:
    until: float
    waking: asyncio.Event


class ManualClock(Clock):
    """Starts at `now`; the monotonic time starts at 1000 and has nothing to do with it.

    `jitter` gives the numbers to answer with, in turn; after the last one it is always 0.
    """

    def __init__(self, now: float = 1_700_000_000.0, jitter: Iterable[float] = ()) -> None:
        self._now = now
        self._monotonic = 1000.0
        self._jitter = iter(jitter)
        self._sleepers: list[_Sleeper] = []
        self._changed = asyncio.Condition()
        self.slept: list[float] = []

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def jitter(self) -> float:
        return next(self._jitter, 0.0)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        sleeper = _Sleeper(self._monotonic + seconds, asyncio.Event())
        self._sleepers.append(sleeper)
        try:
            async with self._changed:
                self._changed.notify_all()
            await sleeper.waking.wait()
        finally:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)

    @property
    def sleeping(self) -> int:
        """How many sleep right now."""
        return len(self._sleepers)

    def advance(self, seconds: float) -> None:
        """Let time pass, and wake whoever has slept long enough, the earliest first.

        They run when the test next awaits, and all of them see the time that it is then.
        """
        if seconds < 0:
            raise ValueError("time passes forwards; `jump` sets the wall clock")
        self._now += seconds
        self._monotonic += seconds
        due = [one for one in self._sleepers if one.until <= self._monotonic]
        for one in sorted(due, key=lambda one: one.until):
            self._sleepers.remove(one)
            one.waking.set()

    def jump(self, seconds: float) -> None:
        """Set the wall clock forwards or back, while no time passes."""
        self._now += seconds

    async def until_sleeping(self, sleepers: int = 1) -> None:
        """Wait until at least so many sleep, so that `advance` has somebody to wake."""
        async with asyncio.timeout(PATIENCE_SECONDS), self._changed:
            await self._changed.wait_for(lambda: len(self._sleepers) >= sleepers)
