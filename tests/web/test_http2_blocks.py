"""Whether a header block is whole: told without decoding it, and right about every block."""

from hypothesis import given
from hypothesis import strategies as st
from jh2.hpack import Decoder, Encoder, HPACKError

from proxy.web.http2.blocks import is_whole
from tests.world.http2 import literal

texts = st.binary(max_size=300)
fields = st.lists(st.tuples(st.binary(min_size=1, max_size=20), texts), max_size=5)


@given(st.lists(fields, min_size=1, max_size=3), st.booleans())
def test_what_an_encoder_writes_is_whole(
    blocks: list[list[tuple[bytes, bytes]]], huff: bool
) -> None:
    encoder = Encoder()
    for each in blocks:
        assert is_whole(encoder.encode([(n, v, False) for n, v in each], huffman=huff))


@given(st.binary(min_size=1, max_size=20), texts, st.data())
def test_a_field_that_is_cut_is_not(name: bytes, value: bytes, data: st.DataObject) -> None:
    block = literal(name, value)
    assert is_whole(block)
    assert not is_whole(block[: data.draw(st.integers(1, len(block) - 1))])


@given(st.binary(max_size=40))
def test_whatever_a_decoder_accepts_is_whole(block: bytes) -> None:
    try:
        Decoder().decode(block, raw=True)
    except HPACKError:
        return
    assert is_whole(block)
