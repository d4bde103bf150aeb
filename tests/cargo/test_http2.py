"""HTTP/2 with real cargo: it asks for it by Upgrade, and then asks for everything at once.

The other scenarios of this folder run over it as well, since cargo always asks. What is looked at
here is that it is granted, what it is worth, and what a drain does to a fetch that is under way.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cargo.conftest import Desk
from tests.conftest import Launch
from tests.world.crates import Dependency, Package
from tests.world.registry import Registry, index_path
from tests.world.server import RegistryServer

LEAVES = tuple(f"leaf-{number:03}" for number in range(40))
# More than cargo ever has under way over HTTP/1.1, and fewer than we have connections upstream.
AT_ONCE = 12
STOP_TIMEOUT_SECONDS = 30


@pytest.fixture
def fan(registry: Registry) -> Registry:
    """A crate with many dependencies, of which cargo learns in one moment."""
    registry.publish(*(Package(leaf) for leaf in LEAVES))
    registry.publish(Package("fan", deps=[Dependency(leaf) for leaf in LEAVES]))
    return registry


def expected(fan: Registry) -> dict[str, bytes]:
    return {f"{name}-1.0.0.crate": fan.crate(name, "1.0.0") for name in (*LEAVES, "fan")}


def test_one_connection_carries_all_that_cargo_wants_at_once(
    desk: Desk, fan: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    home = desk.home(proxy.index_url())
    project = desk.project('fan = "1"')
    with ThreadPoolExecutor(1) as pool:
        with upstream.hold(f"/index/{index_path(LEAVES[0]).rpartition('/')[0]}/*") as gate:
            fetching = pool.submit(home.run, project, "fetch")
            gate.wait_for(AT_ONCE)
            assert proxy.metric("connections", protocol="h2") == 1
            gate.release()
        fetching.result().succeeded()
    assert home.crate_files() == expected(fan)


def test_without_h2c_cargo_fetches_all_the_same(
    desk: Desk, fan: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream}, server={"h2c": False})
    home = desk.home(proxy.index_url())
    with ThreadPoolExecutor(1) as pool:
        with upstream.hold("/crates/*") as gate:
            fetching = pool.submit(home.run, desk.project('fan = "1"'), "fetch")
            gate.wait_for(1)
            assert proxy.metric("connections", protocol="h2") == 0
            gate.release()
        fetching.result().succeeded()
    assert home.crate_files() == expected(fan)


def test_a_drain_in_the_middle_of_a_fetch_loses_nothing(
    desk: Desk, fan: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    """What was accepted is delivered; what was not, cargo asks for again, of the next process."""
    proxy = launch({"crates-io": upstream}, server={"drain": "20s"})
    home = desk.home(proxy.index_url(), retries=500)
    with ThreadPoolExecutor(2) as pool:
        with upstream.hold("/crates/*") as gate:
            fetching = pool.submit(home.run, desk.project('fan = "1"'), "fetch")
            gate.wait_for(AT_ONCE)
            stopping = pool.submit(proxy.stop)
            while "draining" not in proxy.stderr:
                threading.Event().wait(0.01)
            gate.release()
        stopping.result(STOP_TIMEOUT_SECONDS)
        proxy.start()
        fetching.result().succeeded()
    assert home.crate_files() == expected(fan)
    downloads = [count for path, count in upstream.counts().items() if path.startswith("/crates/")]
    assert downloads == [1] * len(expected(fan))
