"""What cargo sees of an upstream with a mirror: one of them is enough, and a lie never arrives."""

import json
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.cargo.conftest import Desk
from tests.conftest import Launch
from tests.world import faults
from tests.world.crates import Package
from tests.world.ecosystem import DEPENDENCIES, EXPECTED_OUTPUT, MAIN
from tests.world.holdfast import Holdfast
from tests.world.registry import Registry
from tests.world.server import RegistryServer

LARGE_BYTES = 400_000
WRONG_FOR_GOOD = "failed to verify the checksum"
TOKEN = "Bearer of-the-company"


@pytest.fixture
def mirror(registry: Registry) -> Iterator[RegistryServer]:
    """Another server of what `upstream` has."""
    with RegistryServer(registry) as server:
        yield server


@pytest.fixture
def proxied(
    upstream: RegistryServer, mirror: RegistryServer, launch: Launch
) -> Callable[[], Holdfast]:
    """Start a proxy that knows both."""
    terms = {"mirrors": [mirror.index_url], "fresh_for": "0s"}
    return lambda: launch({"crates-io": upstream}, upstreams={"crates-io": terms})


def test_with_the_upstream_down_everything_comes_from_the_mirror_and_the_lock_is_the_same(
    desk: Desk,
    ecosystem: Registry,
    upstream: RegistryServer,
    mirror: RegistryServer,
    proxied: Callable[[], Holdfast],
) -> None:
    direct = desk.project(DEPENDENCIES)
    home = desk.home(upstream.index_url)
    home.run(direct, "fetch").succeeded()
    upstream.stop()
    proxy = proxied()
    fresh, project = desk.home(proxy.index_url()), desk.project(DEPENDENCIES, main=MAIN)
    assert fresh.run(project, "run", "--quiet").succeeded().stdout == EXPECTED_OUTPUT
    assert project.lock == direct.lock
    assert fresh.crate_files().items() <= home.crate_files().items()
    assert proxy.metric("breaker_state", upstream="crates-io") in (1, 2)
    assert proxy.metric("mirror_state", mirror=mirror.index_url.removeprefix("sparse+")) == 0
    assert proxy.metric("set_aside_total", upstream="crates-io") == 0
    told = proxy.command("stats").succeeded().stdout
    assert "crates-io: index failing for " in told
    assert f"crates-io ({mirror.index_url.removeprefix('sparse+')}): well" in told


def test_an_upstream_that_dies_in_the_middle_of_a_fetch_is_not_missed(
    desk: Desk,
    ecosystem: Registry,
    upstream: RegistryServer,
    mirror: RegistryServer,
    proxied: Callable[[], Holdfast],
) -> None:
    proxy = proxied()
    home, project = desk.home(proxy.index_url()), desk.project(DEPENDENCIES)

    def die() -> None:
        upstream.wait_for("/crates/*", 3)
        upstream.stop()

    gate = upstream.hold("/crates/heavy/*")
    dying = threading.Thread(target=die)
    dying.start()
    home.run(project, "fetch").succeeded()
    dying.join()
    gate.release()
    assert home.crate_files() == {
        name: content
        for name, content in home.crate_files().items()
        if content == registry_crate(ecosystem, name)
    }
    assert mirror.count("/crates/heavy/*") == 1


def registry_crate(registry: Registry, file: str) -> bytes:
    """Return the contents that a `.crate` file must have."""
    name, _, vers = file.removesuffix(".crate").rpartition("-")
    while name.lower() not in registry.names():
        name, _, more = name.rpartition("-")
        vers = f"{more}-{vers}"
    return registry.crate(name, vers)


@pytest.mark.parametrize("name", ["small", "large"])
def test_a_mirror_with_wrong_bytes_never_reaches_cargo_and_is_set_aside(
    desk: Desk,
    registry: Registry,
    upstream: RegistryServer,
    mirror: RegistryServer,
    proxied: Callable[[], Holdfast],
    *,
    name: str,
) -> None:
    registry.publish(Package("small"), Package("large", padding_bytes=LARGE_BYTES))
    proxy = proxied()
    upstream.fail("/crates/*", faults.status(500), times=1)
    mirror.fail("/crates/*", faults.wrong_bytes("same length"))
    home = desk.home(proxy.index_url())
    said = home.run(desk.project(f'{name} = "1"'), "fetch").succeeded()
    assert WRONG_FOR_GOOD not in said.stderr
    assert home.crate_files() == {f"{name}-1.0.0.crate": registry.crate(name, "1.0.0")}
    assert mirror.count("/crates/*") == 1
    assert proxy.metric("set_aside_total", upstream="crates-io") == 1
    assert proxy.metric("mirror_state", upstream="crates-io") == 3
    told = [line for line in proxy.log() if mirror.url in json.dumps(line)]
    assert told, "the operator hears which it was"


def test_a_mirror_that_gives_another_checksum_is_not_believed(
    desk: Desk,
    registry: Registry,
    upstream: RegistryServer,
    mirror: RegistryServer,
    proxied: Callable[[], Holdfast],
) -> None:
    registry.publish(Package("small"))
    proxy = proxied()
    home, project = desk.home(proxy.index_url()), desk.project('small = "1"')
    home.run(project, "fetch").succeeded()
    lying = Registry()
    lying.publish(Package("small", files={"NEWS": "other bytes"}))
    mirror.site = lying
    upstream.fail("/index/sm/*", faults.status(500))
    fresh = desk.home(proxy.index_url())
    fresh.run(desk.locked_project('small = "1"', project.lock), "fetch").succeeded()
    fresh.run(project, "update").succeeded()
    assert fresh.crate_files() == home.crate_files()
    assert mirror.count("/index/sm/*") >= 1
    assert proxy.metric("mirror_state", upstream="crates-io") == 3


def test_the_upstreams_token_goes_to_no_mirror(
    newest_desk: Desk, registry: Registry, launch: Launch, mirror: RegistryServer
) -> None:
    registry.publish(Package("small"), Package("other"))
    private = registry.copy()
    private.token = TOKEN
    with RegistryServer(private) as upstream:
        terms = {"mirrors": [mirror.index_url], "token": {"env": "UPSTREAM_TOKEN"}}
        env = {"UPSTREAM_TOKEN": TOKEN}
        proxy = launch({"crates-io": upstream}, upstreams={"crates-io": terms}, env=env)
        home = newest_desk.home(proxy.index_url())
        home.run(newest_desk.project('small = "1"'), "fetch").succeeded()
        assert mirror.count() == 0
        upstream.stop()
        home.run(newest_desk.project('other = "1"'), "fetch").succeeded()
    assert {seen.headers.get("authorization") for seen in upstream.requests()} == {TOKEN}
    assert mirror.count("/crates/other/*") == 1
    assert not any(TOKEN in value for seen in mirror.requests() for value in seen.headers.values())
