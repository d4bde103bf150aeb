"""The world's own instruments: time stands still until it is moved, and nothing is missed."""

import asyncio

import pytest

from proxy.core.events import Evicted, NameRemoved, NameReturned
from tests.world.clock import ManualClock
from tests.world.observer import Recorder


async def test_sleepers_wake_when_their_time_has_come_and_not_before() -> None:
    clock = ManualClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.monotonic()))

    start = clock.monotonic()
    tasks = [
        asyncio.ensure_future(sleeper(name, seconds))
        for name, seconds in (("c", 3.0), ("a", 1.0), ("b", 2.0))
    ]
    await clock.until_sleeping(3)
    clock.advance(0.5)
    await asyncio.sleep(0)
    assert woken == []
    clock.advance(1.5)
    await asyncio.gather(tasks[1], tasks[2])
    assert woken == [("a", start + 2.0), ("b", start + 2.0)]
    assert clock.sleeping == 1
    clock.advance(1.0)
    await tasks[0]
    assert woken[-1] == ("c", start + 3.0)
    assert clock.slept == [3.0, 1.0, 2.0]


async def test_a_cancelled_sleeper_sleeps_no_more() -> None:
    clock = ManualClock()
    sleeper = asyncio.ensure_future(clock.sleep(1.0))
    await clock.until_sleeping()
    sleeper.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeper
    assert clock.sleeping == 0


async def test_a_sleep_of_nothing_needs_no_time() -> None:
    clock = ManualClock()
    before = clock.monotonic()
    await clock.sleep(0)
    assert (clock.monotonic(), clock.slept) == (before, [0])


def test_the_wall_clock_jumps_alone() -> None:
    clock = ManualClock(now=1000.0)
    before = clock.monotonic()
    clock.jump(-500.0)
    assert (clock.now(), clock.monotonic()) == (500.0, before)
    clock.advance(2.0)
    assert (clock.now(), clock.monotonic()) == (502.0, before + 2.0)
    with pytest.raises(ValueError, match="forwards"):
        clock.advance(-1.0)


def test_chance_does_as_it_is_told() -> None:
    clock = ManualClock(jitter=[0.25, 0.75])
    assert [clock.jitter() for _ in range(4)] == [0.25, 0.75, 0.0, 0.0]


async def test_a_recorder_finds_what_came_and_waits_for_what_comes() -> None:
    recorder = Recorder()
    recorder.observe(NameRemoved("crates-io", "serde"))
    recorder.observe(NameRemoved("crates-io", "rand"))
    assert (await recorder.until(NameRemoved, lambda event: event.name == "rand")).name == "rand"
    waiting = asyncio.ensure_future(recorder.until(NameReturned))
    await asyncio.sleep(0)
    recorder.observe(Evicted("purge", 1, 2))
    recorder.observe(NameReturned("crates-io", "serde"))
    assert await waiting == NameReturned("crates-io", "serde")
    assert [event.name for event in recorder.of(NameRemoved)] == ["serde", "rand"]
    assert len(recorder.take()) == 4
    assert recorder.events == []
