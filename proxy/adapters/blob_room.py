"""Room for drafts: reserved before it is written, won by evicting what was used longest ago.

`proxy.core.room` says how much must go; here is how it goes. One reservation at a time looks and
evicts, a slice of blobs after the other, so that two of them never evict for one need; and it waits
for its own need alone. What must go beyond that goes behind its back, in slices that others'
reservations come between. Where there is room, nobody waits for anybody: those who come together
share one look at the file system.

What drafts have written already is no longer free on the file system, and is not counted against
its free space a second time. Free space is measured once per eviction and then calculated: a file
that somebody still reads gives its space back later, and measuring again would throw out the whole
store for it. A reservation that could not be met with an empty store fails at once and evicts
nothing. A blob that cannot be removed is counted as used, and tried again when its turn comes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from proxy.adapters.blob_files import Unlinked
from proxy.adapters.disk_threads import DiskThreads, told
from proxy.adapters.ledger_thread import LedgerThread
from proxy.core.events import Evicted
from proxy.core.failures import StoreFailure
from proxy.core.room import Excess, Limits, Usage, can_ever_fit, excess, on_disk
from proxy.ports import Observer

_SLICE: Final = 64
_FIRST_STEP_BYTES: Final = 256 * 1024
_LONGEST_STEP_BYTES: Final = 16 * 1024 * 1024


@dataclass(slots=True)
class _Tally:
    """What an eviction has come to. `won_bytes` is what counts towards its limit."""

    reason: str
    blobs: int = 0
    freed_bytes: int = 0
    won_bytes: int = 0

    def add(self, sizes: dict[str, int], unlinked: Unlinked) -> None:
        self.blobs += sum(1 for freed in unlinked.freed.values() if freed)
        freed_bytes = sum(unlinked.freed.values())
        self.freed_bytes += freed_bytes
        if self.reason == "max_size":
            # Rows count against this limit, and some were of files that had vanished already.
            self.won_bytes += sum(on_disk(sizes[digest]) for digest in unlinked.freed)
        else:
            self.won_bytes += freed_bytes


class Room:
    """The space that the store may use, and who was promised some of it."""

    def __init__(
        self,
        limits: Limits,
        ledger: LedgerThread,
        threads: DiskThreads,
        observer: Observer,
        *,
        measure_free: Callable[[], Coroutine[Any, Any, int]],
        remove: Callable[[dict[str, int]], Awaitable[Unlinked]],
    ) -> None:
        self.limits = limits
        self.reserved_bytes = 0
        self.written_bytes = 0
        self.drafts = 0
        self._ledger = ledger
        self._threads = threads
        self._observer = observer
        self._measure_free = measure_free
        self._remove = remove
        self._lock = asyncio.Lock()
        self._measuring: asyncio.Task[int] | None = None
        self._slack_bytes = 0
        self._is_closed = False

    def close(self) -> None:
        """Evict nothing more behind anybody's back."""
        self._is_closed = True

    async def reserve(self, wanted_bytes: int) -> None:
        """Promise space, evicting for it. Raises StoreFailure if there is none to be had."""
        if not can_ever_fit(self.limits, wanted_bytes):
            raise StoreFailure(
                f"no room for {wanted_bytes} bytes: the store may hold {self.limits.max_size_bytes}"
            )
        free_bytes = await self._free_bytes()
        if self._lock.locked() or self._excess(free_bytes, wanted_bytes) is not None:
            async with self._lock:
                await self._evict_for(wanted_bytes)
                self.reserved_bytes += wanted_bytes
        else:
            self.reserved_bytes += wanted_bytes

    async def make_room(self) -> int:
        """Evict down to the limits; returns the bytes freed. Raises StoreFailure."""
        async with self._lock:
            free_bytes = await self._free_bytes()
            over = self._excess(free_bytes, 0)
        if over is None:
            return 0
        tally = _Tally(over.reason)
        await self._evict_down(over.bytes, tally)
        if self._excess(free_bytes + tally.freed_bytes, 0) is not None:
            raise StoreFailure("not enough could be evicted to keep within the limits")
        return tally.freed_bytes

    async def _evict_for(self, wanted_bytes: int) -> None:
        free_bytes = await self._free_bytes()
        over = self._excess(free_bytes, wanted_bytes)
        if over is None:
            return
        emptied = Usage(0, self.reserved_bytes, free_bytes + self._ledger.totals.stored_bytes)
        if excess(emptied, self.limits, wanted_bytes) is not None:
            raise StoreFailure(f"no room for {wanted_bytes} bytes, whatever is evicted")
        tally = _Tally(over.reason)
        try:
            while self._excess(free_bytes + tally.freed_bytes, wanted_bytes) is not None:
                # One at least: a draft that becomes a blob is counted twice for a moment.
                if not await self._evict_slice(max(over.bytes - tally.won_bytes, 1), tally):
                    raise StoreFailure(f"no room for {wanted_bytes} bytes: nothing can be evicted")
        finally:
            self._tell(tally)
        if over.bytes > tally.won_bytes and not self._slack_bytes and not self._is_closed:
            self._slack_bytes = over.bytes - tally.won_bytes
            self._threads.begin(self._evict_slack(over.reason))

    async def _evict_slack(self, reason: str) -> None:
        try:
            await self._evict_down(self._slack_bytes, _Tally(reason))
        except StoreFailure as failure:
            self._observer.observe(told("evicting blobs", failure))
        finally:
            self._slack_bytes = 0

    async def _evict_down(self, needed_bytes: int, tally: _Tally) -> None:
        try:
            while tally.won_bytes < needed_bytes and not self._is_closed:
                async with self._lock:
                    if not await self._evict_slice(needed_bytes - tally.won_bytes, tally):
                        break
        finally:
            self._tell(tally)

    async def _evict_slice(self, needed_bytes: int, tally: _Tally) -> bool:
        """Evict some of the blobs used longest ago; tell whether any row went."""
        chosen: dict[str, int] = {}
        for row in await self._ledger.oldest(_SLICE):
            if needed_bytes <= 0:
                break
            chosen[row.digest] = row.size_bytes
            needed_bytes -= on_disk(row.size_bytes)
        if not chosen:
            return False
        unlinked = await self._remove(chosen)
        for digest in unlinked.refused:
            self._ledger.note_use(digest)
        tally.add(chosen, unlinked)
        return bool(unlinked.freed)

    def _tell(self, tally: _Tally) -> None:
        if tally.blobs:
            self._observer.observe(Evicted(tally.reason, tally.blobs, tally.freed_bytes))

    async def _free_bytes(self) -> int:
        """Measure what is free, once for all who want to know it at the same time."""
        if self._measuring is None or self._measuring.done():
            self._measuring = self._threads.begin(self._measure_free())
        return await asyncio.shield(self._measuring) + self.written_bytes

    def _excess(self, free_bytes: int, wanted_bytes: int) -> Excess | None:
        usage = Usage(self._ledger.totals.stored_bytes, self.reserved_bytes, free_bytes)
        return excess(usage, self.limits, wanted_bytes)


class Reservation:
    """What one draft was promised. Grows with a draft whose length nobody knew."""

    def __init__(self, room: Room) -> None:
        self._room = room
        room.drafts += 1
        self._bytes = 0
        self._written_bytes = 0
        self._is_over = False

    async def cover(self, size_bytes: int, *, is_final: bool = False) -> None:
        """Have space for a file of `size_bytes`, and some more unless that is its final size."""
        missing = on_disk(size_bytes) - self._bytes
        if missing <= 0:
            return
        if not is_final:
            step = min(max(self._bytes, _FIRST_STEP_BYTES), _LONGEST_STEP_BYTES)
            missing = max(missing, min(step, self._room.limits.max_size_bytes - self._bytes))
        await self._room.reserve(missing)
        if self._is_over:
            self._room.reserved_bytes -= missing
            return
        self._bytes += missing

    def wrote(self, length: int) -> None:
        """Count bytes that the file system has now."""
        if not self._is_over:
            self._written_bytes += length
            self._room.written_bytes += length

    def release(self) -> None:
        """Give it all back. Safe to call twice."""
        if not self._is_over:
            self._is_over = True
            self._room.drafts -= 1
            self._room.reserved_bytes -= self._bytes
            self._room.written_bytes -= self._written_bytes
