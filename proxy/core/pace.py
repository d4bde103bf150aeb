"""Does something that is under way get on? A least number of bytes in each stretch of time.

For whoever takes what we send, or sends what we wait for, so slowly that it costs us more than it
does them. It is looked at now and then, so what is too slow is found by the first look after its
time has run out.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LeastPace:
    """At least `count` bytes in `period_s` seconds."""

    count: int
    period_s: float


class Pace:
    """What one thing under way has done so far. Times are of one clock."""

    __slots__ = ("_done", "_since")

    def __init__(self) -> None:
        self._since: float | None = None
        self._done = 0

    def rest(self) -> None:
        """Nothing is under way: the time begins anew with the next look."""
        self._since = None

    def is_too_slow(self, now: float, done: int, least: LeastPace) -> bool:
        """Look; `done` is how many bytes there were in all, and only grows."""
        if self._since is None or done - self._done >= least.count:
            self._since, self._done = now, done
            return False
        return now - self._since >= least.period_s
