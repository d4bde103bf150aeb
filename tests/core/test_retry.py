"""Retries: how many, how soon, and for how long all in all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.failures import Misbehaved, Offline, TimedOut, Troubled, Unreachable
from proxy.core.retry import (
    ATTEMPTS,
    MAX_DELAY_S,
    RETRY_AFTER_MAX_S,
    RetryBudget,
    delay_before_retry,
    parse_retry_after,
)
from tests.core import strategies as our

NOW = 784111777.0
jitters = st.floats(0, 1, exclude_max=True)
waits = st.none() | st.floats(0, 100)


def delay(jitter: float, attempt: int = 1, remaining_s: float = 100.0) -> float | None:
    return delay_before_retry(
        Unreachable("gone"), attempt=attempt, jitter=jitter, remaining_s=remaining_s
    )


@given(st.lists(jitters, min_size=20, max_size=20), st.lists(waits, min_size=20, max_size=20))
def test_the_attempts_are_few_and_end_before_the_deadline(
    chances: list[float], told: list[float | None]
) -> None:
    waited, attempt, deadline = 0.0, 1, 17.0
    for chance, retry_after_s in zip(chances, told, strict=True):
        failure = Troubled("503", status=503, transient=True, retry_after_s=retry_after_s)
        pause = delay_before_retry(
            failure, attempt=attempt, jitter=chance, remaining_s=deadline - waited
        )
        if pause is None:
            break
        assert pause >= (retry_after_s or 0.0)
        assert retry_after_s is not None or pause <= MAX_DELAY_S
        waited, attempt = waited + pause, attempt + 1
    assert attempt <= ATTEMPTS
    assert waited < deadline


def test_the_time_to_wait_doubles_and_all_of_it_is_chance() -> None:
    first, second = delay(0.999, attempt=1), delay(0.999, attempt=2)
    assert first is not None
    assert second == 2 * first
    assert delay(0.0) == 0.0
    assert delay(0.999 / 2) == pytest.approx(first / 2)
    assert 0.1 < first < 1.0


def test_what_would_come_after_the_deadline_is_not_tried() -> None:
    told = Troubled("429", status=429, transient=True, retry_after_s=3.0)
    assert delay_before_retry(told, attempt=1, jitter=0.5, remaining_s=3.1) == 3.0
    assert delay_before_retry(told, attempt=1, jitter=0.5, remaining_s=3.0) is None
    assert delay(0.0, remaining_s=0.0) is None
    assert delay(0.0, remaining_s=-1.0) is None


@pytest.mark.parametrize(
    ("failure", "retried"),
    [
        (Unreachable("reset"), True),
        (TimedOut("no answer"), True),
        (Troubled("503", status=503, transient=True), True),
        (Troubled("401", status=401, transient=False), False),
        (Misbehaved("HTML"), False),
        (Offline("told not to"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_what_may_pass_is_tried_again(
    failure: Unreachable | TimedOut | Troubled | Misbehaved | Offline, retried: bool
) -> None:
    pause = delay_before_retry(failure, attempt=1, jitter=0.5, remaining_s=100)
    assert (pause is not None) is retried


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("5", 5.0),
        (" 120 ", 120.0),
        ("3600", 3600.0),
        ("3601", 3600.0),
        ("9" * 400, 3600.0),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
        ("Sunday, 06-Nov-94 08:49:47 GMT", 10.0),
        ("Sun, 06 Nov 1994 08:49:27 GMT", 0.0),
        ("Sun, 06 Nov 1995 08:49:37 GMT", 3600.0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("\u0665", None),
        ("5 s", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, NOW) == seconds


@given(our.any_text | st.integers(0, 10**9).map(our.imf_fixdate), our.moments)
def test_no_retry_after_raises_or_lies_outside_an_hour(header: str, now: float) -> None:
    seconds = parse_retry_after(header, now)
    assert seconds is None or 0 <= seconds <= RETRY_AFTER_MAX_S


def test_a_budget_that_is_used_up_gives_nothing_until_more_was_asked() -> None:
    budget = RetryBudget(per_request=0.25, ceiling=2.0, tokens=2.0)
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    for _ in range(3):
        budget.deposit()
    assert not budget.withdraw()
    budget.deposit()
    assert [budget.withdraw() for _ in range(2)] == [True, False]


def test_a_budget_does_not_grow_beyond_its_ceiling() -> None:
    budget = RetryBudget(per_request=0.25, ceiling=2.0, tokens=0.0)
    for _ in range(1000):
        budget.deposit()
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]


def test_an_upstream_may_be_given_32_retries_at_once_and_one_for_ten_requests() -> None:
    budget = RetryBudget()
    budget.deposit()
    assert [budget.withdraw() for _ in range(33)] == [True] * 32 + [False]
    for _ in range(9):
        budget.deposit()
    assert not budget.withdraw()
    # Tenths do not add up exactly.
    for _ in range(2):
        budget.deposit()
    assert budget.withdraw()


@given(st.lists(st.booleans(), max_size=300))
def test_retries_are_a_tenth_of_the_requests_and_a_few_to_begin_with(asked: list[bool]) -> None:
    budget = RetryBudget()
    at_first = budget.tokens
    requests = retries = 0
    for request in asked:
        if request:
            budget.deposit()
            requests += 1
        else:
            retries += budget.withdraw()
        assert retries <= at_first + 0.1 * requests + 1e-6
        assert 0 <= budget.tokens <= budget.ceiling
