"""The only file that names concrete classes: settings to objects, built and torn down in order.

`house` is the cache with its journeys and nothing listening: what a command needs that holds the
cache by itself. `serve` adds the listeners, the control socket and the upkeep, and returns after a
drain. Whatever was opened is closed in the opposite order, whatever goes wrong.
"""

import asyncio
import contextlib
import logging
import os
import resource
import shutil
import signal
import socket as sockets
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from proxy import version
from proxy.adapters.blob_store import FileBlobStore
from proxy.adapters.cache_dir import CacheDirectory
from proxy.adapters.clock import SystemClock
from proxy.adapters.control_client import short_path
from proxy.adapters.credentials import Credentials
from proxy.adapters.egress import Egress, EgressTerms
from proxy.adapters.index_store import DiskIndexStore
from proxy.adapters.state_store import SqliteStateStore
from proxy.adapters.telemetry import Telemetry
from proxy.adapters.upstream import HttpUpstream, OfflineUpstream, UpstreamTerms
from proxy.config import Settings, UpstreamSettings
from proxy.config_values import ListenAddress
from proxy.core.addresses import AddressGuard, Origin
from proxy.core.failures import StoreFailure
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
from proxy.web import tls as tls_towards_clients
from proxy.web.control import SOCKET_NAME, control_app
from proxy.web.entrance import CONNECTIONS_MAX, Entrance
from proxy.web.gate import Ceilings, Gate
from proxy.web.hot import HotPath
from proxy.web.pages import Pages, Readiness
from proxy.web.rim import Rim

logger = logging.getLogger(__name__)

_DEFAULT_MAX_SIZE_BYTES: Final = 50 * 2**30
_DEFAULT_SHARE_OF_FREE: Final = 0.8
_FIRST_BYTE_TIMEOUT_S: Final = 15.0
_UPKEEP_EVERY_S: Final = 5.0
# Files that are neither clients nor upstreams: stores, listeners, what the system opens.
_FILES_OF_OUR_OWN: Final = 64
# Probes and scrapers: enough for them, too few to matter.
_ADMIN_CONNECTIONS: Final = 64
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
        index_store = DiskIndexStore(
            directory / "index", telemetry, max_body_bytes=settings.limits.index_bytes
        )
        stack.push_async_callback(index_store.close)
        await index_store.open()
        memory_bytes = settings.cache.memory_bytes // 2
        blobs = FileBlobStore(
            directory, _limits(settings, 0), telemetry, clock, memory_bytes=memory_bytes
        )
        stack.push_async_callback(blobs.close)
        await blobs.open_store()
        blobs.set_limits(_limits(settings, (await blobs.usage()).stored_bytes))
        indexes = Indexes(index_store, state, clock, telemetry, memory_bytes=memory_bytes)
        patience = Patience(settings.server.drain_s if serving else _COMMAND_PATIENCE_S)
        stack.push_async_callback(lambda: indexes.close(patience.left_s()))
        configs = UpstreamConfigs(index_store, clock, telemetry)
        stack.push_async_callback(configs.close)
        sources = {
            name: await _source(stack, name, settings, clock, telemetry)
            for name in settings.upstreams
        }
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
            journeys=Journeys(indexes, crates, Api(configs), Insistence(clock)),
            housekeeping=housekeeping,
            operations=Operations(housekeeping, _used(telemetry) if serving else lambda: None),
            telemetry=telemetry,
            blobs=blobs,
            addresses=AddressRules(
                public_urls=settings.server.public_urls,
                allowed_hosts=settings.server.allowed_hosts,
                trusted_proxies=settings.server.trusted_proxies,
            ),
            patience=patience,
        )


def _used(telemetry: Telemetry) -> Callable[[], Json]:
    return lambda: asdict(telemetry.totals)


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
    stack: AsyncExitStack, name: str, settings: Settings, clock: SystemClock, telemetry: Telemetry
) -> Source:
    upstream = settings.upstreams[name]
    adapter: Upstream
    if upstream.offline:
        adapter = OfflineUpstream(name)
    else:
        guard = AddressGuard(Origin.of(upstream.index_url), upstream.allow_hosts)
        egress = await stack.enter_async_context(Egress(_egress_terms(upstream), guard))
        adapter = HttpUpstream(
            _upstream_terms(name, upstream, settings), egress, _credentials(upstream)
        )
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
    )
    telemetry.watch_upstream(name, source.is_failing)
    return source


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
        first_byte_timeout_s=min(_FIRST_BYTE_TIMEOUT_S, upstream.idle_timeout_s),
        idle_timeout_s=upstream.idle_timeout_s,
    )


async def serve(settings: Settings, announce: Callable[[list[str]], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `announce` gets the addresses when all is up.

    Raises what `house` raises, and OSError where an address cannot be listened on.
    """
    _raise_file_limit()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    files = settings.server.tls
    tls = None
    if files is not None:
        tls = tls_towards_clients.server_context(files.certificate, files.key)
    loop.add_signal_handler(signal.SIGHUP, lambda: _reload(settings, tls))
    async with AsyncExitStack() as stack:
        rooms = await stack.enter_async_context(house(settings, serving=True))
        readiness = Readiness()
        urls = await _open_doors(stack, settings, rooms, readiness, tls)
        await _open_control(stack, settings.cache.dir, rooms)
        await _set_gauges(rooms)
        upkeep = asyncio.create_task(_upkeep(rooms))
        stack.push_async_callback(_end, upkeep)
        readiness.ready = True
        announce(urls)
        await stopping.wait()
        readiness.ready, readiness.reason = False, "draining"
        rooms.patience.begin()
        logger.info(
            "draining: no new connections, %s s for what is under way", settings.server.drain_s
        )


async def _open_doors(
    stack: AsyncExitStack,
    settings: Settings,
    rooms: House,
    readiness: Readiness,
    tls: ssl.SSLContext | None,
) -> list[str]:
    """Listen for clients, and on the admin address if there is one; returns the clients' URLs."""
    server = settings.server
    pages = Pages(readiness, rooms.telemetry.render, sorted(rooms.registries))
    gate = _gate(settings)
    main = await _entrance(
        stack,
        settings,
        rooms,
        _app(rooms, pages, gate, admin_only_elsewhere=server.admin_listen is not None),
        tls,
        settings.limits.connections or _room_for_connections(settings),
    )
    scheme = "http" if tls is None else "https"
    urls = []
    for address in server.listen:
        port = await main.listen(address.host, address.port)
        urls.append(f"{scheme}://{ListenAddress(address.host, port)}/")
    rooms.telemetry.watch_connections(
        {"http/1.1": main.http1_connections, "h2": main.http2_connections}
    )
    if server.admin_listen is not None:
        admin_app = _app(rooms, pages, gate, admin_only_elsewhere=False)
        # Probes and scrapers inside the site: this port speaks cleartext always.
        admin = await _entrance(stack, settings, rooms, admin_app, None, _ADMIN_CONNECTIONS)
        await admin.listen(server.admin_listen.host, server.admin_listen.port)
    return urls


async def _entrance(
    stack: AsyncExitStack,
    settings: Settings,
    rooms: House,
    app: web.Application,
    tls: ssl.SSLContext | None,
    connections: int,
) -> Entrance:
    hot = HotPath(rooms.registries, rooms.journeys, rooms.addresses, SystemClock(), rooms.telemetry)
    entrance = Entrance(
        app,
        hot,
        rooms.addresses,
        h2c=settings.server.h2c,
        tls=tls,
        drain_s=settings.server.drain_s,
        connections=connections,
    )
    await entrance.open()
    stack.push_async_callback(lambda: entrance.close(rooms.patience.left_s()))
    return entrance


def _gate(settings: Settings) -> Gate:
    limits = settings.limits
    ceilings = Ceilings(
        client_requests=limits.client_requests,
        client_misses=limits.client_misses,
        registry_requests=limits.registry_requests,
        registry_misses=limits.registry_misses,
    )
    return Gate(ceilings, SystemClock())


def _room_for_connections(settings: Settings) -> int:
    """Return how many clients there is room for: each may have a crate open, a file of its own."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    upstreams = sum(upstream.connections for upstream in settings.upstreams.values())
    left = files - upstreams - _FILES_OF_OUR_OWN
    return max(_FILES_OF_OUR_OWN, min(CONNECTIONS_MAX, left // 2))


def _app(
    rooms: House, pages: Pages, gate: Gate | None = None, *, admin_only_elsewhere: bool
) -> web.Application:
    rim = Rim(
        rooms.registries,
        rooms.journeys,
        pages,
        rooms.addresses,
        SystemClock(),
        rooms.telemetry,
        admin_only_elsewhere=admin_only_elsewhere,
        gate=gate,
    )
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", rim.handle)
    return app


async def _open_control(stack: AsyncExitStack, directory: Path, rooms: House) -> None:
    runner = web.AppRunner(
        control_app(rooms.operations), access_log=None, handle_signals=False, shutdown_timeout=0
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    path = directory / SOCKET_NAME
    path.unlink(missing_ok=True)
    bound = stack.enter_context(short_path(path))
    listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    listener.setblocking(False)
    # The mode is set before anybody can connect: the mask makes the file, not a later chmod.
    mask = os.umask(0o177)
    try:
        listener.bind(bound)
    finally:
        os.umask(mask)
    stack.callback(path.unlink, missing_ok=True)
    await web.SockSite(runner, listener).start()


async def _upkeep(rooms: House) -> None:
    """Keep the gauges of the cache up to date."""
    while True:
        await asyncio.sleep(_UPKEEP_EVERY_S)
        with contextlib.suppress(StoreFailure):
            # A store in trouble has said so itself; the gauges keep their last values.
            await _set_gauges(rooms)


async def _set_gauges(rooms: House) -> None:
    stored = await rooms.housekeeping.stats()
    telemetry = rooms.telemetry
    blobs = stored.blobs
    telemetry.set_cache(
        "blobs", used=blobs.stored_bytes, entries=blobs.blobs, limit=blobs.limit_bytes
    )
    telemetry.set_cache(
        "memory-blobs", used=blobs.memory_bytes, entries=None, limit=blobs.memory_limit_bytes
    )
    telemetry.set_cache("index", used=stored.index_bytes, entries=stored.index_entries, limit=None)
    memory = rooms.journeys.indexes.memory
    telemetry.set_cache(
        "memory-index", used=memory.used_bytes, entries=len(memory), limit=memory.limit_bytes
    )


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _reload(settings: Settings, tls: ssl.SSLContext | None) -> None:
    """Read the certificate again; whatever else has changed needs a restart in this version."""
    files = settings.server.tls
    if tls is None or files is None:
        logger.warning("SIGHUP: only the certificate of server.tls is reloaded, and there is none")
        return
    try:
        tls_towards_clients.load(tls, files.certificate, files.key)
    except tls_towards_clients.CertificateRefused as refused:
        logger.error("SIGHUP: the certificate in use stays: %s", refused)  # noqa: TRY400
    else:
        logger.info("SIGHUP: the certificate was read again")


def _raise_file_limit() -> None:
    """Allow as many open files as the system lets us: each client and each crate is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
