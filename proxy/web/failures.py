"""From what went wrong to what the client is told: the one table.

Only an upstream's own authoritative word becomes 404, and that is not a failure and not here. An
outage is 503 with `Retry-After: 5` (cargo obeys up to 10), a nonsensical answer 502, silence 504,
and 429 is our own limit on how often we ask.
Bodies are one line of plain text: cargo prints the first 512 bytes of them.
"""

from dataclasses import dataclass
from typing import Final

from proxy.core.failures import (
    Busy,
    Misbehaved,
    Offline,
    Spared,
    StoreFailure,
    TimedOut,
    Troubled,
    Unreachable,
    UpstreamFailure,
)

RETRY_AFTER_S: Final = 5


@dataclass(frozen=True, slots=True)
class Told:
    """A status, whether to say Retry-After, and one line."""

    status: int
    retry: bool
    message: str


def told(failure: UpstreamFailure | StoreFailure) -> Told:
    """Translate a failure."""
    if isinstance(failure, Spared) and failure.last is not None:
        failure = failure.last
    match failure:
        case Busy():
            return Told(429, retry=True, message=str(failure))
        case TimedOut():
            return Told(504, retry=False, message=str(failure))
        case Misbehaved():
            return Told(502, retry=False, message=str(failure))
        case Unreachable() | Troubled() | Offline() | UpstreamFailure():
            return Told(503, retry=True, message=str(failure))
        case StoreFailure():
            return Told(503, retry=True, message=f"the cache is in trouble: {failure}")
