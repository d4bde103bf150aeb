"""Asking with patience: what is tried again, after how long, and what is told of it."""

import asyncio
from collections.abc import Callable

import pytest

from proxy.core.answers import Absent, Answer, Found, Unchanged, Validators
from proxy.core.breaker import Breaker
from proxy.core.events import Kind, UpstreamAsked, UpstreamFailed, UpstreamRecovered
from proxy.core.failures import (
    Misbehaved,
    Offline,
    StoreFailure,
    TimedOut,
    Troubled,
    Unreachable,
    UpstreamFailure,
)
from proxy.core.retry import RetryBudget
from proxy.service.endpoint import Endpoint
from proxy.service.source import ASKING_DEADLINE_S, Source
from tests.service.scene import PUBLIC
from tests.world.clock import ManualClock
from tests.world.observer import Recorder
from tests.world.registry import Registry
from tests.world.upstream import ScriptedUpstream

FOUND = Found(b"line\n", Validators())


class Asking:
    """A source, and attempts that end one after the other as they are told to."""

    def __init__(self, *outcomes: Answer | Exception, jitter: tuple[float, ...] = ()) -> None:
        self.clock = ManualClock(jitter=jitter)
        self.observer = Recorder()
        self.source = Source(ScriptedUpstream(Registry()), PUBLIC, self.clock, self.observer)
        self.attempts = 0
        self.each_takes_s = 0.0
        self._outcomes = list(outcomes)

    async def attempt(self, endpoint: Endpoint) -> Answer:
        assert endpoint is self.source.first
        self.attempts += 1
        self.clock.advance(self.each_takes_s)
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if isinstance(outcome, Exception):
            if isinstance(outcome, UpstreamFailure):
                # Each is a failure of its own, and is told of once.
                outcome.noted = False
            raise outcome
        return outcome

    async def ask(
        self, *, has_copy: bool = False, deadline_s: Callable[[], float] | None = None
    ) -> Answer:
        """Ask, letting the clock go on whenever the source sleeps."""
        asking = asyncio.ensure_future(
            self.source.ask(
                Kind.INDEX,
                "serde",
                self.attempt,
                has_copy=has_copy,
                received_bytes=lambda answer: len(answer.body) if isinstance(answer, Found) else 0,
                deadline_s=(lambda: ASKING_DEADLINE_S) if deadline_s is None else deadline_s,
            )
        )
        while not asking.done():
            if self.clock.sleeping:
                self.clock.advance(0.01)
            await asyncio.sleep(0)
        return await asking


def unreachable() -> Unreachable:
    return Unreachable("crates-io cannot be reached")


def busy(retry_after_s: float | None) -> Troubled:
    return Troubled(
        "crates-io answered 503", status=503, transient=True, retry_after_s=retry_after_s
    )


@pytest.mark.parametrize(
    ("answer", "outcome", "received"),
    [(FOUND, "found", 5), (Unchanged(), "unchanged", 0), (Absent(404), "absent", 0)],
)
async def test_an_answer_is_told_and_returned(answer: Answer, outcome: str, received: int) -> None:
    asking = Asking(answer)
    asking.each_takes_s = 0.25
    assert await asking.ask() == answer
    assert asking.observer.events == [
        UpstreamAsked("crates-io", Kind.INDEX, outcome, 0.25, received)
    ]
    assert asking.clock.slept == []


async def test_what_may_pass_is_tried_three_times_with_growing_random_delays() -> None:
    asking = Asking(unreachable(), TimedOut("late"), FOUND, jitter=(0.5, 0.5))
    assert await asking.ask() == FOUND
    assert asking.clock.slept == [0.25, 0.5]
    asked = asking.observer.of(UpstreamAsked)
    assert [event.outcome for event in asked] == ["unreachable", "timeout", "found"]
    assert asking.observer.of(UpstreamFailed) == [], "who succeeds in the end has not failed"
    assert not asking.source.is_failing()


async def test_the_third_failure_is_the_last_and_is_told_once() -> None:
    asking = Asking(unreachable())
    with pytest.raises(Unreachable):
        await asking.ask()
    assert asking.attempts == 3
    assert asking.observer.of(UpstreamFailed) == [
        UpstreamFailed(
            "crates-io",
            Kind.INDEX,
            "serde",
            "crates-io cannot be reached",
            served_stale=False,
            news=True,
        )
    ]
    assert asking.source.is_failing()


@pytest.mark.parametrize(
    ("failure", "failing"),
    [
        (Misbehaved("sent a web page"), False),
        (Offline("offline"), False),
        (Troubled("answered 403", status=403, transient=False), False),
        (Troubled("answered 501", status=501, transient=False), True),
    ],
    ids=str,
)
async def test_what_will_not_pass_is_asked_once(failure: UpstreamFailure, failing: bool) -> None:
    asking = Asking(failure)
    with pytest.raises(type(failure)):
        await asking.ask()
    assert asking.attempts == 1
    assert asking.source.is_failing() is failing


async def test_a_failing_upstream_is_not_pressed_by_who_has_a_copy() -> None:
    asking = Asking(unreachable())
    with pytest.raises(Unreachable):
        await asking.ask(has_copy=True)
    assert asking.attempts == 1
    assert asking.observer.of(UpstreamFailed)[0].served_stale


async def test_the_upstreams_own_word_on_when_to_come_again_is_kept() -> None:
    asking = Asking(busy(7.0), FOUND)
    begun = asking.clock.monotonic()
    assert await asking.ask() == FOUND
    assert asking.clock.slept == [7.0]
    assert asking.clock.monotonic() - begun == pytest.approx(7.0, abs=0.02)


@pytest.mark.parametrize("retry_after_s", [17.0, 60.0, 3600.0])
async def test_no_attempt_is_made_that_would_come_too_late(retry_after_s: float) -> None:
    asking = Asking(busy(retry_after_s), FOUND)
    with pytest.raises(Troubled) as caught:
        await asking.ask()
    assert caught.value.retry_after_s == retry_after_s
    assert (asking.attempts, asking.clock.slept) == (1, [])


async def test_slow_failures_use_up_the_time_for_trying_again() -> None:
    asking = Asking(TimedOut("late"))
    asking.each_takes_s = 9.0
    with pytest.raises(TimedOut):
        await asking.ask()
    assert asking.attempts == 2, "after 18 s no more"


async def test_the_deadline_may_grow_while_asking() -> None:
    asking = Asking(TimedOut("late"))
    asking.each_takes_s = 50.0
    with pytest.raises(TimedOut):
        await asking.ask(deadline_s=lambda: 300.0)
    assert asking.attempts == 3


async def test_an_ailing_upstream_is_not_asked_many_times_over() -> None:
    asking = Asking(unreachable())
    asking.source.budget = RetryBudget(per_request=0.1, ceiling=4.0, tokens=4.0)
    for _ in range(40):
        # The breaker is another thing.
        asking.source.first.index = Breaker()
        with pytest.raises(Unreachable):
            await asking.ask()
    # 40 for their own sake; 4 retries that were saved up, and 4 that those earned.
    assert 44 <= asking.attempts <= 48


async def test_only_the_first_failure_of_an_outage_is_news_and_its_end_is_told() -> None:
    asking = Asking(unreachable())
    for _ in range(2):
        with pytest.raises(Unreachable):
            await asking.ask(has_copy=True)
        asking.clock.advance(10)
    assert [event.news for event in asking.observer.of(UpstreamFailed)] == [True, False]
    asking._outcomes = [Absent(404)]
    await asking.ask()
    assert asking.observer.of(UpstreamRecovered) == [UpstreamRecovered("crates-io", 20.0)]
    assert not asking.source.is_failing()


async def test_a_failure_that_is_not_the_upstreams_passes_through_untold() -> None:
    asking = Asking(StoreFailure("the disk is full"))
    with pytest.raises(StoreFailure):
        await asking.ask()
    assert (asking.attempts, asking.observer.events) == (1, [])
    assert not asking.source.is_failing()


async def test_what_had_come_before_a_failure_is_told() -> None:
    failure = unreachable()
    failure.received_bytes = 1234
    asking = Asking(failure, FOUND)
    await asking.ask()
    assert [event.received_bytes for event in asking.observer.of(UpstreamAsked)] == [1234, 5]


async def test_being_cancelled_while_waiting_to_try_again_ends_it() -> None:
    asking = Asking(busy(7.0), FOUND)
    task = asyncio.ensure_future(asking.ask())
    while not asking.clock.slept:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_offline_is_failing_whatever_it_answers() -> None:
    asking = Asking(FOUND)
    asking.source.offline = True
    await asking.ask()
    assert asking.source.is_failing()


@pytest.mark.parametrize("kind", [Kind.INDEX, Kind.CONFIG])
async def test_a_failure_noted_from_outside_counts_for_health(kind: Kind) -> None:
    asking = Asking(FOUND)
    asking.source.note_failure(kind, "serde", unreachable())
    assert asking.source.is_failing()
    asking.clock.advance(2)
    assert not asking.source.is_failing()
    asking.source.note_failure(kind, "serde", Misbehaved("sent a web page"))
    assert not asking.source.is_failing()


@pytest.mark.parametrize("kind", [Kind.CRATE, Kind.API])
async def test_the_trouble_of_crates_makes_no_index_stale_and_is_news_once(kind: Kind) -> None:
    asking = Asking(FOUND)
    for _ in range(3):
        asking.source.note_failure(kind, "serde 1.0.0", unreachable())
    assert not asking.source.is_failing()
    assert [event.news for event in asking.observer.of(UpstreamFailed)] == [True, False, False]
    await asking.ask()
    assert asking.observer.of(UpstreamRecovered) == []
    asking.source.note_failure(kind, "serde 1.0.0", unreachable())
    assert not asking.observer.of(UpstreamFailed)[-1].news, "an index file says nothing of crates"


async def test_what_broke_off_in_the_middle_is_tried_again_at_once_and_costs_no_budget() -> None:
    broken = unreachable()
    broken.received_bytes = 1000
    asking = Asking(broken, FOUND, jitter=(0.9,))
    asking.source.budget = RetryBudget(per_request=0.0, ceiling=0.0, tokens=0.0)
    assert await asking.ask() == FOUND
    assert (asking.attempts, asking.clock.slept) == (2, [0.0])
