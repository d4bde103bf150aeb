"""A draft: a file on its way in, read by many while one writes it.

Up to one block (256 KiB) a draft is only bytes in memory, and most crates never become anything
else before they are committed: one hop to a thread writes the file, and moves it to its place.
Longer ones go to a file in `drafts`, whole blocks at a time; what is less than a block waits in
memory, where readers find it too. Blocks are hashed in the same hop that writes them. Readers close
behind the writer take the blocks from memory, and all who want the same stretch of an unfinished
block get the same object.

A write that was begun is seen through though its caller be cancelled, so that what is in the file,
what is in memory, and what is hashed always agree; and only what is agreed is ever committed.
"""

import asyncio
import hashlib
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from proxy.adapters.blob_files import BlobFiles, write_at
from proxy.adapters.blob_room import Reservation
from proxy.adapters.blob_shelf import BlobShelf
from proxy.adapters.blocks import BLOCK_BYTES, BlockCache, OpenFile
from proxy.adapters.disk_threads import DiskThreads
from proxy.core.failures import StoreFailure
from proxy.ports import Draft, Named

if TYPE_CHECKING:
    from hashlib import _Hash

_ENDED: Final = "the draft is finished"


class FileDraft(Draft):
    """A draft of the file blob store."""

    def __init__(
        self,
        files: BlobFiles,
        shelf: BlobShelf,
        blocks: BlockCache,
        threads: DiskThreads,
        reservation: Reservation,
    ) -> None:
        self._files = files
        self._shelf = shelf
        self._blocks = blocks
        self._threads = threads
        self._reservation = reservation
        # The file has the first `_spilled_bytes`, whole blocks, hashed; the tail has the rest.
        self._spilled_bytes = 0
        self._hashed = hashlib.sha256()
        self._digest: str | None = None
        self._tail: bytearray | bytes = bytearray()
        self._name: str | None = None
        self._file: OpenFile | None = None
        self._spilling: asyncio.Task[None] | None = None
        self._fault: str | None = None
        self._is_ended = False
        self._is_closed = False
        self._shared_slice: tuple[int, int, bytes] | None = None

    async def write(self, data: bytes) -> None:
        """Append; the disk is touched once per block, and not at all by the first."""
        await self._settled()
        if self._is_ended or self._fault is not None:
            raise StoreFailure(self._fault or _ENDED)
        try:
            await self._reservation.cover(self._size_bytes + len(data))
        except StoreFailure as failure:
            self._fault = str(failure)
            raise
        self._tail += data
        self._digest = None
        if len(self._tail) > BLOCK_BYTES:
            self._spilling = self._threads.begin(self._spill())
            await self._settled()
            if self._fault is not None:
                raise StoreFailure(self._fault)

    async def read(self, offset: int, stop: int) -> bytes:
        """Return what follows in the block, or in the unfinished tail, that `offset` is in."""
        if self._is_closed:
            raise StoreFailure("reading a draft: it is closed")
        if offset >= stop:
            return b""
        if offset >= self._spilled_bytes or self._file is None:
            return self._slice(offset, stop)
        number, skipped = divmod(offset, BLOCK_BYTES)
        block = await self._blocks.read(self._file, number)
        end = min(stop - number * BLOCK_BYTES, BLOCK_BYTES)
        return block if end - skipped == BLOCK_BYTES else block[skipped:end]

    def digest(self) -> str:
        """Return the SHA-256; hashes a block at most, and once."""
        if self._digest is None:
            hashing = self._hashed.copy()
            hashing.update(self._tail)
            self._digest = hashing.hexdigest()
        return self._digest

    async def commit(self, named: Named) -> None:
        """Make it a blob. A small one is served from memory even if the disk refuses it."""
        await self._settled()
        if self._fault is not None:
            await self.discard()
        if self._is_ended:
            raise StoreFailure(self._fault or _ENDED)
        self._is_ended = True
        # All that the task needs is taken now: `close` may come before its first step.
        digest, tail = self.digest(), bytes(self._tail)
        self._tail = tail
        if self._file is not None:
            self._file.retain()
        await self._threads.see_through(self._commit(digest, tail, named))

    async def discard(self) -> None:
        """Remove the file, unless it is a blob already."""
        if not self._is_ended:
            self._is_ended = True
            await self._threads.see_through(self._drop())

    def close(self) -> None:
        """Let go of file and memory; one that was neither committed nor discarded goes too."""
        if self._is_closed:
            return
        self._is_closed = True
        if not self._is_ended:
            self._is_ended = True
            self._threads.begin(self._drop())
        if self._spilling is None or self._spilling.done():
            self._let_go()
        else:
            self._spilling.add_done_callback(self._let_go)

    @property
    def _size_bytes(self) -> int:
        return self._spilled_bytes + len(self._tail)

    async def _settled(self) -> None:
        """Wait for a spill that is under way, be it one whose caller has left."""
        if self._spilling is not None:
            await asyncio.shield(self._spilling)

    async def _spill(self) -> None:
        """Bring the whole blocks of the tail to the file; at least a byte stays behind."""
        stop = (len(self._tail) - 1) // BLOCK_BYTES * BLOCK_BYTES
        blocks = [
            bytes(memoryview(self._tail)[start : start + BLOCK_BYTES])
            for start in range(0, stop, BLOCK_BYTES)
        ]
        try:
            file = self._file or await self._begin_file()
            hashed = await self._threads.run(
                "writing a draft",
                partial(_write_blocks, file.fd, self._spilled_bytes, blocks, self._hashed),
            )
        except StoreFailure as failure:
            self._fault = str(failure)
            return
        for number, block in enumerate(blocks, start=self._spilled_bytes // BLOCK_BYTES):
            self._blocks.put(file.source, number, block)
        self._hashed = hashed
        self._tail = self._tail[stop:]
        self._spilled_bytes += stop
        file.size_bytes = self._spilled_bytes
        self._reservation.wrote(stop)

    async def _begin_file(self) -> OpenFile:
        self._name, opened = await self._threads.run("beginning a draft", self._files.begin)
        self._file = OpenFile(
            opened.fd,
            self._blocks.new_source(),
            size_bytes=0,
            identity=opened.identity,
            on_last=self._shelf.close_file,
        )
        return self._file

    async def _commit(self, digest: str, tail: bytes, named: Named) -> None:
        file = self._file
        try:
            if file is not None:
                await self._threads.run(
                    "storing a blob", partial(write_at, file.fd, self._spilled_bytes, tail)
                )
                file.size_bytes = self._spilled_bytes + len(tail)
            await self._shelf.place(digest, named, name=self._name, data=tail, file=file)
        except StoreFailure:
            if file is None:
                # Proven all the same: it is served from memory for as long as it stays there.
                self._blocks.put(digest, 0, tail, is_all=True)
            await self._drop()
            raise
        finally:
            self._reservation.release()
            if file is not None:
                file.release()

    async def _drop(self) -> None:
        await self._settled()
        if self._name is not None:
            # What cannot be removed now goes at the next start.
            with suppress(StoreFailure):
                await self._threads.run("dropping a draft", partial(self._files.drop, self._name))
        self._reservation.release()

    def _slice(self, offset: int, stop: int) -> bytes:
        """Return some of the tail, as one object for all who ask for the same of it."""
        tail, before = self._tail, self._spilled_bytes
        if isinstance(tail, bytes) and offset == before and stop >= self._size_bytes:
            return tail
        shared = self._shared_slice
        if shared is not None and shared[:2] == (offset, stop):
            return shared[2]
        end = min(stop, offset + BLOCK_BYTES)
        data = bytes(memoryview(tail)[offset - before : end - before])
        if stop <= self._size_bytes:
            self._shared_slice = offset, stop, data
        return data

    def _let_go(self, _: object = None) -> None:
        if self._file is not None:
            self._file.release()
        self._tail, self._shared_slice = b"", None


def _write_blocks(fd: int, offset: int, blocks: list[bytes], hashed: "_Hash") -> "_Hash":
    """Write blocks and return the hash that includes them; on failure the old one holds."""
    hashing = hashed.copy()
    for block in blocks:
        write_at(fd, offset, block)
        hashing.update(block)
        offset += len(block)
    return hashing
