"""Which clients are on their second pass, and must not be given a stale copy at once.

With a lock file and an empty CARGO_HOME, cargo asks for what the lock names without validators. If
a copy does not suffice it starts over, this time conditionally, once. What it discovers only in
that second pass it asks for the first time, without a validator again, and there will be no third:
a stale copy now fails the build. So a client that has asked conditionally is believed to want the
truth for a while, whatever it asks. Taking too many for insisting costs them a wait; taking one for
easy-going that is not would cost it the build.
"""

from typing import Final

from proxy.core.memory_tier import MemoryTier
from proxy.ports import Clock

INSISTING_FOR_S: Final = 120.0
_CLIENTS_MAX: Final = 20_000


class Insistence:
    """The clients, by address, that asked conditionally of late. For one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: MemoryTier[str, float] = MemoryTier(_CLIENTS_MAX)

    def note(self, client: str) -> None:
        """Take note of a conditional request."""
        self._until.put(client, self._clock.monotonic() + INSISTING_FOR_S, 1)

    def insists(self, client: str) -> bool:
        """Tell whether a client asked conditionally a short while ago."""
        until = self._until.get(client)
        return until is not None and self._clock.monotonic() < until
