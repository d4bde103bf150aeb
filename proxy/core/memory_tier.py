"""A least-recently-used map bounded in bytes: what may stay in memory.

A plain data structure for one thread (the event loop's); nothing here awaits. The cost of an entry
is the caller's word, and should include what the objects around the bytes weigh.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class MemoryTier(Generic[K, V]):
    """Entries up to `limit_bytes` in all; the least recently used go first."""

    __slots__ = ("_entries", "_used_bytes", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        """The sum of the costs of all entries."""
        return self._used_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Return the entry and count it as used now."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, cost_bytes: int) -> None:
        """Keep an entry in place of any with its key; one larger than the limit is not kept."""
        self.discard(key)
        if cost_bytes > self.limit_bytes:
            return
        self._entries[key] = (value, cost_bytes)
        self._used_bytes += cost_bytes
        while self._used_bytes > self.limit_bytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self._used_bytes -= freed

    def discard(self, key: K) -> None:
        """Forget an entry, if it is there."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._used_bytes -= entry[1]

    def discard_where(self, condition: Callable[[K], bool]) -> None:
        """Forget every entry whose key meets `condition`. Looks at all of them."""
        for key in [key for key in self._entries if condition(key)]:
            self.discard(key)
