"""Stores with places where a test can make something happen: fail, hang, or be cancelled there.

Each call of a store passes a point with a name (`get`, `put`, `draft`, `write`). A test says what
happens at a point; the fakes behind do the rest. What the ports do not let a call do (a `get` that
raises) is turned into what they do let it do (a miss).
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable

from proxy.core.answers import Snapshot
from proxy.core.events import StoreFailed
from proxy.core.failures import StoreFailure
from proxy.core.room import Limits
from proxy.ports import Blob, Clock, Draft, Named, Observer
from tests.world.blob_store import MemoryBlob, MemoryBlobStore, MemoryDraft
from tests.world.index_store import MemoryIndexStore
from tests.world.state_store import MemoryStateStore
from tests.world.upstream import Gate

Incident = Callable[[], None]


class Points:
    """What happens where, and how often each point was passed."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self._failing: defaultdict[str, float] = defaultdict(float)
        self._gates: dict[str, Gate] = {}
        self._once: set[str] = set()

    def fail(self, point: str, *, times: float = float("inf"), after: int = 0) -> None:
        """Let calls at `point` fail, but for the next `after`."""
        self._failing[point] = times
        self.passed[point] = -after

    def hang(self, point: str, *, once: bool = False) -> Gate:
        """Let calls at `point` wait for the release of the gate that this returns."""
        gate = Gate(point)
        self._gates[point] = gate
        if once:
            self._once.add(point)
        return gate

    def heal(self) -> None:
        """Let everything go well again, and what hangs go on."""
        self._failing.clear()
        for gate in self._gates.values():
            gate.release()
        self._gates.clear()

    async def at(self, point: str) -> None:
        """Pass a point. Raises StoreFailure where the test says so."""
        self.passed[point] += 1
        gate = self._gates.get(point)
        if gate is not None:
            if point in self._once:
                self._once.discard(point)
                del self._gates[point]
            await gate.hold()
        if self.passed[point] > 0 and self._failing[point] > 0:
            self._failing[point] -= 1
            raise StoreFailure(f"trouble at {point}")
        # A disk is never asked without others getting their turn.
        await asyncio.sleep(0)

    async def works(self, point: str) -> bool:
        """Pass a point whose failure is an absence; tells whether it went well."""
        try:
            await self.at(point)
        except StoreFailure:
            return False
        return True


class TroubledIndexStore(MemoryIndexStore):
    """Points: `get`, `put`, `confirm`."""

    def __init__(self) -> None:
        super().__init__()
        self.points = Points()

    async def get(self, upstream: str, name: str) -> Snapshot | None:
        snapshot = await super().get(upstream, name)
        return snapshot if await self.points.works("get") else None

    async def put(self, upstream: str, name: str, snapshot: Snapshot) -> None:
        await self.points.at("put")
        await super().put(upstream, name, snapshot)

    async def confirm(self, upstream: str, name: str, snapshot: Snapshot) -> None:
        await self.points.at("confirm")
        await super().confirm(upstream, name, snapshot)


class TroubledStateStore(MemoryStateStore):
    """Points: `removed`, `returned`."""

    def __init__(self) -> None:
        super().__init__()
        self.points = Points()

    async def removed(self, upstream: str, name: str, at: float) -> None:
        await self.points.at("removed")
        await super().removed(upstream, name, at)

    async def returned(self, upstream: str, name: str, at: float) -> None:
        await self.points.at("returned")
        await super().returned(upstream, name, at)


class TroubledBlobStore(MemoryBlobStore):
    """Points: `open`, `draft`, `write`, `read`, `commit`, `discard`; keeps what it gave out."""

    def __init__(self, limits: Limits, observer: Observer, clock: Clock) -> None:
        super().__init__(limits, observer, clock)
        self.points = Points()
        self.observer = observer
        self.all_drafts: list[TroubledDraft] = []
        self.all_blobs: list[MemoryBlob] = []

    async def open(self, digest: str) -> Blob | None:
        # Looked at before others get their turn, as a file is before the answer is read.
        blob = await super().open(digest)
        assert blob is None or isinstance(blob, MemoryBlob)
        if not await self.points.works("open"):
            self.observer.observe(StoreFailed("opening a blob", "trouble at open"))
            return None
        if blob is not None:
            self.all_blobs.append(blob)
        return blob

    async def draft(self, expected_bytes: int | None) -> Draft:
        await self.points.at("draft")
        plain = await super().draft(expected_bytes)
        assert isinstance(plain, MemoryDraft)
        draft = TroubledDraft(self, plain)
        self.all_drafts.append(draft)
        return draft

    def leaks(self) -> list[str]:
        """Name what was given out and not given back."""
        drafts = [f"draft {number}" for number, _ in enumerate(self.drafts)]
        readable = [
            f"reading draft {number}"
            for number, draft in enumerate(self.all_drafts)
            if not draft.is_closed
        ]
        blobs = [
            f"blob {number}" for number, blob in enumerate(self.all_blobs) if not blob.is_closed
        ]
        return drafts + readable + blobs


class TroubledDraft(Draft):
    """A draft of the store above."""

    def __init__(self, store: TroubledBlobStore, plain: MemoryDraft) -> None:
        self._points = store.points
        self._plain = plain

    @property
    def is_closed(self) -> bool:
        """Whether nobody will read it any more."""
        return self._plain.is_closed

    async def write(self, data: bytes) -> None:
        await self._points.at("write")
        await self._plain.write(data)

    async def read(self, offset: int, stop: int) -> bytes:
        await self._points.at("read")
        return await self._plain.read(offset, stop)

    def digest(self) -> str:
        return self._plain.digest()

    async def commit(self, named: Named) -> None:
        try:
            await self._points.at("commit")
        except BaseException:
            await self._plain.discard()
            raise
        await self._plain.commit(named)

    async def discard(self) -> None:
        # Never raises, but may take its time.
        try:
            await self._points.works("discard")
        finally:
            await self._plain.discard()

    def close(self) -> None:
        self._plain.close()
