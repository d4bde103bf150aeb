"""The composition root: settings to objects, built and torn down in order.

`house` is the cache with its journeys and nothing listening: what a command needs that holds the
cache by itself. This is the only file that names the adapters' concrete classes; what listens is
in `proxy.serve`. Whatever was opened is closed in the opposite order, whatever goes wrong.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Final

from proxy import version
from proxy.adapters.blob_store import FileBlobStore
from proxy.adapters.cache_dir import CacheDirectory
from proxy.adapters.clock import SystemClock
from proxy.adapters.credentials import Credentials
from proxy.adapters.egress import Egress, EgressTerms, TlsContexts
from proxy.adapters.index_behind import BehindIndexStore
from proxy.adapters.index_store import DiskIndexStore
from proxy.adapters.offline import OfflineUpstream
from proxy.adapters.state_store import SqliteStateStore
from proxy.adapters.telemetry import Telemetry
from proxy.adapters.upstream import HttpUpstream, UpstreamTerms
from proxy.config import Settings, UpstreamSettings
from proxy.core.addresses import AddressGuard, Origin
from proxy.core.events import Kind
from proxy.core.forwarded import AddressRules
from proxy.core.freshness import Terms
from proxy.core.room import Limits
from proxy.ports import Upstream
from proxy.service.api import Api
from proxy.service.crates import Crates
from proxy.service.housekeeping import Housekeeping
from proxy.service.indexes import Indexes
from proxy.service.insistence import Insistence
from proxy.service.journeys import Journeys
from proxy.service.operations import Json, Operations
from proxy.service.registry import Registry
from proxy.service.source import Source
from proxy.service.upstream_configs import UpstreamConfigs

_DEFAULT_MAX_SIZE_BYTES: Final = 50 * 2**30
_DEFAULT_SHARE_OF_FREE: Final = 0.8
_FIRST_BYTE_TIMEOUT_S: Final = 15.0
_FIRST_BYTE_BESIDE_MIRRORS_S: Final = 5.0
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
    """The cache and its journeys."""

    registries: dict[str, Registry]
    journeys: Journeys
    housekeeping: Housekeeping
    operations: Operations
    telemetry: Telemetry
    blobs: FileBlobStore
    addresses: AddressRules
    patience: Patience


@asynccontextmanager
async def house(settings: Settings, *, serving: bool) -> AsyncIterator[House]:
    """Open the cache and build the journeys over it.

    Raises CacheInUse, CacheTooNew, StoreFailure, and OSError where a certificate cannot be read.
    """
    clock = SystemClock()
    telemetry = Telemetry(settings.registries, settings.upstreams, version.VERSION, clock)
    async with AsyncExitStack() as stack:
        stack.enter_context(CacheDirectory(settings.cache.dir))
        directory = settings.cache.dir
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
        sources = {
            name: await _source(stack, name, settings, clock, telemetry, contexts)
            for name in settings.upstreams
        }
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
                housekeeping, _used(telemetry, sources) if serving else lambda: None
            ),
            telemetry=telemetry,
            blobs=blobs,
            addresses=AddressRules(
                public_urls=settings.server.public_urls,
                allowed_hosts=settings.server.allowed_hosts,
                trusted_proxies=settings.server.trusted_proxies,
            ),
            patience=patience,
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


async def _source(
    stack: AsyncExitStack,
    name: str,
    settings: Settings,
    clock: SystemClock,
    telemetry: Telemetry,
    contexts: TlsContexts,
) -> Source:
    upstream = settings.upstreams[name]
    adapter: Upstream = OfflineUpstream(name)
    mirrors: list[tuple[str, Upstream]] = []
    if not upstream.offline:
        first, *others = (name, *(f"{name} (mirror {url})" for url in upstream.mirror_urls))
        terms = _upstream_terms(first, upstream, settings)
        credentials = _credentials(upstream)
        way_out = await _egress(stack, upstream, upstream.index_url, contexts)
        adapter = HttpUpstream(terms, way_out, credentials)
        for called, url in zip(others, upstream.mirror_urls, strict=True):
            way_out = await _egress(stack, upstream, url, contexts)
            # The token is the upstream's own origin's and goes nowhere else.
            mirrors.append((url, HttpUpstream(replace(terms, name=called, index_url=url), way_out)))
    source = Source(
        upstream=adapter,
        terms=Terms(
            fresh_for_s=upstream.fresh_for_s,
            stale_while_revalidate_s=upstream.stale_while_revalidate_s,
            stale_if_error_s=float("inf") if upstream.offline else upstream.stale_if_error_s,
        ),
        clock=clock,
        observer=telemetry,
        offline=upstream.offline,
        mirrors=tuple(mirrors),
        api_interval_s=upstream.api_interval_s,
    )
    telemetry.watch_upstream(
        name,
        source.state(Kind.INDEX, source.first),
        source.state(Kind.CRATE, source.first),
        {one.mirror: source.state(Kind.INDEX, one) for one in source.endpoints[1:]},
    )
    return source


async def _egress(
    stack: AsyncExitStack, upstream: UpstreamSettings, url: str, contexts: TlsContexts
) -> Egress:
    terms = _egress_terms(upstream)
    guard = AddressGuard(Origin.of(url), upstream.allow_hosts)
    return await stack.enter_async_context(Egress(terms, guard, contexts.context(terms)))


def _egress_terms(upstream: UpstreamSettings) -> EgressTerms:
    return EgressTerms(
        connections=upstream.connections,
        connect_timeout_s=upstream.connect_timeout_s,
        idle_timeout_s=upstream.idle_timeout_s,
        proxy=upstream.proxy,
        ca_file=upstream.ca_file,
        client_cert=upstream.client_cert,
        client_key=upstream.client_key,
    )


def _credentials(upstream: UpstreamSettings) -> Credentials:
    token = upstream.token
    if token is None:
        return Credentials(None)
    return Credentials(token.reveal(), token.file, token.parse)


def _upstream_terms(name: str, upstream: UpstreamSettings, settings: Settings) -> UpstreamTerms:
    contact = f" ({settings.server.contact})" if settings.server.contact else ""
    return UpstreamTerms(
        name=name,
        index_url=upstream.index_url,
        user_agent=f"holdfast/{version.VERSION}{contact}",
        absent_statuses=upstream.absent_statuses,
        index_max_bytes=settings.limits.index_bytes,
        crate_max_bytes=settings.limits.crate_bytes,
        first_byte_timeout_s=min(
            # With somebody else to ask there is less reason to wait.
            _FIRST_BYTE_BESIDE_MIRRORS_S if upstream.mirrors else _FIRST_BYTE_TIMEOUT_S,
            upstream.idle_timeout_s,
        ),
        idle_timeout_s=upstream.idle_timeout_s,
    )
