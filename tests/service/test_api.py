"""The web API, read through us: passed on, and where it is asked slowly kept for a minute."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from proxy.core.events import How
from proxy.core.failures import Busy, Misbehaved, TimedOut, Unreachable
from proxy.ports import ApiAnswer
from proxy.service.api import Api, ApiServed
from tests.service.scene import Scene, turns
from tests.world.crates import Package
from tests.world.wire import Reply

SEARCH = "/api/v1/crates"


async def test_what_it_says_is_passed_on_whatever_the_status(scene: Scene) -> None:
    scene.publish(Package("serde"))
    api = Api(scene.configs, scene.clock)
    found = await api.get(scene.source, "/crates", "q=ser&per_page=10")
    assert found is not None
    assert (found.answer.status, found.answer.content_type) == (200, "application/json")
    assert b'"name": "serde"' in found.answer.body
    scene.upstream.reply(SEARCH, Reply(404, b"{}", (("Content-Type", "application/json"),)))
    refused = ApiAnswer(404, "application/json", b"{}")
    assert await api.get(scene.source, "/crates", "") == ApiServed(refused, How.BYPASS)
    assert scene.upstream.paths() == ["/index/config.json", SEARCH, SEARCH]


async def test_without_an_api_there_is_none(scene: Scene) -> None:
    scene.registry.api = None
    assert await Api(scene.configs, scene.clock).get(scene.source, "/crates", "q=ser") is None
    assert scene.upstream.paths() == ["/index/config.json"]


async def test_an_api_that_is_away_is_a_failure_and_makes_no_index_stale(scene: Scene) -> None:
    scene.upstream.fail(SEARCH, lambda: Unreachable("crates-io cannot be reached"))
    with pytest.raises(Unreachable):
        await Api(scene.configs, scene.clock).get(scene.source, "/crates", "q=ser")
    assert scene.upstream.paths(SEARCH) == [SEARCH] * 3
    assert not scene.source.is_failing()


async def test_without_a_configuration_nobody_knows_where_it_is(scene: Scene) -> None:
    scene.upstream.reply("/index/config.json", Reply(404))
    with pytest.raises(Misbehaved):
        await Api(scene.configs, scene.clock).get(scene.source, "/crates", "q=ser")


class Queue:
    """The web API of an upstream that is asked once a second, and clients of it."""

    def __init__(self, scene: Scene, interval_s: float = 1.0) -> None:
        scene.source.api_interval_s = interval_s
        self.scene = scene
        self.api = Api(scene.configs, scene.clock)
        self.asked_at: list[float] = []

    def client(self, query: str) -> "asyncio.Task[ApiServed | None]":
        """Let a client ask."""
        return asyncio.ensure_future(self.api.get(self.scene.source, "/crates", f"q={query}"))

    async def pass_time(self, seconds: int) -> None:
        """Let time pass, and note when each request was made."""
        for _ in range(2 * seconds):
            await turns()
            new = len(self.scene.upstream.paths(SEARCH)) - len(self.asked_at)
            self.asked_at += [self.scene.clock.monotonic()] * new
            self.scene.clock.advance(0.5)
        await turns()


@pytest.fixture
async def queue(scene: Scene) -> AsyncIterator[Queue]:
    scene.publish(Package("serde"))
    await scene.configs.get(scene.source)
    queue = Queue(scene)
    yield queue
    await queue.api.close()


async def test_one_request_a_second_and_twenty_wait_for_theirs(queue: Queue) -> None:
    clients = [queue.client(f"{number}") for number in range(23)]
    await turns()
    assert [client.done() for client in clients[:-2]] == [True] + [False] * 20
    for refused in clients[-2:]:
        with pytest.raises(Busy, match="too many wait"):
            await refused
    await queue.pass_time(21)
    assert [served.how for served in await asyncio.gather(*clients[:-2]) if served] == [
        How.BYPASS
    ] * 21
    begun = queue.asked_at[0]
    assert [at - begun for at in queue.asked_at] == [float(number) for number in range(21)]


async def test_each_second_one_more_may_wait(queue: Queue) -> None:
    clients = [queue.client(f"{number}") for number in range(21)]
    await turns()
    queue.scene.clock.advance(0.5)
    with pytest.raises(Busy):
        await queue.client("too soon")
    queue.scene.clock.advance(0.5)
    late = queue.client("in time")
    await turns()
    assert not late.done()
    await queue.pass_time(22)
    assert await late is not None
    await asyncio.gather(*clients)


async def test_the_same_question_is_one_request_and_its_answer_is_kept_for_a_minute(
    queue: Queue,
) -> None:
    gate = queue.scene.upstream.hold(SEARCH)
    clients = [queue.client("serde") for _ in range(40)]
    await gate.arrived()
    gate.release()
    served = await asyncio.gather(*clients)
    assert sorted(one.how for one in served if one) == [How.BYPASS] + [How.COALESCED] * 39
    assert len({one.answer.body for one in served if one}) == 1
    queue.scene.clock.advance(59)
    kept = await queue.client("serde")
    assert kept is not None
    assert kept.how is How.HIT
    assert len(queue.scene.upstream.paths(SEARCH)) == 1
    queue.scene.clock.advance(1)
    anew = await queue.client("serde")
    assert anew is not None
    assert anew.how is How.BYPASS
    assert len(queue.scene.upstream.paths(SEARCH)) == 2


async def test_what_is_kept_needs_no_turn_and_what_is_asked_already_needs_no_other(
    queue: Queue,
) -> None:
    await queue.client("serde")
    waiting = [queue.client(f"{number}") for number in range(20)]
    await turns()
    kept = await queue.client("serde")
    assert kept is not None
    assert kept.how is How.HIT
    joined = queue.client("19")
    await queue.pass_time(21)
    served = await joined
    assert served is not None
    assert served.how is How.COALESCED
    await asyncio.gather(*waiting)


@pytest.mark.parametrize("status", [400, 404, 429, 500])
async def test_errors_are_passed_on_and_not_kept(queue: Queue, status: int) -> None:
    queue.scene.upstream.reply(SEARCH, Reply(status, b"{}"), times=1)
    first = await queue.client("serde")
    queue.scene.clock.advance(1)
    second = await queue.client("serde")
    assert first is not None
    assert second is not None
    assert (first.answer.status, second.answer.status) == (status, 200)


async def test_a_failure_is_not_kept_and_nothing_is_tried_again_out_of_turn(queue: Queue) -> None:
    queue.scene.upstream.fail(SEARCH, lambda: Unreachable("crates-io cannot be reached"), times=1)
    with pytest.raises(Unreachable):
        await queue.client("serde")
    assert queue.scene.clock.slept == []
    assert len(queue.scene.upstream.paths(SEARCH)) == 1
    queue.scene.clock.advance(1)
    assert await queue.client("serde") is not None


async def test_a_client_that_leaves_takes_nobodys_turn(queue: Queue) -> None:
    await queue.client("first")
    leaving = queue.client("second")
    await turns()
    leaving.cancel()
    await queue.pass_time(1)
    kept = await queue.client("second")
    assert kept is not None
    assert kept.how is How.HIT


async def test_a_house_that_stops_waits_for_no_turn(queue: Queue) -> None:
    clients = [queue.client(f"{number}") for number in range(10)]
    await turns()
    await queue.api.close()
    outcomes = await asyncio.gather(*clients, return_exceptions=True)
    assert [isinstance(one, asyncio.CancelledError) for one in outcomes] == [False] + [True] * 9
    assert len(queue.scene.upstream.paths(SEARCH)) == 1


async def test_who_waits_too_long_is_told_so_and_the_answer_is_kept_for_the_next(
    queue: Queue,
) -> None:
    queue.scene.upstream.patience_s = 100.0
    gate = queue.scene.upstream.hold(SEARCH)
    with pytest.raises(TimedOut):
        await queue.client("serde")
    gate.release()
    await turns()
    kept = await queue.client("serde")
    assert kept is not None
    assert kept.how is How.HIT


async def test_without_an_interval_nobody_waits_and_nothing_is_kept(scene: Scene) -> None:
    scene.publish(Package("serde"))
    queue = Queue(scene, interval_s=0.0)
    served = await asyncio.gather(*(queue.client("serde") for _ in range(40)))
    assert {one.how for one in served if one} == {How.BYPASS}
    assert len(scene.upstream.paths(SEARCH)) == 40
    assert scene.clock.slept == []
