"""The two rows of a snapshot, as bytes that prove themselves.

A snapshot is a small row of metadata and, unless it is a tombstone, a large one with the body, so
that a 304 rewrites some two hundred bytes and not three megabytes. Both begin with the same header:

    4 bytes   "HFix"
    1 byte    the version of the format, 1
    1 byte    "m" or "b"
    8 bytes   the length of the content, big-endian
    32 bytes  the SHA-256 of the content

then comes the content, a JSON object (`m`) or the gzipped body (`b`, whose length and digest are
those of the body itself). The metadata names the key it was written under and repeats the length
and digest of its body: a row in a wrong place, half of a pair, a short row, a flipped bit are told
from what was put. None of this defends against somebody who can write the file and recompute a
digest; it only has to be read without harm.

`Unknown` is a row in a format that is not ours (a miss); `Damaged` is one of ours that is broken.
"""

import gzip
import hashlib
import json
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from proxy.core.answers import Snapshot, Validators

_MAGIC: Final = b"HFix"
_VERSION: Final = 1
_METADATA: Final = b"m"
_BODY: Final = b"b"
_HEADER: Final = struct.Struct(">4sBcQ32s")
_GZIP_LEVEL: Final = 6
_GZIP_WBITS: Final = 31
_BREAKS: Final = frozenset("\r\n\0")


class Unknown(Exception):
    """Not a row of this format: somebody else's, or another version's."""


class Damaged(Exception):
    """A row of ours that does not hold what was put. Carries what should be, and what is there."""

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(f"expected {expected}, found {actual}")
        self.expected = expected
        self.actual = actual


@dataclass(frozen=True, slots=True)
class BodyRef:
    """What proves a body."""

    sha256: str
    length: int

    @classmethod
    def of(cls, body: bytes) -> "BodyRef":
        """Measure and hash `body`."""
        return cls(hashlib.sha256(body).hexdigest(), len(body))


@dataclass(frozen=True, slots=True)
class Metadata:
    """A snapshot without its body; `body` is None for a tombstone."""

    body: BodyRef | None
    validators: Validators
    learned_at: float
    confirmed_at: float
    older_since: float | None

    @classmethod
    def of(cls, snapshot: Snapshot) -> "Metadata":
        """Take all of `snapshot` but its body, which is hashed."""
        return cls(
            None if snapshot.body is None else BodyRef.of(snapshot.body),
            snapshot.validators,
            snapshot.learned_at,
            snapshot.confirmed_at,
            snapshot.older_since,
        )

    def with_body(self, body: bytes | None) -> Snapshot:
        """Return the snapshot."""
        return Snapshot(body, self.validators, self.learned_at, self.confirmed_at, self.older_since)


def write_metadata(key: str, metadata: Metadata) -> bytes:
    """Return the metadata row for `key`."""
    body, validators = metadata.body, metadata.validators
    etag, last_modified = validators.etag, validators.last_modified
    fields: dict[str, object] = {
        "key": key,
        "body": None if body is None else {"sha256": body.sha256, "length": body.length},
        "etag": None if validators.mirror else etag,
        "last_modified": None if validators.mirror else last_modified,
        "learned_at": metadata.learned_at,
        "confirmed_at": metadata.confirmed_at,
        "older_since": metadata.older_since,
    }
    if validators.mirror:
        # A version that knows no mirrors must not take these for the upstream's own.
        fields["mirror"] = [validators.mirror, etag, last_modified]
    content = json.dumps(fields, separators=(",", ":")).encode()
    digest = hashlib.sha256(content).digest()
    return _HEADER.pack(_MAGIC, _VERSION, _METADATA, len(content), digest) + content


def read_metadata(row: bytes, key: str) -> Metadata:
    """Return what `write_metadata` was given for `key`. Raises Unknown and Damaged."""
    length, digest, content = _split(row, _METADATA)
    actual = hashlib.sha256(content).hexdigest()
    if len(content) != length or actual != digest:
        raise Damaged(digest, actual)
    try:
        fields = json.loads(bytes(content))
        written_under = fields["key"]
        metadata = Metadata(
            _body_ref(fields["body"]),
            _validators(fields),
            _time(fields["learned_at"]),
            _time(fields["confirmed_at"]),
            None if fields["older_since"] is None else _time(fields["older_since"]),
        )
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        raise Unknown from None
    if written_under != key:
        raise Damaged(key, str(written_under)[:100])
    return metadata


def write_body(body: bytes, ref: BodyRef) -> bytes:
    """Return the body row of `body`, which is what `ref` refers to. Takes its time: compresses."""
    header = _HEADER.pack(_MAGIC, _VERSION, _BODY, ref.length, bytes.fromhex(ref.sha256))
    return header + gzip.compress(body, _GZIP_LEVEL, mtime=0)


def read_body(row: bytes, ref: BodyRef) -> bytes:
    """Return the body that `ref` refers to, never inflating past its length.

    Raises Unknown and Damaged.
    """
    length, digest, content = _split(row, _BODY)
    if digest != ref.sha256 or length != ref.length:
        raise Damaged(ref.sha256, digest)
    inflate = zlib.decompressobj(_GZIP_WBITS)
    try:
        # One byte more than there may be: the trailer is only read once the limit is not reached.
        body = inflate.decompress(content, ref.length + 1)
    except zlib.error as error:
        raise Damaged(ref.sha256, f"no gzip: {error}") from None
    if not inflate.eof or inflate.unused_data:
        raise Damaged(ref.sha256, "a gzip of another length")
    if (actual := BodyRef.of(body)) != ref:
        raise Damaged(ref.sha256, actual.sha256)
    return body


def _split(row: bytes, kind: bytes) -> tuple[int, str, memoryview]:
    if len(row) < _HEADER.size:
        raise Unknown
    magic, version, found_kind, length, digest = _HEADER.unpack_from(row)
    if (magic, version, found_kind) != (_MAGIC, _VERSION, kind):
        raise Unknown
    return length, digest.hex(), memoryview(row)[_HEADER.size :]


def _body_ref(field: object) -> BodyRef | None:
    if field is None:
        return None
    if not isinstance(field, dict):
        raise TypeError
    sha256, length = field["sha256"], field["length"]
    if not isinstance(sha256, str) or type(length) is not int or length < 0:
        raise TypeError
    return BodyRef(sha256, length)


def _validators(fields: dict[str, object]) -> Validators:
    theirs = fields.get("mirror")
    if theirs is None:
        return Validators(_text(fields["etag"]), _text(fields["last_modified"]))
    if not isinstance(theirs, list):
        raise TypeError
    mirror, etag, last_modified = theirs
    return Validators(_text(etag), _text(last_modified), _text(mirror) or "")


def _text(field: object) -> str | None:
    if field is None:
        return None
    # It goes into a request header, and only there could a line break do harm.
    if not isinstance(field, str) or not _BREAKS.isdisjoint(field):
        raise TypeError
    return field


def _time(field: object) -> float:
    if isinstance(field, bool) or not isinstance(field, int | float):
        raise TypeError
    return float(field)
