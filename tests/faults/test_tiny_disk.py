"""On a disk of its own that is full or read-only, a proxy is slow, never dead and never wrong.

What cannot be stored is passed on; builds go on; the metrics tell; and when there is room again
things are stored as if nothing had been. This needs a mount namespace: where none may be had these
tests are not collected, and `test_full_disk` alone brings about the like.
"""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Launch
from tests.faults.disks import TinyDisk
from tests.faults.goods import (
    ALL_OF_IT,
    LARGE,
    ask_for,
    becomes_held,
    build_and_run,
    publish_goods,
    publish_late,
)
from tests.web.http11 import BrokenOff, ask
from tests.world import holdfast
from tests.world.crates import Package
from tests.world.ecosystem import EXPECTED_OUTPUT, publish_ecosystem
from tests.world.holdfast import Holdfast
from tests.world.registry import Registry
from tests.world.server import RegistryServer

DISK_BYTES = 6 * 2**20


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyDisk]:
    """A tiny disk below the cache of the proxy that `launch` starts, commands included."""
    place = tmp_path / "holdfast" / "cache"
    with TinyDisk(place, tmp_path, holdfast.COMMAND, size_bytes=DISK_BYTES) as tiny:
        monkeypatch.setattr(holdfast, "COMMAND", tiny.wrapper)
        yield tiny


def test_on_a_full_disk_everything_is_passed_on_and_stored_once_there_is_room(
    disk: TinyDisk, registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    urls = publish_goods(registry)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    disk.fill()
    ask_for(proxy, urls)
    again = ask_for(proxy, urls)
    assert again[LARGE].how == "bypass"
    assert proxy.metric("store_failures_total") > 0
    assert proxy.metric("integrity_failures_total") == 0
    assert proxy.get("/readyz").status == 200
    disk.make_room()
    late = publish_late(registry, "late")
    becomes_held(proxy, late)
    proxy.restart()
    becomes_held(proxy, urls)
    upstream.stop()
    proxy.restart()
    ask_for(proxy, {**urls, **late})


@pytest.mark.parametrize("end", [Holdfast.stop, Holdfast.kill], ids=["stopped", "killed"])
def test_it_starts_on_a_full_disk_and_serves_the_crates_that_it_has(
    disk: TinyDisk,
    registry: Registry,
    upstream: RegistryServer,
    launch: Launch,
    end: Callable[[Holdfast], None],
) -> None:
    urls = publish_goods(registry)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    becomes_held(proxy, urls)
    disk.fill()
    end(proxy)
    upstream.clear()
    proxy.start()
    ask_for(proxy, urls)
    assert upstream.count("/crates/*") == 0
    ask_for(proxy, publish_late(registry, "late"))
    disk.make_room()
    becomes_held(proxy, publish_late(registry, "later"))


@pytest.mark.parametrize("end", [Holdfast.stop, Holdfast.kill], ids=["stopped", "killed"])
def test_what_is_held_is_served_after_a_start_on_a_full_disk_without_an_upstream(
    disk: TinyDisk,
    registry: Registry,
    upstream: RegistryServer,
    launch: Launch,
    end: Callable[[Holdfast], None],
) -> None:
    urls = publish_goods(registry)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    becomes_held(proxy, urls)
    disk.fill()
    end(proxy)
    upstream.stop()
    proxy.start()
    for _ in range(2):
        ask_for(proxy, urls)
    assert proxy.metric("store_failures_total") > 0
    upstream.start()
    disk.make_room()
    late = publish_late(registry, "late")
    becomes_held(proxy, late)
    upstream.stop()
    proxy.restart()
    ask_for(proxy, {**urls, **late})


def test_a_real_build_succeeds_on_a_disk_that_is_full(
    disk: TinyDisk, registry: Registry, upstream: RegistryServer, launch: Launch, tmp_path: Path
) -> None:
    publish_ecosystem(registry)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    disk.fill()
    assert build_and_run(tmp_path, proxy) == EXPECTED_OUTPUT
    assert proxy.metric("store_failures_total") > 0


def test_a_real_build_succeeds_on_a_disk_that_is_too_small(
    disk: TinyDisk, registry: Registry, upstream: RegistryServer, launch: Launch, tmp_path: Path
) -> None:
    publish_ecosystem(registry)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    assert build_and_run(tmp_path, proxy) == EXPECTED_OUTPUT
    assert proxy.metric("integrity_failures_total") == 0


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


def test_a_disk_that_turns_read_only_serves_what_it_has_and_passes_on_the_rest(
    disk: TinyDisk, registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    urls = publish_goods(registry)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    becomes_held(proxy, urls)
    disk.make_read_only()
    late = publish_late(registry, "late")
    assert all(answer.how == "hit" for answer in ask_for(proxy, urls).values())
    ask_for(proxy, late)
    again = ask_for(proxy, late)
    assert again["/crates-io/crates/late/1.0.0/download"].how == "bypass"
    assert proxy.metric("store_failures_total") > 0
    disk.make_writable()
    becomes_held(proxy, publish_late(registry, "later"))
