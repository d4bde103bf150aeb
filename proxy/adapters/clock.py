"""The system's time and chance: the `Clock` port."""

import asyncio
import random
import time

from proxy.ports import Clock


class SystemClock(Clock):
    """The real thing."""

    def now(self) -> float:
        """Return the wall clock's seconds since the epoch."""
        return time.time()  # noqa: TID251 - this is where wall time comes from

    def monotonic(self) -> float:
        """Return the monotonic clock's seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await asyncio.sleep(seconds)

    def jitter(self) -> float:
        """Return a random number in [0, 1); nothing secret depends on it."""
        return random.random()  # noqa: S311 - spreads retries, guards nothing
