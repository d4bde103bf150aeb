"""Accept-Encoding, as cargo, browsers and others write it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.negotiation import accepts_gzip, asks_for_html
from tests.core import strategies as our


@pytest.mark.parametrize(
    "header",
    [
        "deflate, gzip",  # cargo's
        "gzip, deflate, br, zstd",
        "gzip",
        "GZip",
        "x-gzip",
        "br,gzip",
        " gzip ; q=0.5 ",
        "gzip;Q=0.001",
        "gzip;q=1.000",
        "*",
        "*;q=0.1",
        "br;q=0, *",
        "gzip, *;q=0",
        "identity;q=0, gzip;q=0.5",
        ", gzip",
    ],
)
def test_gzip_is_taken(header: str) -> None:
    assert accepts_gzip(header)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        " ",
        ",",
        "identity",
        "deflate, br",
        "gzip;q=0",
        "gzip;q=0.000",
        "gzip; q = 0",
        "gzip;q=0, *",
        "*, gzip;q=0",
        "*;q=0",
        "gzipped",
        "not-gzip",
        # What no one can read is no consent.
        "gzip;q=",
        "gzip;q=much",
        "gzip;q=nan",
        "gzip;q=-1",
    ],
)
def test_gzip_is_not_taken(header: str | None) -> None:
    assert not accepts_gzip(header)


others = st.lists(
    st.sampled_from(["br", "deflate;q=0.9", "identity;q=0", "zstd;q=0", "", "compress"]), max_size=4
)
weights = st.none() | st.integers(0, 1000)


def with_weight(coding: str, weight: int | None) -> str:
    return coding if weight is None else f"{coding};q={weight / 1000:.3f}"


@given(others, weights, weights, st.data())
def test_its_own_weight_counts_and_then_that_of_the_wildcard(
    codings: list[str], weight: int | None, wildcard: int | None, data: st.DataObject
) -> None:
    some = [*codings, with_weight("*", wildcard)]
    assert accepts_gzip(", ".join(data.draw(st.permutations(some)))) == (wildcard != 0)
    every = [*some, with_weight("gzip", weight)]
    assert accepts_gzip(",".join(data.draw(st.permutations(every)))) == (weight != 0)
    without = data.draw(st.permutations([*codings, with_weight("gzip", weight)]))
    assert accepts_gzip(" , ".join(without)) == (weight != 0)


@given(our.any_text)
def test_no_header_raises_or_is_consent_without_naming_gzip_or_everything(header: str) -> None:
    assert not accepts_gzip(header) or "gzip" in header.lower() or "*" in header


@pytest.mark.parametrize(
    ("accept", "asks"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("application/json, Text/HTML ;q=0.5", True),
        ("text/html;level=1;q=0.1", True),
        ("text/html;q=0", False),
        ("text/html;q=0.000,*/*", False),
        ("*/*", False),
        ("text/*", False),
        ("text/plain", False),
        ("text/htmlx", False),
        ("", False),
        (",;,;q=", False),
        (None, False),
    ],
)
def test_html_is_for_who_names_it(accept: str | None, asks: bool) -> None:
    assert asks_for_html(accept) is asks
