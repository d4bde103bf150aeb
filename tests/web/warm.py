"""A doorstep behind which the hot path has something to say.

`small`, `many` and `wide` are index files in memory, and so is the crate of `small`. `wide` is
larger than the first window of a stream, and than several frames.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from proxy.web.http2.limits import Http2Limits
from tests.web import http11
from tests.web.conftest import crate_url, index_url
from tests.web.doorstep import Door, doorstep
from tests.world.crates import Package
from tests.world.http2 import asking, connected, headers
from tests.world.registry import Registry
from tests.world.server import RegistryServer

CONFIG: Final = "/crates-io/index/config.json"
SMALL, MANY, WIDE = index_url("small"), index_url("many"), index_url("wide")
CARGO: Final = [("user-agent", "cargo/1.95.0"), ("accept", "*/*"), ("accept-encoding", "identity")]


@asynccontextmanager
async def warm(
    root: Path, stocked: Registry, upstream: RegistryServer, limits: Http2Limits | None = None
) -> AsyncIterator[Door]:
    """Open it, with the heads of plain requests and of cargo's known over HTTP/2.

    Nobody is connected, and what the application was asked until then is forgotten.
    """
    stocked.publish_listed(*(Package("wide", f"1.{minor}.0") for minor in range(600)))
    assert len(stocked.index("wide")) > 65_535
    async with doorstep(root, upstream, limits=limits) as door:
        for url in (SMALL, MANY, WIDE, crate_url(stocked, "small")):
            async with asyncio.timeout(http11.PATIENCE_SECONDS):
                while (await http11.ask(door.port, url)).how != "hit":
                    pass
        async with connected(door.port) as peer:
            for stream, fields in ((1, []), (3, CARGO), (5, [*CARGO, ("if-none-match", '"a"')])):
                peer.send(headers(stream, [*asking(SMALL), *fields]))
                assert (await peer.reply(stream)).status == 200
        async with asyncio.timeout(http11.PATIENCE_SECONDS):
            while door.entrance.http1_connections() or door.entrance.http2_connections():
                await asyncio.sleep(0)
        door.handled.clear()
        yield door
