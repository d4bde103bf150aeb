"""Handling blob stores: putting, reading and listing, and a disk for the real one.

What is done here to a store is done through its port; what is done to a disk is done behind the
store's back.
"""

import asyncio
import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from proxy.adapters.blob_store import FileBlobStore
from proxy.core.room import Limits
from proxy.ports import Blob, BlobStore, BlobUsage, Named
from tests.world.clock import PATIENCE_SECONDS, ManualClock
from tests.world.observer import Recorder

SERDE = Named("crates-io", "serde", "1.0.0")
ROOMY = Limits(max_size_bytes=1 << 30, min_free_bytes=0)
BLOCK = 256 * 1024


def some_bytes(size: int, seed: int = 1) -> bytes:
    """Make bytes that are the same at every call and compress to nothing."""
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> str:
    """Return the digest as everybody here writes it."""
    return hashlib.sha256(data).hexdigest()


async def put(store: BlobStore, data: bytes, named: Named = SERDE) -> str:
    """Store a blob by way of a draft of known length; returns its digest."""
    draft = await store.draft(len(data))
    try:
        await draft.write(data)
        await draft.commit(named)
    finally:
        draft.close()
    return sha256(data)


async def read_to_end(blob: Blob, start: int = 0) -> bytes:
    """Read all that an open blob gives."""
    data = b""
    while piece := await blob.read(start + len(data)):
        data += piece
    return data


async def held(store: BlobStore, digest: str) -> bytes | None:
    """Return the bytes of a blob, if the store has it."""
    blob = await store.open(digest)
    if blob is None:
        return None
    data = await read_to_end(blob)
    assert blob.size_bytes == len(data)
    blob.close()
    return data


async def listed(store: BlobStore) -> set[str]:
    """Return all digests, each of which must be named once."""
    digests = [digest async for digest in store.digests()]
    assert len(set(digests)) == len(digests)
    return set(digests)


async def until(store: BlobStore, matches: Callable[[BlobUsage], bool]) -> BlobUsage:
    """Wait for what a store does behind its callers' backs."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not matches(usage := await store.usage()):
            await asyncio.sleep(0)
    return usage


class BlobDisk:
    """A cache directory, and the stores that are opened on it one after the other."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stores: list[FileBlobStore] = []
        self.directory = root / "cache"
        self.recorder, self.clock = Recorder(), ManualClock()

    async def open(self, *, limits: Limits = ROOMY, memory_bytes: int = 0) -> FileBlobStore:
        """Start a store on what the directory holds."""
        store = FileBlobStore(self.directory, limits, self.recorder, self.clock, memory_bytes)
        self._stores.append(store)
        await store.open_store()
        return store

    async def close(self) -> None:
        """Stop the stores in good order."""
        while self._stores:
            await self._stores.pop().close()

    def die(self) -> None:
        """Go on with the directory as it is now; what the running store does is lost."""
        died, self.directory = self.directory, self._root / f"{self.directory.name}+"
        shutil.copytree(died, self.directory, symlinks=True)

    def wipe(self) -> None:
        """Go on with another directory, which is yet to be made."""
        self.directory = self._root / f"{self.directory.name}-"

    def blob(self, digest: str) -> Path:
        """Return where a blob lies."""
        return self.directory / "blobs" / "sha256" / digest[:2] / digest[2:4] / digest

    def plant(self, data: bytes, digest: str | None = None) -> str:
        """Put a file in a blob's place, by default the right one; returns the digest."""
        place = self.blob(digest or sha256(data))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return place.name
