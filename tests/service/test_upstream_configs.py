"""The upstreams' own config.json: read when needed, kept, renewed behind the back of requests."""

import asyncio

import pytest

from proxy.core.events import IntegrityFailed, StoreFailed
from proxy.core.failures import Misbehaved, TimedOut, Unreachable, UpstreamFailure
from proxy.core.registry_config import RegistryConfig
from tests.service.scene import Scene, turns
from tests.world.registry import Registry
from tests.world.upstream import MakeFailure, ScriptedUpstream
from tests.world.wire import Reply

CONFIG = "/index/config.json"
FIRST = RegistryConfig(
    "http://crates-io.test/crates/{crate}/{crate}-{version}.crate", "http://crates-io.test", False
)


def unreachable() -> UpstreamFailure:
    return Unreachable("crates-io cannot be reached")


def misbehaved() -> UpstreamFailure:
    return Misbehaved("crates-io sent a web page")


async def test_it_is_read_once_for_a_few_minutes(scene: Scene) -> None:
    for _ in range(3):
        assert await scene.configs.get(scene.source) == FIRST
        scene.clock.advance(99.9)
    assert scene.upstream.paths() == [CONFIG]


async def test_64_who_need_it_at_once_are_one_request(scene: Scene) -> None:
    gate = scene.upstream.hold()
    asking = [asyncio.ensure_future(scene.configs.get(scene.source)) for _ in range(64)]
    await gate.arrived()
    await turns()
    gate.release()
    assert await asyncio.gather(*asking) == [FIRST] * 64
    assert scene.upstream.paths() == [CONFIG]


async def test_the_old_one_serves_while_a_new_one_is_on_its_way(scene: Scene) -> None:
    await scene.configs.get(scene.source)
    scene.registry.dl = "{base}/elsewhere"
    scene.clock.advance(300)
    gate = scene.upstream.hold()
    begun = asyncio.get_running_loop().time()
    for _ in range(3):
        assert await scene.configs.get(scene.source) == FIRST
    assert asyncio.get_running_loop().time() == begun, "and nobody waits"
    await gate.arrived()
    gate.release()
    await turns()
    assert (await scene.configs.get(scene.source)).dl == "http://crates-io.test/elsewhere"
    assert scene.upstream.paths() == [CONFIG] * 2


@pytest.mark.parametrize("failure", [unreachable, misbehaved])
async def test_the_old_one_serves_through_an_outage(scene: Scene, failure: MakeFailure) -> None:
    await scene.configs.get(scene.source)
    scene.upstream.fail("*", failure)
    for _ in range(3):
        scene.clock.advance(86400)
        assert await scene.configs.get(scene.source) == FIRST
        await turns()
    scene.upstream.heal()
    scene.registry.dl = "{base}/elsewhere"
    scene.clock.advance(300)
    await scene.configs.get(scene.source)
    await turns()
    assert (await scene.configs.get(scene.source)).dl == "http://crates-io.test/elsewhere"


async def test_after_a_restart_the_stored_one_serves_through_an_outage(scene: Scene) -> None:
    await scene.configs.get(scene.source)
    await scene.restart()
    scene.upstream.fail("*", unreachable)
    assert await scene.configs.get(scene.source) == FIRST


async def test_after_a_restart_a_newer_one_is_learned(scene: Scene) -> None:
    await scene.configs.get(scene.source)
    await scene.restart()
    scene.registry.dl = "{base}/elsewhere"
    assert (await scene.configs.get(scene.source)).dl == "http://crates-io.test/elsewhere"


async def test_after_a_restart_a_silent_upstream_costs_one_wait_and_no_failure(
    scene: Scene,
) -> None:
    await scene.configs.get(scene.source)
    await scene.restart()
    scene.upstream.hold()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    assert await scene.configs.get(scene.source) == FIRST
    assert loop.time() - begun <= 2.0
    await turns()
    assert await scene.configs.get(scene.source) == FIRST
    assert loop.time() - begun <= 4.0


@pytest.mark.parametrize("failure", [unreachable, misbehaved])
async def test_with_none_ever_read_an_outage_is_a_failure_and_heals(
    scene: Scene, failure: MakeFailure
) -> None:
    scene.upstream.fail("*", failure)
    with pytest.raises(type(failure())):
        await scene.configs.get(scene.source)
    scene.upstream.heal()
    assert await scene.configs.get(scene.source) == FIRST


async def test_with_none_ever_read_patience_runs_out_and_the_flight_goes_on(scene: Scene) -> None:
    scene.upstream.patience_s = 1000
    gate = scene.upstream.hold()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with pytest.raises(TimedOut):
        await scene.configs.get(scene.source)
    assert 10 < loop.time() - begun < 20
    gate.release()
    await turns()
    assert await scene.configs.get(scene.source) == FIRST
    assert scene.upstream.paths() == [CONFIG]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(404),
        Reply(200, b""),
        Reply(200, b"[]"),
        Reply(200, b"{}"),
        Reply(200, b'{"dl":"/relative"}'),
        Reply(200, b'{"dl":"file:///etc/passwd"}'),
        Reply(200, b'{"dl":"http://x/","auth-required":"yes"}'),
        Reply(304),
    ],
    ids=lambda reply: repr(reply.body or reply.status),
)
async def test_what_is_no_configuration_is_misbehaviour_and_is_not_kept(
    scene: Scene, reply: Reply
) -> None:
    scene.upstream.reply(CONFIG, reply)
    with pytest.raises(Misbehaved):
        await scene.configs.get(scene.source)
    assert scene.index_store.snapshots == {}
    scene.upstream.heal()
    assert await scene.configs.get(scene.source) == FIRST
    scene.upstream.reply(CONFIG, reply)
    scene.clock.advance(300)
    assert await scene.configs.get(scene.source) == FIRST
    await turns()
    assert await scene.configs.get(scene.source) == FIRST


async def test_a_store_that_fails_is_told_and_does_no_harm(scene: Scene) -> None:
    scene.index_store.points.fail("put")
    assert await scene.configs.get(scene.source) == FIRST
    (told,) = scene.observer.of(StoreFailed)
    assert "config.json" in told.doing
    assert await scene.configs.get(scene.source) == FIRST


async def test_a_stored_one_that_makes_no_sense_is_told_and_asked_for_anew(scene: Scene) -> None:
    await scene.configs.get(scene.source)
    key = ("crates-io", "config.json")
    held = scene.index_store.snapshots[key]
    scene.index_store.snapshots[key] = type(held)(b"{}", held.validators, 0.0, 0.0)
    await scene.restart()
    assert await scene.configs.get(scene.source) == FIRST
    (told,) = scene.observer.of(IntegrityFailed)
    assert told.where == "disk"
    assert scene.index_store.snapshots[key].body == held.body


async def test_forgetting_asks_at_the_next_need(scene: Scene) -> None:
    await scene.configs.get(scene.source)
    scene.configs.forget("company")
    await scene.configs.get(scene.source)
    assert scene.upstream.paths() == [CONFIG]
    scene.configs.forget("crates-io")
    await scene.configs.get(scene.source)
    assert scene.upstream.paths() == [CONFIG] * 2


async def test_each_upstream_has_its_own(scene: Scene) -> None:
    other = ScriptedUpstream(Registry(dl="{base}/dl", api=None), "company")
    company = scene.join(other)
    assert await scene.configs.get(company) == RegistryConfig("http://company.test/dl", None, False)
    assert await scene.configs.get(scene.source) == FIRST


async def test_one_that_is_expected_is_there_when_it_is_needed(scene: Scene) -> None:
    scene.configs.expect(scene.source)
    await turns()
    assert scene.upstream.paths() == [CONFIG]
    scene.upstream.hold()
    assert await scene.configs.get(scene.source) == FIRST
    assert scene.upstream.paths() == [CONFIG]


async def test_who_needs_it_joins_those_who_expected_it(scene: Scene) -> None:
    gate = scene.upstream.hold()
    for _ in range(3):
        scene.configs.expect(scene.source)
    await gate.arrived()
    asking = asyncio.ensure_future(scene.configs.get(scene.source))
    await turns()
    gate.release()
    assert await asking == FIRST
    assert scene.upstream.paths() == [CONFIG]


async def test_one_that_is_held_is_not_expected_however_old_it_is(scene: Scene) -> None:
    await scene.configs.get(scene.source)
    scene.clock.advance(86400)
    scene.configs.expect(scene.source)
    await turns()
    assert scene.upstream.paths() == [CONFIG]


async def test_none_is_expected_of_an_upstream_that_fails(scene: Scene) -> None:
    scene.source.first.index.failed(scene.clock.monotonic())
    scene.configs.expect(scene.source)
    await turns()
    assert scene.upstream.paths() == []


async def test_none_is_expected_of_an_upstream_that_is_offline(scene: Scene) -> None:
    scene.source.offline = True
    scene.configs.expect(scene.source)
    await turns()
    assert scene.upstream.paths() == []


async def test_an_expectation_that_fails_is_told_and_does_no_harm(scene: Scene) -> None:
    scene.upstream.fail("*", misbehaved)
    scene.configs.expect(scene.source)
    await turns()
    assert "gave up on config.json" in scene.tell()
    scene.upstream.heal()
    assert await scene.configs.get(scene.source) == FIRST


async def test_a_stop_ends_an_expectation(scene: Scene) -> None:
    gate = scene.upstream.hold()
    scene.configs.expect(scene.source)
    await gate.arrived()
    await scene.stop()
    assert scene.leaks() == []
