"""SIGHUP: heard from the first moment of `serve` to the last of the process, and never fatal.

A signal that comes before anybody can answer is kept, and answered then: the configuration may have
been read already when it changed. One that comes when all is over is ignored.

Not the event loop's own handler: that is given back to the system while the process ends.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class HangUps:
    """What SIGHUP does now. For the main thread."""

    def __init__(self) -> None:
        self._is_unanswered = False
        self._answer: Callable[[], object] | None = None

    def heard(self, *_: object) -> None:
        """Answer a signal, or keep it."""
        if self._answer is None:
            self._is_unanswered = True
        else:
            self._answer()

    def answer_by(self, answer: Callable[[], object] | None) -> None:
        """Have `answer` called for each signal, and at once for those that were kept.

        It is called between any two steps of the main thread, and must be as quick as a flag.
        None keeps what comes.
        """
        self._answer = answer
        if self._is_unanswered and answer is not None:
            self._is_unanswered = False
            answer()


@contextmanager
def hang_ups() -> Iterator[HangUps]:
    """Hear SIGHUP, and ignore it once this is over: there is nothing more to reload."""
    heard = HangUps()
    signal.signal(signal.SIGHUP, heard.heard)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
