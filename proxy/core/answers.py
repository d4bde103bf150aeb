"""What an upstream said, and what we hold of it.

An answer is Found, Unchanged or Absent. A failure is not an answer: it is an exception of
`proxy.core.failures`, so that no code path can mistake an outage for "does not exist".

A snapshot is what we last learned of one index file. It is never partial: it was believed as a
whole (`sparse.check`) before it was made.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Validators:
    """What the upstream gave to ask again with; both as written, either may be missing.

    `mirror` is who gave them: a mirror's address, or empty for the upstream itself. Nobody else is
    asked with them: what one server calls "abc" may be another thing on the next.
    """

    etag: str | None = None
    last_modified: str | None = None
    mirror: str = ""


NO_VALIDATORS = Validators()


@dataclass(frozen=True, slots=True)
class Found:
    """The upstream sent a body (already decoded, complete, and within its ceiling)."""

    body: bytes
    validators: Validators


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The upstream confirmed what we hold (304)."""


@dataclass(frozen=True, slots=True)
class Absent:
    """The upstream said with authority that there is no such thing."""

    status: int


Answer = Found | Unchanged | Absent


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What we last learned of one index file. Times are seconds since the epoch.

    `body` is None for a tombstone: the file was there once, and its absence was confirmed.
    `learned_at` is when this body came, `confirmed_at` when the upstream last stood by it; a soft
    purge makes that negative, which no clock finds fresh. `older_since` is set while the upstream
    offers a copy that is older than this one.
    """

    body: bytes | None
    validators: Validators
    learned_at: float
    confirmed_at: float
    older_since: float | None = None
