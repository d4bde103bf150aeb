"""One address of an upstream, its own or a mirror's, and what is known of it.

Index and web API are one thing, crate files another: they are often on other hosts, and their
trouble makes no index stale. So each endpoint has two breakers. A mirror that sent what the digests
contradict is set aside for a while, whatever its breakers say.
"""

from dataclasses import dataclass, field
from typing import Final

from proxy.core.breaker import Breaker
from proxy.core.events import Kind
from proxy.core.failures import UpstreamFailure
from proxy.ports import Upstream

ASIDE_S: Final = 600.0


@dataclass(slots=True, eq=False)
class Endpoint:
    """`mirror` is a mirror's address, by which it is known, and empty for the upstream itself."""

    upstream: Upstream
    mirror: str = ""
    index: Breaker = field(default_factory=Breaker)
    crates: Breaker = field(default_factory=Breaker)
    aside_until: float = 0.0
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
