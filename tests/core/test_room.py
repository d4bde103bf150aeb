"""Room on the disk: evicting what is called too much is always enough."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.core.room import BLOCK_BYTES, Excess, Limits, Usage, can_ever_fit, excess, on_disk

sizes = st.integers(0, 2000) | st.integers(0, 2**41)
limits = st.builds(Limits, max_size_bytes=sizes, min_free_bytes=sizes)
usages = st.builds(Usage, stored_bytes=sizes, reserved_bytes=sizes, free_bytes=sizes)


def after_evicting(usage: Usage, size_bytes: int) -> Usage:
    return replace(
        usage,
        stored_bytes=usage.stored_bytes - size_bytes,
        free_bytes=usage.free_bytes + size_bytes,
    )


@pytest.mark.parametrize(
    ("size", "taken"), [(0, 0), (1, 4096), (4095, 4096), (4096, 4096), (4097, 8192)]
)
def test_a_file_takes_whole_blocks(size: int, taken: int) -> None:
    assert on_disk(size) == taken


@given(sizes)
def test_a_file_takes_less_than_a_block_too_much(size: int) -> None:
    assert on_disk(size) % BLOCK_BYTES == 0
    assert 0 <= on_disk(size) - size < BLOCK_BYTES


@pytest.mark.parametrize(
    ("usage", "wanted", "expected"),
    [
        (Usage(0, 0, 10_000), 1000, None),
        (Usage(600, 300, 10_000), 100, None),
        (Usage(600, 300, 10_000), 101, Excess(1 + 12, "max_size")),
        (Usage(1200, 0, 10_000), 0, Excess(200 + 20, "max_size")),
        (Usage(500, 0, 150), 100, Excess(50 + 10, "min_free")),
        (Usage(500, 100, 300), 100, None),
        (Usage(500, 101, 300), 100, Excess(1 + 10, "min_free")),
        (Usage(990, 0, 200), 110, Excess(100 + 19, "max_size")),
        (Usage(990, 0, 100), 110, Excess(110 + 19, "min_free")),
        (Usage(1000, 0, 100), 110, Excess(110 + 20, "max_size")),
    ],
)
def test_a_thousand_bytes_and_a_hundred_to_stay_free(
    usage: Usage, wanted: int, expected: Excess | None
) -> None:
    assert excess(usage, Limits(max_size_bytes=1000, min_free_bytes=100), wanted) == expected


@given(usages, limits, sizes)
def test_nothing_must_go_exactly_while_both_limits_hold(
    usage: Usage, allowed: Limits, wanted: int
) -> None:
    committed = usage.stored_bytes + usage.reserved_bytes + wanted
    left_free = usage.free_bytes - usage.reserved_bytes - wanted
    fits = committed <= allowed.max_size_bytes and left_free >= allowed.min_free_bytes
    assert (excess(usage, allowed, wanted) is None) == fits


@given(usages, limits, sizes, sizes)
def test_evicting_the_excess_or_all_there_is_makes_room_if_anything_can(
    usage: Usage, allowed: Limits, wanted: int, too_much: int
) -> None:
    over = excess(usage, allowed, wanted)
    assume(over is not None)
    assert over is not None
    assert over.bytes > 0
    # Blobs are whole: somewhat more than the excess may go.
    evicted = min(usage.stored_bytes, over.bytes + too_much)
    left = excess(after_evicting(usage, evicted), allowed, wanted)
    empty = excess(after_evicting(usage, usage.stored_bytes), allowed, wanted)
    assert left is None or empty is not None


@given(usages, limits, sizes)
def test_a_little_more_goes_so_that_the_next_crate_does_not_begin_anew(
    usage: Usage, allowed: Limits, wanted: int
) -> None:
    over = excess(usage, allowed, wanted)
    if over is not None and over.bytes <= usage.stored_bytes:
        left = after_evicting(usage, over.bytes)
        slack = int(min(allowed.max_size_bytes, usage.stored_bytes) * 0.019)
        assert excess(left, allowed, wanted + slack) is None


@given(usages, limits, sizes)
def test_the_reason_is_a_limit_that_does_not_hold(
    usage: Usage, allowed: Limits, wanted: int
) -> None:
    over = excess(usage, allowed, wanted)
    if over is not None and over.reason == "max_size":
        assert usage.stored_bytes + usage.reserved_bytes + wanted > allowed.max_size_bytes
    if over is not None and over.reason == "min_free":
        free = usage.free_bytes - usage.reserved_bytes - wanted
        assert free < allowed.min_free_bytes


@given(limits, sizes)
def test_what_can_ever_fit_fits_an_empty_store_on_an_empty_disk(
    allowed: Limits, wanted: int
) -> None:
    empty = Usage(stored_bytes=0, reserved_bytes=0, free_bytes=2**60)
    assert can_ever_fit(allowed, wanted) == (excess(empty, allowed, wanted) is None)
