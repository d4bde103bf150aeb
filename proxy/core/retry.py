"""Whether to try again, and after how long: a value, which never sleeps and never asks the time.

Only what may pass is tried again (`UpstreamFailure.transient`). The delay doubles, with
full jitter (the caller brings the random number), and never undercuts the upstream's Retry-After.
An attempt that could only come after the deadline is not made: the client should hear the truth
while it still listens (cargo gives up at 30 s).

A budget keeps an ailing upstream from being asked many times over by everybody: each request puts
a tenth of a retry into it, each retry takes a whole one out.
"""

from dataclasses import dataclass
from typing import Final

from proxy.core.conditional import parse_http_date
from proxy.core.failures import UpstreamFailure

ATTEMPTS: Final = 3
FIRST_DELAY_S: Final = 0.25
MAX_DELAY_S: Final = 4.0
RETRY_AFTER_MAX_S: Final = 3600.0


@dataclass(slots=True)
class RetryBudget:
    """Retries that one upstream may still be given. Not safe across threads; nobody awaits here."""

    per_request: float = 0.1
    ceiling: float = 32.0
    tokens: float = 32.0

    def deposit(self) -> None:
        """Note one request that was made for its own sake."""
        self.tokens = min(self.ceiling, self.tokens + self.per_request)

    def withdraw(self) -> bool:
        """Take one retry, or return False if there is none left."""
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


def delay_before_retry(
    failure: UpstreamFailure, *, attempt: int, jitter: float, remaining_s: float
) -> float | None:
    """Return the seconds to wait before attempt `attempt + 1`, or None to give up.

    `attempt` counts from 1, `jitter` lies in [0, 1), `remaining_s` is what is left of the deadline.
    """
    if not failure.transient or attempt >= ATTEMPTS:
        return None
    delay = jitter * min(MAX_DELAY_S, FIRST_DELAY_S * 2.0**attempt)
    if failure.retry_after_s is not None:
        delay = max(delay, failure.retry_after_s)
    return delay if delay < remaining_s else None


def parse_retry_after(header: str | None, now: float) -> float | None:
    """Read a Retry-After (RFC 9110 section 10.2.3): seconds or a date; None if it says nothing."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), RETRY_AFTER_MAX_S)
    moment = parse_http_date(text)
    return None if moment is None else min(max(0.0, moment - now), RETRY_AFTER_MAX_S)
