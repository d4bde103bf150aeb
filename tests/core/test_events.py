"""The one vocabulary: the words that dashboards and cargo's error messages show."""

import inspect
from dataclasses import FrozenInstanceError
from enum import StrEnum
from typing import get_args

import pytest

from proxy.core import events
from proxy.core.events import Event, How, Kind, NameRemoved


def test_how_is_said_in_the_words_of_the_x_cache_header() -> None:
    assert {str(how) for how in How} == {
        *("hit", "stale", "revalidated", "miss", "coalesced"),
        *("negative", "refused", "bypass", "error"),
    }


def test_kinds_are_the_labels_of_the_metrics() -> None:
    assert {str(kind) for kind in Kind} == {"config", "index", "crate", "api"}


def test_every_event_is_one_of_the_union() -> None:
    declared = {
        thing
        for _, thing in inspect.getmembers(events, inspect.isclass)
        if thing.__module__ == events.__name__ and not issubclass(thing, StrEnum)
    }
    assert declared == set(get_args(Event))


def test_what_happened_cannot_be_changed() -> None:
    event = NameRemoved(upstream="crates-io", name="serde")
    with pytest.raises(FrozenInstanceError):
        event.name = "other"  # type: ignore[misc]
    assert event == NameRemoved("crates-io", "serde")
