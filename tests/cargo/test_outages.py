"""What cargo sees of an upstream that is down: all that it had before, and the truth of the rest.

While the upstream is down, a crate that was never asked for is an outage; only an upstream that is
up can say "no matching package". Cargo retries the first and takes the second for the last word.
"""

from enum import Enum

import pytest

from tests.cargo.conftest import Desk
from tests.conftest import Launch
from tests.world import faults
from tests.world.crates import Package
from tests.world.ecosystem import DEPENDENCIES, EXPECTED_OUTPUT, MAIN
from tests.world.holdfast import Holdfast
from tests.world.registry import Registry
from tests.world.server import RegistryServer

# Each request for an index file is checked with the upstream, so that a change is seen at once.
EAGER = {"crates-io": {"fresh_for": "0s", "stale_while_revalidate": "0s"}}
NO_SUCH_PACKAGE = "no matching package"


class Meanwhile(Enum):
    """What happens to the proxy between the outage and the next client."""

    NOTHING = "nothing"
    RESTART = "restart"
    CRASH = "crash"

    def happen_to(self, proxy: Holdfast) -> None:
        if self is Meanwhile.RESTART:
            proxy.restart()
        if self is Meanwhile.CRASH:
            proxy.kill()
            proxy.start()


@pytest.mark.parametrize(
    ("fresh_for", "meanwhile"),
    [("0s", Meanwhile.NOTHING), ("0s", Meanwhile.RESTART), ("60s", Meanwhile.CRASH)],
)
def test_with_the_upstream_down_a_fresh_home_fetches_everything_fetched_before(
    desk: Desk,
    ecosystem: Registry,
    upstream: RegistryServer,
    launch: Launch,
    *,
    fresh_for: str,
    meanwhile: Meanwhile,
) -> None:
    proxy = launch({"crates-io": upstream}, upstreams={"crates-io": {"fresh_for": fresh_for}})
    before = desk.home(proxy.index_url())
    project = desk.project(DEPENDENCIES)
    before.run(project, "fetch").succeeded()
    upstream.stop()
    meanwhile.happen_to(proxy)
    after = desk.home(proxy.index_url())
    after.run(desk.locked_project(DEPENDENCIES, project.lock), "fetch", "--locked").succeeded()
    assert after.crate_files() == before.crate_files()
    unlocked = desk.project(DEPENDENCIES)
    after.run(unlocked, "generate-lockfile").succeeded()
    assert unlocked.lock == project.lock


def test_with_the_upstream_down_a_warm_home_updates_builds_and_runs(
    desk: Desk, ecosystem: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream}, upstreams={"crates-io": {"fresh_for": "0s"}})
    home = desk.home(proxy.index_url())
    project = desk.project(DEPENDENCIES, main=MAIN)
    home.run(project, "fetch").succeeded()
    locked = project.lock
    upstream.stop()
    home.run(project, "update").succeeded()
    assert project.lock == locked
    assert home.run(project, "run", "--quiet").succeeded().stdout == EXPECTED_OUTPUT


def test_with_the_upstream_down_or_talking_nonsense_an_unknown_crate_is_an_outage(
    desk: Desk, registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("known"))
    proxy = launch({"crates-io": upstream})
    home = desk.home(proxy.index_url(), retries=0)
    home.run(desk.project('known = "1"'), "fetch").succeeded()

    def complaint() -> str:
        said = home.run(desk.project('known = "1"\nun-known_crate = "1"'), "fetch").failed()
        assert NO_SUCH_PACKAGE not in said
        return said

    for fault in (faults.status(500), faults.status(403), faults.reset("in the head")):
        upstream.fail("*", fault)
        assert " 503" in complaint()
        upstream.heal()
    for fault in (faults.login_page(), faults.empty(), faults.redirect_loop()):
        upstream.fail("*", fault)
        assert " 502" in complaint()
        upstream.heal()
    upstream.stop()
    assert " 503" in complaint()
    upstream.start()
    unknown = desk.project('known = "1"\nun-known_crate = "1"')
    said = home.run(unknown, "fetch").failed()
    assert f"{NO_SUCH_PACKAGE} named `un-known_crate`" in said


def test_with_the_upstream_up_an_unknown_crate_is_no_matching_package(
    desk: Desk, registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("known"))
    proxy = launch({"crates-io": upstream})
    project = desk.project('known = "1"\nun-known_crate = "1"')
    said = desk.home(proxy.index_url(), retries=0).run(project, "fetch").failed()
    assert f"{NO_SUCH_PACKAGE} named `un-known_crate`" in said


def test_when_the_upstream_is_back_new_crates_and_new_versions_are_found(
    desk: Desk, registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("known"))
    proxy = launch({"crates-io": upstream}, upstreams={"crates-io": {"fresh_for": "0s"}})
    home = desk.home(proxy.index_url(), retries=0)
    project = desk.project('known = "1"')
    home.run(project, "fetch").succeeded()
    upstream.stop()
    home.run(project, "update").succeeded()
    home.run(desk.project('late = "1"'), "fetch").failed()
    registry.publish(Package("late"), Package("known", "1.1.0"))
    upstream.start()
    home.run(desk.project('late = "1"'), "fetch").succeeded()
    home.run(project, "update").succeeded()
    assert b'name = "known"\nversion = "1.1.0"' in project.lock


def test_a_version_that_was_yanked_or_a_crate_that_was_deleted_stays_for_those_who_locked_it(
    desk: Desk, registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("pulled"), Package("kept"))
    proxy = launch({"crates-io": upstream}, upstreams=EAGER)
    home = desk.home(proxy.index_url(), retries=0)
    project = desk.project('pulled = "1"\nkept = "1"')
    home.run(project, "fetch").succeeded()
    registry.yank("kept", "1.0.0")
    fresh = desk.home(proxy.index_url(), retries=0)
    locked = desk.locked_project('pulled = "1"\nkept = "1"', project.lock)
    fresh.run(locked, "fetch", "--locked").succeeded()
    cksum = registry.release("pulled", "1.0.0").cksum
    registry.delete("pulled")
    said = desk.home(proxy.index_url(), retries=0).run(desk.project('pulled = "1"'), "fetch")
    assert f"{NO_SUCH_PACKAGE} named `pulled`" in said.failed()
    blob = proxy.get(f"/crates-io/crates/pulled/1.0.0/{cksum}")
    assert (blob.status, blob.body) == (200, fresh.crate_files()["pulled-1.0.0.crate"])
