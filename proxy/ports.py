"""What the journeys need from the world: contracts in prose, kept by the adapters and the fakes.

Common to all: cancelling a call leaves nothing half done that a later call could take for whole;
absence is a return value, failure an exception of `proxy.core.failures`, and a call raises no other
exceptions than those it names. One suite per port (`tests/contracts`) holds every implementation
to this page.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from proxy.core.answers import Absent, Answer, Snapshot, Validators
from proxy.core.events import Event


class Clock(Protocol):
    """Time and chance."""

    def now(self) -> float:
        """Return seconds since the epoch; may jump either way."""
        ...

    def monotonic(self) -> float:
        """Return seconds that only ever grow, from an arbitrary start."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...

    def jitter(self) -> float:
        """Return a random number in [0, 1)."""
        ...


class Observer(Protocol):
    """Whoever wants to know what happened."""

    def observe(self, event: Event) -> None:
        """Take note of an event. Never raises, never blocks; called from the event loop."""
        ...


@dataclass(frozen=True, slots=True)
class ApiAnswer:
    """What an upstream's web API said, whatever the status; the body is complete and bounded."""

    status: int
    content_type: str
    body: bytes


class CrateBody(Protocol):
    """A crate file on its way from an upstream: decoded bytes that nobody has proven yet."""

    @property
    def length_bytes(self) -> int | None:
        """The length that the upstream announced, if it did."""
        ...

    @property
    def content_type(self) -> str:
        """The media type that it claimed, lower-cased, without parameters."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes as they arrive, once.

        Raises UpstreamFailure when they break off, stall, or exceed the ceiling; ending without
        raising means that the framing was complete.
        """
        ...


class Upstream(Protocol):
    """One source of crates: its address, credentials, timeouts and ceilings are inside.

    Every method raises UpstreamFailure and nothing else, within the configured timeouts. Statuses
    that the operator declared to mean "absent" come back as Absent; nothing else ever does.
    """

    @property
    def name(self) -> str:
        """The name it is configured under."""
        ...

    async def index_file(
        self, path: str, validators: Validators, *, new_connection: bool = False
    ) -> Answer:
        """Ask for `path` below the index root (`config.json`, `se/rd/serde`).

        Found has the decoded bytes, complete by the framing and within the ceiling, and never a
        document that calls itself HTML. `new_connection` keeps away from pooled connections.
        """
        ...

    def crate(self, url: str) -> AbstractAsyncContextManager[CrateBody | Absent]:
        """Ask for the crate file at `url`; leaving the context gives the connection back."""
        ...

    async def api_get(self, url: str) -> ApiAnswer:
        """Ask its web API, with the upstream's own credentials where the origin is its own."""
        ...


class IndexStore(Protocol):
    """Snapshots by upstream and name, on disk. An entry that cannot be read is a miss.

    Safe to call concurrently; for one key the last `put` to start wins. `name` is a lower-case
    crate name or `config.json`.
    """

    async def get(self, upstream: str, name: str) -> Snapshot | None:
        """Return what was put, whole and proven against its own digest, or None."""
        ...

    async def put(self, upstream: str, name: str, snapshot: Snapshot) -> None:
        """Store a snapshot in place of any other. Raises StoreFailure, leaving the old or none."""
        ...

    async def confirm(self, upstream: str, name: str, snapshot: Snapshot) -> None:
        """Store all of `snapshot` but its body, which is unchanged. Raises StoreFailure.

        Where the body is not there after all, this stores nothing.
        """
        ...

    async def remove(self, upstream: str, name: str) -> bool:
        """Forget a snapshot; returns whether there was one. Raises StoreFailure."""
        ...

    def names(self, upstream: str) -> AsyncIterator[str]:
        """Yield the names held for an upstream, in no order, at the cost of a page at a time."""
        ...

    async def usage(self) -> tuple[int, int]:
        """Return (entries, bytes on disk)."""
        ...


@dataclass(frozen=True, slots=True)
class Named:
    """What a blob was fetched as: the index line that named its digest."""

    upstream: str
    crate: str
    version: str


class Blob(Protocol):
    """A proven file, open for reading; stays readable though it be evicted meanwhile."""

    @property
    def size_bytes(self) -> int:
        """Its length."""
        ...

    async def read(self, offset: int) -> bytes:
        """Return some bytes at `offset`, at least one before the end, none at it.

        Raises StoreFailure when the file cannot be read or has become shorter.
        """
        ...

    def close(self) -> None:
        """Give up the file. Safe to call twice."""
        ...


class Draft(Protocol):
    """A file that nobody has proven, growing. One writer; any number of readers behind it."""

    async def write(self, data: bytes) -> None:
        """Append. Raises StoreFailure; the draft is then of no further use to a writer."""
        ...

    async def read(self, offset: int, stop: int) -> bytes:
        """Return some bytes from `offset`, before `stop`, all of it written already.

        At least one byte if `offset < stop`. Works on after `commit` and `discard` until `close`.
        Raises StoreFailure.
        """
        ...

    def digest(self) -> str:
        """Return the SHA-256 of everything written."""
        ...

    async def commit(self, named: Named) -> None:
        """Make it a blob under its own digest. Raises StoreFailure, and is a draft no more."""
        ...

    async def discard(self) -> None:
        """Give up the file and the reserved space. Never raises."""
        ...

    def close(self) -> None:
        """Let go of what reading needs. Safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class BlobFinding:
    """What a check of one blob found: nothing (`fault` is None), or what is wrong with it."""

    digest: str
    size_bytes: int
    fault: str | None


@dataclass(frozen=True, slots=True)
class BlobUsage:
    """What the blob store holds, and may hold."""

    blobs: int
    stored_bytes: int
    reserved_bytes: int
    limit_bytes: int
    memory_bytes: int
    memory_limit_bytes: int
    drafts: int
    quarantined: int
    strangers: int


@dataclass(frozen=True, slots=True)
class Removed:
    """What a removal came upon: the blobs that were stored, and the bytes that they took up."""

    blobs: int
    freed_bytes: int


class BlobStore(Protocol):
    """Crate files by SHA-256. Only proven bytes are ever returned.

    Sizes are checked at every opening; after an unclean stop each blob is hashed before its first
    use. One that fails is set aside, reported to the observer, and from then on absent.
    """

    async def open(self, digest: str) -> Blob | None:
        """Open a blob and count it as used now. A store that cannot be read is a miss."""
        ...

    def at_hand(self, digest: str) -> bytes | None:
        """Return a whole small blob that is in memory, counting it as used now.

        None says nothing about the store: `open` is who knows.
        """
        ...

    async def draft(self, expected_bytes: int | None) -> Draft:
        """Begin a file, evicting to make room for it. Raises StoreFailure if there is none."""
        ...

    def note_named(self, digest: str, named: Named) -> None:
        """Remember that an index line named this digest. Written in batches, on a best effort."""
        ...

    async def names_of(self, digest: str) -> tuple[Named, ...]:
        """Return what a blob was named as, all upstreams together."""
        ...

    async def was_named(self, digest: str, named: Named) -> bool:
        """Tell whether this upstream's index once named this digest as this version."""
        ...

    async def digests_of(self, upstream: str, crate: str | None) -> tuple[tuple[str, Named], ...]:
        """Return the digests named by an upstream, of one crate (in any case) or of all."""
        ...

    async def remove(self, digests: Iterable[str]) -> Removed:
        """Remove blobs, from memory too; returns what was there. Raises StoreFailure."""
        ...

    async def make_room(self) -> int:
        """Evict down to the limits; returns the bytes freed. Raises StoreFailure."""
        ...

    def digests(self) -> AsyncIterator[str]:
        """Yield every blob on disk, in no order, at the cost of a folder at a time."""
        ...

    async def check(self, digest: str) -> BlobFinding | None:
        """Hash one blob; a bad one is quarantined. None if it is gone. Raises StoreFailure."""
        ...

    async def usage(self) -> BlobUsage:
        """Return what is held."""
        ...


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A name that we held and that its upstream removed; times are seconds since the epoch."""

    upstream: str
    name: str
    removed_at: float
    returned_at: float | None


class StateStore(Protocol):
    """What must survive the cache: for now, the tombstones."""

    async def removed(self, upstream: str, name: str, at: float) -> None:
        """Record a removal. Raises StoreFailure."""
        ...

    async def returned(self, upstream: str, name: str, at: float) -> None:
        """Record that a removed name is there again. Raises StoreFailure."""
        ...

    async def tombstones(self) -> tuple[Tombstone, ...]:
        """Return all of them, newest first. Raises StoreFailure."""
        ...
