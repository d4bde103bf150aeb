"""RFC 9110 section 12.5.3, for gzip."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.negotiation import accepts_gzip


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False),
        ("", False),
        ("deflate, gzip", True),  # cargo's
        ("GZIP", True),
        ("x-gzip", True),
        ("gzip;q=0", False),
        ("gzip;q=0.0, *", False),
        ("gzip; q=0.001", True),
        ("gzip;q=nonsense", False),
        ("gzip;level=9", True),
        ("*", True),
        ("*;q=0", False),
        ("identity", False),
        ("br, zstd", False),
        ("gzipped", False),
    ],
)
def test_gzip_is_accepted_as_the_header_says(header: str | None, *, expected: bool) -> None:
    assert accepts_gzip(header) is expected


@given(st.text())
def test_any_text_is_read_without_an_error(header: str) -> None:
    assert isinstance(accepts_gzip(header), bool)


@given(st.lists(st.sampled_from(["br", "deflate;q=0.5", "identity", "zstd;q=1"])))
def test_other_codings_do_not_matter(others: list[str]) -> None:
    assert accepts_gzip(", ".join([*others, "gzip"]))
    assert not accepts_gzip(", ".join([*others, "gzip;q=0"]))
