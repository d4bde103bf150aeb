"""Cutting frames out of bytes: nothing is lost, and only whole plain requests are taken out."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.web.http2.frames import FRAME_MAX_BYTES, Cutter, Question, TooLarge, answer
from tests.web.doorstep import doorstep
from tests.world import http2
from tests.world.http2 import (
    END_HEADERS,
    END_STREAM,
    PADDED,
    PREFACE,
    PRIORITY_FLAG,
    Code,
    Kind,
    connected,
    frame,
)
from tests.world.server import RegistryServer

WHOLE = END_STREAM | END_HEADERS
# Priorities that depend on streams 0, 1 and 5, the last one exclusively.
PRIORITIES = st.sampled_from([b"\0\0\0\0\x0f", b"\0\0\0\x01\x0f", b"\x80\0\0\x05\xff"])
STREAMS = st.sampled_from([0, 1, 2, 3, 5, 7, 2**31 - 1, 2**31 + 1, 2**32 - 1])
PAYLOADS = st.binary(max_size=12) | st.builds(bytes.__add__, PRIORITIES, st.binary(max_size=6))
FLAGS = st.sampled_from([WHOLE] * 4 + [WHOLE | PRIORITY_FLAG] * 2) | st.integers(0, 255)
KINDS = st.sampled_from([Kind.HEADERS] * 4 + list(Kind)).map(int) | st.integers(0, 255)
FRAMES = st.lists(st.builds(frame, KINDS, FLAGS, STREAMS, PAYLOADS), max_size=6).map(b"".join)


def chunked(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


def questions_of(data: bytes) -> list[Question]:
    """Return what RFC 9113 section 6.2 makes whole requests, read frame by frame."""
    found = []
    at = 0
    while len(data) - at >= 9:
        past = at + 9 + int.from_bytes(data[at : at + 3], "big")
        if past > len(data):
            break
        kind, flags = data[at + 3], data[at + 4]
        stream, payload = int.from_bytes(data[at + 5 : at + 9], "big"), data[at + 9 : past]
        is_request = kind == Kind.HEADERS and flags & WHOLE == WHOLE and not flags & PADDED
        if is_request and stream % 2 == 1 and stream < 2**31:
            if not flags & PRIORITY_FLAG:
                found.append(Question(stream, payload, data[at:past]))
            elif len(payload) >= 5 and int.from_bytes(payload[:4], "big") % 2**31 != stream:
                found.append(Question(stream, payload[5:], data[at:past]))
        at = past
    return found


@settings(max_examples=500, derandomize=True, deadline=None)
@given(
    st.sampled_from([b"", PREFACE]),
    FRAMES | st.builds(bytes.__add__, FRAMES, st.binary(max_size=30)),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_however_it_comes_nothing_is_lost_and_questions_are_taken_out(
    preface: bytes, data: bytes, cuts: list[int]
) -> None:
    cutter = Cutter(len(preface))
    whole: list[bytes | Question] = []
    try:
        for chunk in chunked(preface + data, cuts):
            whole += cutter.cut(chunk)
    except TooLarge:
        assert any(
            int.from_bytes(data[at : at + 3], "big") > FRAME_MAX_BYTES for at in range(len(data))
        )
        return
    cut = b"".join([part.frame if isinstance(part, Question) else part for part in whole])
    assert cut + cutter._rest == preface + data
    assert [part for part in whole if isinstance(part, Question)] == questions_of(data)
    assert b"" not in whole
    # What is kept is the beginning of one frame, which has not come whole.
    rest = cutter._rest
    assert len(rest) < 9 or len(rest) < 9 + int.from_bytes(rest[:3], "big")


@pytest.mark.parametrize("flags", [WHOLE, 0xF7])
def test_a_priority_is_passed_over_and_one_on_itself_is_for_the_library(flags: int) -> None:
    asked = frame(Kind.HEADERS, flags | PRIORITY_FLAG, 5, b"\x80\0\0\x03\x0fabc")
    on_itself = frame(Kind.HEADERS, flags | PRIORITY_FLAG, 5, b"\x80\0\0\x05\x0fabc")
    too_short = frame(Kind.HEADERS, flags | PRIORITY_FLAG, 5, b"\0\0\0\0")
    assert Cutter(0).cut(asked) == [Question(5, b"abc", asked)]
    assert Cutter(0).cut(on_itself) == [on_itself]
    assert Cutter(0).cut(too_short) == [too_short]


def test_a_preface_that_comes_byte_by_byte_is_passed_on_as_it_comes() -> None:
    cutter = Cutter(len(PREFACE))
    assert [cutter.cut(PREFACE[at : at + 1]) for at in range(24)] == [
        [PREFACE[at : at + 1]] for at in range(24)
    ]
    question = frame(Kind.HEADERS, WHOLE, 1, b"abc")
    assert cutter.cut(question) == [Question(1, b"abc", question)]


@pytest.mark.parametrize("kind", [Kind.DATA, Kind.HEADERS, Kind.SETTINGS, 0x16])
def test_what_announces_too_much_is_refused_before_it_comes(kind: int) -> None:
    Cutter(0).cut(frame(kind, WHOLE, 1, length=FRAME_MAX_BYTES))
    with pytest.raises(TooLarge):
        Cutter(0).cut(frame(kind, WHOLE, 1, length=FRAME_MAX_BYTES + 1))


@pytest.mark.parametrize("size", [0, 1, 9, 10, 20, 21, 95])
def test_an_answer_is_cut_to_the_peers_frames(size: int) -> None:
    body = bytes(range(size))
    sent = b"".join(answer(7, b"head", body, 10))
    frames = []
    while sent:
        past = 9 + int.from_bytes(sent[:3], "big")
        assert past <= 9 + 10
        frames.append((sent[3], sent[4], int.from_bytes(sent[5:9], "big"), sent[9:past]))
        sent = sent[past:]
    assert all(stream == 7 for _, _, stream, _ in frames)
    assert frames[0][0] == Kind.HEADERS
    assert frames[0][3] == b"head"
    assert all(kind == Kind.DATA for kind, _, _, _ in frames[1:])
    assert b"".join(payload for _, _, _, payload in frames[1:]) == body
    ends = [bool(flags & END_STREAM) for _, flags, _, _ in frames]
    assert ends == [False] * (len(frames) - 1) + [True]
    assert [flags & END_HEADERS for _, flags, _, _ in frames] == [END_HEADERS] + [0] * (
        len(frames) - 1
    )


@pytest.mark.parametrize("kind", [Kind.DATA, Kind.HEADERS, Kind.PING, 0x16])
@pytest.mark.parametrize("length", [16_385, 2**24 - 1])
async def test_a_client_that_announces_too_much_is_told_so_at_once(
    tmp_path: Path, upstream: RegistryServer, kind: int, length: int
) -> None:
    async with doorstep(tmp_path, upstream) as door, connected(door.port) as peer:
        peer.send(frame(kind, WHOLE, 1, length=length))
        assert await peer.end() == Code.FRAME_SIZE_ERROR
        assert peer.goaway == (0, Code.FRAME_SIZE_ERROR)


async def test_the_largest_frame_is_taken(tmp_path: Path, upstream: RegistryServer) -> None:
    async with doorstep(tmp_path, upstream) as door, connected(door.port) as peer:
        peer.send(frame(0x16, 0, 0, bytes(16_384)), http2.get(1, "/"))
        assert (await peer.reply(1)).status == 200
