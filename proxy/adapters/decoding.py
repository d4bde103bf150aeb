"""Content codings undone piece by piece, within a ceiling: no bomb gets to go off.

gzip and deflate only, which are all that Holdfast asks for; anything else was not asked for and is
refused rather than stored. A body that ends in the middle of its coding is not a body.
"""

import zlib
from collections.abc import Iterator
from typing import Final, Protocol

_PIECE_BYTES: Final = 256 * 1024
_CODING_OVERHEAD_BYTES: Final = 4096


class BodyTooLarge(Exception):
    """The body is over its ceiling, as sent or as inflated."""


class UndecodableBody(Exception):
    """The body is not what its Content-Encoding says; the message says how."""


class Decoder(Protocol):
    """Takes the body as it was sent, gives it as it was meant."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` decodes to. Raises BodyTooLarge or UndecodableBody."""
        ...

    def finish(self) -> None:
        """Say that the body has ended. Raises UndecodableBody where its coding has not."""
        ...


def decoder_for(content_encoding: str | None, max_bytes: int) -> Decoder:
    """Return what undoes a Content-Encoding. Raises UndecodableBody for one that is not known."""
    coding = (content_encoding or "identity").strip().lower()
    match coding:
        case "identity" | "":
            return _Identity(max_bytes)
        case "gzip" | "x-gzip":
            return _Inflating(max_bytes, wbits=16 + zlib.MAX_WBITS)
        case "deflate":
            return _Inflating(max_bytes, wbits=zlib.MAX_WBITS)
        case _:
            raise UndecodableBody(f"a content coding that was not asked for: {coding[:40]!r}")


class _Identity:
    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._left -= len(data)
        if self._left < 0:
            raise BodyTooLarge
        yield data

    def finish(self) -> None:
        pass


class _Inflating:
    def __init__(self, max_bytes: int, wbits: int) -> None:
        self._left = max_bytes
        # What does not shrink grows a little. Without this, empty members could come for ever.
        self._sent_left = max_bytes + max_bytes // 64 + _CODING_OVERHEAD_BYTES
        self._wbits = wbits
        self._inflate = zlib.decompressobj(wbits)
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._sent_left -= len(data)
        if self._sent_left < 0:
            raise BodyTooLarge
        while data:
            if self._inflate.eof:
                # RFC 1952 2.2: a gzip file is a series of members.
                self._inflate = zlib.decompressobj(self._wbits)
            self._begun = True
            try:
                piece = self._inflate.decompress(data, _PIECE_BYTES)
            except zlib.error as error:
                raise UndecodableBody(f"a compressed body is damaged ({error})") from None
            self._left -= len(piece)
            if self._left < 0:
                raise BodyTooLarge
            if piece:
                yield piece
            data = self._inflate.unconsumed_tail or self._inflate.unused_data

    def finish(self) -> None:
        if self._begun and not self._inflate.eof:
            raise UndecodableBody("a compressed body is cut short")
