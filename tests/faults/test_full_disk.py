"""A disk that is full, read-only or failing makes a slow proxy, never a dead or a wrong one.

What cannot be stored is passed on; builds go on; the metrics tell; and when there is room again
things are stored as if nothing had been. The tests with a disk of their own need a mount namespace
and are made where one may be had; the others bring about the same failures without one.
"""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Launch
from tests.faults.disks import TinyDisk, short_files, way_into_a_namespace
from tests.web.http11 import BrokenOff, ask
from tests.world import holdfast
from tests.world.cargo import CargoHome, Project, replacing_crates_io, toolchains
from tests.world.crates import Package, many_versions
from tests.world.ecosystem import DEPENDENCIES, EXPECTED_OUTPUT, MAIN, publish_ecosystem
from tests.world.holdfast import Answer, Holdfast
from tests.world.registry import Registry, index_path
from tests.world.server import RegistryServer

DISK_BYTES = 6 * 2**20
SIZES = {"tiny": 0, "medium": 150_000, "large": 1_000_000}
ALL_OF_IT = {"max_size": "1GiB", "min_free": "0B"}

needs_a_namespace = pytest.mark.parametrize(
    "disk", ["tmpfs"] if way_into_a_namespace() else [], indirect=True
)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyDisk]:
    """A tiny disk below the cache of the proxy that `launch` starts, commands included."""
    place = tmp_path / "holdfast" / "cache"
    with TinyDisk(place, tmp_path, holdfast.COMMAND, size_bytes=DISK_BYTES) as tiny:
        monkeypatch.setattr(holdfast, "COMMAND", tiny.wrapper)
        yield tiny


@pytest.fixture
def stocked(registry: Registry) -> Registry:
    for name, padding_bytes in SIZES.items():
        registry.publish(Package(name, padding_bytes=padding_bytes))
    registry.publish_listed(*many_versions("many", 400))
    return registry


def urls_of(registry: Registry) -> dict[str, bytes]:
    """Return what can be asked for, and what must come."""
    indexes = {f"/crates-io/index/{index_path(name)}": registry.index(name) for name in SIZES}
    crates = {
        f"/crates-io/crates/{name}/1.0.0/download": registry.crate(name, "1.0.0") for name in SIZES
    }
    many = {f"/crates-io/index/{index_path('many')}": registry.index("many")}
    return {**indexes, **many, **crates}


def ask_for(proxy: Holdfast, urls: dict[str, bytes]) -> dict[str, Answer]:
    """Ask for all of these at once; every answer must be right."""

    async def asked() -> list[Answer]:
        return list(await asyncio.gather(*(ask(proxy.port, url) for url in urls)))

    answers = dict(zip(urls, asyncio.run(asked()), strict=True))
    for url, answer in answers.items():
        assert answer.status == 200, (url, answer)
        assert answer.body == urls[url], url
    return answers


def becomes_held(proxy: Holdfast, urls: dict[str, bytes]) -> None:
    """Ask until all of it comes from what is held."""
    for _ in range(100):
        if all(answer.how == "hit" for answer in ask_for(proxy, urls).values()):
            return
    raise AssertionError("it is never stored")


def build_and_run(root: Path, proxy: Holdfast) -> str:
    """Let a real cargo, with an empty home, build the ecosystem; returns what the program says."""
    home = CargoHome(toolchains()[-1], root / "home", replacing_crates_io(proxy.index_url()))
    project = Project.create(root / "project", DEPENDENCIES, main=MAIN)
    return home.run(project, "run", "--quiet").succeeded().stdout


def publish_late(registry: Registry, name: str) -> dict[str, bytes]:
    """Publish one more crate; returns what can be asked for, and what must come."""
    registry.publish(Package(name, padding_bytes=300_000))
    return {
        f"/crates-io/index/{index_path(name)}": registry.index(name),
        f"/crates-io/crates/{name}/1.0.0/download": registry.crate(name, "1.0.0"),
    }


@needs_a_namespace
def test_on_a_full_disk_everything_is_passed_on_and_stored_once_there_is_room(
    disk: TinyDisk, stocked: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    urls = urls_of(stocked)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    disk.fill()
    ask_for(proxy, urls)
    again = ask_for(proxy, urls)
    assert again["/crates-io/crates/large/1.0.0/download"].how == "bypass"
    assert proxy.metric("store_failures_total") > 0
    assert proxy.metric("integrity_failures_total") == 0
    assert proxy.get("/readyz").status == 200
    disk.make_room()
    late = publish_late(stocked, "late")
    becomes_held(proxy, late)
    proxy.restart()
    becomes_held(proxy, urls)
    upstream.stop()
    proxy.restart()
    ask_for(proxy, {**urls, **late})


@needs_a_namespace
@pytest.mark.parametrize("end", [Holdfast.stop, Holdfast.kill], ids=["stopped", "killed"])
def test_it_starts_on_a_full_disk_and_serves_the_crates_that_it_has(
    disk: TinyDisk,
    stocked: Registry,
    upstream: RegistryServer,
    launch: Launch,
    end: Callable[[Holdfast], None],
) -> None:
    urls = urls_of(stocked)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    becomes_held(proxy, urls)
    disk.fill()
    end(proxy)
    upstream.clear()
    proxy.start()
    ask_for(proxy, urls)
    assert upstream.count("/crates/*") == 0
    ask_for(proxy, publish_late(stocked, "late"))
    disk.make_room()
    becomes_held(proxy, publish_late(stocked, "later"))


@needs_a_namespace
def test_a_real_build_succeeds_on_a_disk_that_is_full(
    disk: TinyDisk, registry: Registry, upstream: RegistryServer, launch: Launch, tmp_path: Path
) -> None:
    publish_ecosystem(registry)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    disk.fill()
    assert build_and_run(tmp_path, proxy) == EXPECTED_OUTPUT
    assert proxy.metric("store_failures_total") > 0


@needs_a_namespace
def test_a_real_build_succeeds_on_a_disk_that_is_too_small(
    disk: TinyDisk, registry: Registry, upstream: RegistryServer, launch: Launch, tmp_path: Path
) -> None:
    publish_ecosystem(registry)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    assert build_and_run(tmp_path, proxy) == EXPECTED_OUTPUT
    assert proxy.metric("integrity_failures_total") == 0


@needs_a_namespace
def test_a_disk_that_fills_up_in_the_middle_of_a_crate_costs_one_more_try(
    disk: TinyDisk, registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("wanted", padding_bytes=2_000_000))
    data = registry.crate("wanted", "1.0.0")
    url = "/crates-io/crates/wanted/1.0.0/download"
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    tap = upstream.tap("/crates/*", slice_bytes=len(data) // 2)

    async def begin_and_fill() -> bytes:
        before = disk.free_bytes()
        begun = asyncio.create_task(ask(proxy.port, url))
        tap.let(1)
        while disk.free_bytes() > before - len(data) // 4:
            await asyncio.sleep(0.01)
        disk.fill()
        tap.open()
        try:
            return (await begun).body
        except BrokenOff as broken:
            return broken.answer.body

    first = asyncio.run(begin_and_fill())
    assert data.startswith(first)
    assert proxy.get(url).body == data
    assert proxy.metric("store_failures_total") > 0
    assert list((disk.view / "drafts").iterdir()) == []
    disk.make_room()
    becomes_held(proxy, publish_late(registry, "late"))
    proxy.restart()
    becomes_held(proxy, {url: data})


@needs_a_namespace
def test_a_disk_that_turns_read_only_serves_what_it_has_and_passes_on_the_rest(
    disk: TinyDisk, stocked: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    urls = urls_of(stocked)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    becomes_held(proxy, urls)
    disk.make_read_only()
    late = publish_late(stocked, "late")
    assert all(answer.how == "hit" for answer in ask_for(proxy, urls).values())
    ask_for(proxy, late)
    again = ask_for(proxy, late)
    assert again["/crates-io/crates/late/1.0.0/download"].how == "bypass"
    assert proxy.metric("store_failures_total") > 0
    disk.make_writable()
    becomes_held(proxy, publish_late(stocked, "later"))


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of the proxy that `launch` starts gets longer than 200 kB."""
    wrapper = short_files(tmp_path, holdfast.COMMAND, longest_bytes=200_000)
    monkeypatch.setattr(holdfast, "COMMAND", wrapper)


@pytest.mark.usefixtures("limited")
def test_files_that_must_not_grow_are_passed_on(
    stocked: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    urls = urls_of(stocked)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    ask_for(proxy, urls)
    again = ask_for(proxy, urls)
    assert again["/crates-io/crates/large/1.0.0/download"].how == "bypass"
    becomes_held(proxy, {url: data for url, data in urls.items() if "/tiny/" in url})
    assert proxy.metric("store_failures_total") > 0
    assert proxy.metric("integrity_failures_total") == 0


@pytest.mark.usefixtures("limited")
def test_a_real_build_succeeds_though_no_file_may_grow(
    registry: Registry, upstream: RegistryServer, launch: Launch, tmp_path: Path
) -> None:
    publish_ecosystem(registry)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    assert build_and_run(tmp_path, proxy) == EXPECTED_OUTPUT
    assert proxy.metric("store_failures_total") > 0


@pytest.mark.parametrize("folder", ["drafts", "blobs", "index"])
def test_a_file_in_the_place_of_a_folder_costs_nobody_an_answer(
    stocked: Registry, upstream: RegistryServer, launch: Launch, folder: str
) -> None:
    urls = urls_of(stocked)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    place = proxy.cache_dir / folder
    shutil.rmtree(place)
    place.write_text("in the way")
    for _ in range(2):
        ask_for(proxy, urls)
    assert proxy.metric("integrity_failures_total") == 0
    assert proxy.metric("store_failures_total") > 0
    place.unlink()
    becomes_held(proxy, publish_late(stocked, "late"))


def test_folders_that_are_lost_while_serving_are_made_again(
    stocked: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    urls = urls_of(stocked)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    for folder in ("drafts", "blobs", "index"):
        shutil.rmtree(proxy.cache_dir / folder)
    becomes_held(proxy, urls)
    proxy.restart()
    upstream.stop()
    ask_for(proxy, urls)
