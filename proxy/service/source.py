"""One upstream as the journeys see it: the port, its terms, and what its last answers told.

Asking with patience is here too: the retry loop, which every request to an upstream goes through,
and which alone feeds health, retry budget and the events about requests.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

from proxy.core.answers import Absent, Found, Unchanged
from proxy.core.events import Kind, UpstreamAsked, UpstreamFailed, UpstreamRecovered
from proxy.core.failures import TimedOut, UpstreamFailure
from proxy.core.freshness import Terms
from proxy.core.health import UpstreamHealth
from proxy.core.retry import RetryBudget, delay_before_retry
from proxy.ports import Clock, Observer, Upstream

T = TypeVar("T")

# Cargo gives up at 30 s and our promise is 20, so every attempt of a flight is over before that.
ASKING_DEADLINE_S: Final = 17.0
# How long a client is kept waiting for a first word. A flight may go on longer, for the next one.
CLIENT_PATIENCE_S: Final = 18.0


@dataclass(slots=True)
class Source:
    """An upstream with its terms. One per configured upstream, shared by all registries.

    `health` is of its index, and decides whether copies are served without waiting; `crate_health`
    is of its crates, and only keeps the log from repeating itself.
    """

    upstream: Upstream
    terms: Terms
    clock: Clock
    observer: Observer
    offline: bool = False
    health: UpstreamHealth = field(default_factory=UpstreamHealth)
    crate_health: UpstreamHealth = field(default_factory=UpstreamHealth)
    budget: RetryBudget = field(default_factory=RetryBudget)

    @property
    def name(self) -> str:
        """The upstream's name."""
        return self.upstream.name

    def set_terms(self, terms: Terms) -> None:
        """Hold copies to other terms, those that are held already too."""
        self.terms = terms

    def is_failing(self) -> bool:
        """Tell whether copies should be served without waiting: it failed lately, or is offline."""
        return self.offline or self.health.is_failing(self.clock.monotonic())

    async def ask(
        self,
        kind: Kind,
        subject: str,
        attempt: Callable[[], Awaitable[T]],
        *,
        has_copy: bool,
        received_bytes: Callable[[T], int],
        deadline_s: Callable[[], float] = lambda: ASKING_DEADLINE_S,
    ) -> T:
        """Call `attempt` until it answers, retrying what may pass. Raises UpstreamFailure.

        `has_copy` says that somebody can be served without this: then a failing upstream is not
        pressed. `subject` is for the log, `received_bytes` tells the size of an answer. No attempt
        begins later than `deadline_s` after the first.
        """
        self.budget.deposit()
        first = self.clock.monotonic()
        number = 1
        while True:
            begun = self.clock.monotonic()
            try:
                answer = await attempt()
            except UpstreamFailure as failure:
                now = self.clock.monotonic()
                self._asked(kind, failure.outcome, now - begun, failure.received_bytes)
                remaining_s = deadline_s() - (now - first)
                delay = self._delay(failure, number, remaining_s, has_copy=has_copy)
                if delay is None:
                    self._gave_up(kind, subject, failure, has_copy=has_copy)
                    raise
                await self.clock.sleep(delay)
                number += 1
            else:
                now = self.clock.monotonic()
                self._asked(kind, _outcome_of(answer), now - begun, received_bytes(answer))
                self._answered(kind, now)
                return answer

    def _delay(
        self, failure: UpstreamFailure, number: int, remaining_s: float, *, has_copy: bool
    ) -> float | None:
        if has_copy and failure.failing:
            return None
        if failure.transient and failure.received_bytes and number == 1:
            # It was answering, and broke off: no sign of an upstream that must be spared.
            return 0.0
        delay = delay_before_retry(
            failure, attempt=number, jitter=self.clock.jitter(), remaining_s=remaining_s
        )
        return delay if delay is not None and self.budget.withdraw() else None

    def note_failure(
        self, kind: Kind, subject: str, failure: UpstreamFailure, *, news: bool = True
    ) -> None:
        """Take note of a failure outside `ask`: a body that broke off, a document not believed.

        `news` is False where another event has told of it.
        """
        self._gave_up(kind, subject, failure, has_copy=False, news=news)

    def _gave_up(
        self,
        kind: Kind,
        subject: str,
        failure: UpstreamFailure,
        *,
        has_copy: bool,
        news: bool = True,
    ) -> None:
        if failure.failing:
            health = self._health_of(kind)
            news = news and health.failing_since is None
            health.failed(self.clock.monotonic())
        self.observer.observe(
            UpstreamFailed(self.name, kind, subject, str(failure), served_stale=has_copy, news=news)
        )

    def _health_of(self, kind: Kind) -> UpstreamHealth:
        """Crates and the web API are often on other hosts: their trouble makes no index stale."""
        return self.health if kind in (Kind.INDEX, Kind.CONFIG) else self.crate_health

    def _answered(self, kind: Kind, now: float) -> None:
        health = self._health_of(kind)
        failing_for = health.answered(now)
        if failing_for is not None and health is self.health:
            self.observer.observe(UpstreamRecovered(self.name, failing_for))

    def _asked(self, kind: Kind, outcome: str, duration_s: float, received: int) -> None:
        self.observer.observe(UpstreamAsked(self.name, kind, outcome, duration_s, received))


@asynccontextmanager
async def patience(source: Source) -> AsyncIterator[None]:
    """Bound all that a client waits for before its first byte, our own disk included.

    Raises TimedOut; what flights there are go on for the next client.
    """
    try:
        async with asyncio.timeout(CLIENT_PATIENCE_S):
            yield
    except TimeoutError:
        raise TimedOut(f"{source.name} did not answer in time; try again") from None


def _outcome_of(answer: object) -> str:
    match answer:
        case Found():
            return "found"
        case Unchanged():
            return "unchanged"
        case Absent():
            return "absent"
        case _:
            return "found"
