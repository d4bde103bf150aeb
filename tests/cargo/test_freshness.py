"""A lock file may know more than the proxy: a colleague locked a version published a moment ago.

The proxy's copy of the index is past its freshness and within `stale_while_revalidate`, where an
unconditional request may be answered from it at once. Cargo finds that the copy does not suffice
and starts over, once, with validators for what it has. What it discovers on this second pass it
asks for without one, and there is no third: so the chain here is several new versions deep.
"""

import pytest

from tests.cargo.conftest import Desk
from tests.conftest import Launch
from tests.world import faults
from tests.world.crates import Dependency, Package
from tests.world.registry import Registry
from tests.world.server import RegistryServer

STALE_AT_ONCE = {"crates-io": {"fresh_for": "0s", "stale_while_revalidate": "60s"}}
DEPENDENCIES = 'top = "1"\n'


@pytest.mark.parametrize("home_is", ["fresh", "warm"])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_lock_on_versions_newer_than_the_snapshot_builds(
    desk: Desk,
    registry: Registry,
    upstream: RegistryServer,
    launch: Launch,
    *,
    home_is: str,
    restarted: bool,
) -> None:
    registry.publish(
        Package("top", deps=(Dependency("middle"),)),
        Package("middle", deps=(Dependency("base"),)),
        Package("base"),
    )
    proxy = launch({"crates-io": upstream}, upstreams=STALE_AT_ONCE)
    warm = desk.home(proxy.index_url())
    warm.run(desk.project(DEPENDENCIES), "fetch").succeeded()
    registry.publish(
        Package("top", "1.1.0", deps=(Dependency("middle", "=1.1.0"), Dependency("new"))),
        Package("middle", "1.1.0", deps=(Dependency("base", "=1.1.0"),)),
        Package("base", "1.1.0"),
        Package("new"),
    )
    colleague = desk.project(DEPENDENCIES)
    desk.home(upstream.index_url).run(colleague, "generate-lockfile").succeeded()
    assert b'name = "top"\nversion = "1.1.0"' in colleague.lock
    if restarted:
        proxy.restart()
    home = warm if home_is == "warm" else desk.home(proxy.index_url())
    locked = desk.locked_project(DEPENDENCIES, colleague.lock)
    home.run(locked, "build", "--locked").succeeded()


def test_a_lock_on_a_newer_version_builds_while_the_upstream_is_slow(
    desk: Desk, registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("top"))
    proxy = launch({"crates-io": upstream}, upstreams=STALE_AT_ONCE)
    desk.home(proxy.index_url()).run(desk.project(DEPENDENCIES), "fetch").succeeded()
    registry.publish(Package("top", "1.1.0"))
    colleague = desk.project(DEPENDENCIES)
    desk.home(upstream.index_url).run(colleague, "generate-lockfile").succeeded()
    upstream.latency_seconds = 0.5
    locked = desk.locked_project(DEPENDENCIES, colleague.lock)
    desk.home(proxy.index_url()).run(locked, "fetch", "--locked").succeeded()


@pytest.mark.parametrize("fault", [faults.cut(), faults.status(500)], ids=str)
def test_a_crate_that_does_not_come_makes_nobodys_index_stale(
    desk: Desk, registry: Registry, upstream: RegistryServer, launch: Launch, *, fault: faults.Fault
) -> None:
    registry.publish(Package("top"), Package("broken"))
    proxy = launch({"crates-io": upstream}, upstreams=STALE_AT_ONCE)
    home = desk.home(proxy.index_url(), retries=0)
    home.run(desk.project(DEPENDENCIES), "fetch").succeeded()
    registry.publish(Package("top", "1.1.0"))
    colleague = desk.project(DEPENDENCIES)
    desk.home(upstream.index_url).run(colleague, "generate-lockfile").succeeded()
    # Crates and index are often on different hosts: what one does says nothing of the other.
    upstream.fail("/crates/broken/*", fault)
    home.run(desk.project('broken = "1"'), "fetch").failed()
    locked = desk.locked_project(DEPENDENCIES, colleague.lock)
    home.run(locked, "fetch", "--locked").succeeded()


def test_a_republished_version_is_the_new_one_for_new_locks_and_the_old_one_for_old_locks(
    desk: Desk, registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("top"))
    proxy = launch({"crates-io": upstream}, upstreams=STALE_AT_ONCE)
    first = desk.home(proxy.index_url())
    first.run(desk.project(DEPENDENCIES), "fetch").succeeded()
    old = registry.release("top", "1.0.0")
    registry.publish(Package("top", files={"NEWS": "the same version, other bytes"}))
    # A warm home asks with its validator, and so learns of the change.
    first.run(desk.project(DEPENDENCIES), "update").succeeded()
    second = desk.home(proxy.index_url())
    second.run(desk.project(DEPENDENCIES), "fetch").succeeded()
    assert second.crate_files()["top-1.0.0.crate"] == registry.crate("top", "1.0.0")
    assert proxy.get(f"/crates-io/crates/top/1.0.0/{old.cksum}").body == old.data
