"""One fetch for everybody: who begins it, who waits, who leaves, and what they get."""

import asyncio
import gc
from functools import partial

import pytest

from proxy.core.failures import Unreachable
from proxy.service.flights import Flights, outcome
from tests.service.scene import turns
from tests.world.upstream import Gate


async def landing(gate: Gate, result: str) -> str:
    await gate.hold()
    return result


async def failing(gate: Gate) -> str:
    await gate.hold()
    raise Unreachable("nobody there")


async def test_everybody_who_wants_the_same_shares_one_flight() -> None:
    flights: Flights[str, str] = Flights()
    gate = Gate()
    joined = [flights.join("serde", lambda: landing(gate, "found")) for _ in range(64)]
    assert [began for _, began in joined] == [True] + [False] * 63
    assert len(flights) == 1
    waiting = asyncio.gather(*(outcome(task, None) for task, _ in joined))
    gate.release()
    assert await waiting == ["found"] * 64
    assert len(flights) == 0


async def test_different_keys_fly_apart() -> None:
    flights: Flights[str, str] = Flights()
    held, free = Gate(), Gate()
    free.release()
    slow, _ = flights.join("slow", lambda: landing(held, "slow"))
    fast, _ = flights.join("fast", lambda: landing(free, "fast"))
    assert await outcome(fast, None) == "fast"
    assert not slow.done()
    held.release()
    assert await outcome(slow, None) == "slow"


async def test_what_comes_after_the_landing_is_a_new_flight() -> None:
    flights: Flights[str, str] = Flights()
    gate = Gate()
    gate.release()
    for result in ("first", "second"):
        task, began = flights.join("serde", partial(landing, gate, result))
        assert began
        assert await outcome(task, None) == result


async def test_whoever_leaves_stops_nobody_else() -> None:
    flights: Flights[str, str] = Flights()
    gate = Gate()
    task, _ = flights.join("serde", lambda: landing(gate, "found"))
    leaver = asyncio.ensure_future(outcome(task, None))
    stayer = asyncio.ensure_future(outcome(task, None))
    await gate.arrived()
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert len(flights) == 1
    gate.release()
    assert await stayer == "found"


async def test_a_flight_that_everybody_left_lands_all_the_same() -> None:
    flights: Flights[str, str] = Flights()
    gate = Gate()
    task, _ = flights.join("serde", lambda: landing(gate, "found"))
    leaver = asyncio.ensure_future(outcome(task, None))
    await gate.arrived()
    leaver.cancel()
    gate.release()
    assert await outcome(task, None) == "found"


async def test_patience_runs_out_for_one_and_the_flight_goes_on() -> None:
    flights: Flights[str, str] = Flights()
    gate = Gate()
    task, _ = flights.join("serde", lambda: landing(gate, "found"))
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with pytest.raises(TimeoutError):
        await outcome(task, 2.0)
    assert loop.time() - begun == pytest.approx(2.0)
    assert len(flights) == 1
    gate.release()
    assert await outcome(task, 2.0) == "found"


async def test_a_failure_is_everybodys() -> None:
    flights: Flights[str, str] = Flights()
    gate = Gate()
    task, _ = flights.join("serde", lambda: failing(gate))
    waiting = [asyncio.ensure_future(outcome(task, None)) for _ in range(3)]
    gate.release()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [Unreachable] * 3
    assert len(flights) == 0


async def test_a_failure_that_nobody_waited_for_is_no_complaint() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    flights: Flights[str, str] = Flights()
    gate = Gate()
    gate.release()
    flights.join("serde", lambda: failing(gate))
    await turns()
    gc.collect()
    assert (len(flights), complaints) == (0, [])


async def test_a_stop_waits_for_what_may_still_land() -> None:
    flights: Flights[str, str] = Flights()
    quick, stuck = Gate(), Gate()
    landed, _ = flights.join("quick", lambda: landing(quick, "found"))
    hanging, _ = flights.join("stuck", lambda: landing(stuck, "never"))
    loop = asyncio.get_running_loop()
    loop.call_later(3.0, quick.release)
    begun = loop.time()
    await flights.close(5.0)
    assert loop.time() - begun == pytest.approx(5.0)
    assert landed.result() == "found"
    assert hanging.cancelled()
    assert len(flights) == 0


async def test_a_stop_with_nothing_under_way_takes_no_time() -> None:
    flights: Flights[str, str] = Flights()
    begun = asyncio.get_running_loop().time()
    await flights.close(5.0)
    assert asyncio.get_running_loop().time() == begun
