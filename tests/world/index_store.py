"""The index store in memory: held to the same contract suite as the one on disk."""

from collections.abc import AsyncIterator

from proxy.core.answers import Snapshot
from proxy.core.failures import StoreFailure
from proxy.ports import IndexStore


class MemoryIndexStore(IndexStore):
    """Snapshots in a dictionary.

    While `failing` is set, every write raises StoreFailure, like a full disk; reads go on.
    """

    def __init__(self) -> None:
        self.snapshots: dict[tuple[str, str], Snapshot] = {}
        self.failing = False

    async def get(self, upstream: str, name: str) -> Snapshot | None:
        return self.snapshots.get((upstream, name))

    async def put(self, upstream: str, name: str, snapshot: Snapshot) -> None:
        self._write()
        self.snapshots[upstream, name] = snapshot

    async def confirm(self, upstream: str, name: str, snapshot: Snapshot) -> None:
        self._write()
        held = self.snapshots.get((upstream, name))
        if held is not None and held.body == snapshot.body:
            self.snapshots[upstream, name] = snapshot

    async def remove(self, upstream: str, name: str) -> bool:
        self._write()
        return self.snapshots.pop((upstream, name), None) is not None

    async def names(self, upstream: str) -> AsyncIterator[str]:
        for owner, name in list(self.snapshots):
            if owner == upstream:
                yield name

    async def usage(self) -> tuple[int, int]:
        bodies = (snapshot.body or b"" for snapshot in self.snapshots.values())
        return len(self.snapshots), sum(map(len, bodies))

    def _write(self) -> None:
        if self.failing:
            raise StoreFailure("the disk is full")
