"""Conditional requests, clause by clause of RFC 9110, and its three forms of a date."""

from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.conditional import (
    format_http_date,
    if_modified_since_holds,
    if_none_match_holds,
    parse_http_date,
)
from tests.core import strategies as our

OURS = ('"5d41"', '"5d41-gzip"')
THEN = 784111777


@pytest.mark.parametrize(
    "header",
    [
        '"5d41"',
        '"5d41-gzip"',
        'W/"5d41"',
        ' "5d41" ',
        "*",
        " * ",
        '"x", "5d41"',
        '"x","5d41","y"',
        '"x" , W/"5d41-gzip"',
        '"a,b", "5d41"',
        # A cache of cargo's holds what it was given; some give no quotes.
        "5d41",
        "W/5d41",
        "x, 5d41-gzip",
        # 5.6.1.2: empty members are skipped.
        ', "5d41"',
        '"x", , "5d41"',
        ',,"5d41",,',
        # What cannot be read comes after what could.
        '"5d41", "open',
        '"5d41", b a d',
    ],
)
def test_a_tag_of_ours_is_found(header: str) -> None:
    assert if_none_match_holds(header, *OURS)


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        ",",
        '"5d4"',
        '"5d411"',
        '"5D41"',
        '""',
        '"x", "y"',
        '"5d41',
        '5d41"',
        '"5d41"x',
        'w/"5d41"',
        'W/ "5d41"',
        '"*"',
        '*, "x"',
        '"x, 5d41, y"',
        '"open, "5d41"',
        "'5d41'",
        "\xff",
    ],
)
def test_no_tag_of_ours_is_found(header: str) -> None:
    assert not if_none_match_holds(header, *OURS)


opaque = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='"'))
entity_tags = st.builds('{}"{}"'.format, st.sampled_from(["", "W/"]), opaque)
commas = st.sampled_from([",", ", ", " ,", "\t,\t", ",,", ", ,"])


@st.composite
def tag_lists(draw: st.DrawFn, tags: list[str]) -> str:
    header = draw(st.sampled_from(["", " ", ", "]))
    for tag in tags:
        header += tag + draw(commas)
    return header


@given(
    st.lists(entity_tags, min_size=1, max_size=5).flatmap(
        lambda tags: st.tuples(st.just(tags), tag_lists(tags))
    ),
    st.data(),
)
def test_a_list_holds_for_its_members_and_no_other_tag(
    written: tuple[list[str], str], data: st.DataObject
) -> None:
    tags, header = written
    members = {tag.removeprefix("W/") for tag in tags}
    for member in members:
        assert if_none_match_holds(header, member)
    stranger = data.draw(opaque.map('"{}"'.format).filter(lambda tag: tag not in members))
    assert not if_none_match_holds(header, stranger)


@given(our.any_text)
def test_no_header_raises_or_matches_a_tag_that_is_not_in_it(header: str) -> None:
    held = if_none_match_holds(header, '"5d41402a"')
    assert not held or header.strip() == "*" or "5d41402a" in header


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",  # IMF-fixdate
        "Sunday, 06-Nov-94 08:49:37 GMT",  # RFC 850
        "Sun Nov  6 08:49:37 1994",  # asctime
        "Sun, 06 Nov 1994 09:49:37 +0100",
        "Sun, 06 Nov 1994 08:49:37 -0000",
    ],
)
def test_every_form_of_a_date_is_the_same_moment(text: str) -> None:
    assert parse_http_date(text) == THEN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "784111777",
        "yesterday",
        "1994-11-06T08:49:37Z",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 25:49:37 GMT",
        "Sun, 06 Nov 99999 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 +99999999999999999999999",
        "\ud800",
    ],
)
def test_what_is_no_date_is_none(text: str) -> None:
    assert parse_http_date(text) is None


@given(our.any_text | st.text("SunNov 0123456789:,-+GMT", max_size=40))
@example("Mon, 01 Jan 0100 00:00:00 +2300")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
def test_no_text_makes_the_reading_of_dates_raise(text: str) -> None:
    seconds = parse_http_date(text)
    assert seconds is None or -1e11 < seconds < 3e11


@given(st.integers(0, int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())), st.floats(0, 0.999))
def test_a_date_that_we_write_is_the_preferred_form_and_reads_back(
    seconds: int, fraction: float
) -> None:
    text = format_http_date(seconds)
    assert text == our.imf_fixdate(seconds)
    assert parse_http_date(text) == seconds
    # Below 2**33 a double still has the fraction, which a date has no room for.
    if seconds < 2**33:
        assert format_http_date(seconds + fraction) == text


@pytest.mark.parametrize(
    ("header", "holds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", True),
        ("Sunday, 06-Nov-94 08:49:37 GMT", True),
        ("Sun, 06 Nov 1994 08:49:36 GMT", False),
        # Later than our copy: another edge's newer one, perhaps, so it proves nothing.
        ("Sun, 06 Nov 1994 08:49:38 GMT", False),
        ("", False),
        ("no date", False),
    ],
)
def test_only_the_very_date_that_we_gave_means_unchanged(header: str, *, holds: bool) -> None:
    assert if_modified_since_holds(header, "Sun, 06 Nov 1994 08:49:37 GMT") is holds


def test_two_dates_that_cannot_be_read_are_not_the_same() -> None:
    assert not if_modified_since_holds("whenever", "whenever")
