"""A listening entrance with a house behind it, for tests that speak frames to it.

Unlike the `serve` of this folder it lets a test choose the limits of an HTTP/2 connection and end
the entrance by itself, which is what a drain is.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from proxy import compose
from proxy import serve as serving
from proxy.adapters.clock import SystemClock
from proxy.config import Overrides, load
from proxy.web.entrance import Entrance
from proxy.web.hot import HotPath
from proxy.web.http2.limits import Http2Limits
from proxy.web.pages import Pages, Readiness
from tests.world.holdfast import toml
from tests.world.server import RegistryServer


@dataclass(frozen=True, slots=True)
class Door:
    """What listens on `port`, and what is behind it."""

    rooms: compose.House
    entrance: Entrance
    port: int


@asynccontextmanager
async def doorstep(
    root: Path,
    upstream: RegistryServer,
    *,
    limits: Http2Limits | None = None,
    h2c: bool = True,
    server: Mapping[str, object] | None = None,
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
        pages = Pages(readiness, rooms.telemetry.render, sorted(rooms.registries))
        hot = HotPath(
            rooms.registries, rooms.journeys, rooms.addresses, SystemClock(), rooms.telemetry
        )
        entrance = Entrance(
            serving.application(rooms, pages, admin_only_elsewhere=False),
            hot,
            rooms.addresses,
            h2c=h2c,
            tls=None,
            drain_s=settings.server.drain_s,
        )
        if limits is not None:
            entrance._limits = limits
        await entrance.open()
        port = await entrance.listen("127.0.0.1", 0)
        rooms.telemetry.watch_connections(
            {"http/1.1": entrance.http1_connections, "h2": entrance.http2_connections}
        )
        try:
            yield Door(rooms, entrance, port)
        finally:
            await entrance.close(1.0)
