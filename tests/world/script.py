"""What a test tells a server to do, and how the two wait for each other.

A test runs in one thread and a server's event loop in another. `Gate` and `Tap` are the two places
where they meet: a gate keeps whole requests waiting, a tap lets a body through piece by piece. Both
count, so that a test waits for what has happened instead of sleeping. `Rule` is one scripted fault
and how often it is still to be played.

Patterns are `fnmatch` patterns of the path, without the query: `/index/se/rd/serde`, `/crates/*`.
"""

import asyncio
import math
import threading
from collections import Counter
from collections.abc import AsyncIterator
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Final, Self

from tests.world.faults import Fault
from tests.world.wire import Request

PATIENCE_SECONDS: Final = 15.0


class Rule:
    """A fault, the paths it is for, and how often it happens: in all, or once for each path."""

    def __init__(
        self, pattern: str, fault: Fault, *, times: int | None, times_per_path: int | None
    ) -> None:
        self.pattern = pattern
        self.fault = fault
        self._times = times
        self._times_per_path = times_per_path
        self._played: Counter[str] = Counter()

    @property
    def played(self) -> int:
        """How often the fault has happened."""
        return self._played.total()

    def take(self, path: str) -> Fault | None:
        """Return the fault if it is to happen to a request for `path`, and count it."""
        if not fnmatchcase(path, self.pattern):
            return None
        if self._times is not None and self._played.total() >= self._times:
            return None
        if self._times_per_path is not None and self._played[path] >= self._times_per_path:
            return None
        self._played[path] += 1
        return self.fault


class Meeting:
    """A count that one thread raises and another waits for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0

    def raise_by(self, amount: int) -> None:
        """Add to the count and wake whoever waits."""
        with self._changed:
            self._count += amount
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        """Wait until the count is at least `count`; fail the test when it never gets there."""
        with self._changed:
            reached = self._changed.wait_for(lambda: self._count >= count, PATIENCE_SECONDS)
            assert reached, f"waited for {count}, saw {self._count}"


class Gate:
    """Keeps the requests it is for waiting, from arrival until it is released.

    A context manager: leaving it releases everything and lets later requests pass.
    """

    def __init__(self, pattern: str, loop: asyncio.AbstractEventLoop) -> None:
        self.pattern = pattern
        self._loop = loop
        self._open = asyncio.Event()
        self._arrivals = Meeting()

    async def hold(self, request: Request) -> None:
        """Keep `request` waiting. Called on the server's loop."""
        if fnmatchcase(request.path, self.pattern) and not self._open.is_set():
            self._arrivals.raise_by(1)
            await self._open.wait()

    def wait_for(self, count: int) -> None:
        """Block until `count` requests have come to the gate since it was set up."""
        self._arrivals.wait_for(count)

    async def arrived(self, count: int) -> None:
        """Do the same as `wait_for` without blocking the event loop of the test."""
        await asyncio.to_thread(self._arrivals.wait_for, count)

    def release(self) -> None:
        """Let everything pass, now and later."""
        self._loop.call_soon_threadsafe(self._open.set)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.release()


class Tap:
    """Lets response bodies through in slices, as many as the test has asked for.

    The head is never withheld. With `pause_seconds` slices flow by the clock instead.
    """

    def __init__(
        self,
        pattern: str,
        loop: asyncio.AbstractEventLoop,
        *,
        slice_bytes: int,
        pause_seconds: float | None = None,
    ) -> None:
        self.pattern = pattern
        self.slice_bytes = slice_bytes
        self._loop = loop
        self._pause_seconds = pause_seconds
        self._credit = 0.0
        self._credited = asyncio.Event()
        self._sent = Meeting()

    def matches(self, request: Request) -> bool:
        """Tell whether this tap is for `request`."""
        return fnmatchcase(request.path, self.pattern)

    async def slices(self, body: bytes) -> AsyncIterator[bytes]:
        """Yield `body` at the pace of the test. Called on the server's loop."""
        for start in range(0, len(body), self.slice_bytes):
            if self._pause_seconds is not None:
                await asyncio.sleep(self._pause_seconds)
            else:
                await self._spend()
            yield body[start : start + self.slice_bytes]
            self._sent.raise_by(1)

    async def _spend(self) -> None:
        while self._credit < 1:
            self._credited.clear()
            await self._credited.wait()
        self._credit -= 1

    def let(self, slices: float) -> None:
        """Let `slices` more slices through, over all bodies together."""

        def credit() -> None:
            self._credit += slices
            self._credited.set()

        self._loop.call_soon_threadsafe(credit)

    def open(self) -> None:
        """Let everything through from now on."""
        self.let(math.inf)

    def wait_for(self, slices: int) -> None:
        """Block until `slices` slices have gone out in all."""
        self._sent.wait_for(slices)
