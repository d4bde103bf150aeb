"""The ledger as the event loop sees it: one thread, notes taken in memory, written in batches.

Every call is a hop to the thread that owns the database, short enough that a look-up never waits
long behind it: long lists are cut into slices of their own transactions. Last uses and names are
only noted by their callers and written every few seconds, or when there are many, or when an answer
depends on them; a crash loses the latest, which costs nothing but some order of eviction.

Trouble is told to the observer where it happens and then raised as StoreFailure, for callers to do
without the ledger. A database found damaged is begun anew at once; `doubted` then says that the
files must be surveyed.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from proxy.adapters.disk_threads import DiskThreads, reason_of, told
from proxy.adapters.ledger import Ledger, Row, Totals
from proxy.adapters.ledger_file import is_damage
from proxy.core.events import StoreFailed
from proxy.core.failures import StoreFailure
from proxy.core.memory_tier import MemoryTier
from proxy.ports import Clock, Named, Observer

T = TypeVar("T")
_SLICE: Final = 500
_FLUSH_EVERY_S: Final = 5.0
_FLUSH_AT: Final = 2_000
_NOTES_KEPT: Final = 100_000
_NAMES_REMEMBERED: Final = 20_000


class LedgerThread:
    """The ledger, its thread, and what was noted but not written yet."""

    def __init__(self, path: Path, observer: Observer, clock: Clock) -> None:
        self._path = path
        self._observer = observer
        self._clock = clock
        self._threads = DiskThreads("ledger", 1)
        self._ledger: Ledger | None = None
        self._last_use_us = 0
        self._uses: dict[str, int] = {}
        self._names: dict[tuple[str, Named], None] = {}
        self._recent: MemoryTier[tuple[str, Named], bool] = MemoryTier(_NAMES_REMEMBERED)
        self._flushing = asyncio.Lock()
        self._full = asyncio.Event()
        self.totals = Totals()
        self.has_changed = False
        self.doubted = asyncio.Event()

    async def open(self, *, stopped_cleanly: bool, lasting: bool) -> None:
        """Open the database, whatever state it is in, or one in memory. Never raises."""
        ledger = await self._threads.run(
            "opening the ledger",
            partial(Ledger, self._path, stopped_cleanly=stopped_cleanly, lasting=lasting),
        )
        self._ledger = ledger
        if ledger.trouble is not None:
            self._observer.observe(StoreFailed("opening the ledger", reason_of(ledger.trouble)))
        try:
            self._last_use_us = await self._run("opening the ledger", Ledger.last_use_us)
            self.totals = await self._run("opening the ledger", Ledger.totals)
            surveyed = await self._run("opening the ledger", Ledger.is_surveyed)
        except StoreFailure:
            surveyed = False
        if not surveyed:
            self.doubted.set()

    @property
    def is_lasting(self) -> bool:
        """False while what is written here does not outlive the process."""
        return self._ledger is not None and self._ledger.is_lasting

    async def close(self) -> None:
        """Write what is noted and close. Raises StoreFailure; is closed all the same."""
        try:
            await self.flush()
        finally:
            if self._ledger is not None:
                await self._run("closing the ledger", Ledger.close)
            self._threads.close()

    def note_use(self, digest: str) -> int:
        """Note that a blob is used now; returns the time of it."""
        self._last_use_us = max(int(self._clock.now() * 1e6), self._last_use_us + 1)
        if len(self._uses) < _NOTES_KEPT:
            self._uses[digest] = self._last_use_us
        if len(self._uses) >= _FLUSH_AT:
            self._full.set()
        return self._last_use_us

    def note_named(self, digest: str, named: Named) -> None:
        """Note what named a digest, unless that was noted lately."""
        if self._recent.get((digest, named)) is None and len(self._names) < _NOTES_KEPT:
            self._recent.put((digest, named), True, 1)
            self._names[digest, named] = None
            if len(self._names) >= _FLUSH_AT:
                self._full.set()

    async def flush_regularly(self) -> None:
        """Write notes for ever, every few seconds and when there are many."""
        while True:
            waits = [
                asyncio.ensure_future(self._clock.sleep(_FLUSH_EVERY_S)),
                asyncio.ensure_future(self._full.wait()),
            ]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            self._full.clear()
            try:
                await self.flush()
            except StoreFailure:
                # Told already; the notes are still there for the next time.
                await self._clock.sleep(_FLUSH_EVERY_S)

    async def flush(self) -> None:
        """Write what is noted by now. Raises StoreFailure, keeping what was not written."""
        async with self._flushing:
            # Lists, because more is noted meanwhile, for ever if the store is busy.
            for used in _slices(list(self._uses.items())):
                await self._run("noting uses", partial(Ledger.use, uses=used))
                for digest, used_us in used:
                    if self._uses.get(digest) == used_us:
                        del self._uses[digest]
            for names in _slices(list(self._names)):
                await self._run("noting names", partial(Ledger.note, names=names))
                for name in names:
                    del self._names[name]

    async def proven_size(self, digest: str) -> tuple[int | None, bool]:
        """Return the size that a blob has by its row, and whether it is proven in this epoch."""
        row = await self._run("reading the ledger", lambda ledger: ledger.row(digest))
        if row is None or self._ledger is None:
            return None, False
        return row.size_bytes, row.epoch == self._ledger.epoch

    async def prove(self, digest: str, size_bytes: int, modified_at: float) -> None:
        """Record that a blob is proven, which is not a use of it."""
        used_us = self.time_of_file(modified_at)
        await self._change(lambda ledger: ledger.prove(digest, size_bytes, used_us))

    def time_of_file(self, modified_at: float) -> int:
        """Return a time of use for a file of which only this is known.

        One from the future would never be evicted.
        """
        return int(min(modified_at, self._clock.now()) * 1e6)

    async def put(self, digest: str, size_bytes: int, named: Named) -> None:
        """Record a proven blob, used now."""
        used_us = self.note_use(digest)
        await self._change(lambda ledger: ledger.put(digest, size_bytes, used_us, named))
        if self._uses.get(digest) == used_us:
            del self._uses[digest]

    async def forget(self, digests: Collection[str]) -> None:
        """Remove the rows of blobs that are gone."""
        await self._change(lambda ledger: ledger.forget(digests))

    async def oldest(self, count: int) -> list[Row]:
        """Return blobs used longest ago, what is noted included."""
        await self.flush()
        rows = await self._run("reading the ledger", lambda ledger: ledger.oldest(count))
        return [row for row in rows if row.digest not in self._uses]

    async def names_of(self, digest: str) -> tuple[Named, ...]:
        """Return what named a digest; nothing if that cannot be told."""
        return tuple(await self._noted(lambda ledger: ledger.names_of(digest)))

    async def was_named(self, digest: str, named: Named) -> bool:
        """Tell whether this named that."""
        return (digest, named) in self._names or named in await self.names_of(digest)

    async def digests_of(self, upstream: str, crate: str | None) -> tuple[tuple[str, Named], ...]:
        """Return what an upstream named; nothing if that cannot be told."""
        return tuple(await self._noted(lambda ledger: ledger.digests_of(upstream, crate)))

    async def digests_in(self, folder: int) -> set[str]:
        """Return the known digests that begin with this byte."""
        return await self._run("reading the ledger", lambda ledger: ledger.digests_in(folder))

    async def adopt(self, rows: Collection[Row]) -> None:
        """Record files found on the disk, as unproven."""
        await self._change(lambda ledger: ledger.adopt(rows))

    async def mark_surveyed(self) -> None:
        """Note that rows and files agree."""
        await self._run("writing the ledger", Ledger.mark_surveyed)

    async def _change(self, change: Callable[[Ledger], None]) -> None:
        def changed(ledger: Ledger) -> Totals:
            change(ledger)
            return ledger.totals()

        self.has_changed = True
        self.totals = await self._run("writing the ledger", changed)

    async def _noted(self, query: Callable[[Ledger], list[T]]) -> list[T]:
        """Answer from what is written and what is only noted; from neither if that fails."""
        try:
            await self.flush()
            return await self._run("reading the ledger", query)
        except StoreFailure:
            return []

    async def _run(self, doing: str, work: Callable[[Ledger], T]) -> T:
        ledger, loop = self._ledger, asyncio.get_running_loop()
        if ledger is None:
            raise StoreFailure(f"{doing}: the store is closed")

        def guarded() -> T:
            try:
                return work(ledger)
            except sqlite3.DatabaseError as error:
                if is_damage(error):
                    ledger.start_over()
                    loop.call_soon_threadsafe(self.doubted.set)
                raise

        try:
            return await self._threads.run(doing, guarded)
        except StoreFailure as failure:
            self._observer.observe(told(doing, failure))
            raise


def _slices(entries: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(entries), _SLICE):
        yield entries[start : start + _SLICE]
