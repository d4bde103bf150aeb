"""Failures: whose fault, whether they may pass, and that none of them is an absence."""

from typing import get_args

import pytest

from proxy.core.answers import Answer
from proxy.core.failures import (
    ChecksumMismatch,
    ForbiddenAddress,
    Misbehaved,
    NoSuchCrate,
    Offline,
    StoreFailure,
    TimedOut,
    Troubled,
    Unreachable,
    UpstreamFailure,
)

EACH = [
    Unreachable("reset"),
    TimedOut("no answer"),
    Troubled("503", status=503, transient=True),
    Misbehaved("HTML"),
    ForbiddenAddress("10.0.0.1"),
    ChecksumMismatch("other bytes", expected="a", actual="b"),
    Offline("told not to"),
]


@pytest.mark.parametrize(
    ("failure", "outcome", "transient", "failing"),
    [
        (Unreachable("reset"), "unreachable", True, True),
        (TimedOut("no answer"), "timeout", True, True),
        (Troubled("503", status=503, transient=True), "status", True, True),
        (Troubled("500", status=500, transient=True), "status", True, True),
        (Troubled("429", status=429, transient=True), "status", True, True),
        # About one name, or about us: the next request may fare better.
        (Troubled("401", status=401, transient=False), "status", False, False),
        (Troubled("403", status=403, transient=False), "status", False, False),
        (Troubled("499", status=499, transient=False), "status", False, False),
        (Misbehaved("HTML"), "invalid", False, False),
        (ForbiddenAddress("10.0.0.1"), "forbidden", False, False),
        (ChecksumMismatch("x", expected="a", actual="b"), "mismatch", False, False),
        (Offline("told not to"), "offline", False, False),
    ],
)
def test_what_a_failure_tells(
    failure: UpstreamFailure, outcome: str, transient: bool, failing: bool
) -> None:
    assert (failure.outcome, failure.transient, failure.failing) == (outcome, transient, failing)


def test_every_outcome_is_a_word_of_its_own() -> None:
    assert len({failure.outcome for failure in EACH}) == len(EACH)


@pytest.mark.parametrize("failure", EACH, ids=lambda failure: type(failure).__name__)
def test_a_failure_is_no_answer_and_not_our_disks(failure: UpstreamFailure) -> None:
    assert not isinstance(failure, (StoreFailure, *get_args(Answer)))
    assert failure.retry_after_s is None
    assert failure.received_bytes == 0


def test_facts_are_kept_beside_the_message() -> None:
    troubled = Troubled("slow down", status=429, transient=True, retry_after_s=3.0)
    assert (str(troubled), troubled.status, troubled.retry_after_s) == ("slow down", 429, 3.0)
    mismatch = ChecksumMismatch("other bytes", expected="a", actual="b")
    assert (str(mismatch), mismatch.expected, mismatch.actual) == ("other bytes", "a", "b")
    assert Unreachable("reset", retry_after_s=1.0).retry_after_s == 1.0


def test_an_absence_is_a_value_and_a_full_disk_is_not_the_upstreams_fault() -> None:
    assert NoSuchCrate("no such crate") == NoSuchCrate("no such crate")
    assert not issubclass(NoSuchCrate, BaseException)
    assert not issubclass(StoreFailure, UpstreamFailure)
