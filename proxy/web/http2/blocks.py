"""Header blocks, looked at for wholeness before the library decodes them.

The library's decoder refuses a block that ends in the middle of a field, but only after its runtime
has written about it to standard error, past our log. A client could fill that at will. So who reads
a block here first finds out whether it is cut short, without decoding anything.
"""

from typing import Any, Final

_INDEXED, _INDEXING, _SIZE, _LONG_INDEX = 0x80, 0x40, 0x20, 0xFF
# Nobody writes a length in more bytes: it would be larger than what we take.
_INTEGER_MAX_BYTES: Final = 6


class CarefulDecoder:
    """The library's decoder, but for blocks that are cut short, and with a look ahead.

    A block may be decoded once only, since it may change the table. So what a look has found is
    kept for whoever decodes that block next.
    """

    __slots__ = ("_decoder", "_seen")

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._seen: list[tuple[bytes, bytes, bool]] | BaseException | None = None

    def look(self, block: bytes) -> list[tuple[bytes, bytes, bool]] | None:
        """Decode a block ahead of `decode`; None for one that cannot be decoded."""
        try:
            fields: list[tuple[bytes, bytes, bool]] = self.decode(block, raw=True)
        except BaseException as failure:  # noqa: BLE001 - kept, and raised where it is understood
            self._seen = failure
            return None
        self._seen = fields
        return fields

    def forget(self) -> None:
        """Nobody will decode the block that was looked at."""
        self._seen = None

    def decode(self, data: bytes, *, raw: bool | None = None) -> Any:
        """Decode a block. Raises IndexError if it ends too early, which the library understands."""
        seen, self._seen = self._seen, None
        if isinstance(seen, BaseException):
            raise seen
        if seen is not None:
            return seen
        if not is_whole(data):
            raise IndexError("the header block is cut short")
        return self._decoder.decode(data, raw=raw)

    @property
    def max_header_list_size(self) -> int:
        """How many bytes of names and values a block may unpack to."""
        return int(self._decoder.max_header_list_size)

    @max_header_list_size.setter
    def max_header_list_size(self, value: int) -> None:
        self._decoder.max_header_list_size = value

    @property
    def max_allowed_table_size(self) -> int:
        """How large the client may make its table."""
        return int(self._decoder.max_allowed_table_size)

    @max_allowed_table_size.setter
    def max_allowed_table_size(self, value: int) -> None:
        self._decoder.max_allowed_table_size = value


def is_whole(block: bytes) -> bool:
    """Tell whether a block ends where a field ends (RFC 7541 section 6)."""
    at, end = 0, len(block)
    while at < end:
        first = block[at]
        if first & _INDEXED:
            at = at + 1 if first != _LONG_INDEX else _past_integer(block, at, 0x7F)
        elif first & (_INDEXING | _SIZE) == _SIZE:
            at = _past_integer(block, at, 0x1F)
        else:
            mask = 0x3F if first & _INDEXING else 0x0F
            at = _past_integer(block, at, mask)
            for _ in range(1 if first & mask else 2):
                at = _past_string(block, at)
    return at == end


def _past_integer(block: bytes, at: int, mask: int) -> int:
    if block[at] & mask != mask:
        return at + 1
    at += 1
    while at < len(block) and block[at] & 0x80:
        at += 1
    return at + 1


def _past_string(block: bytes, at: int) -> int:
    """Return where a string ends; beyond the block, where it is not all there."""
    if at >= len(block):
        return len(block) + 1
    length, past = block[at] & 0x7F, _past_integer(block, at, 0x7F)
    if past > len(block) or past - at > _INTEGER_MAX_BYTES:
        return len(block) + 1
    for shift, byte in enumerate(block[at + 1 : past]):
        length += (byte & 0x7F) << 7 * shift
    return past + length
