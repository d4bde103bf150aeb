"""Ranges, against a body that is small enough to count its bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.ranges import ByteRange, Unsatisfiable, parse_range
from tests.core import strategies as our

lengths = st.integers(0, 12)
positions = st.integers(0, 14)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-499", ByteRange(0, 500)),
        ("bytes=500-999", ByteRange(500, 1000)),
        ("bytes=-500", ByteRange(500, 1000)),
        ("bytes=500-", ByteRange(500, 1000)),
        ("bytes=0-0", ByteRange(0, 1)),
        ("bytes=-1", ByteRange(999, 1000)),
        ("bytes=0-", ByteRange(0, 1000)),
        ("bytes=999-5000", ByteRange(999, 1000)),
        ("bytes=-5000", ByteRange(0, 1000)),
        ("bytes=1000-", Unsatisfiable()),
        ("bytes=1000-1001", Unsatisfiable()),
        ("bytes=-0", Unsatisfiable()),
        ("BYTES=1-2", ByteRange(1, 3)),
        (" bytes=1-2 ", ByteRange(1, 3)),
        ("bytes=007-008", ByteRange(7, 9)),
    ],
)
def test_one_range_of_a_thousand_bytes(header: str, expected: ByteRange | Unsatisfiable) -> None:
    assert parse_range(header, 1000) == expected


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=2-1",
        "bytes=--1",
        "bytes=1-2-3",
        "bytes=0-0,-1",
        "bytes=0-1, 3-4",
        "bytes=+1-2",
        "bytes=1.5-2",
        "bytes=\u0661-2",
        "items=0-1",
        "bytes 0-1/3",
        "bytes=1" + "0" * 30 + "-",
    ],
)
def test_what_is_not_one_plain_range_gets_the_whole_body(header: str) -> None:
    assert parse_range(header, 1000) is None


def spanned(body: range) -> ByteRange | Unsatisfiable:
    return ByteRange(body[0], body[-1] + 1) if body else Unsatisfiable()


@given(lengths, positions, positions)
def test_first_to_last_is_every_byte_that_lies_between(length: int, first: int, last: int) -> None:
    expected = None if last < first else spanned(range(length)[first : last + 1])
    assert parse_range(f"bytes={first}-{last}", length) == expected


@given(lengths, positions)
def test_first_to_the_end_is_every_byte_from_there(length: int, first: int) -> None:
    assert parse_range(f"bytes={first}-", length) == spanned(range(length)[first:])


@given(lengths, positions)
def test_a_suffix_is_so_many_bytes_from_the_end(length: int, suffix: int) -> None:
    expected = spanned(range(length)[max(0, length - suffix) :])
    assert parse_range(f"bytes=-{suffix}", length) == expected


headers = st.builds("bytes={}".format, st.text("0123456789-, ", max_size=24))


@given(headers | our.any_text, lengths)
def test_no_header_raises_or_leads_out_of_the_body(header: str, length: int) -> None:
    found = parse_range(header, length)
    if isinstance(found, ByteRange):
        assert 0 <= found.start < found.stop <= length
