"""What an operator asks of the cache: verify, gc, purge, stats.

Each is one journey over the same ports and the same objects as the requests, so that it takes
effect on the memory tiers too, and may run while requests are served.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from proxy.core.failures import NoSuchCrate, StoreFailure, UpstreamFailure
from proxy.core.freshness import to_be_asked
from proxy.ports import BlobStore, BlobUsage, IndexStore, Named, StateStore, Tombstone
from proxy.service.crates import Crates
from proxy.service.indexes import Indexes
from proxy.service.registry import Registry
from proxy.service.upstream_configs import CONFIG_FILE, UpstreamConfigs

_REPORT_EVERY: Final = 64


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long piece of work has come; `total` is None where nobody knows."""

    doing: str
    done: int
    total: int | None


Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that verify found wrong, and what became of it."""

    subject: str
    fault: str
    outcome: str


@dataclass(slots=True)
class VerifyResult:
    """What verify did. `faults` are all that was found wrong, mended or not."""

    blobs_checked: int = 0
    blobs_bytes: int = 0
    index_files_checked: int = 0
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class GcResult:
    """What gc did."""

    freed_bytes: int


@dataclass(slots=True)
class PurgeResult:
    """What purge forgot: what was stored, not what was ever named.

    `unknown` names what it was told to purge and does not hold.
    """

    index_files: int = 0
    blobs: int = 0
    freed_bytes: int = 0
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StoredStats:
    """What is stored."""

    blobs: BlobUsage
    index_entries: int
    index_bytes: int
    index_memory_bytes: int
    tombstones: tuple[Tombstone, ...]


class NoSuchRegistry(ValueError):
    """The operator named a registry that is not configured."""


class Housekeeping:
    """The operator's journeys. For the event loop of the others."""

    def __init__(
        self,
        registries: Mapping[str, Registry],
        indexes: Indexes,
        crates: Crates,
        configs: UpstreamConfigs,
        index_store: IndexStore,
        blobs: BlobStore,
        state: StateStore,
    ) -> None:
        self._registries = registries
        self._indexes = indexes
        self._crates = crates
        self._configs = configs
        self._index_store = index_store
        self._blobs = blobs
        self._state = state

    async def verify(self, report: Report) -> VerifyResult:
        """Hash every blob and read every snapshot; set bad ones aside and fetch them anew."""
        result = VerifyResult()
        bad: list[str] = []
        total = (await self._blobs.usage()).blobs
        async for digest in self._blobs.digests():
            finding = await self._blobs.check(digest)
            if finding is None:
                continue
            result.blobs_checked += 1
            result.blobs_bytes += finding.size_bytes
            if finding.fault is not None:
                bad.append(digest)
                outcome = await self._refetch(digest)
                result.faults.append(Fault(digest, finding.fault, outcome))
            if result.blobs_checked % _REPORT_EVERY == 0:
                report(Progress("hashing blobs", result.blobs_checked, max(total, 1)))
        await self._verify_index(result, report)
        return result

    async def _refetch(self, digest: str) -> str:
        """Fetch a quarantined blob again from any upstream that named it; say how it went."""
        sources = {registry.source.name: registry.source for registry in self._registries.values()}
        outcome = "quarantined; nothing here knows where it came from"
        for named in await self._blobs.names_of(digest):
            source = sources.get(named.upstream)
            if source is None:
                continue
            try:
                absent = await self._crates.fetch(source, named, digest)
            except (UpstreamFailure, StoreFailure) as failure:
                outcome = f"quarantined; not fetched again: {failure}"
                continue
            if isinstance(absent, NoSuchCrate):
                outcome = f"quarantined; not fetched again: {absent.message}"
                continue
            return f"quarantined, and fetched again as {named.crate} {named.version}"
        return outcome

    async def _verify_index(self, result: VerifyResult, report: Report) -> None:
        for upstream in self._upstreams():
            async for name in self._index_store.names(upstream):
                result.index_files_checked += 1
                if await self._index_store.get(upstream, name) is None:
                    await self._index_store.remove(upstream, name)
                    self._indexes.forget(upstream, name)
                    fault = Fault(f"{upstream} {name}", "unreadable snapshot", "removed")
                    result.faults.append(fault)
                if result.index_files_checked % _REPORT_EVERY == 0:
                    report(Progress("reading index files", result.index_files_checked, None))

    def _upstreams(self) -> list[str]:
        return sorted({registry.source.name for registry in self._registries.values()})

    async def gc(self) -> GcResult:
        """Make room down to the limits."""
        return GcResult(await self._blobs.make_room())

    async def purge(
        self, registry: str, wanted: Sequence[str], *, everything: bool, soft: bool, report: Report
    ) -> PurgeResult:
        """Forget names or versions (`NAME`, `NAME@VERSION`) of a registry, or all of it.

        `soft` forgets no bytes: it makes us ask again before the next use. Raises NoSuchRegistry
        and StoreFailure.
        """
        found = self._registries.get(registry)
        if found is None:
            known = ", ".join(sorted(self._registries))
            raise NoSuchRegistry(f"there is no registry {registry!r}; there are: {known}")
        upstream = found.source.name
        result = PurgeResult()
        if everything:
            names = [name async for name in self._index_store.names(upstream)]
            for done, name in enumerate(names, start=1):
                await self._purge_index(upstream, name, soft=soft, result=result)
                if done % _REPORT_EVERY == 0:
                    report(Progress("forgetting index files", done, len(names)))
            self._indexes.forget(upstream, None)
            self._configs.forget(upstream)
            if not soft:
                named = await self._blobs.digests_of(upstream, None)
                await self._purge_blobs(upstream, named, result)
            return result
        for text in wanted:
            await self._purge_one(upstream, text, soft=soft, result=result)
        return result

    async def _purge_one(
        self, upstream: str, text: str, *, soft: bool, result: PurgeResult
    ) -> None:
        crate, _, version = text.partition("@")
        before = (result.index_files, result.blobs)
        if not version or soft:
            await self._purge_index(upstream, crate.lower(), soft=soft, result=result)
        if not soft:
            named = await self._blobs.digests_of(upstream, crate)
            chosen = [(d, n) for d, n in named if not version or n.version == version]
            await self._purge_blobs(upstream, chosen, result)
        if (result.index_files, result.blobs) == before:
            result.unknown.append(text)

    async def _purge_index(
        self, upstream: str, name: str, *, soft: bool, result: PurgeResult
    ) -> None:
        if name == CONFIG_FILE and soft:
            self._configs.forget(upstream)
            return
        if soft:
            snapshot = await self._index_store.get(upstream, name)
            if snapshot is not None:
                await self._index_store.confirm(upstream, name, to_be_asked(snapshot))
                result.index_files += 1
        elif await self._index_store.remove(upstream, name):
            result.index_files += name != CONFIG_FILE
        self._indexes.forget(upstream, name)

    async def _purge_blobs(
        self, upstream: str, named: Sequence[tuple[str, Named]], result: PurgeResult
    ) -> None:
        """Remove blobs that no other upstream's index has named."""
        alone = []
        for digest in {digest for digest, _ in named}:
            names = await self._blobs.names_of(digest)
            if all(name.upstream == upstream for name in names):
                alone.append(digest)
        removed = await self._blobs.remove(alone)
        result.freed_bytes += removed.freed_bytes
        result.blobs += removed.blobs

    async def stats(self) -> StoredStats:
        """Say what is stored."""
        entries, stored = await self._index_store.usage()
        return StoredStats(
            blobs=await self._blobs.usage(),
            index_entries=entries,
            index_bytes=stored,
            index_memory_bytes=self._indexes.memory.used_bytes,
            tombstones=await self._state.tombstones(),
        )
