"""The circuit breaker: who is let through to an address that fails, and when."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.breaker import (
    AS_USUAL,
    FIRST_BLOCK_S,
    MAX_BLOCK_S,
    TRIPS_AFTER,
    TURNED_AWAY,
    Admission,
    Breaker,
    BreakerState,
)


def test_an_address_is_well_until_it_has_failed() -> None:
    breaker = Breaker()
    assert not breaker.is_failing(0.0)
    assert breaker.answered(1.0) is None
    assert breaker.admit(1.0, spares=True) == breaker.admit(1.0, spares=False) == AS_USUAL
    assert breaker.state(1.0) is BreakerState.CLOSED
    assert breaker.wait_s(1.0) == breaker.wait_s(1.0, spares=True) == 0.0


def test_after_a_failure_nobody_waits_for_two_seconds() -> None:
    breaker = Breaker()
    breaker.failed(100.0)
    for now in (100.0, 101.9):
        assert breaker.is_failing(now)
        assert breaker.admit(now, spares=True) == TURNED_AWAY
        assert breaker.state(now) is BreakerState.OPEN
    assert not breaker.is_failing(102.0)
    assert breaker.state(102.0) is BreakerState.HALF_OPEN


def test_a_clock_that_has_just_begun_is_a_clock() -> None:
    breaker = Breaker()
    for now in (0.0, 3.0):
        breaker.failed(now)
        assert breaker.is_failing(now + 1.9)
        assert not breaker.is_failing(now + 2.0)
        breaker.answered(now + 2.5)


def test_each_failure_of_a_new_attempt_doubles_the_time_up_to_half_a_minute() -> None:
    breaker = Breaker()
    now, blocks = 100.0, []
    for _ in range(7):
        breaker.failed(now)
        blocks.append(breaker.blocked_until - now)
        now = breaker.blocked_until
    assert blocks == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_requests_that_fail_together_count_once() -> None:
    breaker = Breaker()
    for _ in range(100):
        breaker.failed(100.0)
    breaker.failed(101.0)
    assert not breaker.is_failing(102.0)
    breaker.failed(102.0)
    assert not breaker.is_failing(106.0)


def test_an_answer_ends_it_and_tells_how_long_it_was() -> None:
    breaker = Breaker()
    breaker.failed(100.0)
    breaker.failed(103.0)
    assert breaker.answered(104.5) == 4.5
    assert not breaker.is_failing(104.5)
    assert breaker.answered(105.0) is None
    # The next trouble begins as gently as the first.
    breaker.failed(200.0)
    assert not breaker.is_failing(202.0)
    assert breaker.answered(203.0) == 3.0


def test_who_cannot_do_without_is_turned_away_by_the_third_failure_in_a_row() -> None:
    breaker = Breaker()
    for _ in range(TRIPS_AFTER):
        assert breaker.admit(100.0, spares=False) == AS_USUAL
        breaker.failed(100.0)
    assert breaker.admit(100.0, spares=False) == TURNED_AWAY
    breaker.answered(101.0)
    assert breaker.admit(101.0, spares=False) == AS_USUAL


def tripped(now: float) -> Breaker:
    """Make one that has failed often enough at `now` for everybody."""
    breaker = Breaker()
    for _ in range(TRIPS_AFTER):
        breaker.failed(now)
    return breaker


@pytest.mark.parametrize("spares", [True, False])
def test_when_the_time_is_over_one_request_is_the_probe(spares: bool) -> None:
    breaker = tripped(100.0)
    assert breaker.admit(102.0, spares=spares) == Admission(may_ask=True, probe=1)
    assert breaker.probing
    assert breaker.state(102.0) is BreakerState.HALF_OPEN
    assert breaker.is_failing(102.0), "copies are served meanwhile"
    for other in (True, False):
        assert breaker.admit(110.0, spares=other) == TURNED_AWAY


def test_a_probe_that_fails_blocks_for_longer() -> None:
    breaker = tripped(100.0)
    probe = breaker.admit(102.0, spares=True)
    breaker.failed(103.0, probe)
    assert (breaker.failed_probes, breaker.probing) == (1, False)
    assert breaker.admit(106.9, spares=True) == TURNED_AWAY
    assert breaker.admit(107.0, spares=True).probe == 2


def test_who_cannot_do_without_may_probe_every_two_seconds() -> None:
    breaker = tripped(100.0)
    now = 100.0
    for number in range(1, 20):
        assert breaker.wait_s(now) == FIRST_BLOCK_S
        assert breaker.admit(now + 1.9, spares=False) == TURNED_AWAY
        now += FIRST_BLOCK_S
        probe = breaker.admit(now, spares=False)
        assert probe.probe == number
        breaker.failed(now, probe)
    assert breaker.wait_s(now, spares=True) > 10.0


def test_a_probe_that_tells_nothing_makes_room_for_the_next_at_once() -> None:
    breaker = tripped(100.0)
    probe = breaker.admit(102.0, spares=True)
    breaker.release(probe)
    assert not breaker.probing
    assert breaker.failed_probes == 0
    assert breaker.admit(102.0, spares=True).probe == 2


def test_who_fails_late_ends_no_probe() -> None:
    breaker = tripped(100.0)
    breaker.admit(102.0, spares=False)
    breaker.failed(102.5)
    assert breaker.probing
    assert breaker.admit(150.0, spares=False) == TURNED_AWAY


def test_who_fails_late_keeps_nobody_waiting_for_longer() -> None:
    breaker = tripped(100.0)
    breaker.failed(102.0, breaker.admit(102.0, spares=False))
    breaker.failed(103.9)
    assert breaker.wait_s(104.0, spares=True) == 2.0
    assert breaker.wait_s(104.0) == 0.0
    assert breaker.admit(104.0, spares=False).probe == 2


def test_a_probe_from_before_an_answer_ends_no_later_one() -> None:
    breaker = tripped(100.0)
    old = breaker.admit(102.0, spares=False)
    breaker.answered(102.5)
    for _ in range(TRIPS_AFTER):
        breaker.failed(103.0)
    new = breaker.admit(105.0, spares=False)
    breaker.release(old)
    breaker.failed(104.0, old)
    assert breaker.probing
    breaker.release(new)
    assert breaker.admit(106.0, spares=False).probe == 3


@dataclass
class World:
    """A breaker, and the requests that went by it and have not ended."""

    breaker: Breaker = field(default_factory=Breaker)
    now: float = 0.0
    under_way: list[Admission] = field(default_factory=list)
    # Those probes that began after the last answer.
    probes: list[Admission] = field(default_factory=list)
    failed_at: float | None = None

    def play(self, what: str, later: float, which: int) -> None:
        """Let some time pass, and then one thing happen."""
        self.now += later
        if what in ("spares", "presses"):
            self.ask(spares=what == "spares")
        elif self.under_way:
            self.end(self.under_way.pop(which % len(self.under_way)), what)

    def ask(self, *, spares: bool) -> None:
        admission = self.breaker.admit(self.now, spares=spares)
        if admission.may_ask:
            self.under_way.append(admission)
        if admission.probe:
            assert not self.probes, "two probes at once"
            self.probes.append(admission)

    def end(self, admission: Admission, how: str) -> None:
        if how == "answers":
            self.breaker.answered(self.now)
            self.probes.clear()
            self.failed_at = None
            assert self.breaker.state(self.now) is BreakerState.CLOSED
            assert self.breaker.admit(self.now, spares=True) == AS_USUAL
            return
        if admission in self.probes:
            self.probes.remove(admission)
        if how == "fails":
            self.breaker.failed(self.now, admission)
            self.failed_at = self.now
        elif admission.probe:
            self.breaker.release(admission)


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["spares", "presses", "fails", "fails", "fails", "answers", "tells nothing"]
        ),
        st.sampled_from([0.0, 0.0, 0.5, 1.5, 2.0, 5.0, 31.0]),
        st.integers(0, 5),
    ),
    max_size=60,
)


@given(steps)
def test_whatever_happens_there_is_one_probe_and_nobody_waits_for_long(
    history: list[tuple[str, float, int]],
) -> None:
    world = World()
    for _ in range(4):
        world.ask(spares=False)
    for what, later, which in history:
        world.play(what, later, which)
        breaker, now = world.breaker, world.now
        assert breaker.probing == bool(world.probes)
        assert 0.0 <= breaker.wait_s(now) <= FIRST_BLOCK_S
        assert breaker.wait_s(now) <= breaker.wait_s(now, spares=True) <= MAX_BLOCK_S
        assert (breaker.state(now) is BreakerState.CLOSED) == (world.failed_at is None)
        if world.failed_at is None:
            assert not breaker.is_failing(now)
        # Whoever keeps asking is let through before long, unless a probe is under way.
        assert breaker.is_failing(now + MAX_BLOCK_S) == breaker.probing


@given(steps)
def test_a_block_never_grows_while_it_lasts(history: list[tuple[str, float, int]]) -> None:
    world = World()
    for _ in range(4):
        world.ask(spares=False)
    for what, later, which in history:
        until = world.breaker.blocked_until
        block_s = world.breaker.wait_s(world.now, spares=True)
        world.play(what, later, which)
        if block_s > later and world.failed_at is not None:
            assert world.breaker.blocked_until == until
