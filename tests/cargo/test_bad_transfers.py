"""Crates that arrive broken: cargo never gets a wrong byte, and heals when the upstream does.

Cargo tries a transfer again that was cut short, and fails for good on a complete body with a wrong
digest. So what is wrong must arrive short, or as an honest status.
"""

import pytest

from tests.cargo.conftest import Desk
from tests.conftest import Launch
from tests.world import faults
from tests.world.crates import Dependency, Package
from tests.world.registry import Registry
from tests.world.server import RegistryServer

SMALL, LARGE = 0, 400_000
BOTH = 'small = "1"\nlarge = "1"'
WRONG_FOR_GOOD = "failed to verify the checksum"
WRONG_CRATES = [
    faults.login_page("text/plain"),
    faults.wrong_bytes("same length"),
    faults.wrong_bytes("longer"),
    faults.wrong_bytes("shorter"),
    faults.wrong_tail(),
    faults.empty(),
]


def publish_tree(registry: Registry, count: int) -> None:
    """Publish `count` crates in a binary tree below `part-000`; every fourth is a large one."""
    parts = [f"part-{number:03}" for number in range(count)]
    registry.publish(
        *(
            Package(
                part,
                deps=[Dependency(below) for below in parts[2 * number + 1 : 2 * number + 3]],
                padding_bytes=LARGE if number % 4 == 0 else SMALL,
            )
            for number, part in enumerate(parts)
        )
    )


@pytest.mark.parametrize(
    ("count", "fault"),
    [
        (164, faults.cut()),
        (20, faults.cut_chunked()),
        (20, faults.reset("in the body")),
        (20, faults.status(500)),
    ],
    ids=str,
)
def test_a_fetch_succeeds_though_each_crate_is_cut_once(
    desk: Desk,
    registry: Registry,
    upstream: RegistryServer,
    launch: Launch,
    *,
    count: int,
    fault: faults.Fault,
) -> None:
    publish_tree(registry, count)
    proxy = launch({"crates-io": upstream})
    rule = upstream.fail("/crates/*", fault, times_per_path=1)
    home = desk.home(proxy.index_url())
    home.run(desk.project('part-000 = "1"'), "fetch").succeeded()
    assert rule.played == count
    assert home.crate_files() == {
        f"{name}-1.0.0.crate": registry.crate(name, "1.0.0") for name in registry.names()
    }


def publish_both(registry: Registry) -> None:
    """Publish a crate that is proven before its first byte is sent, and one that flows."""
    registry.publish(Package("small"), Package("large", padding_bytes=LARGE))


def test_a_login_page_in_a_crates_place_fails_the_build_and_heals_at_once(
    desk: Desk, registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    publish_both(registry)
    proxy = launch({"crates-io": upstream})
    home = desk.home(proxy.index_url())
    project = desk.project(BOTH)
    upstream.fail("/crates/*", faults.login_page())
    said = home.run(project, "build").failed()
    assert " 502" in said
    assert WRONG_FOR_GOOD not in said
    upstream.heal()
    home.run(project, "build").succeeded()


@pytest.mark.parametrize("fault", WRONG_CRATES, ids=str)
@pytest.mark.parametrize("name", ["small", "large"])
def test_wrong_bytes_never_reach_cargo_as_a_complete_body_and_are_never_kept(
    newest_desk: Desk,
    registry: Registry,
    upstream: RegistryServer,
    launch: Launch,
    *,
    fault: faults.Fault,
    name: str,
) -> None:
    publish_both(registry)
    proxy = launch({"crates-io": upstream})
    home = newest_desk.home(proxy.index_url())
    project = newest_desk.project(f'{name} = "1"')
    upstream.fail("/crates/*", fault)
    said = home.run(project, "fetch").failed()
    assert WRONG_FOR_GOOD not in said
    assert home.crate_files() == {}
    upstream.heal()
    # A mismatch is remembered for a minute, in memory.
    proxy.restart()
    home.run(project, "fetch").succeeded()
    assert home.crate_files() == {f"{name}-1.0.0.crate": registry.crate(name, "1.0.0")}


def test_a_wrong_last_byte_of_a_large_crate_arrives_as_a_cut_that_cargo_tries_again(
    desk: Desk, registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    publish_both(registry)
    proxy = launch({"crates-io": upstream})
    home = desk.home(proxy.index_url())
    upstream.fail("/crates/large/*", faults.wrong_tail())
    said = home.run(desk.project(BOTH), "fetch").failed()
    assert "tries remaining" in said
    assert WRONG_FOR_GOOD not in said
    assert "large-1.0.0.crate" not in home.crate_files()
    # Once is enough to know: cargo's retries do not fetch the same wrong bytes again and again.
    assert upstream.count("/crates/large/*") == 1
