"""What the cache saved: how much of what was answered did not have to come from an upstream.

It is counted by answers and not by subtracting what came in from what went out: one upstream may
serve several registries, what comes in is not compressed as what goes out is, and a difference may
fall, which a counter must not. So a request is *saved* if it was answered by what was here, or by
what another request was fetching already; its bytes are saved also where the upstream confirmed
them and sent none. A miss saves nothing, though its client gets it faster the next time.

A day is a day of UTC, as in the log. What is counted between two settlements counts for the day of
the later one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from proxy.core.events import How

_SAVES_REQUEST: Final = frozenset({How.HIT, How.STALE, How.COALESCED, How.NEGATIVE})
_SAVES_BYTES: Final = frozenset({How.HIT, How.STALE, How.COALESCED, How.REVALIDATED})


def saves_request(how: How) -> bool:
    """Tell whether an answer come by in this way asked no upstream on its own account."""
    return how in _SAVES_REQUEST


def saves_bytes(how: How) -> bool:
    """Tell whether the body of such an answer was not sent by an upstream for it."""
    return how in _SAVES_BYTES


@dataclass(frozen=True, slots=True)
class Served:
    """What was answered in some time. `served_from_here` has the requests whose bytes were here."""

    requests: int = 0
    served_from_here: int = 0
    sent_bytes: int = 0
    saved_requests: int = 0
    saved_bytes: int = 0

    def __add__(self, other: "Served") -> "Served":
        return Served(
            self.requests + other.requests,
            self.served_from_here + other.served_from_here,
            self.sent_bytes + other.sent_bytes,
            self.saved_requests + other.saved_requests,
            self.saved_bytes + other.saved_bytes,
        )

    def __sub__(self, other: "Served") -> "Served":
        return Served(
            self.requests - other.requests,
            self.served_from_here - other.served_from_here,
            self.sent_bytes - other.sent_bytes,
            self.saved_requests - other.saved_requests,
            self.saved_bytes - other.saved_bytes,
        )


def in_all(counts: Iterable[Served]) -> Served:
    """Add up."""
    return sum(counts, Served())


@dataclass(frozen=True, slots=True)
class Savings:
    """The counts by registry: of one day, and of all time since `since`, a Unix time."""

    since: float
    day: str
    today: Mapping[str, Served] = field(default_factory=dict)
    ever: Mapping[str, Served] = field(default_factory=dict)

    @classmethod
    def begun(cls, now: float) -> "Savings":
        """Begin with nothing."""
        return cls(now, day_of(now))

    def settled(self, more: Mapping[str, Served], now: float) -> "Savings":
        """Return these counts with what was answered since, for exactly the registries of `more`.

        A registry that is not there any more is forgotten with its counts, so that they are no more
        than the configuration has registries.
        """
        day = day_of(now)
        today = self.today if day == self.day else {}
        return Savings(
            self.since,
            day,
            {name: today.get(name, Served()) + count for name, count in more.items()},
            {name: self.ever.get(name, Served()) + count for name, count in more.items()},
        )


def day_of(now: float) -> str:
    """Return the date of a Unix time, in UTC."""
    return datetime.fromtimestamp(now, UTC).date().isoformat()
