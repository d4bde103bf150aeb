"""How much the blob store may hold, and how much must go: sizes, marks and free space.

A file costs whole blocks of the file system (`BLOCK_BYTES`). Space is reserved before it is
written. Eviction starts when a reservation would cross a limit and goes on to a little below it, so
that it does not start anew at the next crate.
"""

from dataclasses import dataclass
from typing import Final

BLOCK_BYTES: Final = 4096
_SLACK: Final = 0.02


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator allows: the store's size, and what must stay free on its file system."""

    max_size_bytes: int
    min_free_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What is so: blobs committed, space promised to drafts, free bytes of the file system."""

    stored_bytes: int
    reserved_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Excess:
    """How many bytes must go before something may be written, and which limit says so."""

    bytes: int
    reason: str


def on_disk(size_bytes: int) -> int:
    """Return what a file of `size_bytes` takes up."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def excess(usage: Usage, limits: Limits, wanted_bytes: int) -> Excess | None:
    """Return what must be evicted before `wanted_bytes` more may be reserved; None if nothing."""
    over_size = usage.stored_bytes + usage.reserved_bytes + wanted_bytes - limits.max_size_bytes
    over_free = limits.min_free_bytes + usage.reserved_bytes + wanted_bytes - usage.free_bytes
    if over_size <= 0 and over_free <= 0:
        return None
    # Of what is there, not of what may be: on a small file system the limit may be far away.
    slack = int(min(limits.max_size_bytes, usage.stored_bytes) * _SLACK)
    if over_size >= over_free:
        return Excess(over_size + slack, "max_size")
    return Excess(over_free + slack, "min_free")


def can_ever_fit(limits: Limits, wanted_bytes: int) -> bool:
    """Tell whether `wanted_bytes` are within `max_size`; free space is another question."""
    return wanted_bytes <= limits.max_size_bytes
