"""A proxy whose configuration a test changes, and the means to have it look."""

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import Launch
from tests.world.crates import Package
from tests.world.holdfast import Holdfast, Table
from tests.world.registry import Registry
from tests.world.server import RegistryServer

LEAF: Final = "/crates-io/index/le/af/leaf"
COMPANY_LEAF: Final = "/company/index/le/af/leaf"
TOKEN: Final = "Bearer of-this-year"
LOOKS: Final = 1500


def crate_url(name: str) -> str:
    return f"/crates-io/crates/{name}/1.0.0/download"


@dataclass(frozen=True, slots=True)
class Run:
    """A proxy, and the configuration that it was given: `change` lays sections over it."""

    proxy: Holdfast
    config: dict[str, dict[str, object]] = field(default_factory=dict)

    def write(self, **sections: Mapping[str, object]) -> None:
        """Write a configuration with these sections, and nothing else than the upstreams'."""
        upstreams = dict(self.config["upstreams"])
        for name, table in sections.pop("upstreams", {}).items():
            assert isinstance(table, Mapping)
            upstreams[name] = {**upstreams[name], **table}  # type: ignore[dict-item]
        config: dict[str, Table] = {**sections, "upstreams": upstreams}
        self.proxy.configure(config)

    def reload(self, *keys: str) -> None:
        """Hang up, and wait until these keys, and no other, have taken effect."""
        self.proxy.hang_up(f'"reloaded: {", ".join(keys) or "nothing has changed"}"')

    def refuse(self, message: str) -> None:
        """Hang up, and wait until the log says that nothing has taken effect, and why."""
        self.proxy.hang_up(message)
        assert self.proxy.metric("config_last_reload_successful") == 0


@pytest.fixture
def run(registry: Registry, upstream: RegistryServer, launch: Launch) -> Callable[..., Run]:
    registry.publish(Package("leaf"))

    def start(
        env: Mapping[str, str] | None = None,
        company: RegistryServer | None = None,
        **sections: Mapping[str, object],
    ) -> Run:
        servers = {"crates-io": upstream}
        if company is not None:
            servers["company"] = company
        proxy = launch(servers, env=env, name="holdfast", **sections)
        upstreams = {name: {"index": one.index_url} for name, one in servers.items()}
        return Run(proxy, {"upstreams": dict(upstreams)})

    return start


@pytest.fixture
def company() -> Iterator[RegistryServer]:
    """A registry that wants a token."""
    private = Registry(token=TOKEN)
    private.publish(Package("leaf"))
    with RegistryServer(private) as server:
        yield server


class Pipe:
    """A named pipe in the place of a file: whoever reads it waits for the test.

    For one reader. The next pipe is put in its place before this one is written to.
    """

    def __init__(self, path: Path) -> None:
        path.unlink()
        os.mkfifo(path)
        self.path = path

    def until_read(self) -> int:
        """Wait until somebody has opened it; returns the end to write to."""
        for _ in range(LOOKS):
            try:
                end = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                threading.Event().wait(0.01)
            else:
                os.set_blocking(end, True)
                return end
        raise AssertionError(f"nobody reads {self.path}")

    def feed(self, text: str) -> None:
        """Wait for a reader, and let it have `text`."""
        write(self.until_read(), text)


def write(end: int, text: str) -> None:
    with os.fdopen(end, "w") as file:
        file.write(text)
