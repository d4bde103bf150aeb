"""Content codings undone: the laws of it, and the bombs that must not go off."""

import gzip
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.adapters.decoding import BodyTooLarge, UndecodableBody, decoder_for

MEBIBYTE = 1 << 20
LAWS = settings(derandomize=True, deadline=None, max_examples=150)


def _deflated(body: bytes) -> bytes:
    return zlib.compress(body)


def _gzipped(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)


def _gzipped_in_members(body: bytes) -> bytes:
    half = len(body) // 2
    return _gzipped(body[:half]) + _gzipped(b"") + _gzipped(body[half:])


ENCODERS: list[tuple[str | None, Callable[[bytes], bytes]]] = [
    (None, bytes),
    ("identity", bytes),
    ("gzip", _gzipped),
    (" GZip ", _gzipped),
    ("x-gzip", _gzipped),
    ("gzip", _gzipped_in_members),
    ("deflate", _deflated),
]
encoders = st.sampled_from(ENCODERS)
# Repeated far enough, a short text fills more than one of the pieces that come out.
bodies = st.builds(
    lambda text, times: text * times, st.binary(max_size=300), st.sampled_from([1, 2, 50, 3000])
)


@st.composite
def chunkings(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Cut `data` into pieces, some of them empty or of one byte."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def decoded(coding: str | None, chunks: list[bytes], max_bytes: int) -> Iterator[bytes]:
    """Yield what comes out, to the end."""
    decoder = decoder_for(coding, max_bytes)
    for chunk in chunks:
        yield from decoder.feed(chunk)
    decoder.finish()


def outcome(pieces: Iterator[bytes]) -> tuple[list[bytes], type[Exception] | None]:
    """Return what comes out, and what it ends with, of the two ways to refuse."""
    out: list[bytes] = []
    try:
        out.extend(pieces)
    except (BodyTooLarge, UndecodableBody) as refusal:
        return out, type(refusal)
    return out, None


@LAWS
@given(data=st.data(), encoder=encoders, body=bodies)
def test_what_was_encoded_comes_back_however_it_was_cut(
    data: st.DataObject, encoder: tuple[str | None, Callable[[bytes], bytes]], body: bytes
) -> None:
    coding, encode = encoder
    chunks = data.draw(chunkings(encode(body)))
    assert b"".join(decoded(coding, chunks, len(body))) == body


@LAWS
@given(data=st.data(), encoder=encoders, body=bodies.filter(bool), ceiling=st.data())
def test_nothing_beyond_the_ceiling_comes_out(
    data: st.DataObject,
    encoder: tuple[str | None, Callable[[bytes], bytes]],
    body: bytes,
    ceiling: st.DataObject,
) -> None:
    coding, encode = encoder
    chunks = data.draw(chunkings(encode(body)))
    max_bytes = ceiling.draw(st.integers(0, len(body) - 1))
    out, refusal = outcome(decoded(coding, chunks, max_bytes))
    assert refusal is BodyTooLarge
    assert sum(map(len, out)) <= max_bytes
    assert body.startswith(b"".join(out))


@LAWS
@given(
    data=st.data(),
    coding=st.sampled_from([None, "gzip", "deflate", "br", "gzip, gzip", "", "\x00", "zstd"]),
    garbage=st.binary(max_size=2000),
    max_bytes=st.integers(0, 4000),
)
def test_garbage_is_refused_in_one_of_two_ways_or_harmless(
    data: st.DataObject, coding: str | None, garbage: bytes, max_bytes: int
) -> None:
    chunks = data.draw(chunkings(garbage))
    out, _ = outcome(decoded(coding, chunks, max_bytes))
    assert sum(map(len, out)) <= max_bytes


@LAWS
@given(
    data=st.data(),
    encoder=st.sampled_from([("gzip", _gzipped), ("deflate", _deflated)]),
    body=bodies,
)
def test_a_stream_that_ends_in_the_middle_is_no_body(
    data: st.DataObject, encoder: tuple[str, Callable[[bytes], bytes]], body: bytes
) -> None:
    coding, encode = encoder
    whole = encode(body)
    cut = data.draw(st.integers(1, len(whole) - 1))
    out, refusal = outcome(decoded(coding, [whole[:cut]], len(body)))
    assert refusal is UndecodableBody
    assert body.startswith(b"".join(out))


@LAWS
@given(data=st.data(), body=bodies.filter(bool))
def test_a_flipped_bit_never_passes_for_the_truth(data: st.DataObject, body: bytes) -> None:
    whole = bytearray(_gzipped(body))
    # The first ten bytes are the head, which says nothing that the checksum covers.
    whole[data.draw(st.integers(10, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    out, refusal = outcome(decoded("gzip", [bytes(whole)], 2 * len(body)))
    assert refusal is not None or b"".join(out) == body


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_does_not_go_off(coding: str) -> None:
    squeeze = zlib.compressobj(9, wbits=31 if coding == "gzip" else 15)
    bomb = squeeze.compress(bytes(64 * MEBIBYTE)) + squeeze.flush()
    assert len(bomb) < MEBIBYTE // 8
    out, refusal = outcome(decoded(coding, [bomb], MEBIBYTE))
    assert refusal is BodyTooLarge
    assert sum(map(len, out)) <= MEBIBYTE
    assert max(map(len, out)) <= 256 * 1024, "it comes in pieces, not at once"


@pytest.mark.parametrize(
    ("coding", "first", "then"),
    [
        ("gzip", b"", _gzipped(b"")),
        ("deflate", b"", _deflated(b"")),
        # A stream that has begun, and stored blocks with nothing in them (RFC 1951, 3.2.4).
        ("deflate", b"\x78\x9c", b"\x00\x00\x00\xff\xff"),
    ],
)
def test_what_never_becomes_anything_has_a_ceiling_too(
    coding: str, first: bytes, then: bytes
) -> None:
    sent_bytes = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent_bytes
        decoder = decoder_for(coding, 1000)
        yield from decoder.feed(first)
        for _ in range(10_000):
            sent_bytes += len(then)
            yield from decoder.feed(then)

    assert outcome(endless()) == ([], BodyTooLarge)
    assert 1000 <= sent_bytes < 10_000


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "gzip,identity"])
def test_a_coding_that_was_not_asked_for_is_refused(coding: str) -> None:
    with pytest.raises(UndecodableBody, match="not asked for"):
        decoder_for(coding, 100)


@pytest.mark.parametrize("coding", [None, "identity", "gzip", "deflate"])
def test_nothing_sent_is_nothing_received(coding: str | None) -> None:
    assert list(decoded(coding, [], 0)) == []


def test_incompressible_bytes_may_grow_a_little_under_their_coding() -> None:
    noise = zlib.compress(bytes(range(256)) * 40, 9) * 200
    sent = gzip.compress(noise, compresslevel=0, mtime=0)
    assert len(sent) > len(noise)
    assert b"".join(decoded("gzip", [sent], len(noise))) == noise
