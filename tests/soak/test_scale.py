"""A cache of two hundred thousand index files and a million crates beside an empty one.

Start-up, memory and hot latency must not know the difference. A thousand clients of one large crate
must not cost a thousand copies of it. Times are compared with those of the small cache in the same
run, never with a number of seconds; what was measured is printed (`make soak ARGS=-s`).
"""

import asyncio
import hashlib
import os
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from proxy.adapters.index_store import DiskIndexStore
from proxy.core.answers import Snapshot, Validators
from tests.conftest import Launch
from tests.world.crates import Package
from tests.world.holdfast import Holdfast
from tests.world.observer import Recorder
from tests.world.registry import Registry
from tests.world.server import RegistryServer

INDEX_NAMES = 200_000
BLOBS = 1_000_000
CLIENTS = 1000
MIB = 2**20
REBUILD_TIMEOUT_S = 1500

pytestmark = pytest.mark.timeout(3600)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one cache costs: seconds to the first line, bytes of memory, seconds per hot answer."""

    start_s: float
    memory_bytes: int
    index_s: float
    crate_s: float


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def highest_resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


async def fill_index(directory: Path, names: int) -> None:
    """Put snapshots as the proxy would, from a time when they are long stale."""
    store = DiskIndexStore(directory, Recorder())
    await store.open()
    try:
        for number in range(names):
            name = f"filler-{number}"
            line = f'{{"name":"{name}","vers":"1.0.0","deps":[],"cksum":"{number:064x}"}}\n'
            validators = Validators(etag=f'"{number}"')
            await store.put("crates-io", name, Snapshot(line.encode(), validators, 1.0, 1.0))
    finally:
        await store.close()


def fill_blobs(directory: Path, blobs: int) -> None:
    """Write files that are what their names say, as they lie in a cache."""
    root = directory / "sha256"
    made: set[str] = set()
    for number in range(blobs):
        data = b"%d" % number
        digest = hashlib.sha256(data).hexdigest()
        folder = f"{digest[:2]}/{digest[2:4]}"
        if folder not in made:
            (root / folder).mkdir(parents=True, exist_ok=True)
            made.add(folder)
        fd = os.open(root / folder / digest, os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(fd, data)
        os.close(fd)


def measure(proxy: Holdfast) -> Figures:
    """Start the proxy, serve a little, and say what that took."""
    begun = time.perf_counter()
    proxy.start()
    start_s = time.perf_counter() - begun
    index: list[float] = []
    crate: list[float] = []
    for _ in range(300):
        for path, times in (
            ("/crates-io/index/hot", index),
            ("/crates-io/crates/hot/1.0.0/download", crate),
        ):
            begun = time.perf_counter()
            assert proxy.get(path.replace("/index/hot", "/index/3/h/hot")).status == 200
            times.append(time.perf_counter() - begun)
    figures = Figures(
        start_s=start_s,
        memory_bytes=resident_bytes(proxy.pid),
        index_s=statistics.median(index),
        crate_s=statistics.median(crate),
    )
    proxy.stop()
    return figures


def test_a_large_cache_starts_and_answers_like_a_small_one(
    launch: Launch, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(Package("hot", padding_bytes=20_000))
    small = launch({"crates-io": upstream}, name="small")
    large = launch({"crates-io": upstream}, name="large", cache={"max_size": "100GiB"})
    for proxy in (small, large):
        assert proxy.get("/crates-io/crates/hot/1.0.0/download").status == 200
        proxy.stop()
    asyncio.run(fill_index(large.cache_dir / "index", INDEX_NAMES))
    fill_blobs(large.cache_dir / "blobs", BLOBS)
    for file in large.cache_dir.glob("ledger*"):
        file.unlink()
    rebuild_s = rebuild(large)
    # Each is started twice, so that neither pays alone for a cold page cache.
    figures = [(measure(small), measure(large)) for _ in range(2)][-1]
    print(f"\nledger of {BLOBS} blobs rebuilt in {rebuild_s:.0f} s while serving")
    for name, one in zip(("small", "large"), figures, strict=True):
        print(f"{name}: {one}")
    little, much = figures
    assert much.start_s < 1.5 * little.start_s + 0.5
    assert much.memory_bytes < little.memory_bytes + 48 * MIB
    assert much.index_s < 2 * little.index_s
    assert much.crate_s < 2 * little.crate_s


def rebuild(proxy: Holdfast) -> float:
    """Serve until the ledger knows all blobs again; returns how long that took."""
    begun = time.perf_counter()
    proxy.start()
    while proxy.metric("cache_entries", tier="blobs") < BLOBS:
        assert time.perf_counter() - begun < REBUILD_TIMEOUT_S
        assert proxy.get("/crates-io/index/3/h/hot").status == 200
    taken_s = time.perf_counter() - begun
    proxy.stop()
    return taken_s


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as made:
        yield made


async def download(client: aiohttp.ClientSession, url: str, digest: str) -> None:
    """Read a crate to its end, with a small buffer, and prove it."""
    hashed = hashlib.sha256()
    async with client.get(url) as response:
        assert response.status == 200
        async for chunk in response.content.iter_chunked(64 * 1024):
            hashed.update(chunk)
    assert hashed.hexdigest() == digest


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_thousand_downloads_of_one_large_crate_stay_under_200_mb(
    launch: Launch, registry: Registry, upstream: RegistryServer, *, warm: bool
) -> None:
    registry.publish(Package("large", padding_bytes=10 * MIB))
    digest = registry.release("large", "1.0.0").cksum
    proxy = launch({"crates-io": upstream})
    url = f"{proxy.url}/crates-io/crates/large/1.0.0/{digest}"
    if warm:
        assert proxy.get(url.removeprefix(proxy.url)).status == 200

    async def all_at_once() -> None:
        async with session() as client, asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(download(client, url, digest))

    asyncio.run(all_at_once())
    highest = highest_resident_bytes(proxy.pid)
    print(f"\n{CLIENTS} {'warm' if warm else 'cold'} downloads: {highest / MIB:.0f} MiB at most")
    assert highest < 200_000_000
    assert upstream.count("/crates/large/large-1.0.0.crate") == 1
