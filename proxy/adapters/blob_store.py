"""The blob store on disk: crate files by SHA-256, put together from its parts.

This page is the port's face and the store's life from start to stop; the work is done by the parts:

- `blob_files`: names and places, and every blocking call on them
- `ledger`, `ledger_file`, `ledger_thread`: size, last use and names of each blob, in SQLite
- `clean_stop`: the marker of the last graceful stop
- `blocks`: shared reads and what is in memory
- `blob_shelf`: opening, proving, placing, removing
- `blob_room`: reservations and eviction
- `blob_drafts`: files on their way in
- `blob_survey`: walks over everything

A start reads none of the blobs and lists none of them: it empties `drafts`, opens the ledger, and
removes the marker of the last graceful stop. Where that was missing, nothing on disk is believed
until it is hashed, one blob at a time, when it is first asked for. No file is synced on its own:
`close` syncs them all and then writes the marker, and a stop without it makes all of them unproven.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from proxy.adapters.blob_drafts import FileDraft
from proxy.adapters.blob_files import BlobFiles, Unlinked
from proxy.adapters.blob_room import Reservation, Room
from proxy.adapters.blob_shelf import BlobShelf
from proxy.adapters.blob_survey import BlobSurvey
from proxy.adapters.blocks import BlockCache, FileBlob, MemoryBlob
from proxy.adapters.clean_stop import CleanStop
from proxy.adapters.disk_threads import DiskThreads, told
from proxy.adapters.ledger_thread import LedgerThread
from proxy.core.events import Evicted
from proxy.core.failures import StoreFailure
from proxy.core.names import is_sha256
from proxy.core.room import Limits
from proxy.ports import (
    Blob,
    BlobFinding,
    BlobStore,
    BlobUsage,
    Clock,
    Draft,
    Named,
    Observer,
    Removed,
)

_WORKERS: Final = 4
_REMOVED_AT_ONCE: Final = 200
_PREPARING: Final = "preparing the cache directory"


class FileBlobStore(BlobStore):
    """A blob store in one directory. Exclusive: two in one directory break each other's sums."""

    def __init__(
        self,
        directory: Path,
        limits: Limits,
        observer: Observer,
        clock: Clock,
        memory_bytes: int,
    ) -> None:
        self._observer = observer
        self._threads = DiskThreads("blobs", _WORKERS)
        self._files = BlobFiles(directory)
        self._stop = CleanStop(directory)
        self._ledger = LedgerThread(directory / "ledger", observer, clock)
        self._blocks = BlockCache(memory_bytes, self._threads)
        self._shelf = BlobShelf(self._files, self._ledger, self._blocks, self._threads, observer)
        self._room = Room(
            limits,
            self._ledger,
            self._threads,
            observer,
            measure_free=partial(self._threads.run, "measuring free space", self._files.free_bytes),
            remove=self._remove,
        )
        self._survey = BlobSurvey(self._files, self._shelf, self._ledger, self._threads, observer)
        self._background: list[asyncio.Task[None]] = []
        self._is_closed = False

    async def open_store(self) -> None:
        """Make the store ready to serve. Raises StoreFailure if its folders cannot be made."""
        await self._threads.run(_PREPARING, self._files.prepare)
        was_clean = await self._threads.run(_PREPARING, self._stop.was_clean)
        is_lasting = True
        try:
            await self._threads.run(_PREPARING, self._stop.unmark)
        except StoreFailure as failure:
            # The next start would believe the marker, and so must find no rows of this run.
            is_lasting = False
            self._observer.observe(told(_PREPARING, failure))
        await self._ledger.open(stopped_cleanly=was_clean, lasting=is_lasting)
        self._background = [
            asyncio.create_task(self._ledger.flush_regularly()),
            asyncio.create_task(self._survey_when_doubted()),
        ]

    def set_limits(self, limits: Limits) -> None:
        """Hold the store to other limits from the next reservation on."""
        self._room.limits = limits

    async def close(self) -> None:
        """Write out what is noted, and mark the stop as clean. Never raises."""
        if self._is_closed:
            return
        self._is_closed = True
        self._room.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._threads.drain()
        try:
            is_lasting = self._ledger.is_lasting
            await self._ledger.close()
            if is_lasting:
                await self._threads.run(
                    "marking a clean stop",
                    partial(self._stop.mark, has_written=self._ledger.has_changed),
                )
        except StoreFailure as failure:
            self._observer.observe(told("closing the blob store", failure))
        self._shelf.close()
        self._threads.close()

    def at_hand(self, digest: str) -> bytes | None:
        """Return a blob of a single block that is in memory."""
        in_memory = self._blocks.alone(digest)
        if in_memory is not None:
            self._ledger.note_use(digest)
        return in_memory

    async def open(self, digest: str) -> Blob | None:
        """Open a blob: one of a single block that is in memory without touching the disk."""
        if not is_sha256(digest):
            return None
        in_memory = self.at_hand(digest)
        if in_memory is not None:
            return MemoryBlob(in_memory)
        file = await self._shelf.open(digest)
        if file is None:
            return None
        self._ledger.note_use(digest)
        return FileBlob(file, self._blocks)

    async def draft(self, expected_bytes: int | None) -> Draft:
        """Begin a draft; space for one of unknown length is reserved as it grows."""
        reservation = Reservation(self._room)
        try:
            await reservation.cover(expected_bytes or 1, is_final=expected_bytes is not None)
        except BaseException:
            reservation.release()
            raise
        return FileDraft(self._files, self._shelf, self._blocks, self._threads, reservation)

    def note_named(self, digest: str, named: Named) -> None:
        """Note what named a digest, to be written with the next batch."""
        if is_sha256(digest):
            self._ledger.note_named(digest, named)

    async def names_of(self, digest: str) -> tuple[Named, ...]:
        """Return what a blob was named as, be it stored or not."""
        return await self._ledger.names_of(digest) if is_sha256(digest) else ()

    async def was_named(self, digest: str, named: Named) -> bool:
        """Tell whether this was named as that; no, if the ledger cannot be read."""
        return is_sha256(digest) and await self._ledger.was_named(digest, named)

    async def digests_of(self, upstream: str, crate: str | None) -> tuple[tuple[str, Named], ...]:
        """Return what an upstream named, be it stored or not."""
        return await self._ledger.digests_of(upstream, crate)

    async def remove(self, digests: Iterable[str]) -> Removed:
        """Remove all of these that can be removed, and then raise if some could not."""
        wanted = [digest for digest in dict.fromkeys(digests) if is_sha256(digest)]
        blobs = freed_bytes = 0
        refused: dict[str, str] = {}
        try:
            for start in range(0, len(wanted), _REMOVED_AT_ONCE):
                part = wanted[start : start + _REMOVED_AT_ONCE]
                unlinked = await self._remove(dict.fromkeys(part, 0))
                blobs += sum(1 for freed in unlinked.freed.values() if freed)
                freed_bytes += sum(unlinked.freed.values())
                refused.update(unlinked.refused)
        finally:
            if blobs:
                self._observer.observe(Evicted("purge", blobs, freed_bytes))
        if refused:
            raise StoreFailure(f"removing blobs: {next(iter(refused.values()))}")
        return Removed(blobs, freed_bytes)

    async def make_room(self) -> int:
        """Evict what was used longest ago, a little below the limits."""
        return await self._room.make_room()

    def digests(self) -> AsyncIterator[str]:
        """Walk over the blobs; a completed walk also counts the strangers."""
        return self._survey.digests()

    async def check(self, digest: str) -> BlobFinding | None:
        """Hash a blob, in a thread that serves no reader."""
        if not is_sha256(digest):
            return None
        return await self._threads.see_through(self._shelf.check(digest))

    async def usage(self) -> BlobUsage:
        """Return the sums, which are the ledger's; strangers as of the last walk."""
        quarantined = 0
        with suppress(StoreFailure):
            quarantined = await self._threads.run("counting blobs", self._files.quarantined)
        return BlobUsage(
            blobs=self._ledger.totals.blobs,
            stored_bytes=self._ledger.totals.stored_bytes,
            reserved_bytes=self._room.reserved_bytes,
            limit_bytes=self._room.limits.max_size_bytes,
            memory_bytes=self._blocks.used_bytes,
            memory_limit_bytes=self._blocks.limit_bytes,
            drafts=self._room.drafts,
            quarantined=quarantined,
            strangers=self._survey.strangers,
        )

    async def _remove(self, sizes: dict[str, int]) -> Unlinked:
        return await self._threads.see_through(self._shelf.remove(sizes))

    async def _survey_when_doubted(self) -> None:
        while True:
            await self._ledger.doubted.wait()
            self._ledger.doubted.clear()
            try:
                await self._survey.reconcile()
                await self._room.make_room()
            except StoreFailure as failure:
                self._observer.observe(told("surveying the blobs", failure))
