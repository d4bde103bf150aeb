"""The handlers that run for streams: how many at most, and how many begin in one turn of the loop.

A stream is cheap to ask for, a handler is not. If each began when its head came, a crowd that asks
for a hundred streams a head would stand in front of every answer that is at hand, and their tasks
would be most of our memory. So few begin at once, the others in the order in which they came, and
between two turns the loop sees to its sockets. While some wait, a connection that asks for more
handlers is not read further: it is taken up when its turn comes. Whoever has left meanwhile is
never begun for. Where too many are under way in all, the next are turned away at the price of a
head.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from proxy.web.guests import Seldom

ERRANDS_MAX: Final = 8_192
_BEGUN_IN_A_TURN: Final = 16

Errand = Callable[[], Coroutine[Any, Any, None] | None]


class Errands:
    """The handlers of one entrance's streams. For one event loop; made in it."""

    def __init__(self, *, at_most: int = ERRANDS_MAX) -> None:
        self._at_most = at_most
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Errand] = deque()
        self._held: deque[Callable[[], None]] = deque()
        self._begun = 0
        self._turn_is_known = False
        self._full = Seldom(
            "%s requests of HTTP/2 are under way; %s were turned away since this was last said"
        )
        self.running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self.running) + len(self._waiting)

    def is_full(self) -> bool:
        """Tell whether there is room for another one; who asks in vain is turned away."""
        if len(self) < self._at_most:
            return False
        self._full.tell(self._loop.time(), len(self))
        # To turn somebody away takes its time too.
        self._begun += 1
        self._watch()
        return True

    def is_crowded(self) -> bool:
        """Tell whether as much has begun in this turn as may, or others wait for the next."""
        return self._begun >= _BEGUN_IN_A_TURN or bool(self._waiting)

    def hold(self, take_up: Callable[[], None]) -> None:
        """Call `take_up` when nobody waits any more who came before."""
        self._held.append(take_up)
        self._watch()

    def begin(self, errand: Errand) -> None:
        """Run `errand` now or in one of the next turns; None from it: there is no need any more."""
        if self._waiting or self._begun >= _BEGUN_IN_A_TURN:
            self._waiting.append(errand)
        else:
            self._run(errand)
        self._watch()

    def _run(self, errand: Errand) -> None:
        work = errand()
        if work is None:
            return
        self._begun += 1
        task = self._loop.create_task(work)
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    def _watch(self) -> None:
        if not self._turn_is_known:
            self._turn_is_known = True
            self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn_is_known = False
        self._begun = 0
        while self._begun < _BEGUN_IN_A_TURN:
            if self._waiting:
                self._run(self._waiting.popleft())
            elif self._held:
                self._begun += 1
                self._held.popleft()()
            else:
                return
        self._watch()
