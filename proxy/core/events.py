"""What happened, as values: the one vocabulary of logs, metrics, the X-Cache header and tests.

The journeys hand these to the `Observer` port and know nothing of who listens. Fields hold facts,
never secrets, and their names say the unit.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class How(StrEnum):
    """How an answer was come by: the X-Cache words of the contract."""

    HIT = "hit"
    STALE = "stale"
    REVALIDATED = "revalidated"
    MISS = "miss"
    COALESCED = "coalesced"
    NEGATIVE = "negative"
    REFUSED = "refused"
    BYPASS = "bypass"
    ERROR = "error"


class Kind(StrEnum):
    """What was asked for."""

    CONFIG = "config"
    INDEX = "index"
    CRATE = "crate"
    API = "api"


class RequestServed(NamedTuple):
    """One client's request is over. `subject` is what was asked for, without the query.

    The one event that is made tens of thousands of times a second: a tuple is made in a quarter of
    the time of a frozen dataclass.
    """

    registry: str
    kind: Kind
    how: How
    status: int
    duration_s: float
    sent_bytes: int
    client: str
    subject: str


@dataclass(frozen=True, slots=True)
class RequestMisdirected:
    """A request was refused that led to no registry and no page of ours.

    `path` is what the client wrote, without the query: no label and no name of anything.
    """

    status: int
    duration_s: float
    client: str
    path: str


@dataclass(frozen=True, slots=True)
class IndexSent:
    """An index file was sent; how old the upstream's last word on it was."""

    age_s: float


@dataclass(frozen=True, slots=True)
class UpstreamAsked:
    """One request to an upstream ended. `outcome`: found, unchanged, absent or a failure's."""

    upstream: str
    kind: Kind
    outcome: str
    duration_s: float
    received_bytes: int


@dataclass(frozen=True, slots=True)
class UpstreamReceived:
    """Bytes came from an upstream after the request for them had been told of."""

    upstream: str
    kind: Kind
    received_bytes: int


@dataclass(frozen=True, slots=True)
class UpstreamFailed:
    """A flight gave up on an upstream, after whatever retries there were.

    `news` is False while the upstream is known to be failing: the log has said so already.
    """

    upstream: str
    kind: Kind
    subject: str
    reason: str
    served_stale: bool
    news: bool


@dataclass(frozen=True, slots=True)
class UpstreamRecovered:
    """An upstream that was failing answers again."""

    upstream: str
    failing_for_s: float


@dataclass(frozen=True, slots=True)
class MirrorSetAside:
    """An address of an upstream sent what the digests contradict, and is not asked for a while.

    `mirror` is its address; empty for the upstream itself.
    """

    upstream: str
    mirror: str
    reason: str
    aside_for_s: float


@dataclass(frozen=True, slots=True)
class NameRemoved:
    """An index file that we hold is gone upstream, confirmed on a second connection."""

    upstream: str
    name: str


@dataclass(frozen=True, slots=True)
class NameReturned:
    """A name that had been removed is there again: perhaps somebody else's."""

    upstream: str
    name: str


@dataclass(frozen=True, slots=True)
class OlderCopyRefused:
    """The upstream offered an index file older than the one held; ours stays for now."""

    upstream: str
    name: str


@dataclass(frozen=True, slots=True)
class OlderCopyAccepted:
    """The upstream insisted on an older index file, and has its way."""

    upstream: str
    name: str


@dataclass(frozen=True, slots=True)
class IntegrityFailed:
    """Bytes were not what they had to be. `where`: upstream, disk or index."""

    where: str
    subject: str
    expected: str
    actual: str


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """Our disk refused something; the client was served all the same."""

    doing: str
    reason: str


@dataclass(frozen=True, slots=True)
class Evicted:
    """Blobs were removed to make room. `reason`: max_size, min_free or purge."""

    reason: str
    blobs: int
    freed_bytes: int


Event = (
    RequestServed
    | RequestMisdirected
    | IndexSent
    | UpstreamAsked
    | UpstreamReceived
    | UpstreamFailed
    | UpstreamRecovered
    | MirrorSetAside
    | NameRemoved
    | NameReturned
    | OlderCopyRefused
    | OlderCopyAccepted
    | IntegrityFailed
    | StoreFailed
    | Evicted
)
