"""A proxy inside the test's own process, with the real adapters and real sockets.

`serve` opens the house and its doors as the command does, in front of a scripted registry; what it
returns speaks to it in one of the `ways`. Everything is closed when the test ends. The ways over
TLS share one certificate.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from proxy import compose
from proxy import serve as serving
from proxy.config import Overrides, load
from proxy.web import tls as tls_towards_clients
from proxy.web.pages import Readiness
from tests.web.ways import WAYS, Way
from tests.world.certificates import Authority, TlsSection
from tests.world.crates import Package
from tests.world.holdfast import Answer, toml
from tests.world.registry import Registry, index_path
from tests.world.server import RegistryServer

LARGE_BYTES = 400_000
_PATIENCE_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Proxy:
    """A serving proxy, and a client of it."""

    rooms: compose.House
    readiness: Readiness
    port: int
    way: Way
    cache_dir: Path
    authority: Authority

    @property
    def scheme(self) -> str:
        """What an address begins with that leads here by this way."""
        return "http" if self.way.alpn is None else "https"

    @property
    def url(self) -> str:
        """The address of its root, without a slash at the end."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def tls(self) -> ssl.SSLContext | None:
        """For those who speak HTTP/1.1 on their own: the TLS to do it over, if there is any."""
        return None if self.way.alpn is None else self.authority.trusted("http/1.1")

    async def ask(
        self,
        target: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        body: bytes = b"",
    ) -> Answer:
        """Make one request."""
        tls = None if self.way.alpn is None else self.authority.trusted(self.way.alpn)
        return await self.way.ask(
            self.port, target, method=method, headers=dict(headers or {}), body=body, tls=tls
        )

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of one sample of the metrics page (`name` without the prefix)."""
        page, _ = self.rooms.telemetry.render()
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        found = [
            float(line.rpartition(" ")[2])
            for line in page.decode().splitlines()
            if line.partition("{")[0].partition(" ")[0] == f"holdfast_{name}"
            and wanted <= set(line.partition("{")[2].partition("}")[0].split(","))
        ]
        assert found, f"no sample of holdfast_{name} with {labels}"
        return sum(found)


class Serve(Protocol):
    """Opens a proxy in front of `upstream`; `sections` are sections of the configuration."""

    async def __call__(
        self, upstream: RegistryServer, **sections: Mapping[str, object]
    ) -> Proxy: ...


@dataclass(slots=True)
class _Opener:
    stack: AsyncExitStack
    root: Path
    way: Way
    authority: Authority
    certificate: TlsSection
    number: int = field(default=0)

    async def __call__(self, upstream: RegistryServer, **sections: Mapping[str, object]) -> Proxy:
        self.number += 1
        root = self.root / f"proxy-{self.number}"
        root.mkdir()
        terms = dict(sections.pop("crates_io", {}))
        upstreams = {
            "crates-io": {"index": upstream.index_url, **terms},
            **sections.pop("upstreams", {}),
        }
        tables: dict[str, object] = {**sections, "upstreams": upstreams}
        defaults: dict[str, dict[str, object]] = {
            "server": {"listen": ["127.0.0.1:0"], "drain": "1s", **self._tls_section()},
            "cache": {"dir": "cache"},
            "state": {"dir": "state"},
        }
        for name, values in defaults.items():
            given = tables.get(name, {})
            assert isinstance(given, Mapping)
            tables[name] = {**values, **given}
        file = root / "holdfast.toml"
        file.write_text(toml(tables))
        settings = load(file, {}, Overrides())
        rooms = await self.stack.enter_async_context(compose.house(settings, serving=True))
        readiness = Readiness(ready=True, reason="")
        files = settings.server.tls
        tls = None
        if files is not None:
            tls = tls_towards_clients.server_context(files.certificate, files.key)
        url, *_ = await serving.open_doors(self.stack, settings, rooms, readiness, tls)
        port = urlsplit(url).port
        assert port is not None, url
        return Proxy(rooms, readiness, port, self.way, root / "cache", self.authority)

    def _tls_section(self) -> dict[str, TlsSection]:
        return {} if self.way.alpn is None else {"tls": self.certificate}


@pytest.fixture(params=WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    chosen: Way = request.param
    return chosen


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="session")
def certificate(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> TlsSection:
    return authority.issue(tmp_path_factory.mktemp("tls"))


@pytest_asyncio.fixture
async def serve(
    tmp_path: Path, way: Way, authority: Authority, certificate: TlsSection
) -> AsyncIterator[Serve]:
    """Give the test the means to open proxies; keywords are sections of the configuration."""
    async with AsyncExitStack() as stack:
        yield _Opener(stack, tmp_path, way, authority, certificate)


@pytest.fixture
def stocked(registry: Registry) -> Registry:
    """What `upstream` serves: a small crate, a large one, mixed case, a build number in a version.

    `many` has an index file that gzip is worth its while for.
    """
    registry.publish(
        Package("small"),
        Package("large", padding_bytes=LARGE_BYTES),
        Package("Mixed_Case"),
        Package("plus", "1.0.0+build.5"),
    )
    registry.publish_listed(*(Package("many", f"1.{minor}.0") for minor in range(50)))
    return registry


@pytest_asyncio.fixture
async def proxy(serve: Serve, stocked: Registry, upstream: RegistryServer) -> Proxy:
    """A proxy with no settings of its own, in front of a stocked registry."""
    return await serve(upstream)


def index_url(name: str, registry: str = "crates-io") -> str:
    """Return the path of a name's index file on a proxy."""
    return f"/{registry}/index/{index_path(name)}"


def crate_url(registry: Registry, name: str, vers: str = "1.0.0") -> str:
    """Return the content-addressed path of a crate on a proxy."""
    return f"/crates-io/crates/{name}/{vers}/{registry.release(name, vers).cksum}"


async def bring_in(proxy: Proxy, url: str) -> None:
    """Return once a crate is held: its last byte is sent a moment before it is stored."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while (await proxy.ask(url)).how != "hit":
            pass
