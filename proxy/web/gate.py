"""The operator's limits on what clients and registries may ask for, and how a refusal is told.

Two things are limited, each by client and by registry, and each only where the operator says so. A
miss makes us ask an upstream for what we do not hold: the rim hands a journey its leave to do that
(`proxy.service.admission`), and a request pays for it at most once, though it need both an index
file and a crate. A request under way holds a place until its last byte is written; what is in
memory is answered at once and needs none.

A refusal takes nothing: where the registry has no token left, the client keeps its own.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import hdrs, web

from proxy.core.allowance import Allowances, Places, Rate, counted_as
from proxy.core.events import How
from proxy.core.failures import TooMany
from proxy.ports import Clock
from proxy.service.admission import Admit, freely
from proxy.web import replies


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the operator allows, None being no limit. Requests are those under way at once."""

    client_requests: int | None = None
    client_misses: Rate | None = None
    registry_requests: int | None = None
    registry_misses: Rate | None = None


class Gate:
    """Counts for all clients and registries. For one event loop."""

    def __init__(self, ceilings: Ceilings, clock: Clock) -> None:
        self._clock = clock
        self._ceilings = ceilings
        self._build(ceilings)

    def set_ceilings(self, ceilings: Ceilings) -> None:
        """Count by other ceilings from now on, from nothing; requests under way keep their places.

        The same ceilings change nothing.
        """
        if ceilings != self._ceilings:
            self._ceilings = ceilings
            self._build(ceilings)

    def _build(self, ceilings: Ceilings) -> None:
        self._misses = [
            (key, _whose(key), Allowances[str](rate))
            for key, rate in (
                ("limits.client_misses", ceilings.client_misses),
                ("limits.registry_misses", ceilings.registry_misses),
            )
            if rate is not None
        ]
        self._requests = [
            (key, _whose(key), Places[str](each))
            for key, each in (
                ("limits.client_requests", ceilings.client_requests),
                ("limits.registry_requests", ceilings.registry_requests),
            )
            if each is not None
        ]

    def admission(self, client: str, registry: str) -> Admit:
        """Return one request's leave to ask an upstream; calling it may raise TooMany."""
        if not self._misses:
            return freely
        paid = False

        def admit() -> None:
            nonlocal paid
            if not paid:
                self._pay(client, registry)
                paid = True

        return admit

    def _pay(self, client: str, registry: str) -> None:
        now = self._clock.monotonic()
        names = _names(client, registry)
        for key, whose, allowances in self._misses:
            wait_s = allowances.wait_s(names[whose], now)
            if wait_s > 0:
                reason = f"this {whose} has asked for too much of late that is not held here"
                raise TooMany(key, reason, retry_after_s=wait_s)
        for _, whose, allowances in self._misses:
            allowances.take(names[whose], now)

    @contextmanager
    def place(self, client: str, registry: str) -> Iterator[None]:
        """Hold a place for a request. Raises TooMany."""
        requests = self._requests
        if not requests:
            yield
            return
        names = _names(client, registry)
        for key, whose, places in requests:
            if not places.is_free(names[whose]):
                reason = f"this {whose} has too many requests under way"
                raise TooMany(key, reason, retry_after_s=1.0)
        for _, whose, places in requests:
            places.enter(names[whose])
        try:
            yield
        finally:
            for _, whose, places in requests:
                places.leave(names[whose])


def refusal(limit: TooMany, *, in_api: bool) -> web.Response:
    """Tell of a limit: 429 and when to come again, in whole seconds."""
    status = web.HTTPTooManyRequests.status_code
    again_s = max(1, math.ceil(limit.retry_after_s))
    line = f"{limit}; try again in {again_s} s"
    if in_api:
        response = replies.api_error(status, line, How.REFUSED)
    else:
        response = replies.plain(status, line, How.REFUSED)
    response.headers[hdrs.RETRY_AFTER] = str(again_s)
    return response


def _whose(key: str) -> str:
    return "address" if key.startswith("limits.client") else "registry"


def _names(client: str, registry: str) -> dict[str, str]:
    return {"address": counted_as(client), "registry": registry}
