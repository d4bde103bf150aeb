"""One index request after another: asked once, served stale, refused; as the story tells it."""

import asyncio

import pytest

from proxy.core.answers import NO_VALIDATORS, Validators
from proxy.core.events import How, UpstreamFailed
from proxy.core.failures import (
    Misbehaved,
    Offline,
    TimedOut,
    Troubled,
    Unreachable,
    UpstreamFailure,
)
from proxy.core.freshness import Terms
from proxy.ports import Tombstone
from proxy.service.indexes import IndexAbsent, IndexServed
from tests.service.scene import INTERNAL, PUBLIC, Scene, one_scene, turns
from tests.world import faults
from tests.world.crates import Package, many_versions
from tests.world.upstream import Gate, MakeFailure, ScriptedUpstream
from tests.world.wire import Reply

SERDE = Package("serde", "1.0.0")
NEWER = Package("serde", "1.0.1")
SERDE_INDEX = "/index/se/rd/serde"
DAY = 86400.0


def unreachable() -> UpstreamFailure:
    return Unreachable("crates-io cannot be reached")


def troubled() -> UpstreamFailure:
    return Troubled("crates-io answered 503", status=503, transient=True)


def forbidden() -> UpstreamFailure:
    return Troubled("crates-io answered 403", status=403, transient=False)


def misbehaved() -> UpstreamFailure:
    return Misbehaved("crates-io sent a web page in place of se/rd/serde")


def timed_out() -> UpstreamFailure:
    return TimedOut("crates-io did not answer in time")


ALL_FAILURES = [unreachable, troubled, forbidden, misbehaved, timed_out]


# Fresh


async def test_what_is_fresh_is_asked_for_once(scene: Scene) -> None:
    scene.publish(SERDE)
    for _ in range(3):
        assert await scene.body("serde") == scene.registry.index("serde")
        scene.clock.advance(19.9)
    assert scene.tell() == [
        "asked for index: found",
        "served serde: miss",
        "served serde: hit",
        "served serde: hit",
    ]
    assert scene.upstream.paths() == [SERDE_INDEX]


async def test_64_clients_at_once_are_one_request(scene: Scene) -> None:
    scene.publish(SERDE)
    gate = scene.upstream.hold()
    clients = [asyncio.ensure_future(scene.index("serde")) for _ in range(64)]
    await gate.arrived()
    await turns()
    gate.release()
    answers = await asyncio.gather(*clients)
    assert scene.upstream.paths() == [SERDE_INDEX]
    assert sorted(answer.how for answer in answers) == [How.COALESCED] * 63 + [How.MISS]
    bodies = {answer.rendered.identity for answer in answers if isinstance(answer, IndexServed)}
    assert bodies == {scene.registry.index("serde")}


async def test_a_name_that_nobody_has_asked_for_is_looked_up_in_the_store_once(
    scene: Scene,
) -> None:
    scene.publish(SERDE)
    await scene.body("serde")
    assert scene.index_store.points.passed["get"] == 1


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
@pytest.mark.parametrize("is_there", [False, True])
async def test_who_looked_just_before_the_landing_does_not_ask_again(
    memory_bytes: int, is_there: bool
) -> None:
    async with one_scene(memory_bytes=memory_bytes) as scene:
        if is_there:
            scene.publish(SERDE)
        gate = scene.index_store.points.hang("get", once=True)
        # This one has found nothing in the store, and does not get on.
        slow = asyncio.ensure_future(scene.index("serde"))
        await gate.arrived()
        quick = await scene.index("serde")
        gate.release()
        assert type(await slow) is type(quick)
        assert isinstance(quick, IndexServed) is is_there
        assert scene.upstream.paths() == [SERDE_INDEX]


async def test_64_clients_who_come_one_by_one_are_one_request(scene: Scene) -> None:
    scene.publish(SERDE)
    clients = []
    for _ in range(64):
        clients.append(asyncio.ensure_future(scene.index("serde")))
        await asyncio.sleep(0)
    await asyncio.gather(*clients)
    assert scene.upstream.paths() == [SERDE_INDEX]


async def test_the_first_client_leaves_and_the_others_are_served(scene: Scene) -> None:
    scene.publish(SERDE)
    gate = scene.upstream.hold()
    first = asyncio.ensure_future(scene.index("serde"))
    await gate.arrived()
    others = [asyncio.ensure_future(scene.index("serde")) for _ in range(3)]
    await turns()
    first.cancel()
    gate.release()
    answers = await asyncio.gather(*others)
    assert [answer.how for answer in answers] == [How.COALESCED] * 3
    assert scene.upstream.paths() == [SERDE_INDEX]


async def test_an_answer_that_everybody_left_is_kept_for_the_next(scene: Scene) -> None:
    scene.publish(SERDE)
    gate = scene.upstream.hold()
    only = asyncio.ensure_future(scene.index("serde"))
    await gate.arrived()
    only.cancel()
    gate.release()
    await scene.settle()
    assert (await scene.index("serde")).how == How.HIT
    assert scene.upstream.paths() == [SERDE_INDEX]


async def test_what_was_learned_survives_a_restart(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    await scene.restart()
    scene.clock.advance(30)
    assert await scene.body("serde") == scene.registry.index("serde")
    assert scene.tell()[-1] == "served serde: hit"
    assert scene.upstream.paths() == [SERDE_INDEX]


async def test_large_files_go_the_same_way(scene: Scene) -> None:
    scene.registry.publish_listed(*many_versions("serde", 800))
    assert len(await scene.body("serde")) > 100_000
    scene.clock.advance(61)
    scene.registry.yank("serde", "0.1.0")
    assert (await scene.body("serde", insisting=True)).startswith(scene.registry.index("serde"))
    assert scene.tell()[-1] == "served serde: miss"


# Stale while revalidate


async def test_easy_going_requests_get_the_stale_copy_at_once_and_one_flight_asks(
    scene: Scene,
) -> None:
    scene.publish(SERDE)
    old = await scene.body("serde")
    scene.tell()
    scene.publish(NEWER)
    scene.clock.advance(60)
    gate = scene.upstream.hold()
    for _ in range(5):
        assert await scene.body("serde") == old
    await gate.arrived()
    assert scene.tell() == ["served serde: stale, no 304"] * 5
    gate.release()
    await scene.settle()
    assert await scene.body("serde") == scene.registry.index("serde")
    assert scene.tell() == ["asked for index: found", "served serde: hit"]
    assert scene.upstream.paths() == [SERDE_INDEX] * 2


async def test_beyond_that_time_an_easy_going_request_waits_too(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.publish(NEWER)
    scene.clock.advance(120)
    assert await scene.body("serde") == scene.registry.index("serde")
    assert scene.tell()[-1] == "served serde: miss"


async def test_an_internal_upstream_has_no_such_time() -> None:
    async with one_scene(terms=INTERNAL) as scene:
        scene.publish(SERDE)
        await scene.index("serde")
        scene.publish(NEWER)
        scene.clock.advance(9.9)
        assert await scene.body("serde") != scene.registry.index("serde")
        scene.clock.advance(0.1)
        assert await scene.body("serde") == scene.registry.index("serde")


# Insisting


async def test_an_insisting_request_waits_for_the_truth(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.publish(NEWER)
    scene.clock.advance(60)
    scene.tell()
    assert await scene.body("serde", insisting=True) == scene.registry.index("serde")
    assert scene.tell() == ["asked for index: found", "served serde: miss"]


async def test_an_unchanged_file_is_confirmed_by_its_validators(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.clock.advance(60)
    scene.tell()
    assert await scene.body("serde", insisting=True) == scene.registry.index("serde")
    assert scene.tell() == ["asked for index: unchanged", "served serde: revalidated"]
    current = scene.registry.history("serde")[-1]
    assert [asked.validators for asked in scene.upstream.asked] == [
        NO_VALIDATORS,
        Validators(current.etag, "Thu, 01 Jan 2026 00:00:01 GMT"),
    ]
    scene.clock.advance(59)
    assert (await scene.index("serde", insisting=True)).how == How.HIT


async def test_the_same_file_sent_anew_is_revalidated_as_well(scene: Scene) -> None:
    scene.publish(SERDE)
    bare = Reply(200, scene.registry.index("serde"))
    scene.upstream.reply(SERDE_INDEX, bare)
    await scene.index("serde")
    scene.clock.advance(60)
    assert (await scene.index("serde", insisting=True)).how == How.REVALIDATED


async def test_it_waits_two_seconds_and_gets_the_stale_copy_that_no_304_may_rest_on(
    scene: Scene,
) -> None:
    scene.publish(SERDE)
    old = await scene.body("serde")
    scene.publish(NEWER)
    scene.clock.advance(60)
    scene.tell()
    gate = scene.upstream.hold()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    assert await scene.body("serde", insisting=True) == old
    assert loop.time() - begun == pytest.approx(2.0)
    assert scene.tell() == ["served serde: stale, no 304"]
    gate.release()
    await scene.settle()
    assert await scene.body("serde", insisting=True) == scene.registry.index("serde")
    assert scene.upstream.paths() == [SERDE_INDEX] * 2


async def test_it_joins_the_flight_that_an_easy_going_one_began(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.publish(NEWER)
    scene.clock.advance(60)
    gate = scene.upstream.hold()
    await scene.index("serde")
    await gate.arrived()
    insisting = asyncio.ensure_future(scene.index("serde", insisting=True))
    await turns()
    gate.release()
    answer = await insisting
    assert isinstance(answer, IndexServed)
    assert (answer.how, answer.may_confirm) == (How.COALESCED, True)
    assert answer.rendered.identity == scene.registry.index("serde")
    assert scene.upstream.paths() == [SERDE_INDEX] * 2


async def test_with_nothing_held_patience_is_longer_and_then_the_outage_is_told(
    scene: Scene,
) -> None:
    scene.publish(SERDE)
    scene.upstream.patience_s = 1000
    gate = scene.upstream.hold()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with pytest.raises(TimedOut):
        await scene.index("serde")
    assert 10 < loop.time() - begun < 20
    gate.release()
    await scene.settle()
    assert (await scene.index("serde")).how == How.HIT


# Failing upstreams


@pytest.mark.parametrize("failure", ALL_FAILURES)
async def test_nothing_held_and_a_failing_upstream_is_an_outage_and_no_absence(
    scene: Scene, failure: MakeFailure
) -> None:
    scene.publish(SERDE)
    scene.upstream.fail("*", failure)
    expected = type(failure())
    with pytest.raises(expected):
        await scene.index("serde")
    with pytest.raises(expected):
        await scene.index("nothing")
    assert scene.held("serde") is None
    scene.upstream.heal()
    assert await scene.body("serde") == scene.registry.index("serde")
    assert isinstance(await scene.index("nothing"), IndexAbsent)


@pytest.mark.parametrize("failure", ALL_FAILURES)
@pytest.mark.parametrize("insisting", [False, True])
async def test_a_stale_copy_outlives_the_failure_and_may_confirm(
    scene: Scene, failure: MakeFailure, insisting: bool
) -> None:
    scene.publish(SERDE)
    old = await scene.body("serde")
    held = scene.held("serde")
    scene.publish(NEWER)
    scene.clock.advance(6 * DAY)
    scene.upstream.fail("*", failure)
    scene.tell()
    answer = await scene.index("serde", insisting=insisting)
    assert isinstance(answer, IndexServed)
    assert (answer.how, answer.may_confirm) == (How.STALE, True)
    assert answer.rendered.identity == old
    assert scene.held("serde") == held, "a failure changes nothing"
    scene.upstream.heal()
    scene.clock.advance(60)
    assert await scene.body("serde", insisting=insisting) == scene.registry.index("serde")


async def test_a_copy_too_old_for_an_outage_is_not_served(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.clock.advance(7 * DAY + 59)
    scene.upstream.fail("*", unreachable)
    assert (await scene.index("serde")).how == How.STALE
    scene.clock.advance(1)
    with pytest.raises(Unreachable):
        await scene.index("serde")
    with pytest.raises(Unreachable):
        await scene.index("serde", insisting=True)


async def test_an_outage_costs_one_wait_and_not_many(scene: Scene) -> None:
    names = [f"crate{number}" for number in range(8)]
    scene.publish(*(Package(name) for name in names))
    for name in names:
        await scene.index(name)
    scene.clock.advance(600)
    scene.upstream.hold()
    scene.upstream.patience_s = 1.5
    scene.upstream.clear()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    hows = [(await scene.index(name, insisting=True)).how for name in names]
    assert hows == [How.STALE] * 8
    assert loop.time() - begun == pytest.approx(1.5)
    assert len(scene.upstream.asked) == 1


async def test_a_copy_served_while_failing_may_confirm_though_it_was_not_asked_about(
    scene: Scene,
) -> None:
    scene.publish(SERDE, Package("other"))
    await scene.index("serde")
    await scene.index("other")
    scene.clock.advance(600)
    scene.upstream.fail("*", unreachable)
    await scene.index("other")
    scene.upstream.clear()
    scene.tell()
    await scene.index("serde", insisting=True)
    assert scene.tell() == ["served serde: stale"]
    assert scene.upstream.paths() == []


async def test_the_memory_of_an_outage_is_no_answer_for_what_is_not_held(scene: Scene) -> None:
    scene.publish(SERDE, NEWER, Package("other"))
    await scene.index("other")
    scene.clock.advance(600)
    scene.upstream.fail("*", unreachable, times=1)
    await scene.index("other")
    assert scene.source.is_failing()
    assert (await scene.index("serde")).how == How.MISS
    assert not scene.source.is_failing()


async def test_after_a_while_one_asks_again_and_the_recovery_is_told(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.clock.advance(600)
    scene.upstream.fail("*", unreachable, times=1)
    await scene.index("serde", insisting=True)
    scene.clock.advance(1.9)
    await scene.index("serde", insisting=True)
    scene.clock.advance(0.2)
    await scene.index("serde", insisting=True)
    assert scene.tell()[2:] == [
        "asked for index: unreachable",
        "gave up on serde, served stale",
        "served serde: stale",
        "served serde: stale",
        "asked for index: unchanged",
        "recovered after 2.1 s",
        "served serde: revalidated",
    ]


async def test_only_the_first_failure_is_news(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.upstream.fail("*", unreachable)
    for _ in range(3):
        scene.clock.advance(600)
        await scene.index("serde")
    assert [event.news for event in scene.observer.of(UpstreamFailed)] == [True, False, False]


async def test_a_name_that_is_forbidden_says_nothing_of_the_others(scene: Scene) -> None:
    scene.publish(SERDE, Package("secret"))
    await scene.index("serde")
    scene.upstream.fail("/index/se/cr/secret", forbidden)
    with pytest.raises(Troubled):
        await scene.index("secret")
    assert not scene.source.is_failing()
    scene.clock.advance(60)
    assert (await scene.index("serde", insisting=True)).how == How.REVALIDATED


# What is not believed


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n",
        faults.LOGIN_PAGE,
        bytes(range(256)),
        b'{"name":"serde","vers":"1.0.0"',
        b'{"name":"other","vers":"1.0.0"}\n',
        b'{"name":"serde","vers":"1.0.0"}\n<html>\n',
        b"[]\n",
        b'{"errors":[{"detail":"gone"}]}\n',
    ],
)
@pytest.mark.parametrize("is_held", [False, True])
async def test_what_cannot_be_the_index_file_is_neither_served_nor_kept(
    scene: Scene, body: bytes, is_held: bool
) -> None:
    scene.publish(SERDE)
    if is_held:
        await scene.index("serde")
        scene.clock.advance(60)
    held = scene.held("serde")
    scene.upstream.reply(SERDE_INDEX, Reply(200, body, (("ETag", '"bad"'),)))
    scene.tell()
    if is_held:
        assert await scene.body("serde", insisting=True) == scene.registry.index("serde")
        assert scene.tell() == [
            "asked for index: invalid",
            "gave up on serde, served stale",
            "served serde: stale",
        ]
    else:
        with pytest.raises(Misbehaved):
            await scene.index("serde")
    assert scene.held("serde") == held
    scene.upstream.heal()
    assert await scene.body("serde", insisting=True) == scene.registry.index("serde")


async def test_a_304_that_nobody_asked_for_is_not_believed(scene: Scene) -> None:
    scene.publish(SERDE)
    scene.upstream.reply(SERDE_INDEX, Reply(304))
    with pytest.raises(Misbehaved):
        await scene.index("serde")
    bare = Reply(200, scene.registry.index("serde"))
    scene.upstream.heal()
    scene.upstream.reply(SERDE_INDEX, bare, times=1)
    await scene.index("serde")
    scene.publish(NEWER)
    scene.clock.advance(60)
    scene.upstream.reply(SERDE_INDEX, Reply(304))
    assert (await scene.index("serde", insisting=True)).how == How.STALE
    scene.upstream.heal()
    assert await scene.body("serde", insisting=True) == scene.registry.index("serde")


# Absence


async def test_a_name_that_is_not_there_is_asked_for_every_few_seconds(scene: Scene) -> None:
    for _ in range(3):
        await scene.index("nothing")
        scene.clock.advance(2.4)
    scene.clock.advance(0.2)
    await scene.index("nothing")
    assert scene.tell() == [
        "asked for index: absent",
        "served no nothing: miss",
        "served no nothing: negative",
        "served no nothing: negative",
        "asked for index: absent",
        "served no nothing: miss",
    ]
    assert all(not asked.new_connection for asked in scene.upstream.asked)
    assert scene.index_store.snapshots == {}, "a negative answer lives in memory alone"


async def test_a_name_is_served_as_soon_as_the_negative_answer_has_aged(scene: Scene) -> None:
    await scene.index("serde")
    scene.publish(SERDE)
    assert (await scene.index("serde")).how == How.NEGATIVE
    scene.clock.advance(5)
    assert await scene.body("serde") == scene.registry.index("serde")


async def test_64_clients_who_ask_for_nothing_are_one_request(scene: Scene) -> None:
    gate = scene.upstream.hold()
    clients = [asyncio.ensure_future(scene.index("nothing")) for _ in range(64)]
    await gate.arrived()
    await turns()
    gate.release()
    answers = await asyncio.gather(*clients)
    assert all(isinstance(answer, IndexAbsent) for answer in answers)
    assert len(scene.upstream.asked) == 1


async def test_a_held_name_is_gone_only_after_a_second_opinion(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.tell()
    scene.registry.delete("serde")
    scene.clock.advance(60)
    assert isinstance(await scene.index("serde", insisting=True), IndexAbsent)
    assert scene.tell() == [
        "asked for index: absent",
        "asked for index: absent",
        "serde was removed",
        "served no serde: miss",
    ]
    assert [asked.new_connection for asked in scene.upstream.asked] == [False, False, True]
    removed_at = scene.clock.now()
    assert await scene.state.tombstones() == (Tombstone("crates-io", "serde", removed_at, None),)
    held = scene.held("serde")
    assert held is not None
    assert held.body is None


async def test_a_lone_404_takes_nothing_away(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.clock.advance(60)
    scene.upstream.reply(SERDE_INDEX, Reply(404), times=1)
    assert (await scene.index("serde", insisting=True)).how == How.REVALIDATED
    assert await scene.state.tombstones() == ()


async def test_a_second_opinion_that_fails_takes_nothing_away(scene: Scene) -> None:
    scene.publish(SERDE)
    old = await scene.body("serde")
    scene.clock.advance(60)
    scene.upstream.reply(SERDE_INDEX, Reply(404), times=1)
    scene.upstream.reply(SERDE_INDEX, Reply(503))
    scene.tell()
    assert await scene.body("serde", insisting=True) == old
    assert scene.tell() == [
        "asked for index: absent",
        "asked for index: status",
        "gave up on serde, served stale",
        "served serde: stale",
    ]
    scene.upstream.heal()
    scene.clock.advance(60)
    assert (await scene.index("serde", insisting=True)).how == How.REVALIDATED


async def test_a_removed_name_stays_so_for_seconds_and_after_a_restart(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.registry.delete("serde")
    scene.clock.advance(60)
    await scene.index("serde", insisting=True)
    await scene.restart()
    scene.tell()
    assert (await scene.index("serde")).how == How.NEGATIVE
    scene.clock.advance(5)
    await scene.index("serde")
    assert scene.tell() == [
        "served no serde: negative",
        "asked for index: absent",
        "served no serde: miss",
    ]
    assert len(await scene.state.tombstones()) == 1


async def test_a_removed_name_is_an_outage_while_the_upstream_is_away(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.registry.delete("serde")
    scene.clock.advance(60)
    await scene.index("serde", insisting=True)
    scene.clock.advance(5)
    scene.upstream.fail("*", unreachable)
    with pytest.raises(Unreachable):
        await scene.index("serde")


async def test_a_name_that_returns_is_told_and_recorded(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.registry.delete("serde")
    scene.clock.advance(60)
    await scene.index("serde", insisting=True)
    removed_at = scene.clock.now()
    scene.publish(Package("serde", "9.9.9"))
    scene.clock.advance(5)
    scene.tell()
    assert await scene.body("serde") == scene.registry.index("serde")
    assert scene.tell() == [
        "asked for index: found",
        "serde returned",
        "served serde: miss",
    ]
    assert scene.upstream.asked[-1].validators == NO_VALIDATORS
    assert await scene.state.tombstones() == (
        Tombstone("crates-io", "serde", removed_at, scene.clock.now()),
    )


# Older copies


async def test_an_older_copy_is_refused_for_fifteen_minutes_and_then_accepted(
    scene: Scene,
) -> None:
    scene.publish(SERDE)
    older = scene.registry.history("serde")[-1].reply()
    scene.publish(NEWER)
    newer = await scene.body("serde")
    scene.upstream.reply(SERDE_INDEX, older)
    scene.tell()
    for _ in range(15):
        scene.clock.advance(60)
        assert await scene.body("serde", insisting=True) == newer
    assert (
        scene.tell()
        == [
            "asked for index: found",
            "older serde refused",
            "served serde: revalidated",
        ]
        * 15
    )
    scene.clock.advance(60)
    assert await scene.body("serde", insisting=True) == older.body
    assert scene.tell() == [
        "asked for index: found",
        "older serde accepted",
        "served serde: miss",
    ]


async def test_the_fifteen_minutes_survive_a_restart_and_end_with_a_newer_copy(
    scene: Scene,
) -> None:
    scene.publish(SERDE)
    older = scene.registry.history("serde")[-1].reply()
    scene.publish(NEWER)
    newer = await scene.body("serde")
    scene.upstream.reply(SERDE_INDEX, older, times=1)
    scene.clock.advance(60)
    await scene.index("serde", insisting=True)
    scene.clock.advance(600)
    assert (await scene.index("serde", insisting=True)).how == How.REVALIDATED
    scene.upstream.reply(SERDE_INDEX, older)
    scene.clock.advance(600)
    assert await scene.body("serde", insisting=True) == newer, "the fifteen minutes begin anew"
    await scene.restart()
    scene.clock.advance(900)
    assert await scene.body("serde", insisting=True) == older.body


# Offline


async def offline(scene: Scene) -> None:
    """Go on without the upstream."""
    scene.source.offline = True
    scene.source.terms = Terms(60.0, 60.0, float("inf"))
    scene.upstream.fail("*", lambda: Offline("crates-io is offline"))


@pytest.mark.parametrize("insisting", [False, True])
async def test_offline_serves_what_is_held_for_ever_and_asks_nobody(
    scene: Scene, insisting: bool
) -> None:
    scene.publish(SERDE)
    old = await scene.body("serde")
    await offline(scene)
    scene.clock.advance(3650 * DAY)
    scene.upstream.clear()
    scene.tell()
    assert await scene.body("serde", insisting=insisting) == old
    assert scene.tell() == ["served serde: stale"]
    assert scene.upstream.paths() == []


async def test_offline_and_not_held_is_an_outage(scene: Scene) -> None:
    await offline(scene)
    with pytest.raises(Offline):
        await scene.index("serde")


# Clocks


@pytest.mark.parametrize("jump", [-DAY, -3650 * DAY, DAY, 6 * DAY])
async def test_a_clock_that_jumps_makes_copies_stale_and_never_useless(
    scene: Scene, jump: float
) -> None:
    scene.publish(SERDE)
    old = await scene.body("serde")
    scene.clock.jump(jump)
    scene.upstream.fail("*", unreachable, times=1)
    assert await scene.body("serde") == old
    scene.upstream.heal()
    scene.clock.advance(60)
    scene.publish(NEWER)
    assert await scene.body("serde", insisting=True) == scene.registry.index("serde")
    assert (await scene.index("serde", insisting=True)).how == How.HIT


# Memory


async def reading_slowly(scene: Scene) -> tuple[asyncio.Task[IndexServed | IndexAbsent], Gate]:
    """Begin a request that has read its snapshot from the store, and does not get on."""
    scene.indexes.forget("crates-io", "serde")
    gate = scene.index_store.points.hang("get", once=True)
    slow = asyncio.create_task(scene.index("serde"))
    await gate.arrived()
    return slow, gate


async def test_a_name_removed_while_it_is_read_from_the_store_does_not_come_back(
    scene: Scene,
) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.registry.delete("serde")
    scene.clock.advance(60)
    slow, gate = await reading_slowly(scene)
    assert isinstance(await scene.index("serde", insisting=True), IndexAbsent)
    scene.upstream.fail("*", unreachable)
    gate.release()
    await slow
    await scene.settle()
    scene.clock.advance(5)
    with pytest.raises(Unreachable):
        await scene.index("serde")


async def test_a_name_forgotten_while_it_is_read_from_the_store_is_asked_for_again(
    scene: Scene,
) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    slow, gate = await reading_slowly(scene)
    await scene.index_store.remove("crates-io", "serde")
    scene.indexes.forget("crates-io", "serde")
    gate.release()
    await slow
    scene.tell()
    await scene.index("serde")
    assert scene.tell() == ["asked for index: found", "served serde: miss"]


@pytest.mark.parametrize("everything", [False, True])
async def test_what_is_confirmed_after_it_was_forgotten_is_asked_for_again(
    scene: Scene, everything: bool
) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.clock.advance(60)
    gate = scene.upstream.hold()
    asking = asyncio.create_task(scene.index("serde", insisting=True))
    await gate.arrived()
    await scene.index_store.remove("crates-io", "serde")
    scene.indexes.forget("crates-io", None if everything else "serde")
    gate.release()
    assert (await asking).how == How.REVALIDATED
    scene.tell()
    await scene.index("serde")
    assert scene.tell() == ["asked for index: found", "served serde: miss"]


async def test_names_that_are_not_there_do_not_keep_others_from_being_confirmed(
    scene: Scene,
) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.clock.advance(60)
    gate = scene.upstream.hold(SERDE_INDEX)
    asking = asyncio.create_task(scene.index("serde", insisting=True))
    await gate.arrived()
    await scene.index("nothing")
    gate.release()
    await asking
    assert (await scene.index("serde")).how == How.HIT


async def test_memory_of_no_size_serves_from_the_store() -> None:
    async with one_scene(memory_bytes=0) as scene:
        scene.publish(SERDE)
        for _ in range(3):
            assert await scene.body("serde") == scene.registry.index("serde")
        assert scene.upstream.paths() == [SERDE_INDEX]
        assert scene.indexes.memory.used_bytes == 0


# Two upstreams


async def test_two_upstreams_with_the_same_name_in_them_are_two(scene: Scene) -> None:
    other = ScriptedUpstream(type(scene.registry)(), "company")
    company = scene.join(other, PUBLIC)
    scene.publish(SERDE)
    other.registry.publish(Package("serde", "7.0.0"))
    public = await scene.index("serde")
    private = await scene.index("serde", source=company)
    assert isinstance(public, IndexServed)
    assert isinstance(private, IndexServed)
    assert public.rendered.identity == scene.registry.index("serde")
    assert private.rendered.identity == other.registry.index("serde")
    other.fail("*", unreachable)
    scene.clock.advance(600)
    await scene.index("serde", source=company)
    assert company.is_failing()
    assert not scene.source.is_failing()
