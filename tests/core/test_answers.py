"""Answers and snapshots are values."""

from dataclasses import FrozenInstanceError, replace
from typing import get_args

import pytest

from proxy.core.answers import (
    NO_VALIDATORS,
    Absent,
    Answer,
    Found,
    Snapshot,
    Unchanged,
    Validators,
)

HELD = Snapshot(b"{}", Validators('"a"'), learned_at=1.0, confirmed_at=2.0)


def test_no_answer_is_a_failure() -> None:
    assert set(get_args(Answer)) == {Found, Unchanged, Absent}
    assert not any(issubclass(answer, BaseException) for answer in get_args(Answer))


def test_either_validator_may_be_missing() -> None:
    assert (NO_VALIDATORS.etag, NO_VALIDATORS.last_modified) == (None, None)
    assert Validators(etag='"a"') != NO_VALIDATORS != Validators(last_modified="once")


def test_a_snapshot_is_not_changed_but_replaced() -> None:
    with pytest.raises(FrozenInstanceError):
        HELD.confirmed_at = 3.0  # type: ignore[misc]
    confirmed = replace(HELD, confirmed_at=3.0)
    assert (HELD.confirmed_at, confirmed.confirmed_at) == (2.0, 3.0)
    assert confirmed != HELD
    assert confirmed == Snapshot(b"{}", Validators('"a"'), 1.0, 3.0, older_since=None)
