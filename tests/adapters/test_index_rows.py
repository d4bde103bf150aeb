"""The metadata row of a snapshot: whose validators are in it, and who may read it."""

import hashlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.adapters.index_rows import Metadata, Unknown, read_metadata, write_metadata
from proxy.core.answers import NO_VALIDATORS, Validators

KEY = "crates-io/serde"
MIRROR = "https://packages.site-b.example.com/index/"
HEADER = struct.Struct(">4sBcQ32s")
texts = st.none() | st.text(st.characters(codec="ascii", exclude_characters="\r\n\0"))


def metadata(validators: Validators) -> Metadata:
    return Metadata(None, validators, 1.0, 2.0, None)


def fields_of(row: bytes) -> dict[str, object]:
    """Read a row as any program of this format does."""
    magic, version, kind, length, digest = HEADER.unpack_from(row)
    content = row[HEADER.size :]
    assert (magic, version, kind, length) == (b"HFix", 1, b"m", len(content))
    assert digest == hashlib.sha256(content).digest()
    fields: dict[str, object] = json.loads(content)
    return fields


def row_of(fields: dict[str, object]) -> bytes:
    """Write a row with these fields."""
    content = json.dumps(fields).encode()
    digest = hashlib.sha256(content).digest()
    return HEADER.pack(b"HFix", 1, b"m", len(content), digest) + content


@given(texts, texts, st.sampled_from(["", MIRROR]))
def test_validators_come_back_with_who_gave_them(
    etag: str | None, last_modified: str | None, mirror: str
) -> None:
    given_ = metadata(Validators(etag, last_modified, mirror))
    assert read_metadata(write_metadata(KEY, given_), KEY) == given_


def test_a_version_that_knows_no_mirrors_finds_no_validators_in_a_mirrors_row() -> None:
    fields = fields_of(write_metadata(KEY, metadata(Validators('"abc"', "some day", MIRROR))))
    assert (fields["etag"], fields["last_modified"]) == (None, None)
    own = fields_of(write_metadata(KEY, metadata(Validators('"abc"', "some day"))))
    assert (own["etag"], own["last_modified"]) == ('"abc"', "some day")
    assert "mirror" not in own, "and writes what it has always written"


def test_a_row_from_before_there_were_mirrors_is_the_upstreams() -> None:
    fields = fields_of(write_metadata(KEY, metadata(Validators('"abc"'))))
    assert read_metadata(row_of(fields), KEY).validators == Validators('"abc"', None, "")


@pytest.mark.parametrize(
    "mirror",
    [MIRROR, 7, {}, [], [MIRROR], [MIRROR, None, None, None], [7, None, None], [MIRROR, 7, None]],
    ids=str,
)
def test_a_mirror_that_is_none_is_an_unknown_row(mirror: object) -> None:
    fields = fields_of(write_metadata(KEY, metadata(NO_VALIDATORS)))
    with pytest.raises(Unknown):
        read_metadata(row_of({**fields, "mirror": mirror}), KEY)


def test_a_line_break_in_a_mirrors_validator_goes_into_no_header() -> None:
    fields = fields_of(write_metadata(KEY, metadata(NO_VALIDATORS)))
    with pytest.raises(Unknown):
        read_metadata(row_of({**fields, "mirror": [MIRROR, "a\r\nb: c", None]}), KEY)
