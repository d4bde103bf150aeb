"""A listening entrance with a house behind it, for tests that speak frames to it.

Unlike the `serve` of this folder it lets a test choose the limits of an HTTP/2 connection and end
the entrance by itself, which is what a drain is.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from proxy import compose
from proxy import serve as serving
from proxy.adapters.clock import SystemClock
from proxy.config import Overrides, load
from proxy.web.entrance import CONNECTIONS_MAX, Entrance
from proxy.web.guests import Patience
from proxy.web.hot import HotPath
from proxy.web.http2.limits import Http2Limits
from proxy.web.pages import Readiness
from tests.world.holdfast import toml
from tests.world.server import RegistryServer


@dataclass(frozen=True, slots=True)
class Door:
    """What listens on `port`, and what is behind it."""

    rooms: compose.House
    entrance: Entrance
    port: int
    # The targets that the application was asked for: hot answers are given without it.
    handled: list[str]
    # While it is clear, the application waits before it answers.
    gate: asyncio.Event


@asynccontextmanager
async def doorstep(
    root: Path,
    upstream: RegistryServer,
    *,
    limits: Http2Limits | None = None,
    h2c: bool = True,
    server: Mapping[str, object] | None = None,
    patience: Patience | None = None,
    connections: int = CONNECTIONS_MAX,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Door]:
    """Open a house in front of `upstream` and listen on a port of the kernel's choice."""
    file = root / "holdfast.toml"
    file.write_text(
        toml(
            {
                "server": {"drain": "5s", **(server or {})},
                "cache": {"dir": str(root / "cache")},
                "state": {"dir": str(root / "state")},
                "upstreams": {"crates-io": {"index": upstream.index_url}},
            }
        )
    )
    settings = load(file, {}, Overrides())
    async with compose.house(settings, serving=True) as rooms:
        readiness = Readiness(ready=True, reason="")
        pages = serving.pages_of(settings, rooms, readiness)
        hot = HotPath(
            rooms.registries, rooms.journeys, rooms.addresses, SystemClock(), rooms.telemetry
        )
        handled: list[str] = []
        gate = asyncio.Event()
        gate.set()

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            handled.append(request.path_qs)
            await gate.wait()
            return await handler(request)

        app = serving.application(rooms, pages, admin_only_elsewhere=False)
        app.middlewares.append(note)
        entrance = Entrance(
            app,
            hot,
            rooms.addresses,
            h2c=h2c,
            tls=tls,
            drain_s=settings.server.drain_s,
            connections=connections,
            patience=patience or Patience(),
        )
        if limits is not None:
            entrance._limits = limits
        await entrance.open()
        port = await entrance.listen("127.0.0.1", 0)
        rooms.telemetry.watch_connections(
            {"http/1.1": entrance.http1_connections, "h2": entrance.http2_connections}
        )
        try:
            yield Door(rooms, entrance, port, handled, gate)
        finally:
            await entrance.close(1.0)
