"""The forms of an index file: the upstream's bytes, ours in gzip, and what each is called."""

import gzip
import hashlib
from dataclasses import replace

import pytest

from proxy.core.answers import Snapshot, Validators
from proxy.service.rendered import render, with_snapshot

LINE = b'{"name":"serde","vers":"1.0.0","deps":[],"cksum":"00","features":{},"yanked":false}\n'
LAST_MODIFIED = "Thu, 01 Jan 2026 00:00:01 GMT"


def snapshot(body: bytes) -> Snapshot:
    return Snapshot(body, Validators('"upstream"', LAST_MODIFIED), 1_700_000_000.5, 1_700_000_060.0)


@pytest.mark.parametrize("body", [LINE, LINE * 500, b"\xff\x00" + LINE, LINE.rstrip(b"\n")])
def test_the_forms_hold_the_upstreams_own_bytes(body: bytes) -> None:
    rendered = render(snapshot(body))
    assert rendered.identity == body
    if rendered.gzipped is not None:
        assert gzip.decompress(rendered.gzipped) == body
        assert len(rendered.gzipped) < len(body)


def test_what_gzip_does_not_shrink_is_sent_as_it_is() -> None:
    assert render(snapshot(LINE)).gzipped is None
    noise = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(100))
    assert render(snapshot(noise)).gzipped is None
    assert render(snapshot(LINE * 10)).gzipped is not None


def test_names_come_from_the_bytes_alone() -> None:
    rendered = render(snapshot(LINE * 10))
    digest = hashlib.sha256(LINE * 10).hexdigest()
    assert (rendered.etag, rendered.gzip_etag) == (f'"{digest}"', f'"{digest}-gzip"')
    other = replace(snapshot(LINE * 10), validators=Validators(), learned_at=1.0, confirmed_at=2.0)
    again = render(other)
    assert (again.etag, again.gzipped) == (rendered.etag, rendered.gzipped)


def test_the_date_is_the_upstreams_or_that_of_our_learning() -> None:
    assert render(snapshot(LINE)).last_modified == LAST_MODIFIED
    dateless = replace(snapshot(LINE), validators=Validators('"upstream"'))
    assert render(dateless).last_modified == "Tue, 14 Nov 2023 22:13:20 GMT"


def test_a_confirmed_file_keeps_its_forms() -> None:
    rendered = render(snapshot(LINE * 10))
    confirmed = replace(
        snapshot(LINE * 10), confirmed_at=1_700_000_999.0, validators=Validators('"other"')
    )
    again = with_snapshot(rendered, confirmed)
    assert again.snapshot is confirmed
    assert (again.identity, again.gzipped, again.etag) == (
        rendered.identity,
        rendered.gzipped,
        rendered.etag,
    )
    assert again.last_modified == "Tue, 14 Nov 2023 22:13:20 GMT"


def test_the_cost_counts_both_forms() -> None:
    rendered = render(snapshot(LINE * 100))
    assert rendered.gzipped is not None
    assert rendered.cost_bytes > len(rendered.identity) + len(rendered.gzipped)
