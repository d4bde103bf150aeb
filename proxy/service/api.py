"""The registry web API, read through us: `cargo search` and what else only asks.

Passed on to the upstream's own `api`, with the upstream's credentials where the origin is its own
and with nobody else's. Nothing is changed: publishing goes another way.

crates.io asks crawlers for one request a second, and a thousand developers behind one proxy are one
client to it. Where `api_interval` is set, requests take their turns, a few wait for theirs, and the
others are told to come again; what was answered is kept for a minute, and who asks the same joins.
Then nothing is tried twice: that would be another request, and out of turn.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final

from proxy.core.events import How, Kind
from proxy.core.failures import Busy, TimedOut
from proxy.core.memory_tier import MemoryTier
from proxy.ports import ApiAnswer, Clock
from proxy.service.admission import Admit, freely
from proxy.service.flights import Flights, outcome
from proxy.service.source import ASKING_DEADLINE_S, Source
from proxy.service.upstream_configs import UpstreamConfigs

WAITING_MAX: Final = 20
KEPT_FOR_S: Final = 60.0
# Cargo gives up at 30 s; who waits for a turn may need most of that.
API_PATIENCE_S: Final = 28.0
_KEPT_BYTES: Final = 8 * 2**20
_OVERHEAD_BYTES: Final = 500
_OK: Final = 200
# Times are sums of many intervals.
_ROUNDING_S: Final = 1e-6

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class ApiServed:
    """What the web API said, and how it was come by."""

    answer: ApiAnswer
    how: How


class Api:
    """Reads of the web APIs of all upstreams. For one event loop."""

    def __init__(self, configs: UpstreamConfigs, clock: Clock) -> None:
        self._configs = configs
        self._clock = clock
        self._next_turns: dict[str, float] = {}
        self._flights: Flights[Key, ApiAnswer | None] = Flights()
        self._kept: MemoryTier[Key, tuple[float, ApiAnswer]] = MemoryTier(_KEPT_BYTES)

    async def get(
        self, source: Source, rest: str, query: str, admit: Admit = freely
    ) -> ApiServed | None:
        """Ask for `/api/v1<rest>?<query>`, both percent-encoded; None if there is no API.

        Raises UpstreamFailure. An error status of the API is an answer, not a failure.
        """
        try:
            async with asyncio.timeout(API_PATIENCE_S):
                return await self._get(source, rest, query, admit)
        except TimeoutError:
            raise TimedOut(f"{source.name} did not answer in time; try again") from None

    async def _get(self, source: Source, rest: str, query: str, admit: Admit) -> ApiServed | None:
        if not source.api_interval_s:
            admit()
            answer = await self._ask(source, rest, query)
            return None if answer is None else ApiServed(answer, How.BYPASS)
        key = (source.name, rest, query)
        kept = self._kept.get(key)
        if kept is not None and self._clock.monotonic() < kept[0]:
            return ApiServed(kept[1], How.HIT)

        def begin() -> Coroutine[Any, Any, ApiAnswer | None]:
            admit()
            return self._in_turn(source, key, self._turn(source))

        task, began = self._flights.join(key, begin)
        answer = await outcome(task, None)
        if answer is None:
            return None
        return ApiServed(answer, How.BYPASS if began else How.COALESCED)

    def _turn(self, source: Source) -> float:
        """Take the next turn, and return when it comes. Raises Busy where too many wait.

        Taken before anything is awaited: of many who come in the same moment each gets its own.
        """
        now = self._clock.monotonic()
        at = max(now, self._next_turns.get(source.name, now))
        if at - now > WAITING_MAX * source.api_interval_s + _ROUNDING_S:
            raise Busy(f"too many wait for the web API of {source.name} already; try again")
        self._next_turns[source.name] = at + source.api_interval_s
        return at

    async def _in_turn(self, source: Source, key: Key, at: float) -> ApiAnswer | None:
        wait_s = at - self._clock.monotonic()
        if wait_s > 0:
            await self._clock.sleep(wait_s)
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
            deadline_s=lambda: 0.0 if source.api_interval_s else ASKING_DEADLINE_S,
            endpoints=lambda: (source.first,),
        )

    async def close(self) -> None:
        """End what is running."""
        await self._flights.close(0)
