"""A desk to work at: one cargo, with as many homes and projects as a scenario needs."""

from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from tests.world.cargo import CargoHome, Project, Toolchain, replacing_crates_io, toolchains
from tests.world.ecosystem import publish_ecosystem
from tests.world.registry import Registry


@dataclass(frozen=True, slots=True)
class Desk:
    """One toolchain and a directory; nothing made at it is shared with anything else."""

    toolchain: Toolchain
    root: Path
    _numbers: "count[int]" = field(default_factory=count)

    def home(self, index_url: str, *, retries: int = 3) -> CargoHome:
        """Make a fresh CARGO_HOME that goes to `index_url` for crates.io."""
        return self.configured_home(replacing_crates_io(index_url), retries=retries)

    def configured_home(
        self, config: str, *, retries: int = 3, env: dict[str, str] | None = None
    ) -> CargoHome:
        """Make a fresh CARGO_HOME with this `config.toml`."""
        root = self.root / f"home-{next(self._numbers)}"
        return CargoHome(self.toolchain, root, config, retries=retries, env=env)

    def project(self, dependencies: str, *, main: str = "fn main() {}\n") -> Project:
        """Make a project with these dependencies and no lock file."""
        return Project.create(self.root / f"project-{next(self._numbers)}", dependencies, main=main)

    def locked_project(self, dependencies: str, lock: bytes) -> Project:
        """Make a project that somebody else has locked."""
        project = self.project(dependencies)
        project.write_lock(lock)
        return project


@pytest.fixture
def desk(toolchain: Toolchain, tmp_path: Path) -> Desk:
    return Desk(toolchain, tmp_path / "desk")


@pytest.fixture
def newest_desk(tmp_path: Path) -> Desk:
    """A desk with the newest cargo alone, where it is the proxy's other side that is tried."""
    return Desk(toolchains()[-1], tmp_path / "desk")


@pytest.fixture
def ecosystem(registry: Registry) -> Registry:
    """The registry that `upstream` serves, with one of everything in it."""
    publish_ecosystem(registry)
    return registry
