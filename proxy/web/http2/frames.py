"""Frames as bytes: cutting what comes in into whole ones, writing those of a ready answer.

For the answers that are written past the library (RFC 9113 sections 4.1, 6.1 and 6.2). What a frame
means, and every frame of an ordinary stream, is the library's business.
"""

from typing import Final, NamedTuple

FRAME_MAX_BYTES: Final = 16_384
_HEAD_BYTES: Final = 9
_DATA, _HEADERS = 0, 1
_END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x4, 0x8, 0x20
_PRIORITY_BYTES: Final = 5
_STREAM_ID_MAX: Final = 0x7FFF_FFFF


class TooLarge(Exception):
    """A frame announces more than SETTINGS_MAX_FRAME_SIZE, which is never raised here."""


class Question(NamedTuple):
    """A whole request in one frame: HEADERS with END_HEADERS and END_STREAM, not padded.

    `block` is its header block, `frame` all of it.
    """

    stream_id: int
    block: bytes
    frame: bytes


class Cutter:
    """Keeps what is not yet a whole frame. `preface_bytes`: what comes before the first frame."""

    __slots__ = ("_preface_bytes", "_rest")

    def __init__(self, preface_bytes: int) -> None:
        self._preface_bytes = preface_bytes
        self._rest = b""

    def cut(self, data: bytes) -> list[bytes | Question]:
        """Return what is whole now: requests in one frame by themselves, all else as it came.

        Raises TooLarge.
        """
        if self._rest:
            data = self._rest + data
        whole: list[bytes | Question] = []
        at = begun = min(self._preface_bytes, len(data))
        if at:
            self._preface_bytes -= at
            begun = 0
        end = len(data)
        while end - at >= _HEAD_BYTES:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            if length > FRAME_MAX_BYTES:
                raise TooLarge
            past = at + _HEAD_BYTES + length
            if past > end:
                break
            if data[at + 3] == _HEADERS:
                question = _question(data, at, past)
                if question is not None:
                    if begun < at:
                        whole.append(data[begun:at])
                    whole.append(question)
                    begun = past
            at = past
        if begun < at:
            whole.append(data[begun:at])
        self._rest = data[at:]
        return whole


def answer(
    stream_id: int, block: bytes, body: bytes, frame_bytes: int
) -> tuple[bytes | memoryview, ...]:
    """Write a whole response as frames, none larger than the peer's `frame_bytes`.

    `block`, the encoded head, must fit one frame.
    """
    stream = stream_id.to_bytes(4, "big")
    if not body:
        return (_head(len(block), _HEADERS, _END_HEADERS | _END_STREAM, stream) + block,)
    begin = _head(len(block), _HEADERS, _END_HEADERS, stream) + block
    if len(body) <= frame_bytes:
        return begin + _head(len(body), _DATA, _END_STREAM, stream), body
    pieces: list[bytes | memoryview] = [begin]
    view = memoryview(body)
    for at in range(0, len(body), frame_bytes):
        piece = view[at : at + frame_bytes]
        last = at + frame_bytes >= len(body)
        pieces += (_head(len(piece), _DATA, _END_STREAM if last else 0, stream), piece)
    return tuple(pieces)


def _head(length: int, kind: int, flags: int, stream: bytes) -> bytes:
    return length.to_bytes(3, "big") + bytes((kind, flags)) + stream


def _question(data: bytes, at: int, past: int) -> Question | None:
    flags = data[at + 4]
    if flags & (_END_STREAM | _END_HEADERS | _PADDED) != _END_STREAM | _END_HEADERS:
        return None
    stream_id = int.from_bytes(data[at + 5 : at + _HEAD_BYTES], "big")
    block_at = at + _HEAD_BYTES
    if flags & _PRIORITY:
        depends_on = int.from_bytes(data[block_at : block_at + 4], "big") & _STREAM_ID_MAX
        block_at += _PRIORITY_BYTES
        if past < block_at or depends_on == stream_id:
            return None
    if stream_id % 2 == 0 or stream_id > _STREAM_ID_MAX:
        return None
    return Question(stream_id, data[block_at:past], data[at:past])
