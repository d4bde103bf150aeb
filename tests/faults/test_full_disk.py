"""A disk that takes nothing any more costs nobody an answer: what can be tried on any machine.

A limit on the length of files stands for a disk that is full, and files in the places of folders
for one that fails. `test_tiny_disk` has real disks.
"""

import shutil
from pathlib import Path

import pytest

from tests.conftest import Launch
from tests.faults.disks import short_files
from tests.faults.goods import (
    ALL_OF_IT,
    LARGE,
    ask_for,
    becomes_held,
    build_and_run,
    publish_goods,
    publish_late,
)
from tests.world import holdfast
from tests.world.ecosystem import EXPECTED_OUTPUT, publish_ecosystem
from tests.world.registry import Registry
from tests.world.server import RegistryServer


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of the proxy that `launch` starts gets longer than 200 kB."""
    wrapper = short_files(tmp_path, holdfast.COMMAND, longest_bytes=200_000)
    monkeypatch.setattr(holdfast, "COMMAND", wrapper)


@pytest.mark.usefixtures("limited")
def test_files_that_must_not_grow_are_passed_on(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    urls = publish_goods(registry)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    ask_for(proxy, urls)
    again = ask_for(proxy, urls)
    assert again[LARGE].how == "bypass"
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
    registry: Registry, upstream: RegistryServer, launch: Launch, folder: str
) -> None:
    urls = publish_goods(registry)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    place = proxy.cache_dir / folder
    shutil.rmtree(place)
    place.write_text("in the way")
    for _ in range(2):
        ask_for(proxy, urls)
    assert proxy.metric("integrity_failures_total") == 0
    assert proxy.metric("store_failures_total") > 0
    place.unlink()
    becomes_held(proxy, publish_late(registry, "late"))


def test_folders_that_are_lost_while_serving_are_made_again(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    urls = publish_goods(registry)
    proxy = launch({"crates-io": upstream}, cache=ALL_OF_IT)
    for folder in ("drafts", "blobs", "index"):
        shutil.rmtree(proxy.cache_dir / folder)
    becomes_held(proxy, urls)
    proxy.restart()
    upstream.stop()
    ask_for(proxy, urls)
