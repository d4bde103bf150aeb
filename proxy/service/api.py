"""The registry web API, read through us: `cargo search` and what else only asks.

Passed on to the upstream's own `api`, with the upstream's credentials where the origin is its own
and with nobody else's. Nothing is changed: publishing goes another way.

crates.io asks crawlers for one request a second, and a thousand developers behind one proxy are one
client to it. Where `api_interval` is set, requests take their turns, a few wait for theirs, and the
others are told to come again; what was answered is kept for a minute, and who asks the same joins.
"""

from typing import Final

from proxy.core.events import Kind
from proxy.core.failures import Busy
from proxy.core.memory_tier import MemoryTier
from proxy.ports import ApiAnswer, Clock
from proxy.service.flights import Flights, outcome
from proxy.service.source import Source, patience
from proxy.service.upstream_configs import UpstreamConfigs

WAITING_MAX: Final = 20
KEPT_FOR_S: Final = 60.0
_KEPT_BYTES: Final = 8 * 2**20
_OVERHEAD_BYTES: Final = 500
_OK: Final = 200

Key = tuple[str, str, str]


class Api:
    """Reads of the web APIs of all upstreams. For one event loop."""

    def __init__(self, configs: UpstreamConfigs, clock: Clock) -> None:
        self._configs = configs
        self._clock = clock
        self._paces: dict[str, _Pace] = {}
        self._flights: Flights[Key, ApiAnswer | None] = Flights()
        self._kept: MemoryTier[Key, tuple[float, ApiAnswer]] = MemoryTier(_KEPT_BYTES)

    async def get(self, source: Source, rest: str, query: str) -> ApiAnswer | None:
        """Ask for `/api/v1<rest>?<query>`, both percent-encoded; None if there is no API.

        Raises UpstreamFailure. An error status of the API is an answer, not a failure.
        """
        if not source.api_interval_s:
            return await self._ask(source, rest, query)
        key = (source.name, rest, query)
        kept = self._kept.get(key)
        if kept is not None and self._clock.monotonic() < kept[0]:
            return kept[1]
        pace = self._paces.setdefault(source.name, _Pace(self._clock))
        if pace.waiting >= WAITING_MAX and key not in self._flights:
            raise Busy(f"too many wait for the web API of {source.name} already; try again")
        async with patience(source):
            task, _ = self._flights.join(key, lambda: self._in_turn(source, key, pace))
            return await outcome(task, None)

    async def _in_turn(self, source: Source, key: Key, pace: "_Pace") -> ApiAnswer | None:
        await pace.turn(source.api_interval_s)
        answer = await self._ask(source, key[1], key[2])
        if answer is not None and answer.status == _OK:
            until = self._clock.monotonic() + KEPT_FOR_S
            self._kept.put(key, (until, answer), len(answer.body) + _OVERHEAD_BYTES)
        return answer

    async def _ask(self, source: Source, rest: str, query: str) -> ApiAnswer | None:
        config = await self._configs.get(source)
        if config.api is None:
            return None
        url = f"{config.api}/api/v1{rest}"
        if query:
            url = f"{url}?{query}"
        return await source.ask(
            Kind.API,
            "api",
            lambda endpoint: endpoint.upstream.api_get(url),
            has_copy=False,
            received_bytes=lambda answer: len(answer.body),
            endpoints=lambda: (source.first,),
        )

    async def close(self) -> None:
        """End what is running."""
        await self._flights.close(0)


class _Pace:
    """Turns with a time between them, in the order in which they were asked for."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next_at = 0.0
        self.waiting = 0

    async def turn(self, interval_s: float) -> None:
        """Wait for the next free turn."""
        now = self._clock.monotonic()
        at = max(now, self._next_at)
        self._next_at = at + interval_s
        if at > now:
            self.waiting += 1
            try:
                await self._clock.sleep(at - now)
            finally:
                self.waiting -= 1
