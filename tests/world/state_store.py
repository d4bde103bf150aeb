"""The state store in memory: held to the same contract suite as the one on disk."""

from dataclasses import replace

from proxy.core.failures import StoreFailure
from proxy.ports import StateStore, Tombstone


class MemoryStateStore(StateStore):
    """Tombstones in a list, in the order of their recording.

    While `failing` is set, every call raises StoreFailure.
    """

    def __init__(self) -> None:
        self.recorded: list[Tombstone] = []
        self.failing = False

    async def removed(self, upstream: str, name: str, at: float) -> None:
        self._touch()
        if self._open(upstream, name) is None:
            self.recorded.append(Tombstone(upstream, name, at, None))

    async def returned(self, upstream: str, name: str, at: float) -> None:
        self._touch()
        position = self._open(upstream, name)
        if position is not None:
            self.recorded[position] = replace(self.recorded[position], returned_at=at)

    async def tombstones(self) -> tuple[Tombstone, ...]:
        self._touch()
        # Sorting keeps the order of equals, and of these the one recorded last comes first.
        last_first = self.recorded[::-1]
        last_first.sort(key=lambda one: -one.removed_at)
        return tuple(last_first)

    def _open(self, upstream: str, name: str) -> int | None:
        for position, one in enumerate(self.recorded):
            if (one.upstream, one.name, one.returned_at) == (upstream, name, None):
                return position
        return None

    def _touch(self) -> None:
        if self.failing:
            raise StoreFailure("the disk is full")
