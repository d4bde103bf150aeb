"""Room for drafts: reserved before it is written, won by evicting what was used longest ago.

`proxy.core.room` says how much must go; here is how it goes. One reservation at a time looks and
evicts, so that two of them never evict for one need. What reservations have written already is no
longer free on the file system, and is not counted against its free space a second time. Free space
is measured once per eviction and then calculated: a file that somebody still reads gives its space
back later, and measuring again would throw out the whole store for it.

A reservation that could not be met with an empty store fails at once and evicts nothing. A blob
that cannot be removed is counted as used, and tried again when its turn comes round.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from proxy.adapters.blob_files import Unlinked
from proxy.adapters.ledger_thread import LedgerThread
from proxy.core.events import Evicted
from proxy.core.failures import StoreFailure
from proxy.core.room import Limits, Usage, can_ever_fit, excess, on_disk
from proxy.ports import Observer

_SLICE: Final = 200
_FIRST_STEP_BYTES: Final = 256 * 1024
_LONGEST_STEP_BYTES: Final = 16 * 1024 * 1024


class Room:
    """The space that the store may use, and who was promised some of it."""

    def __init__(
        self,
        limits: Limits,
        ledger: LedgerThread,
        observer: Observer,
        *,
        measure_free: Callable[[], Awaitable[int]],
        remove: Callable[[dict[str, int]], Awaitable[Unlinked]],
    ) -> None:
        self.limits = limits
        self.reserved_bytes = 0
        self.written_bytes = 0
        self.drafts = 0
        self._ledger = ledger
        self._observer = observer
        self._measure_free = measure_free
        self._remove = remove
        self._lock = asyncio.Lock()

    async def reserve(self, wanted_bytes: int) -> None:
        """Promise space, evicting for it. Raises StoreFailure if there is none to be had."""
        if not can_ever_fit(self.limits, wanted_bytes):
            raise StoreFailure(
                f"no room for {wanted_bytes} bytes: the store may hold {self.limits.max_size_bytes}"
            )
        async with self._lock:
            await self._evict_for(wanted_bytes)
            self.reserved_bytes += wanted_bytes

    async def make_room(self) -> int:
        """Evict down to the limits; returns the bytes freed. Raises StoreFailure."""
        async with self._lock:
            return await self._evict_for(0)

    async def _evict_for(self, wanted_bytes: int) -> int:
        free_bytes = await self._measure_free() + self.written_bytes
        over = excess(self._usage(free_bytes), self.limits, wanted_bytes)
        if over is None:
            return 0
        stored_bytes = self._ledger.totals.stored_bytes
        emptied = Usage(0, self.reserved_bytes, free_bytes + stored_bytes)
        if excess(emptied, self.limits, wanted_bytes) is not None:
            raise StoreFailure(f"no room for {wanted_bytes} bytes, whatever is evicted")
        blobs = freed_bytes = won_bytes = 0
        try:
            while won_bytes < over.bytes:
                chosen = await self._choose(over.bytes - won_bytes)
                unlinked = await self._remove(chosen)
                for digest in unlinked.refused:
                    self._ledger.note_use(digest)
                if not unlinked.freed:
                    break
                blobs += sum(1 for freed in unlinked.freed.values() if freed)
                freed_bytes += sum(unlinked.freed.values())
                won_bytes = freed_bytes
                if over.reason == "max_size":
                    # Rows of files that were gone already count as well.
                    won_bytes = stored_bytes - self._ledger.totals.stored_bytes
        finally:
            if blobs:
                self._observer.observe(Evicted(over.reason, blobs, freed_bytes))
        if excess(self._usage(free_bytes + freed_bytes), self.limits, wanted_bytes) is not None:
            raise StoreFailure(f"no room for {wanted_bytes} bytes: not enough could be evicted")
        return freed_bytes

    async def _choose(self, needed_bytes: int) -> dict[str, int]:
        """Return blobs used longest ago that take up this much, a slice at most, with sizes."""
        chosen: dict[str, int] = {}
        for row in await self._ledger.oldest(_SLICE):
            if needed_bytes <= 0:
                break
            chosen[row.digest] = row.size_bytes
            needed_bytes -= on_disk(row.size_bytes)
        return chosen

    def _usage(self, free_bytes: int) -> Usage:
        return Usage(self._ledger.totals.stored_bytes, self.reserved_bytes, free_bytes)


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
