"""May this address be asked now? A circuit breaker: an outage costs one wait, not many.

A resolve asks level by level, five to fifteen levels deep; if each level waited for a dead
upstream, `cargo update` would crawl through every outage. A failure that tells of the address
itself blocks it for a while, and each further one for longer, up to half a minute. When the time is
over, one request is the probe (half-open); its outcome decides for all.

Who holds a copy is turned away by the first failure: it is served at once. Who holds nothing is
turned away only after several failures in a row, for a single one may have been about one file, and
then waits for a probe: for those there may be one every two seconds, however long the block.

Retrying is another thing (`proxy.core.retry`): what is retried and answered in the end has not
failed. Nor does a wait for our own connections count; the callers do not report it.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

FIRST_BLOCK_S: Final = 2.0
MAX_BLOCK_S: Final = 30.0
TRIPS_AFTER: Final = 3


class BreakerState(IntEnum):
    """What the gauge shows."""

    CLOSED = 0
    OPEN = 1
    HALF_OPEN = 2


class Admission(Enum):
    """Whether to ask. Whoever is the probe must tell how it ended: by the outcome, or `release`."""

    NO = "no"
    YES = "yes"
    PROBE = "probe"


@dataclass(slots=True)
class Breaker:
    """What the last requests to one address told. Times come from a monotonic clock."""

    failing_since: float | None = None
    blocked_until: float = 0.0
    _failed_at: float = 0.0
    _block_s: float = 0.0
    _failures: int = 0
    _probing: bool = False

    def admit(self, now: float, *, has_copy: bool) -> Admission:
        """Tell whether to ask now."""
        if self.failing_since is None:
            return Admission.YES
        if self.wait_s(now, has_copy=has_copy) <= 0 and not self._probing:
            self._probing = True
            return Admission.PROBE
        if has_copy or self._failures >= TRIPS_AFTER:
            return Admission.NO
        return Admission.YES

    def failed(self, now: float) -> None:
        """Note a failure of the address itself (`UpstreamFailure.failing`)."""
        if self.failing_since is None:
            self.failing_since = now
        self._failures += 1
        self._failed_at = now
        self._probing = False
        if now >= self.blocked_until:
            self._block_s = min(MAX_BLOCK_S, self._block_s * 2 or FIRST_BLOCK_S)
            self.blocked_until = now + self._block_s

    def answered(self, now: float) -> float | None:
        """Note any answer; returns for how many seconds it had been failing, if it was."""
        if self.failing_since is None:
            return None
        failing_for = now - self.failing_since
        self.failing_since, self.blocked_until, self._block_s = None, 0.0, 0.0
        self._failures, self._probing = 0, False
        return failing_for

    def release(self) -> None:
        """The probe ended without a word about the address: another one may go."""
        self._probing = False

    def is_failing(self, now: float) -> bool:
        """Tell whether copies should be served without waiting for this address."""
        if self.failing_since is None:
            return False
        return now < self.blocked_until or self._probing

    def wait_s(self, now: float, *, has_copy: bool = False) -> float:
        """Return the seconds until there may be a probe, if none is under way."""
        until = self.blocked_until
        if not has_copy:
            until = min(until, self._failed_at + FIRST_BLOCK_S)
        return max(0.0, until - now)

    def state(self, now: float) -> BreakerState:
        """Return what to show."""
        if self.failing_since is None:
            return BreakerState.CLOSED
        blocked = now < self.blocked_until and not self._probing
        return BreakerState.OPEN if blocked else BreakerState.HALF_OPEN
