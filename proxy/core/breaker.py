"""May this address be asked now? A circuit breaker: an outage costs one wait, not many.

A resolve asks level by level, five to fifteen levels deep; if each level waited for a dead
upstream, `cargo update` would crawl through every outage. A failure that tells of the address
itself blocks it for a while, and each further one for longer, up to half a minute. When the time is
over, one request is the probe (half-open); its outcome decides for all. Requests that were under
way when the trouble began may fail meanwhile: that ends no probe, and begins none beside it.

Who can do without (it holds a copy, or somebody else can be asked) is turned away by the first
failure. Who cannot is turned away only after several in a row, for a single one may have been about
one file, and then waits for a probe: for those there may be one every two seconds, however long the
block, and however many fail that were under way.

Retrying is another thing (`proxy.core.retry`): what is retried and answered in the end has not
failed. Nor does a wait for our own connections count; the callers do not report it.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

FIRST_BLOCK_S: Final = 2.0
MAX_BLOCK_S: Final = 30.0
TRIPS_AFTER: Final = 3


class BreakerState(IntEnum):
    """What the gauge shows."""

    CLOSED = 0
    OPEN = 1
    HALF_OPEN = 2


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether to ask, and the number of the probe if this is one, 0 otherwise.

    Whoever is the probe must tell how it ended: by the outcome, or `release`.
    """

    may_ask: bool
    probe: int = 0


TURNED_AWAY: Final = Admission(may_ask=False)
AS_USUAL: Final = Admission(may_ask=True)


@dataclass(slots=True)
class Breaker:
    """What the last requests to one address told. Times come from a monotonic clock."""

    failing_since: float | None = None
    blocked_until: float = 0.0
    failed_probes: int = 0
    _probes: int = 0
    # The number of the probe that is under way, 0 for none.
    _probe: int = 0
    _pressed_from: float = 0.0
    _block_s: float = 0.0
    _failures: int = 0

    def admit(self, now: float, *, spares: bool) -> Admission:
        """Tell whether to ask now. `spares`: who asks can do without."""
        if self.failing_since is None:
            return AS_USUAL
        if self.wait_s(now, spares=spares) <= 0 and not self.probing:
            self._probes += 1
            self._probe = self._probes
            return Admission(may_ask=True, probe=self._probe)
        if spares or self._failures >= TRIPS_AFTER:
            return TURNED_AWAY
        return AS_USUAL

    @property
    def probing(self) -> bool:
        """Whether a probe is under way."""
        return self._probe > 0

    def failed(self, now: float, admission: Admission = AS_USUAL) -> None:
        """Note a failure of the address itself (`UpstreamFailure.failing`)."""
        if admission.probe:
            self.failed_probes += 1
            self.release(admission)
        if self.failing_since is None:
            self.failing_since = now
        self._failures += 1
        if now >= self._pressed_from:
            self._pressed_from = now + FIRST_BLOCK_S
        if now >= self.blocked_until:
            self._block_s = min(MAX_BLOCK_S, self._block_s * 2 or FIRST_BLOCK_S)
            self.blocked_until = now + self._block_s

    def answered(self, now: float) -> float | None:
        """Note any answer; returns for how many seconds it had been failing, if it was."""
        if self.failing_since is None:
            return None
        failing_for = now - self.failing_since
        self.failing_since, self.blocked_until, self._block_s = None, 0.0, 0.0
        self._pressed_from, self._failures, self._probe = 0.0, 0, 0
        return failing_for

    def release(self, admission: Admission) -> None:
        """The probe ended without a word about the address: another one may go.

        A probe from before the last answer is none any more, and says nothing.
        """
        if admission.probe == self._probe:
            self._probe = 0

    def is_failing(self, now: float) -> bool:
        """Tell whether copies should be served without waiting for this address."""
        if self.failing_since is None:
            return False
        return now < self.blocked_until or self.probing

    def wait_s(self, now: float, *, spares: bool = False) -> float:
        """Return the seconds until there may be a probe, if none is under way."""
        until = self.blocked_until
        if not spares:
            until = min(until, self._pressed_from)
        return max(0.0, until - now)

    def state(self, now: float) -> BreakerState:
        """Return what to show."""
        if self.failing_since is None:
            return BreakerState.CLOSED
        blocked = now < self.blocked_until and not self.probing
        return BreakerState.OPEN if blocked else BreakerState.HALF_OPEN
