"""The memory of an upstream's failures."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.breaker import FIRST_BLOCK_S, MAX_BLOCK_S, Breaker


def test_an_upstream_is_well_until_it_has_failed() -> None:
    health = Breaker()
    assert not health.is_failing(0.0)
    assert health.answered(1.0) is None


def test_after_a_failure_nobody_waits_for_two_seconds() -> None:
    health = Breaker()
    health.failed(100.0)
    assert health.is_failing(100.0)
    assert health.is_failing(101.9)
    assert not health.is_failing(102.0)


def test_a_clock_that_has_just_begun_is_a_clock() -> None:
    health = Breaker()
    for now in (0.0, 3.0):
        health.failed(now)
        assert health.is_failing(now + 1.9)
        assert not health.is_failing(now + 2.0)
        health.answered(now + 2.5)


def test_each_failure_of_a_new_attempt_doubles_the_time_up_to_half_a_minute() -> None:
    health = Breaker()
    now, blocks = 100.0, []
    for _ in range(7):
        health.failed(now)
        blocks.append(health.blocked_until - now)
        now = health.blocked_until
    assert blocks == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_requests_that_fail_together_count_once() -> None:
    health = Breaker()
    for _ in range(100):
        health.failed(100.0)
    health.failed(101.0)
    assert not health.is_failing(102.0)
    health.failed(102.0)
    assert not health.is_failing(106.0)


def test_an_answer_ends_it_and_tells_how_long_it_was() -> None:
    health = Breaker()
    health.failed(100.0)
    health.failed(103.0)
    assert health.answered(104.5) == 4.5
    assert not health.is_failing(104.5)
    assert health.answered(105.0) is None
    # The next trouble begins as gently as the first.
    health.failed(200.0)
    assert not health.is_failing(202.0)
    assert health.answered(203.0) == 3.0


steps = st.lists(
    st.tuples(st.sampled_from(["failed", "answered", "asked"]), st.floats(0, 40)), max_size=30
)


@given(steps)
def test_copies_are_served_without_waiting_only_after_a_failure_of_late(
    history: list[tuple[str, float]],
) -> None:
    health = Breaker()
    now, failures = 0.0, list[float]()
    for what, later in history:
        now += later
        if what == "failed":
            health.failed(now)
            failures.append(now)
            assert health.is_failing(now)
        elif what == "answered":
            failing_for = health.answered(now)
            assert failing_for == (now - failures[0] if failures else None)
            failures.clear()
        failing = health.is_failing(now)
        assert not failing or now - failures[-1] < MAX_BLOCK_S
        # Whoever keeps asking is let through before long.
        assert not health.is_failing(now + MAX_BLOCK_S)
        if len(failures) == 1:
            assert failing == (now - failures[0] < FIRST_BLOCK_S)
