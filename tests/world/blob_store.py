"""The blob store in memory: held to the same contract suite as the one on disk.

What stands for the disk is `blobs`, which a test may spoil; what stands for the ledger remembers
sizes, uses and names. `restart` is a stop and a start, clean or not.
"""

import hashlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from proxy.core.events import Evicted, IntegrityFailed, StoreFailed
from proxy.core.failures import StoreFailure
from proxy.core.names import is_sha256
from proxy.core.room import Limits, Usage, can_ever_fit, excess, on_disk
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

_BLOCK_BYTES = 256 * 1024
_STEP_BYTES = 256 * 1024


@dataclass(slots=True)
class _Row:
    size_bytes: int
    last_used: int
    is_proven: bool


class MemoryBlobStore(BlobStore):
    """Blobs in a dictionary.

    While `failing` is set, everything that writes raises StoreFailure, like a full disk; reads go
    on. `fails_at_bytes` does so for drafts that grow beyond it. While `unreadable` is set, blobs
    are misses, and those that are open fail.
    """

    def __init__(self, limits: Limits, observer: Observer, clock: Clock) -> None:
        self.limits = limits
        self.blobs: dict[str, bytes] = {}
        self.free_bytes = 1 << 40
        self.failing = False
        self.fails_at_bytes: int | None = None
        self.unreadable = False
        self.quarantine: dict[str, bytes] = {}
        self.drafts: list[MemoryDraft] = []
        self._observer = observer
        self._clock = clock
        self._rows: dict[str, _Row] = {}
        self._names: dict[tuple[str, Named], None] = {}
        self._last_use = 0

    def restart(self, *, clean: bool) -> None:
        """Stop and start again; unless `clean`, nothing is believed until it is hashed."""
        self.drafts.clear()
        if not clean:
            for row in self._rows.values():
                row.is_proven = False

    def at_hand(self, digest: str) -> bytes | None:
        return None

    async def open(self, digest: str) -> Blob | None:
        data = self.blobs.get(digest)
        if data is None:
            self._rows.pop(digest, None)
            return None
        if self.unreadable:
            self._observer.observe(StoreFailed("opening a blob", "the disk is failing"))
            return None
        row = self._rows.setdefault(digest, _Row(len(data), 0, is_proven=False))
        if row.size_bytes != len(data):
            self._set_aside(digest, f"{row.size_bytes} bytes", f"{len(data)} bytes")
            return None
        actual = _sha256(data)
        if not row.is_proven and actual != digest:
            self._set_aside(digest, digest, actual)
            return None
        row.is_proven = True
        row.last_used = self._now()
        return MemoryBlob(self, data)

    async def draft(self, expected_bytes: int | None) -> Draft:
        self._write()
        draft = MemoryDraft(self)
        draft.cover(expected_bytes or 1, is_final=expected_bytes is not None)
        self.drafts.append(draft)
        return draft

    def note_named(self, digest: str, named: Named) -> None:
        if is_sha256(digest):
            self._names[digest, named] = None

    async def names_of(self, digest: str) -> tuple[Named, ...]:
        return tuple(named for held, named in self._names if held == digest)

    async def was_named(self, digest: str, named: Named) -> bool:
        return (digest, named) in self._names

    async def digests_of(self, upstream: str, crate: str | None) -> tuple[tuple[str, Named], ...]:
        return tuple(
            (digest, named)
            for digest, named in self._names
            if named.upstream == upstream
            and (crate is None or named.crate.lower() == crate.lower())
        )

    async def remove(self, digests: Iterable[str]) -> Removed:
        self._write()
        sizes = [self._take(digest) for digest in set(digests) if digest in self.blobs]
        if sizes:
            self._observer.observe(Evicted("purge", len(sizes), sum(sizes)))
        return Removed(len(sizes), sum(sizes))

    async def make_room(self) -> int:
        self._write()
        return self.evict_for(0)

    async def digests(self) -> AsyncIterator[str]:
        for digest in list(self.blobs):
            yield digest

    async def check(self, digest: str) -> BlobFinding | None:
        data = self.blobs.get(digest)
        if data is None:
            return None
        if self.unreadable:
            raise StoreFailure("the disk is failing")
        actual = _sha256(data)
        if actual == digest:
            return BlobFinding(digest, len(data), None)
        self._set_aside(digest, digest, actual)
        return BlobFinding(digest, len(data), f"its SHA-256 is {actual}")

    async def usage(self) -> BlobUsage:
        return BlobUsage(
            blobs=len(self._rows),
            stored_bytes=self._stored_bytes,
            reserved_bytes=self._reserved_bytes,
            limit_bytes=self.limits.max_size_bytes,
            memory_bytes=0,
            memory_limit_bytes=0,
            drafts=len(self.drafts),
            quarantined=len(self.quarantine),
            strangers=0,
        )

    def keep(self, data: bytes, named: Named) -> None:
        """Take the bytes of a draft as a blob."""
        digest = _sha256(data)
        self.blobs[digest] = data
        self._rows[digest] = _Row(len(data), self._now(), is_proven=True)
        self._names[digest, named] = None

    def evict_for(self, wanted_bytes: int) -> int:
        """Evict until so much more can be reserved; returns the bytes freed."""
        if not can_ever_fit(self.limits, wanted_bytes):
            raise StoreFailure(f"no room for {wanted_bytes} bytes")
        over = excess(self._usage(), self.limits, wanted_bytes)
        if over is None:
            return 0
        emptied = Usage(0, self._reserved_bytes, self.free_bytes + self._stored_bytes)
        if excess(emptied, self.limits, wanted_bytes) is not None:
            raise StoreFailure(f"no room for {wanted_bytes} bytes, whatever is evicted")
        blobs = freed_bytes = 0
        for digest, _ in sorted(self._rows.items(), key=lambda item: item[1].last_used):
            if freed_bytes >= over.bytes:
                break
            freed_bytes += self._take(digest)
            blobs += 1
        self.free_bytes += freed_bytes
        self._observer.observe(Evicted(over.reason, blobs, freed_bytes))
        return freed_bytes

    def _usage(self) -> Usage:
        return Usage(self._stored_bytes, self._reserved_bytes, self.free_bytes)

    @property
    def _stored_bytes(self) -> int:
        return sum(on_disk(row.size_bytes) for row in self._rows.values())

    @property
    def _reserved_bytes(self) -> int:
        return sum(draft.reserved_bytes for draft in self.drafts)

    def _take(self, digest: str) -> int:
        self._rows.pop(digest, None)
        return on_disk(len(self.blobs.pop(digest, b"")))

    def _set_aside(self, digest: str, expected: str, actual: str) -> None:
        self.quarantine[digest] = self.blobs.pop(digest)
        self._rows.pop(digest, None)
        self._observer.observe(IntegrityFailed("disk", digest, expected, actual))

    def _now(self) -> int:
        self._last_use = max(int(self._clock.now() * 1e6), self._last_use + 1)
        return self._last_use

    def _write(self) -> None:
        if self.failing:
            raise StoreFailure("the disk is full")


class MemoryBlob(Blob):
    """An open blob: keeps its bytes whatever becomes of the store's."""

    def __init__(self, store: MemoryBlobStore, data: bytes) -> None:
        self._store = store
        self._data = data
        self.is_closed = False

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    async def read(self, offset: int) -> bytes:
        if self.is_closed or self._store.unreadable:
            raise StoreFailure("the blob is closed, or the disk failing")
        return self._data[offset : (offset // _BLOCK_BYTES + 1) * _BLOCK_BYTES]

    def close(self) -> None:
        self.is_closed = True


class MemoryDraft(Draft):
    """A draft in memory."""

    def __init__(self, store: MemoryBlobStore) -> None:
        self.reserved_bytes = 0
        self.is_closed = False
        self._store = store
        self._data = bytearray()
        self._is_ended = False
        self._is_broken = False

    async def write(self, data: bytes) -> None:
        if self._is_ended or self._is_broken:
            raise StoreFailure("the draft is finished")
        try:
            self._store._write()
            limit = self._store.fails_at_bytes
            if limit is not None and len(self._data) + len(data) > limit:
                raise StoreFailure("the disk is full")
            self.cover(len(self._data) + len(data), is_final=False)
        except StoreFailure:
            self._is_broken = True
            raise
        self._data += data

    async def read(self, offset: int, stop: int) -> bytes:
        if self.is_closed:
            raise StoreFailure("the draft is closed")
        return bytes(self._data[offset : min(stop, (offset // _BLOCK_BYTES + 1) * _BLOCK_BYTES)])

    def digest(self) -> str:
        return _sha256(self._data)

    async def commit(self, named: Named) -> None:
        if self._is_ended or self._is_broken or self._store.failing:
            self._end()
            raise StoreFailure("the draft is finished, or the disk full")
        self._store.keep(bytes(self._data), named)
        self._end()

    async def discard(self) -> None:
        self._end()

    def close(self) -> None:
        self._end()
        self.is_closed = True

    def cover(self, size_bytes: int, *, is_final: bool) -> None:
        """Have space reserved for so many bytes, and for some more unless that is all."""
        missing = on_disk(size_bytes) - self.reserved_bytes
        if missing > 0:
            if not is_final:
                spare = self._store.limits.max_size_bytes - self.reserved_bytes
                missing = max(missing, min(_STEP_BYTES, spare))
            self._store.evict_for(missing)
            self.reserved_bytes += missing

    def _end(self) -> None:
        self._is_ended = True
        self.reserved_bytes = 0
        if self in self._store.drafts:
            self._store.drafts.remove(self)


def _sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()
