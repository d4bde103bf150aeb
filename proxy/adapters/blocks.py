"""Reading blobs in blocks that all readers share.

A file is read in aligned blocks of 256 KiB, and a block is one `bytes` object however many clients
it goes to: a thousand downloads of one crate hold one copy of it. Blocks lie in a memory tier
bounded in bytes. Whoever asks for a block while it is being read waits for that one read, which
belongs to nobody and ends well or badly for all who wait.

Blocks are kept under the *source* of their file: its digest once it is proven, a name of its own
while it is a draft, and another name of its own from the moment that its blob is removed, so that
whoever still reads a removed file does not bring it back into memory under its digest.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Final

from proxy.adapters.blob_files import Identity, read_at
from proxy.adapters.disk_threads import DiskThreads
from proxy.core.failures import StoreFailure
from proxy.core.memory_tier import MemoryTier
from proxy.ports import Blob

BLOCK_BYTES: Final = 256 * 1024
_OVERHEAD_BYTES: Final = 400
_CLOSED: Final = "reading a blob: it is closed"


@dataclass(frozen=True, slots=True)
class _Block:
    data: bytes
    is_all: bool


class OpenFile:
    """A descriptor shared by all who read the file; closed with its last user.

    For the event loop's thread alone. Made with one user.
    """

    __slots__ = ("_on_last", "_users", "fd", "identity", "size_bytes", "source")

    def __init__(
        self,
        fd: int,
        source: str,
        *,
        size_bytes: int,
        identity: Identity,
        on_last: Callable[["OpenFile"], None],
    ) -> None:
        self.fd = fd
        self.source = source
        self.size_bytes = size_bytes
        self.identity = identity
        self._users = 1
        self._on_last = on_last

    def retain(self) -> None:
        """Count one more user."""
        self._users += 1

    def release(self) -> None:
        """Count one user less."""
        self._users -= 1
        if self._users == 0:
            self._on_last(self)


class BlockCache:
    """The blocks in memory, and those on their way there."""

    def __init__(self, limit_bytes: int, threads: DiskThreads) -> None:
        self._tier: MemoryTier[tuple[str, int], _Block] = MemoryTier(limit_bytes)
        self._reading: dict[tuple[str, int], asyncio.Task[bytes]] = {}
        self._threads = threads
        self._numbers = count()

    @property
    def used_bytes(self) -> int:
        """What the blocks in memory cost."""
        return self._tier.used_bytes

    @property
    def limit_bytes(self) -> int:
        """What they may cost."""
        return self._tier.limit_bytes

    def new_source(self) -> str:
        """Return a name for a file that has no digest, or has it no longer."""
        return f"#{next(self._numbers)}"

    def alone(self, digest: str) -> bytes | None:
        """Return a blob of one block, if that is in memory."""
        block = self._tier.get((digest, 0))
        return block.data if block is not None and block.is_all else None

    def put(self, source: str, number: int, data: bytes, *, is_all: bool = False) -> None:
        """Keep a block in memory."""
        self._tier.put((source, number), _Block(data, is_all), len(data) + _OVERHEAD_BYTES)

    def put_last(self, digest: str, data: bytes, size_bytes: int) -> None:
        """Keep the last block of a blob of `size_bytes` in memory; it may be the only one."""
        number = (size_bytes - len(data)) // BLOCK_BYTES
        self.put(digest, number, data, is_all=len(data) == size_bytes)

    def rename(self, old: str, new: str, size_bytes: int) -> None:
        """Move the blocks of a finished file of `size_bytes` to another source."""
        for number in range(_blocks_in(size_bytes)):
            block = self._tier.get((old, number))
            if block is not None:
                self._tier.discard((old, number))
                self.put(new, number, block.data, is_all=len(block.data) == size_bytes)

    def forget(self, source: str, size_bytes: int) -> None:
        """Drop the blocks of a file."""
        for number in range(_blocks_in(size_bytes)):
            self._tier.discard((source, number))

    async def read(self, file: OpenFile, number: int) -> bytes:
        """Return a block of a file. Raises StoreFailure, also where the file has become shorter."""
        key = file.source, number
        block = self._tier.get(key)
        if block is not None:
            return block.data
        reading = self._reading.get(key)
        if reading is None:
            reading = self._threads.begin(self._read(file, number))
            self._reading[key] = reading
            reading.add_done_callback(partial(self._ended, key))
        return await asyncio.shield(reading)

    async def _read(self, file: OpenFile, number: int) -> bytes:
        start = number * BLOCK_BYTES
        length = min(BLOCK_BYTES, file.size_bytes - start)
        file.retain()
        try:
            data = await self._threads.run(
                "reading a blob", partial(read_at, file.fd, start, length)
            )
        finally:
            file.release()
        if len(data) < length:
            raise StoreFailure("reading a blob: the file has become shorter")
        self.put(file.source, number, data, is_all=number == 0 and length == file.size_bytes)
        return data

    def _ended(self, key: tuple[str, int], reading: asyncio.Task[bytes]) -> None:
        del self._reading[key]
        if not reading.cancelled():
            # Looked at here because all who waited may have left.
            reading.exception()


class FileBlob(Blob):
    """A blob read from its file, or from the blocks of it that are in memory."""

    __slots__ = ("_blocks", "_file")

    def __init__(self, file: OpenFile, blocks: BlockCache) -> None:
        self._file: OpenFile | None = file
        self._size_bytes = file.size_bytes
        self._blocks = blocks

    @property
    def size_bytes(self) -> int:
        """The size that was checked when it was opened."""
        return self._size_bytes

    async def read(self, offset: int) -> bytes:
        """Return what follows in the block that `offset` is in."""
        if self._file is None:
            raise StoreFailure(_CLOSED)
        if offset >= self._size_bytes:
            return b""
        number, skipped = divmod(offset, BLOCK_BYTES)
        block = await self._blocks.read(self._file, number)
        return block[skipped:] if skipped else block

    def close(self) -> None:
        """Stop being a user of the file."""
        file, self._file = self._file, None
        if file is not None:
            file.release()


class MemoryBlob(Blob):
    """A blob that is all in memory."""

    __slots__ = ("_data", "_size_bytes")

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = data
        self._size_bytes = len(data)

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return self._size_bytes

    async def read(self, offset: int) -> bytes:
        """Return all the rest."""
        if self._data is None:
            raise StoreFailure(_CLOSED)
        return self._data[offset:] if offset else self._data

    def close(self) -> None:
        """Let go of the bytes."""
        self._data = None


def _blocks_in(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES) or 1
