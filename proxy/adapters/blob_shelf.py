"""Blobs at their places: opened, proven, put there, taken away, set aside.

Whatever changes a digest's file or its row holds that digest meanwhile, so that a file and its row
never end up contradicting each other. Openers do not: a file opened before it is removed stays
readable, and one that was replaced is simply the older of two equal ones.

An opening checks the file's size against the row, and hashes it first if it is not proven in this
epoch: because the last stop was unclean, or because the ledger knows nothing of it. Any number of
openers at once cause one look at the disk, and share one descriptor for as long as any of them
reads. A bad file goes to the quarantine, and the observer hears of it.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from proxy.adapters.blob_files import BlobFiles, Identity, Opened, Unlinked, digest_of
from proxy.adapters.blocks import BlockCache, OpenFile
from proxy.adapters.disk_threads import DiskThreads, told
from proxy.adapters.ledger import Row
from proxy.adapters.ledger_thread import LedgerThread
from proxy.core.events import IntegrityFailed
from proxy.core.failures import StoreFailure
from proxy.core.memory_tier import MemoryTier
from proxy.ports import BlobFinding, Named, Observer

_PROVEN_REMEMBERED: Final = 20_000
_PROVERS: Final = 2


@dataclass(slots=True)
class _Opening:
    """One look at the disk, and how many wait for it. It is itself a user of what it finds."""

    task: asyncio.Task[OpenFile | None]
    waiting: int = 0
    is_over: bool = False

    def let_go(self) -> None:
        if self.waiting or self.is_over or not self.task.done():
            return
        self.is_over = True
        if not self.task.cancelled() and not self.task.exception():
            file = self.task.result()
            if file is not None:
                file.release()


class BlobShelf:
    """The blobs on disk, those of them that are open, and those that are known to be good."""

    def __init__(
        self,
        files: BlobFiles,
        ledger: LedgerThread,
        blocks: BlockCache,
        threads: DiskThreads,
        observer: Observer,
    ) -> None:
        self._files = files
        self._ledger = ledger
        self._blocks = blocks
        self._threads = threads
        self._observer = observer
        # Apart from the others, so that proving large files does not hold up serving proven ones.
        self._provers = DiskThreads("blob-proof", _PROVERS)
        self._openings: dict[str, _Opening] = {}
        self._open: dict[str, OpenFile] = {}
        # Which file was proven, and at what length: a path alone may mean another one by now.
        self._proven: MemoryTier[str, tuple[Identity, int]] = MemoryTier(_PROVEN_REMEMBERED)
        self._held: set[str] = set()
        self._let_go = asyncio.Event()

    def close(self) -> None:
        """Stop the threads."""
        self._provers.close()

    async def open(self, digest: str) -> OpenFile | None:
        """Open a proven blob, with the caller as a user of it; None if there is none."""
        opening = self._openings.get(digest)
        if opening is None:
            opening = _Opening(self._threads.begin(self._open_proven(digest)))
            self._openings[digest] = opening
            opening.task.add_done_callback(partial(self._opened, digest, opening))
        opening.waiting += 1
        try:
            file = await asyncio.shield(opening.task)
            if file is not None:
                file.retain()
            return file
        finally:
            opening.waiting -= 1
            opening.let_go()

    def _opened(self, digest: str, opening: _Opening, _: object) -> None:
        del self._openings[digest]
        opening.let_go()

    async def _open_proven(self, digest: str) -> OpenFile | None:
        try:
            opened = await self._threads.run("opening a blob", partial(self._files.open, digest))
        except StoreFailure as failure:
            self._observer.observe(told("opening a blob", failure))
            return None
        if opened is None:
            # Whoever asks need not wait for the row to go, if there is one at all.
            self._threads.begin(self._found_missing(digest))
            return None
        try:
            is_good = await self._prove(digest, opened)
        except BaseException:
            os.close(opened.fd)
            raise
        if not is_good:
            self._threads.soon(partial(os.close, opened.fd))
            return None
        return self._shared(digest, opened)

    async def _prove(self, digest: str, opened: Opened) -> bool:
        """Tell whether a file is what it should be; quarantine it otherwise."""
        if self._proven.get(digest) == (opened.identity, opened.size_bytes):
            return True
        try:
            size_bytes, is_proven = await self._ledger.proven_size(digest)
        except StoreFailure:
            size_bytes, is_proven = None, False
        if size_bytes is not None and size_bytes != opened.size_bytes:
            expected, actual = f"{size_bytes} bytes", f"{opened.size_bytes} bytes"
            await self._set_aside(digest, opened, expected, actual)
            return False
        # The row may be of a file that has just taken the place of this one.
        if not is_proven or os.fstat(opened.fd).st_nlink == 0:
            try:
                actual = await self._provers.run("hashing a blob", partial(digest_of, opened.fd))
            except StoreFailure as failure:
                self._observer.observe(told("hashing a blob", failure))
                return False
            if actual != digest:
                await self._set_aside(digest, opened, digest, actual)
                return False
            await self._record(digest, opened)
        self._proven.put(digest, (opened.identity, opened.size_bytes), 1)
        return True

    async def _record(self, digest: str, opened: Opened) -> None:
        """Note in the ledger that a file is proven, unless it was removed meanwhile."""
        async with self._holding([digest]):
            if os.fstat(opened.fd).st_nlink == 0:
                return
            try:
                await self._ledger.prove(digest, opened.size_bytes, opened.modified_at)
            except StoreFailure:
                # Told by the ledger; the next start will prove this file again.
                return

    async def check(self, digest: str) -> BlobFinding | None:
        """Hash a blob whatever is known of it."""
        opened = await self._threads.run("opening a blob", partial(self._files.open, digest))
        if opened is None:
            await self._found_missing(digest)
            return None
        try:
            actual = await self._provers.run("hashing a blob", partial(digest_of, opened.fd))
            if actual == digest:
                await self._record(digest, opened)
                return BlobFinding(digest, opened.size_bytes, None)
            await self._set_aside(digest, opened, digest, actual)
        finally:
            self._threads.soon(partial(os.close, opened.fd))
        return BlobFinding(digest, opened.size_bytes, f"its SHA-256 is {actual}")

    async def place(
        self, digest: str, named: Named, *, name: str | None, data: bytes, file: OpenFile | None
    ) -> None:
        """Make a draft a blob: the draft file `name`, which ends in `data`, or `data` alone.

        Replaces any file that is there: only this one is known to be good. Raises StoreFailure.
        """
        async with self._holding([digest]):
            if name is None:
                work = partial(self._files.place_bytes, data, digest)
            else:
                work = partial(self._files.place, name, digest)
            identity = await self._threads.run("storing a blob", work)
            size_bytes = len(data) if file is None else file.size_bytes
            self._disown(digest)
            if file is not None:
                self._blocks.rename(file.source, digest, size_bytes)
                file.source = digest
                self._open[digest] = file
            self._blocks.put_last(digest, data, size_bytes)
            self._proven.put(digest, (identity, size_bytes), 1)
            try:
                await self._ledger.put(digest, size_bytes, named)
            except StoreFailure:
                # Told by the ledger. The blob is whole; it is adopted at its next first use.
                return

    async def remove(self, sizes: dict[str, int]) -> Unlinked:
        """Take blobs away, from memory too; `sizes` as far as known. Raises StoreFailure."""
        async with self._holding(sizes):
            unlinked = await self._threads.run(
                "removing blobs", partial(self._files.unlink, tuple(sizes))
            )
            for digest, freed in unlinked.freed.items():
                self._blocks.forget(digest, max(sizes[digest], freed))
                self._disown(digest)
            await self._ledger.forget(unlinked.freed)
        return unlinked

    async def _set_aside(self, digest: str, opened: Opened, expected: str, actual: str) -> None:
        self._observer.observe(IntegrityFailed("disk", digest, expected, actual))
        async with self._holding([digest]):
            self._blocks.forget(digest, opened.size_bytes)
            self._disown(digest)
            try:
                await self._threads.run(
                    "quarantining a blob",
                    partial(self._files.set_aside, digest, opened.identity),
                )
                await self._ledger.forget([digest])
            except StoreFailure as failure:
                self._observer.observe(told("quarantining a blob", failure))

    async def adopt(self, rows: Collection[Row]) -> None:
        """Record files found on the disk as blobs to be proven. Raises StoreFailure."""
        digests = [row.digest for row in rows]
        async with self._holding(digests):
            missing = set(await self._missing(digests))
            await self._ledger.adopt([row for row in rows if row.digest not in missing])

    async def forget_missing(self, digests: Collection[str]) -> None:
        """Remove the rows of those blobs whose files are gone. Raises StoreFailure."""
        async with self._holding(digests):
            await self._ledger.forget(await self._missing(digests))

    async def _missing(self, digests: Collection[str]) -> list[str]:
        work = partial(self._files.missing, tuple(digests))
        return await self._threads.run("looking for blobs", work)

    async def _found_missing(self, digest: str) -> None:
        self._proven.discard(digest)
        try:
            size_bytes, _ = await self._ledger.proven_size(digest)
            if size_bytes is not None:
                await self.forget_missing([digest])
        except StoreFailure:
            # Told where it matters; for the caller, the blob is missing either way.
            return

    def _shared(self, digest: str, opened: Opened) -> OpenFile:
        """Return the file that readers of this blob have open already, or this one."""
        current = self._open.get(digest)
        if current is not None and current.identity == opened.identity:
            current.retain()
            self._threads.soon(partial(os.close, opened.fd))
            return current
        self._disown(digest)
        file = OpenFile(
            opened.fd,
            digest,
            size_bytes=opened.size_bytes,
            identity=opened.identity,
            on_last=self.close_file,
        )
        self._open[digest] = file
        return file

    def close_file(self, file: OpenFile) -> None:
        """Close a file that nobody uses any longer."""
        if self._open.get(file.source) is file:
            del self._open[file.source]
        else:
            # Nobody can come by these any more: a dropped draft, or a removed blob.
            self._blocks.forget(file.source, file.size_bytes)
        self._threads.soon(partial(os.close, file.fd))

    def _disown(self, digest: str) -> None:
        """Part the digest from whatever was open or proven under it."""
        self._proven.discard(digest)
        file = self._open.pop(digest, None)
        if file is not None:
            file.source = self._blocks.new_source()

    @asynccontextmanager
    async def _holding(self, digests: Collection[str]) -> AsyncIterator[None]:
        """Keep everybody else from changing these blobs."""
        held = frozenset(digests)
        while not self._held.isdisjoint(held):
            await self._let_go.wait()
        self._held |= held
        try:
            yield
        finally:
            self._held -= held
            self._let_go.set()
            self._let_go = asyncio.Event()
