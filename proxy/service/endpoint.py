"""One address of an upstream, its own or a mirror's, and what is known of it.

Index and web API are one thing, crate files another: they are often on other hosts, and their
trouble makes no index stale. So each endpoint has two breakers.

An endpoint that sent what the digests contradict is set aside for a while, whatever its breakers
say. A mirror is not asked at all then. The upstream itself is asked last, and for crates alone: one
bad file of its own is no reason to take nobody's word on all the others.
"""

from dataclasses import dataclass, field
from typing import Final

from proxy.core.breaker import Breaker
from proxy.core.events import Kind
from proxy.core.failures import UpstreamFailure
from proxy.ports import Upstream

ASIDE_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class EndpointReport:
    """How one address is, for an operator. Times are in seconds, of failing so far and to come.

    `mirror` is empty for the upstream itself. The states are the breakers' words, in lower case.
    """

    mirror: str
    index: str
    crates: str
    index_failing_for_s: float | None
    crates_failing_for_s: float | None
    set_aside_for_s: float | None
    last_failure: str | None


@dataclass(slots=True, eq=False)
class Endpoint:
    """`mirror` is a mirror's address, by which it is known, and empty for the upstream itself."""

    upstream: Upstream
    mirror: str = ""
    index: Breaker = field(default_factory=Breaker)
    crates: Breaker = field(default_factory=Breaker)
    aside_until: float = float("-inf")
    last_failure: UpstreamFailure | None = None

    def breaker(self, kind: Kind) -> Breaker:
        """Return the breaker that a kind of request goes by."""
        return self.index if kind in (Kind.INDEX, Kind.CONFIG) else self.crates

    def set_aside(self, now: float, failure: UpstreamFailure) -> None:
        """Do not ask it for a while."""
        self.aside_until = now + ASIDE_S
        self.last_failure = failure

    def is_aside(self, now: float) -> bool:
        """Whether it is set aside."""
        return now < self.aside_until

    def is_out(self, now: float) -> bool:
        """Whether it is not asked at all: only a mirror ever is."""
        return bool(self.mirror) and self.is_aside(now)

    def comes_last(self, kind: Kind, now: float) -> bool:
        """Whether it is asked after all others."""
        return kind is Kind.CRATE and self.is_aside(now)

    def report(self, now: float) -> EndpointReport:
        """Tell how it is."""

        def failing_for_s(breaker: Breaker) -> float | None:
            return None if breaker.failing_since is None else now - breaker.failing_since

        return EndpointReport(
            mirror=self.mirror,
            index=self.index.state(now).name.lower(),
            crates=self.crates.state(now).name.lower(),
            index_failing_for_s=failing_for_s(self.index),
            crates_failing_for_s=failing_for_s(self.crates),
            set_aside_for_s=self.aside_until - now if self.is_aside(now) else None,
            last_failure=None if self.last_failure is None else str(self.last_failure),
        )
