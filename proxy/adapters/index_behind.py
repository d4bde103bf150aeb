"""An index store that is written behind the backs of those who put.

A client that waits for an index file must not wait for our disk: cargo asks for the next level of
its graph only when it has this one. So `put` and `confirm` note what is to be written and return,
and one task writes, one snapshot after the other, in the order in which they came. That leaves gaps
in the queue of the store behind, in which reads come in between.

Whoever reads, lists or removes finds what is noted as if it were written. Of a name only the newest
is kept waiting. Tombstones are written through: that a name was removed must be on the disk before
anybody is told. Above a limit of bytes that wait, `put` waits too, as it would for the disk.

A snapshot that could not be written is reported, since nobody is left to be told by an exception.
What is only noted is lost with the process; it can be fetched again.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from proxy.core.answers import Snapshot
from proxy.core.events import StoreFailed
from proxy.core.failures import StoreFailure
from proxy.ports import IndexStore, Observer

MAX_WAITING_BYTES: Final = 32 * 2**20

Key = tuple[str, str]


@dataclass(slots=True, eq=False)
class _Note:
    """A snapshot to be written; `whole` unless only its metadata is new."""

    snapshot: Snapshot
    whole: bool
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def size_bytes(self) -> int:
        """What is kept in memory for it."""
        return len(self.snapshot.body or b"")


class BehindIndexStore(IndexStore):
    """Snapshots on their way to `store`. For one event loop; to be closed before `store` is."""

    def __init__(
        self, store: IndexStore, observer: Observer, *, max_waiting_bytes: int = MAX_WAITING_BYTES
    ) -> None:
        self._store = store
        self._observer = observer
        self._max_waiting_bytes = max_waiting_bytes
        self._notes: dict[Key, _Note] = {}
        self._waiting_bytes = 0
        self._writer: asyncio.Task[None] | None = None

    async def get(self, upstream: str, name: str) -> Snapshot | None:
        """See the port."""
        key = (upstream, name)
        note = self._notes.get(key)
        while note is not None and not note.whole:
            # Whether there is a body to go with it is known to the store alone.
            await note.ended.wait()
            note = self._notes.get(key)
        if note is not None:
            return note.snapshot
        found = await self._store.get(upstream, name)
        note = self._notes.get(key)
        return note.snapshot if note is not None and note.whole else found

    async def put(self, upstream: str, name: str, snapshot: Snapshot) -> None:
        """See the port; raises StoreFailure for tombstones alone."""
        key = (upstream, name)
        if snapshot.body is None:
            self._drop(key)
            await self._store.put(upstream, name, snapshot)
            return
        await self._room()
        self._note(key, _Note(snapshot, whole=True))

    async def confirm(self, upstream: str, name: str, snapshot: Snapshot) -> None:
        """See the port; raises nothing."""
        key = (upstream, name)
        await self._room()
        note = self._notes.get(key)
        if note is None or not note.whole:
            self._note(key, _Note(snapshot, whole=False))
        elif note.snapshot.body == snapshot.body:
            self._note(key, _Note(snapshot, whole=True))

    async def remove(self, upstream: str, name: str) -> bool:
        """See the port."""
        note = self._drop((upstream, name))
        was_stored = await self._store.remove(upstream, name)
        return was_stored or (note is not None and note.whole)

    async def names(self, upstream: str) -> AsyncIterator[str]:
        """See the port."""
        await self.flush()
        async for name in self._store.names(upstream):
            yield name

    async def usage(self) -> tuple[int, int]:
        """See the port."""
        await self.flush()
        return await self._store.usage()

    async def flush(self) -> None:
        """Wait until all is written that is noted now, or has been reported."""
        for note in list(self._notes.values()):
            await note.ended.wait()

    async def close(self) -> None:
        """Write what is noted."""
        await self.flush()
        if self._writer is not None:
            await self._writer

    async def _room(self) -> None:
        while self._waiting_bytes > self._max_waiting_bytes:
            await next(iter(self._notes.values())).ended.wait()

    def _note(self, key: Key, note: _Note) -> None:
        older = self._notes.get(key)
        if older is not None:
            self._waiting_bytes -= older.size_bytes
            note.ended = older.ended
        self._notes[key] = note
        self._waiting_bytes += note.size_bytes
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    def _drop(self, key: Key) -> _Note | None:
        note = self._notes.pop(key, None)
        if note is not None:
            self._waiting_bytes -= note.size_bytes
            note.ended.set()
        return note

    async def _write(self) -> None:
        while self._notes:
            key, note = next(iter(self._notes.items()))
            try:
                if note.whole:
                    await self._store.put(*key, note.snapshot)
                else:
                    await self._store.confirm(*key, note.snapshot)
            except StoreFailure as failure:
                self._observer.observe(StoreFailed("storing an index file", str(failure)))
            finally:
                if self._notes.get(key) is note:
                    self._drop(key)
