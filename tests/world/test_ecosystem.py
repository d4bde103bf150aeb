"""The ecosystem builds, so that a scenario that fails with it has found something else."""

from pathlib import Path

from tests.world.cargo import CargoHome, Project, Toolchain, replacing_crates_io
from tests.world.ecosystem import (
    CROWD,
    DEPENDENCIES,
    EXPECTED_OUTPUT,
    HEAVY_BYTES,
    MAIN,
    publish_ecosystem,
)
from tests.world.registry import Registry
from tests.world.server import RegistryServer


def test_cargo_resolves_and_builds_the_ecosystem_without_a_proxy(
    toolchain: Toolchain, registry: Registry, upstream: RegistryServer, tmp_path: Path
) -> None:
    publish_ecosystem(registry)
    assert registry.index("crowded").count(b"\n") == CROWD
    assert len(registry.crate("heavy", "1.0.0")) > HEAVY_BYTES
    home = CargoHome(toolchain, tmp_path / "home", replacing_crates_io(upstream.index_url))
    project = Project.create(tmp_path / "app", DEPENDENCIES, main=MAIN)
    assert home.run(project, "run", "--quiet").succeeded().stdout == EXPECTED_OUTPUT
    assert b'name = "for-windows"' in project.lock
    assert b'name = "for-tests"' not in project.lock
