"""When a connection has had nothing to do for long enough."""

import asyncio
from collections.abc import Callable

from proxy.web.http2.limits import Http2Limits


class Idleness:
    """Calls `dismiss` when `is_unused` has held for as long as an idle connection may live.

    For one event loop; the times are its clock's. The first of them begins with the first look.
    """

    __slots__ = ("_dismiss", "_interrupted", "_is_unused", "_limits", "_loop", "_timer")

    def __init__(
        self, limits: Http2Limits, is_unused: Callable[[], bool], dismiss: Callable[[], None]
    ) -> None:
        self._limits = limits
        self._is_unused = is_unused
        self._dismiss = dismiss
        self._loop = asyncio.get_running_loop()
        self._interrupted = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def interrupt(self) -> None:
        """Something was asked, or has ended, now."""
        self._interrupted = self._loop.time()

    def watch(self) -> None:
        """Look twice in each such time."""
        now = self._loop.time()
        if self._is_unused() and now - self._interrupted >= self._limits.idle_timeout_s:
            if self._interrupted:
                self._dismiss()
                return
            self._interrupted = now
        self._timer = self._loop.call_later(self._limits.idle_timeout_s / 2, self.watch)

    def end(self, then: Callable[[], None] | None = None) -> None:
        """Watch no more; call `then` if nothing has come of it after a stall."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if then is not None:
            self._timer = self._loop.call_later(self._limits.stall_timeout_s, then)
