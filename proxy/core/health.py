"""Is an upstream failing right now? A memory of seconds: an outage costs one wait, not many.

A resolve asks level by level, five to fifteen levels deep; if each level waited for a dead
upstream, `cargo update` would crawl through every outage. After a failure that tells of the
upstream itself, requests that hold a usable copy are served it at once for a while; the first after
that asks again. Requests that hold nothing always ask: this memory is never an answer of its own.
"""

from dataclasses import dataclass
from typing import Final

FIRST_BLOCK_S: Final = 2.0
MAX_BLOCK_S: Final = 30.0


@dataclass(slots=True)
class UpstreamHealth:
    """What the last requests to one upstream told. Times come from a monotonic clock."""

    failing_since: float | None = None
    blocked_until: float = 0.0
    _block_s: float = 0.0

    def failed(self, now: float) -> None:
        """Note a failure of the upstream itself (`UpstreamFailure.failing`)."""
        if self.failing_since is None:
            self.failing_since = now
        if now >= self.blocked_until:
            self._block_s = min(MAX_BLOCK_S, self._block_s * 2 or FIRST_BLOCK_S)
            self.blocked_until = now + self._block_s

    def answered(self, now: float) -> float | None:
        """Note any answer; returns for how many seconds it had been failing, if it was."""
        if self.failing_since is None:
            return None
        failing_for = now - self.failing_since
        self.failing_since, self.blocked_until, self._block_s = None, 0.0, 0.0
        return failing_for

    def is_failing(self, now: float) -> bool:
        """Tell whether copies should be served without waiting for this upstream."""
        return self.failing_since is not None and now < self.blocked_until
