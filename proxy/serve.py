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
from pathlib import Path
from typing import Final

from aiohttp import web

from proxy.adapters.clock import SystemClock
from proxy.adapters.control_client import short_path
from proxy.compose import House, house
from proxy.config import Settings
from proxy.config_addresses import ListenAddress
from proxy.core.failures import StoreFailure
from proxy.web import tls as tls_towards_clients
from proxy.web.control import SOCKET_NAME, control_app
from proxy.web.entrance import Entrance
from proxy.web.hot import HotPath
from proxy.web.pages import Pages, Readiness
from proxy.web.rim import Rim

logger = logging.getLogger(__name__)

_UPKEEP_EVERY_S: Final = 5.0
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


async def serve(settings: Settings, announce: Callable[[list[str]], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `announce` gets the addresses when all is up.

    Raises what `house` raises, and OSError where an address cannot be listened on.
    """
    _raise_file_limit()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    with _told_to_stop(loop, stopping.set):
        await _serve(settings, announce, stopping)


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
    settings: Settings, announce: Callable[[list[str]], None], stopping: asyncio.Event
) -> None:
    loop = asyncio.get_running_loop()
    files = settings.server.tls
    tls = None
    if files is not None:
        tls = tls_towards_clients.server_context(files.certificate, files.key)
    loop.add_signal_handler(signal.SIGHUP, lambda: _reload(settings, tls))
    async with AsyncExitStack() as stack:
        rooms = await stack.enter_async_context(house(settings, serving=True))
        readiness = Readiness()
        urls = await open_doors(stack, settings, rooms, readiness, tls)
        await _open_control(stack, settings.cache.dir, rooms)
        await _set_gauges(rooms)
        upkeep = asyncio.create_task(_upkeep(rooms))
        stack.push_async_callback(_end, upkeep)
        # What is there by now stays; a collection among requests need not go over it each time.
        gc.collect()
        gc.freeze()
        readiness.ready = True
        announce(urls)
        await stopping.wait()
        readiness.ready, readiness.reason = False, "draining"
        rooms.patience.begin()
        logger.info(
            "draining: no new connections, %s s for what is under way", settings.server.drain_s
        )


async def open_doors(
    stack: AsyncExitStack,
    settings: Settings,
    rooms: House,
    readiness: Readiness,
    tls: ssl.SSLContext | None,
) -> list[str]:
    """Listen for clients, and on the admin address if there is one; returns the clients' URLs."""
    server = settings.server
    pages = Pages(readiness, rooms.telemetry.render, sorted(rooms.registries))
    main = await _entrance(
        stack,
        settings,
        rooms,
        application(rooms, pages, admin_only_elsewhere=server.admin_listen is not None),
        tls,
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
        admin_app = application(rooms, pages, admin_only_elsewhere=False)
        # Probes and scrapers inside the site: this port speaks cleartext always.
        admin = await _entrance(stack, settings, rooms, admin_app, None)
        await admin.listen(server.admin_listen.host, server.admin_listen.port)
    return urls


async def _entrance(
    stack: AsyncExitStack,
    settings: Settings,
    rooms: House,
    app: web.Application,
    tls: ssl.SSLContext | None,
) -> Entrance:
    hot = HotPath(rooms.registries, rooms.journeys, rooms.addresses, SystemClock(), rooms.telemetry)
    entrance = Entrance(
        app,
        hot,
        rooms.addresses,
        h2c=settings.server.h2c,
        tls=tls,
        drain_s=settings.server.drain_s,
    )
    await entrance.open()
    stack.push_async_callback(lambda: entrance.close(rooms.patience.left_s()))
    return entrance


def application(rooms: House, pages: Pages, *, admin_only_elsewhere: bool) -> web.Application:
    """Return what answers the requests of one listener."""
    rim = Rim(
        rooms.registries,
        rooms.journeys,
        pages,
        rooms.addresses,
        SystemClock(),
        rooms.telemetry,
        admin_only_elsewhere=admin_only_elsewhere,
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
