"""Waiting for a failing upstream: who is served at once, who waits, and for what."""

import asyncio

import pytest

from proxy.core.breaker import TRIPS_AFTER
from proxy.core.events import How, UpstreamRecovered
from proxy.core.failures import Crowded, Misbehaved, Spared, Troubled, Unreachable, UpstreamFailure
from proxy.service.indexes import IndexAbsent, IndexServed
from proxy.service.source import ASKING_DEADLINE_S
from tests.service.scene import Scene, advancing, turns
from tests.world.crates import Package
from tests.world.upstream import MakeFailure

KNOWN = Package("known")
NAMES = [f"new{number}" for number in range(10)]


def unreachable() -> Unreachable:
    return Unreachable("crates-io cannot be reached")


async def tripped(scene: Scene) -> None:
    """Have a crate held, others not, and an upstream that has just failed often enough."""
    scene.publish(KNOWN, *(Package(name) for name in NAMES))
    await scene.index("known")
    scene.upstream.fail("*", unreachable)
    for number in range(TRIPS_AFTER):
        with pytest.raises(Unreachable):
            await advancing(scene, scene.index(f"tripping{number}"))
    scene.upstream.clear()
    scene.tell()


def waiting(scene: Scene, count: int) -> list[asyncio.Task[IndexServed | IndexAbsent]]:
    """Let so many clients ask for what is not held, each for something else."""
    return [asyncio.ensure_future(scene.index(name)) for name in NAMES[:count]]


async def test_who_holds_a_copy_is_served_at_once(scene: Scene) -> None:
    await tripped(scene)
    scene.clock.advance(125)
    scene.upstream.hold("*")
    served = [await scene.index("known", insisting=True) for _ in range(3)]
    assert [one.how for one in served] == [How.STALE] * 3
    assert len(scene.upstream.paths()) == 1, "one probe"


async def test_the_first_failure_is_enough_for_who_holds_a_copy(scene: Scene) -> None:
    scene.publish(KNOWN)
    await scene.index("known")
    scene.clock.advance(125)
    scene.upstream.fail("*", unreachable)
    scene.upstream.clear()
    for _ in range(5):
        assert (await scene.index("known", insisting=True)).how is How.STALE
    assert len(scene.upstream.paths()) == 1
    assert scene.clock.slept == []


async def test_one_probe_at_a_time_and_its_answer_lets_all_through(scene: Scene) -> None:
    await tripped(scene)
    scene.upstream.heal()
    gate = scene.upstream.hold("*")
    clients = waiting(scene, 10)
    await scene.clock.until_sleeping(10)
    assert scene.upstream.paths() == []
    scene.clock.advance(2)
    await gate.arrived()
    await turns()
    assert len(scene.upstream.paths()) == 1
    gate.release()
    served = await asyncio.gather(*clients)
    assert all(isinstance(one, IndexServed) for one in served)
    assert len(scene.upstream.paths()) == 10
    assert len(scene.observer.of(UpstreamRecovered)) == 1


async def test_who_has_waited_for_one_probe_in_vain_hears_the_truth(scene: Scene) -> None:
    await tripped(scene)
    begun = scene.clock.monotonic()
    gate = scene.upstream.hold("*")
    clients = waiting(scene, 10)
    await scene.clock.until_sleeping(10)
    scene.clock.advance(2)
    await gate.arrived()
    await turns()
    loop = asyncio.get_running_loop()
    probed = loop.time()
    gate.release()
    outcomes = await advancing(scene, asyncio.gather(*clients, return_exceptions=True))
    assert loop.time() - probed < 1.0, "at once"
    assert len(scene.upstream.paths()) == 1
    assert sorted(type(one).__name__ for one in outcomes) == ["Spared"] * 9 + ["Unreachable"]
    assert scene.clock.monotonic() - begun <= 3.0
    for one in outcomes:
        if isinstance(one, Spared):
            assert "cannot be reached" in str(one)
            assert one.retry_after_s is not None
            assert one.retry_after_s <= 2.0


async def test_somebody_who_comes_later_waits_for_the_next_probe(scene: Scene) -> None:
    await tripped(scene)
    for number in range(1, 4):
        with pytest.raises(Unreachable):
            await advancing(scene, scene.index(f"later{number}"))
        assert len(scene.upstream.paths()) == number
    scene.upstream.heal()
    served = await advancing(scene, scene.index(NAMES[0]))
    assert isinstance(served, IndexServed)


@pytest.mark.parametrize(
    "failure",
    [
        lambda: Troubled("answered 403", status=403, transient=False),
        lambda: Misbehaved("sent a web page"),
        lambda: Crowded("all connections are in use"),
    ],
    ids=["403", "web page", "crowded"],
)
async def test_a_probe_that_tells_nothing_of_the_address_is_not_the_last_word(
    scene: Scene, failure: MakeFailure
) -> None:
    await tripped(scene)
    scene.upstream.heal()
    scene.upstream.fail("*", failure, times=1)
    gate = scene.upstream.hold("*")
    loop = asyncio.get_running_loop()
    clients = waiting(scene, 4)
    await scene.clock.until_sleeping(4)
    scene.clock.advance(2)
    await gate.arrived()
    await turns()
    begun = loop.time()
    gate.release()
    outcomes = await advancing(scene, asyncio.gather(*clients, return_exceptions=True))
    assert loop.time() - begun < 1.0, "they are told at once"
    assert [isinstance(one, IndexServed) for one in outcomes].count(True) == 3
    assert sum(isinstance(one, type(failure())) for one in outcomes) == 1


async def test_want_of_our_own_connections_is_no_failure_of_the_upstream(scene: Scene) -> None:
    scene.publish(KNOWN)
    scene.upstream.fail("*", lambda: Crowded("all connections are in use"))
    for _ in range(2 * TRIPS_AFTER):
        with pytest.raises(Crowded):
            await scene.index("known")
    assert not scene.source.is_failing()
    assert scene.endpoint(scene.upstream).index.failing_since is None
    assert len(scene.upstream.paths()) == 2 * TRIPS_AFTER, "and it is not tried again at once"


async def test_who_waits_for_a_probe_that_hangs_waits_no_longer_than_its_patience(
    scene: Scene,
) -> None:
    await tripped(scene)
    scene.upstream.heal()
    scene.upstream.patience_s = 1000.0
    scene.upstream.hold("*")
    loop = asyncio.get_running_loop()
    begun = loop.time()
    clients = waiting(scene, 4)
    await scene.clock.until_sleeping(4)
    scene.clock.advance(2)
    outcomes = await asyncio.gather(*clients, return_exceptions=True)
    assert all(isinstance(one, UpstreamFailure) for one in outcomes)
    assert loop.time() - begun <= 20.0
    await turns()
    assert scene.indexes.flights == 1, "only the probe goes on"
    assert ASKING_DEADLINE_S < 20.0


async def test_a_house_that_stops_waits_for_nobody_who_waits(scene: Scene) -> None:
    await tripped(scene)
    clients = waiting(scene, 4)
    await scene.clock.until_sleeping(4)
    await scene.stop()
    outcomes = await asyncio.gather(*clients, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in outcomes)
    assert not scene.endpoint(scene.upstream).index.probing


async def test_a_probe_of_a_house_that_stops_is_none_any_more(scene: Scene) -> None:
    await tripped(scene)
    scene.upstream.heal()
    gate = scene.upstream.hold("*")
    clients = waiting(scene, 3)
    await scene.clock.until_sleeping(3)
    scene.clock.advance(2)
    await gate.arrived()
    assert scene.endpoint(scene.upstream).index.probing
    await scene.stop()
    await asyncio.gather(*clients, return_exceptions=True)
    assert not scene.endpoint(scene.upstream).index.probing
    gate.release()


async def test_with_two_addresses_that_fail_the_first_to_be_well_answers(scene: Scene) -> None:
    mirror = scene.mirror()
    scene.publish(*(Package(name) for name in NAMES))
    for one in (scene.upstream, mirror):
        one.fail("*", unreachable)
    for number in range(2 * TRIPS_AFTER):
        with pytest.raises(UpstreamFailure):
            await advancing(scene, scene.index(f"tripping{number}"))
    mirror.heal()
    served = await advancing(scene, scene.index(NAMES[0]))
    assert isinstance(served, IndexServed)


async def test_a_hanging_probe_of_one_address_keeps_nobody_from_another(scene: Scene) -> None:
    mirror = scene.mirror()
    scene.publish(*(Package(name) for name in NAMES))
    for one in (scene.upstream, mirror):
        one.fail("*", unreachable)
    for number in range(2 * TRIPS_AFTER):
        with pytest.raises(UpstreamFailure):
            await advancing(scene, scene.index(f"tripping{number}"))
    scene.clock.advance(31)
    gate = scene.upstream.hold("*")
    mirror.heal()
    probing, other = waiting(scene, 2)
    await gate.arrived()
    assert isinstance(await advancing(scene, other), IndexServed)
    assert scene.endpoint(scene.upstream).index.probing
    scene.upstream.heal()
    assert isinstance(await probing, IndexServed)


async def test_who_may_soon_probe_one_address_does_not_wait_for_a_hanging_probe_of_another(
    scene: Scene,
) -> None:
    mirror = scene.mirror()
    scene.publish(*(Package(name) for name in NAMES))
    for one in (scene.upstream, mirror):
        one.fail("*", unreachable)
    for number in range(2 * TRIPS_AFTER):
        with pytest.raises(UpstreamFailure):
            await advancing(scene, scene.index(f"tripping{number}"))
    scene.clock.advance(31)
    gate = scene.upstream.hold("*")
    probing, vain, served = waiting(scene, 3)
    await gate.arrived()
    with pytest.raises(UpstreamFailure):
        await vain
    mirror.heal()
    begun = asyncio.get_running_loop().time()
    later = asyncio.ensure_future(scene.index(NAMES[3]))
    assert isinstance(await advancing(scene, later), IndexServed)
    assert asyncio.get_running_loop().time() - begun < 5.0
    scene.upstream.heal()
    await asyncio.gather(probing, served, return_exceptions=True)
