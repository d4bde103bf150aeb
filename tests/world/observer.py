"""An observer that remembers."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from proxy.core.events import Event
from proxy.ports import Observer
from tests.world.clock import PATIENCE_SECONDS

E = TypeVar("E", bound=Event)


class Recorder(Observer):
    """Keeps every event, in order: a transcript to compare with."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._arrived = asyncio.Event()

    def observe(self, event: Event) -> None:
        self.events.append(event)
        self._arrived.set()

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def take(self) -> list[Event]:
        """Return the events since the last `take`, and forget them."""
        taken, self.events = self.events, []
        return taken

    async def until(self, kind: type[E], matches: Callable[[E], bool] = lambda _: True) -> E:
        """Return the first event of a kind that matches, waiting for it if it is yet to come."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                self._arrived.clear()
                for event in self.of(kind):
                    if matches(event):
                        return event
                await self._arrived.wait()
