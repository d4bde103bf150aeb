"""Things to ask a proxy for, and whether what comes is right: for tests of disks in trouble."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.web.http11 import ask
from tests.world.cargo import CargoHome, Project, replacing_crates_io, toolchains
from tests.world.crates import Package, many_versions
from tests.world.ecosystem import DEPENDENCIES, MAIN
from tests.world.holdfast import Answer, Holdfast
from tests.world.registry import Registry, index_path

SIZES: Final = {"tiny": 0, "medium": 150_000, "large": 1_000_000}
ALL_OF_IT: Final = {"max_size": "1GiB", "min_free": "0B"}
_PATIENCE_SECONDS: Final = 15.0
LARGE: Final = "/crates-io/crates/large/1.0.0/download"


def publish_goods(registry: Registry) -> dict[str, bytes]:
    """Publish crates of all sizes and a long index file.

    Returns what can be asked for, and what must come.
    """
    registry.publish(*(Package(name, padding_bytes=padding) for name, padding in SIZES.items()))
    registry.publish_listed(*many_versions("many", 400))
    crates = {
        f"/crates-io/crates/{name}/1.0.0/download": registry.crate(name, "1.0.0") for name in SIZES
    }
    names = (*SIZES, "many")
    return {f"/crates-io/index/{index_path(name)}": registry.index(name) for name in names} | crates


def publish_late(registry: Registry, name: str) -> dict[str, bytes]:
    """Publish one more crate; returns what can be asked for, and what must come."""
    registry.publish(Package(name, padding_bytes=300_000))
    return {
        f"/crates-io/index/{index_path(name)}": registry.index(name),
        f"/crates-io/crates/{name}/1.0.0/download": registry.crate(name, "1.0.0"),
    }


def ask_for(proxy: Holdfast, urls: Mapping[str, bytes]) -> dict[str, Answer]:
    """Ask for all of these at once; every answer must be right."""

    async def asked() -> list[Answer]:
        return list(await asyncio.gather(*(ask(proxy.port, url) for url in urls)))

    answers = dict(zip(urls, asyncio.run(asked()), strict=True))
    for url, answer in answers.items():
        assert answer.status == 200, (url, answer)
        assert answer.body == urls[url], url
    return answers


def becomes_held(proxy: Holdfast, urls: Mapping[str, bytes]) -> None:
    """Ask until all of it comes from what is held."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while any(answer.how != "hit" for answer in ask_for(proxy, urls).values()):
        assert time.monotonic() < until, "it is never stored"


def build_and_run(root: Path, proxy: Holdfast) -> str:
    """Let a real cargo, with an empty home, build the ecosystem; returns what the program says."""
    home = CargoHome(toolchains()[-1], root / "home", replacing_crates_io(proxy.index_url()))
    project = Project.create(root / "project", DEPENDENCIES, main=MAIN)
    return home.run(project, "run", "--quiet").succeeded().stdout
