"""Handlers of streams: few begin in one turn of the loop, in order, and not too many in all."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from proxy.web.http2 import errands as errands_module
from proxy.web.http2.errands import Errands
from tests.web.conftest import index_url
from tests.web.doorstep import doorstep
from tests.world import http2
from tests.world.http2 import connected, get, headers
from tests.world.registry import Registry
from tests.world.server import RegistryServer

EACH_TURN = errands_module._BEGUN_IN_A_TURN


class Work:
    """Errands that note that they were begun, and end when told to."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.may_end = asyncio.Event()

    def make(self, number: int) -> Coroutine[Any, Any, None]:
        self.begun.append(number)
        return self.may_end.wait()  # type: ignore[return-value]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_few_begin_in_a_turn_and_all_in_their_order() -> None:
    errands, work = Errands(), Work()
    for number in range(3 * EACH_TURN):
        errands.begin(lambda number=number: work.make(number))  # type: ignore[misc]
    assert work.begun == list(range(EACH_TURN))
    assert errands.is_crowded()
    assert len(errands) == 3 * EACH_TURN
    for turn in (2, 3):
        await turns(1)
        assert len(work.begun) <= turn * EACH_TURN
    await turns(2)
    assert work.begun == list(range(3 * EACH_TURN))
    assert not errands.is_crowded()
    work.may_end.set()
    await asyncio.gather(*errands.running)
    await turns(2)
    assert len(errands) == 0


async def test_nothing_is_begun_for_who_has_left_and_that_costs_nobody_a_turn() -> None:
    errands, work = Errands(), Work()
    for number in range(EACH_TURN):
        errands.begin(lambda number=number: work.make(number))  # type: ignore[misc]
    for _ in range(1000):
        errands.begin(lambda: None)
    errands.begin(lambda: work.make(-1))
    await turns(2)
    assert work.begun[-1] == -1
    work.may_end.set()
    await asyncio.gather(*errands.running)


async def test_who_was_held_is_taken_up_after_those_who_waited() -> None:
    errands, work = Errands(), Work()
    for number in range(EACH_TURN + 1):
        errands.begin(lambda number=number: work.make(number))  # type: ignore[misc]
    errands.hold(lambda: work.begun.append(100))
    errands.hold(lambda: work.begun.append(101))
    assert work.begun == list(range(EACH_TURN))
    await turns(5)
    assert work.begun == [*range(EACH_TURN + 1), 100, 101]
    work.may_end.set()
    await asyncio.gather(*errands.running)


async def test_beyond_the_most_a_stream_is_told_to_come_again_and_hot_answers_go_on(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    async with doorstep(tmp_path, upstream) as door:
        door.entrance._errands = Errands(at_most=5)
        async with connected(door.port) as peer:
            peer.send(get(1, index_url("many")))
            assert (await peer.reply(1)).status == 200
            with upstream.hold("/index/sm/*") as gate:
                cold = range(3, 13, 2)
                peer.send(*(get(each, index_url("small")) for each in cold))
                await gate.arrived(1)
                peer.send(get(13, index_url("small")))
                answer = await peer.reply(13)
                assert (answer.status, answer.headers["x-cache"]) == (503, "refused")
                assert int(answer.headers["retry-after"]) > 0
                peer.send(headers(15, http2.asking("/crates-io/api/v1/new", "PUT"), end=False))
                assert (await peer.reply(15)).status == 503
                peer.send(get(17, index_url("many")))
                assert (await peer.reply(17)).headers["x-cache"] == "hit"
            for each in cold:
                assert (await peer.reply(each)).status == 200


async def test_a_burst_beyond_a_turn_is_answered_whole_and_the_window_of_others_is_kept_open(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    async with (
        doorstep(tmp_path, upstream) as door,
        connected(door.port) as one,
        connected(door.port) as other,
    ):
        streams = range(1, 401, 2)
        for peer in (one, other):
            peer.send(
                b"".join(get(each, f"/crates-io/index/3/a/a{each % 10}b") for each in streams)
            )
        for peer in (one, other):
            for each in streams:
                assert (await peer.reply(each)).status == 404
            peer.send(get(401, index_url("small")))
            assert (await peer.reply(401)).status == 200
