"""What every part of the test suite shares: the world, made new for each test.

The parts are in `tests/world`. A test asks for a `registry` to publish to, for the `upstream` that
serves it, and for `launch`, which starts real proxies in front of it and stops them in good order.
A test that asks for a `toolchain` runs once with every cargo that the machine has.

Loops and scale live in `tests/soak` and are collected with `--soak` only.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.world.cargo import toolchains
from tests.world.certificates import Authority
from tests.world.holdfast import Holdfast, Table
from tests.world.registry import Registry
from tests.world.server import RegistryServer


class Launch(Protocol):
    """Starts a proxy in front of servers, each under its upstream's name.

    `sections` are sections of the configuration; those of `upstreams` are laid over the index
    addresses of the servers. `env` is the environment of the process.
    """

    def __call__(
        self,
        servers: Mapping[str, RegistryServer],
        *,
        env: Mapping[str, str] | None = None,
        name: str = "holdfast",
        **sections: Mapping[str, object],
    ) -> Holdfast: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run tests/soak: loops and scale")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    in_soak = collection_path.is_relative_to(Path(__file__).parent / "soak")
    return True if in_soak and not config.getoption("--soak") else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "toolchain" in metafunc.fixturenames:
        found = toolchains()
        if not found:
            raise pytest.UsageError("no cargo from 1.68 on: the tests need a real one")
        metafunc.parametrize("toolchain", found, ids=str, scope="session")


@pytest.fixture(scope="session")
def authority() -> Authority:
    """A certificate authority: made once, since making keys is what costs time."""
    return Authority()


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def upstream(registry: Registry) -> Iterator[RegistryServer]:
    with RegistryServer(registry) as server:
        yield server


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start proxies: `launch({"crates-io": upstream}, cache={"max_size": "1MiB"})`."""
    with ExitStack() as running:

        def start(
            servers: Mapping[str, RegistryServer],
            *,
            env: Mapping[str, str] | None = None,
            name: str = "holdfast",
            **sections: Mapping[str, object],
        ) -> Holdfast:
            given = sections.pop("upstreams", {})
            upstreams: dict[str, Table] = {}
            for each, server in servers.items():
                extra = given.get(each, {})
                assert isinstance(extra, Mapping)
                upstreams[each] = {"index": server.index_url, **extra}
            config = {**sections, "upstreams": upstreams}
            return running.enter_context(Holdfast(tmp_path / name, config, env=env))

        yield start
