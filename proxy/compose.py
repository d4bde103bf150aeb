"""The composition root: settings to objects, built and torn down in order.

`house` is the cache with its journeys and nothing listening: what a command needs that holds the
cache by itself. This is the only file that names the adapters' concrete classes; what listens is
in `proxy.serve`. Whatever was opened is closed in the opposite order, whatever goes wrong.
"""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Final

from proxy import version
from proxy.adapters.blob_store import FileBlobStore
from proxy.adapters.cache_dir import CacheDirectory
from proxy.adapters.clock import SystemClock
from proxy.adapters.egress import TlsContexts
from proxy.adapters.index_behind import BehindIndexStore
from proxy.adapters.index_store import DiskIndexStore
from proxy.adapters.savings_book import SavingsBook
from proxy.adapters.state_store import SqliteStateStore
from proxy.adapters.telemetry import Telemetry
from proxy.config import ConfigError, Settings
from proxy.config_changes import Adoption, Change
from proxy.core.forwarded import AddressRules
from proxy.core.room import Limits
from proxy.service.api import Api
from proxy.service.crates import Crates
from proxy.service.housekeeping import Housekeeping
from proxy.service.indexes import Indexes
from proxy.service.insistence import Insistence
from proxy.service.journeys import Journeys
from proxy.service.operations import Json, Operations
from proxy.service.overview import Overviews
from proxy.service.registry import Registry
from proxy.service.source import Source
from proxy.service.upstream_configs import UpstreamConfigs
from proxy.wiring import asking, wire

logger = logging.getLogger(__name__)

_DEFAULT_MAX_SIZE_BYTES: Final = 50 * 2**30
_DEFAULT_SHARE_OF_FREE: Final = 0.8
# A command has no clients to drain: what it began may end.
_COMMAND_PATIENCE_S: Final = 5.0


class Patience:
    """How long what is under way may still take: one budget for all that is closed, in turn."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: float | None = None

    def begin(self) -> None:
        """Start the time; without this it starts at the first question."""
        self._until = asyncio.get_running_loop().time() + self._seconds

    def left_s(self) -> float:
        """Return what is left of it."""
        if self._until is None:
            self.begin()
        assert self._until is not None, "just begun"
        return max(0.0, self._until - asyncio.get_running_loop().time())


@dataclass(frozen=True, slots=True)
class House:
    """The cache and its journeys; `adoptions` are how they take on another configuration."""

    registries: dict[str, Registry]
    journeys: Journeys
    housekeeping: Housekeeping
    operations: Operations
    telemetry: Telemetry
    savings: SavingsBook
    overviews: Overviews
    blobs: FileBlobStore
    addresses: AddressRules
    patience: Patience
    adoptions: tuple[Adoption, ...]


@asynccontextmanager
async def house(settings: Settings, *, serving: bool) -> AsyncIterator[House]:
    """Open the cache and build the journeys over it.

    Raises CacheInUse, CacheTooNew, StoreFailure, and ConfigError where a certificate or a key
    towards an upstream cannot be used.
    """
    clock = SystemClock()
    telemetry = Telemetry(settings.registries, settings.upstreams, version.VERSION, clock)
    async with AsyncExitStack() as stack:
        stack.enter_context(CacheDirectory(settings.cache.dir))
        directory = settings.cache.dir
        savings = SavingsBook(
            directory / "savings.json", telemetry.served if serving else None, clock
        )
        stack.push_async_callback(savings.close)
        await savings.open()
        state = SqliteStateStore(settings.state.dir)
        stack.push_async_callback(state.close)
        await state.open()
        index_on_disk = DiskIndexStore(
            directory / "index", telemetry, max_body_bytes=settings.limits.index_bytes
        )
        stack.push_async_callback(index_on_disk.close)
        await index_on_disk.open()
        index_store = BehindIndexStore(index_on_disk, telemetry)
        stack.push_async_callback(index_store.close)
        memory_bytes = settings.cache.memory_bytes // 2
        blobs = FileBlobStore(
            directory, _limits(settings, 0), telemetry, clock, memory_bytes=memory_bytes
        )
        stack.push_async_callback(blobs.close)
        await blobs.open_store()
        blobs.set_limits(_limits(settings, (await blobs.usage()).stored_bytes))
        # Opened before whatever asks, and so closed after what that has under way.
        contexts = TlsContexts()
        wired = [
            await wire(stack, name, settings, clock, telemetry, contexts)
            for name in settings.upstreams
        ]
        sources = {one.source.name: one.source for one in wired}
        indexes = Indexes(index_store, state, clock, telemetry, memory_bytes=memory_bytes)
        patience = Patience(settings.server.drain_s if serving else _COMMAND_PATIENCE_S)
        stack.push_async_callback(lambda: indexes.close(patience.left_s()))
        configs = UpstreamConfigs(index_store, clock, telemetry)
        stack.push_async_callback(configs.close)
        api = Api(configs, clock)
        stack.push_async_callback(api.close)
        crates = Crates(indexes, configs, blobs, clock, telemetry)
        stack.push_async_callback(lambda: crates.close(patience.left_s()))
        registries = {
            name: Registry(name, sources[registry.upstream])
            for name, registry in settings.registries.items()
        }
        housekeeping = Housekeeping(registries, indexes, crates, configs, index_store, blobs, state)
        telemetry.watch_flights(lambda: indexes.flights + crates.flights)
        yield House(
            registries=registries,
            journeys=Journeys(indexes, crates, api, Insistence(clock), configs),
            housekeeping=housekeeping,
            operations=Operations(
                housekeeping,
                _used(telemetry, sources) if serving else lambda: None,
                savings.report,
            ),
            telemetry=telemetry,
            savings=savings,
            overviews=Overviews(sources.values(), lambda: telemetry.known(savings.now()), clock),
            blobs=blobs,
            addresses=AddressRules(
                public_urls=settings.server.public_urls,
                allowed_hosts=settings.server.allowed_hosts,
                trusted_proxies=settings.server.trusted_proxies,
            ),
            patience=patience,
            adoptions=(_storing(blobs, index_on_disk), asking(wired)),
        )


def _used(telemetry: Telemetry, sources: Mapping[str, Source]) -> Callable[[], Json]:
    def used() -> Json:
        reports = {name: source.report() for name, source in sources.items()}
        upstreams = {name: [asdict(one) for one in each] for name, each in reports.items()}
        return {**asdict(telemetry.totals), "addresses": upstreams}

    return used


def _limits(settings: Settings, stored_bytes: int) -> Limits:
    """Resolve the limits. What the cache holds already is not free any more, and still its own."""
    settings.cache.dir.mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(settings.cache.dir)
    max_size = settings.cache.max_size_bytes
    if max_size is None:
        max_size = min(
            _DEFAULT_MAX_SIZE_BYTES, int((disk.free + stored_bytes) * _DEFAULT_SHARE_OF_FREE)
        )
    return Limits(max_size, settings.cache.min_free.of(disk.total))


def _storing(blobs: FileBlobStore, index_store: DiskIndexStore) -> Adoption:
    """Have the stores take on other limits."""

    async def adopt(change: Change) -> Callable[[], None]:
        limits: Limits | None = None
        if change.touches("cache.max_size", "cache.min_free"):
            usage = await blobs.usage()
            try:
                limits = _limits(change.settings, usage.stored_bytes)
            except OSError as error:
                raise ConfigError((("cache.dir", error.strerror or str(error)),)) from None
            if not change.touches("cache.max_size"):
                # A default is a share of what is free now: not to be another by the way.
                limits = replace(limits, max_size_bytes=usage.limit_bytes)

        def put_in_place() -> None:
            index_store.set_limit(change.settings.limits.index_bytes)
            if limits is not None:
                blobs.set_limits(limits)

        return put_in_place

    return adopt
