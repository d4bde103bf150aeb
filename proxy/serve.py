"""The life of a serving process: doors, control socket, upkeep, signals, and the drain at the end.

`serve` opens what `proxy.compose` has built to clients and to the operator, and returns when it has
been told to stop and has drained. Of concrete classes it names those that listen; what is behind
them is the house's. Everything is closed in the opposite order, whatever goes wrong.
"""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket as sockets
import ssl
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from proxy.adapters import logs
from proxy.adapters.clock import SystemClock
from proxy.adapters.control_client import short_path
from proxy.compose import House, house
from proxy.config import ConfigError, ServerSettings, Settings
from proxy.config_addresses import ListenAddress
from proxy.config_changes import Adoption, Change, Reading
from proxy.config_show import cargo_sections
from proxy.core.failures import StoreFailure
from proxy.hang_up import HangUps
from proxy.reload import Reloader
from proxy.web import tls as tls_towards_clients
from proxy.web.control import SOCKET_NAME, control_app
from proxy.web.entrance import CONNECTIONS_MAX, Entrance
from proxy.web.gate import Ceilings, Gate
from proxy.web.hot import HotPath
from proxy.web.pages import Pages, Readiness
from proxy.web.rim import Rim
from proxy.web.start_page import StartPage

logger = logging.getLogger(__name__)

_UPKEEP_EVERY_S: Final = 5.0
# Files that are neither clients nor upstreams: stores, listeners, what the system opens.
_FILES_OF_OUR_OWN: Final = 64
# Probes and scrapers: enough for them, too few to matter.
_ADMIN_CONNECTIONS: Final = 64
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


async def serve(
    settings: Settings,
    announce: Callable[[list[str]], None],
    reread: Callable[[], Settings],
    hang_ups: HangUps,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `announce` gets the addresses when all is up.

    On SIGHUP the settings are what `reread` says, as far as they can change meanwhile; it is called
    in a thread. Raises what `house` raises, and OSError where an address cannot be listened on.
    """
    _raise_file_limit()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        with _told_to_stop(loop, stopping.set):
            await _serve(settings, announce, stopping, reread, hang_ups)
    finally:
        # The loop is about to close.
        hang_ups.answer_by(None)


@contextlib.contextmanager
def _told_to_stop(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    """Have SIGTERM and SIGINT call `stop`, and nothing once all is over.

    The process's own handlers, not the loop's: those are given back to the system while the process
    ends, and a signal of the last moments would end in failure what had stopped well.
    """

    def heard(*_: object) -> None:
        loop.call_soon_threadsafe(stop)

    for number in _STOP_SIGNALS:
        signal.signal(number, heard)
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


async def _serve(
    settings: Settings,
    announce: Callable[[list[str]], None],
    stopping: asyncio.Event,
    reread: Callable[[], Settings],
    hang_ups: HangUps,
) -> None:
    reading = Reading.of(settings)
    files = settings.server.tls
    tls = None
    if files is not None:
        tls = tls_towards_clients.server_context(files.certificate, files.key)
    async with AsyncExitStack() as stack:
        rooms = await stack.enter_async_context(house(settings, serving=True))
        readiness = Readiness()
        doors = await open_doors(stack, settings, rooms, readiness, tls)
        await _open_control(stack, settings.cache.dir, rooms)
        await _set_gauges(rooms)
        upkeep = asyncio.create_task(_upkeep(rooms))
        stack.push_async_callback(_end, upkeep)
        receiving = _receiving(doors)
        adoptions = (*rooms.adoptions, receiving, _speak_as_loud, _show_certificate(tls))
        telemetry = rooms.telemetry
        reloader = Reloader(reading, reread, adoptions, telemetry.config_was_read)
        # What is there by now stays; a collection among requests need not go over it each time.
        gc.collect()
        gc.freeze()
        readiness.ready = True
        announce(doors.urls)
        await _reload_until(stopping, reloader, hang_ups)
        readiness.ready, readiness.reason = False, "draining"
        rooms.patience.begin()
        logger.info(
            "draining: no new connections, %s s for what is under way", settings.server.drain_s
        )


async def _reload_until(stopping: asyncio.Event, reloader: Reloader, hang_ups: HangUps) -> None:
    """Reload on SIGHUP until it is time to stop; a reload that is under way then is given up."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    reloads = asyncio.create_task(reloader.reload_when(told))
    hang_ups.answer_by(lambda: loop.call_soon_threadsafe(told.set))
    try:
        await stopping.wait()
    finally:
        hang_ups.answer_by(lambda: loop.call_soon_threadsafe(_say_too_late))
        await _end(reloads)


def _say_too_late() -> None:
    logger.warning("not reloaded: the proxy is about to stop")


@dataclass(frozen=True, slots=True)
class Doors:
    """What is open to clients, and by which addresses."""

    entrance: Entrance
    gate: Gate
    urls: list[str]


async def open_doors(
    stack: AsyncExitStack,
    settings: Settings,
    rooms: House,
    readiness: Readiness,
    tls: ssl.SSLContext | None,
) -> Doors:
    """Listen for clients, and on the admin address if there is one."""
    server = settings.server
    pages = pages_of(settings, rooms, readiness)
    gate = Gate(_ceilings(settings), SystemClock())
    main = await _entrance(
        stack,
        settings,
        rooms,
        application(rooms, pages, gate, admin_only_elsewhere=server.admin_listen is not None),
        tls,
        _connections(settings),
    )
    scheme = "http" if tls is None else "https"
    urls = []
    for address in server.listen:
        port = await main.listen(address.host, address.port, both_families=_alone(address, server))
        urls.append(f"{scheme}://{ListenAddress(address.host, port)}/")
    rooms.telemetry.watch_connections(
        {"http/1.1": main.http1_connections, "h2": main.http2_connections}
    )
    if server.admin_listen is not None:
        admin_app = application(rooms, pages, gate, admin_only_elsewhere=False)
        # Probes and scrapers inside the site: this port speaks cleartext always.
        admin = await _entrance(stack, settings, rooms, admin_app, None, _ADMIN_CONNECTIONS)
        await admin.listen(
            server.admin_listen.host,
            server.admin_listen.port,
            both_families=_alone(server.admin_listen, server),
        )
    return Doors(main, gate, urls)


def _ceilings(settings: Settings) -> Ceilings:
    limits = settings.limits
    return Ceilings(
        client_requests=limits.client_requests,
        client_misses=limits.client_misses,
        registry_requests=limits.registry_requests,
        registry_misses=limits.registry_misses,
    )


def _connections(settings: Settings) -> int:
    """Return how many clients there is room for: each may have a crate open, a file of its own."""
    if settings.limits.connections is not None:
        return settings.limits.connections
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    upstreams = sum(upstream.connections for upstream in settings.upstreams.values())
    left = files - upstreams - _FILES_OF_OUR_OWN
    return max(_FILES_OF_OUR_OWN, min(CONNECTIONS_MAX, left // 2))


def _receiving(doors: Doors) -> Adoption:
    """Have clients limited by other limits."""

    async def adopt(change: Change) -> Callable[[], None]:
        def put_in_place() -> None:
            doors.gate.set_ceilings(_ceilings(change.settings))
            if change.touches("limits.connections"):
                doors.entrance.set_connections(_connections(change.settings))

        return put_in_place

    return adopt


def _alone(address: ListenAddress, server: ServerSettings) -> bool:
    """Tell whether no listener for IPv4 shares the port of this one, which is for IPv6."""
    listeners = [*server.listen, *filter(None, [server.admin_listen])]
    return not any(each.port == address.port and ":" not in each.host for each in listeners)


def pages_of(settings: Settings, rooms: House, readiness: Readiness) -> Pages:
    """Build everything that is not a registry."""
    start = StartPage(
        tuple(rooms.registries),
        lambda base_url: cargo_sections(settings, base_url),
        rooms.overviews.now,
    )
    return Pages(readiness, rooms.telemetry.render, start)


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


def application(
    rooms: House, pages: Pages, gate: Gate | None = None, *, admin_only_elsewhere: bool
) -> web.Application:
    """Return what answers the requests of one listener."""
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
    """Keep the gauges of the cache up to date, and what it saved."""
    while True:
        await asyncio.sleep(_UPKEEP_EVERY_S)
        await rooms.savings.keep()
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


async def _speak_as_loud(change: Change) -> Callable[[], None]:
    """Take on another level of the log."""
    return lambda: logs.set_level(change.settings.log.level)


def _show_certificate(tls: ssl.SSLContext | None) -> Adoption:
    """Have new handshakes show what is in the files now.

    To be the last of the adoptions: what can be read into the context is in place already, since
    only that tells whether it can be.
    """

    async def adopt(change: Change) -> Callable[[], None]:
        files = change.settings.server.tls
        if tls is not None and files is not None and change.touches("server.tls"):
            try:
                tls_towards_clients.load(tls, files.certificate, files.key)
            except tls_towards_clients.CertificateRefused as refused:
                raise ConfigError((("server.tls", refused.reason),)) from None
        return _nothing_more

    return adopt


def _nothing_more() -> None:
    """Leave it at what was done."""


def _raise_file_limit() -> None:
    """Allow as many open files as the system lets us: each client and each crate is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
