"""Log lines written apart: whoever logs never waits for whoever reads.

Standard error may be a pipe that nobody empties, a terminal that somebody has stopped, a file on a
slow disk. A line is made where it is logged, so that it says what was so at that moment, and is put
down here; a thread of its own writes it. What waits is bounded in bytes. A line that finds no room,
or that cannot be written, is dropped and counted, and once lines can be written again one of them
says how many are missing.
"""

import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

WAITING_MAX_BYTES: Final = 4 * 1024 * 1024
_LAST_WORDS_S: Final = 1.0

logger = logging.getLogger(__name__)


def to_descriptor(descriptor: int) -> Callable[[bytes], None]:
    """Return what writes all of its bytes to a file descriptor, however long that takes."""

    def write(data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:
                # Somebody with the same terminal or pipe has set it so.
                writable = select.poll()
                writable.register(descriptor, select.POLLOUT)
                writable.poll()

    return write


class LogThread(logging.Handler):
    """Writes records by `write`, which may block and may raise OSError."""

    def __init__(
        self, write: Callable[[bytes], None], waiting_max_bytes: int = WAITING_MAX_BYTES
    ) -> None:
        super().__init__()
        self._write = write
        self._waiting_max_bytes = waiting_max_bytes
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._untold = 0
        self._is_closing = False
        self._changed = threading.Condition()
        self.dropped = 0
        # It may be in the middle of a write that never ends, and must not hold up the exit.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put a line down to be written, or drop it."""
        try:
            line = self._line(record)
        except Exception:  # noqa: BLE001
            # The boundary: a record that cannot be written must not end what it tells of.
            with self._changed:
                self._drop(1)
            return
        with self._changed:
            if self._waiting_bytes + len(line) > self._waiting_max_bytes:
                self._drop(1)
                return
            self._waiting.append(line)
            self._waiting_bytes += len(line)
            self._changed.notify()

    def close(self) -> None:
        """Give what waits a moment to be written, and stop. Safe to call twice."""
        with self._changed:
            if self._is_closing:
                return
            self._is_closing = True
            self._changed.notify()
        self._thread.join(_LAST_WORDS_S)
        super().close()

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode("utf-8", "backslashreplace") + b"\n"

    def _drop(self, lines: int) -> None:
        self.dropped += lines
        self._untold += lines

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if not self._waiting:
                    return
                lines = tuple(self._waiting)
                self._waiting.clear()
            batch = b"".join(lines)
            try:
                self._write(batch)
            except OSError:
                # There is no place left to complain at.
                with self._changed:
                    self._drop(len(lines))
                    self._waiting_bytes -= len(batch)
                continue
            with self._changed:
                self._waiting_bytes -= len(batch)
                self._tell_of_dropped()

    def _tell_of_dropped(self) -> None:
        """Say how many lines are missing; beyond the limit, since it cannot say so twice."""
        if not self._untold:
            return
        line = self._line(
            logger.makeRecord(
                logger.name,
                logging.WARNING,
                __file__,
                0,
                "%d log lines are missing here: they could not be written in time",
                (self._untold,),
                None,
                extra={"fields": {"dropped": self._untold}},
            )
        )
        self._untold = 0
        self._waiting.append(line)
        self._waiting_bytes += len(line)
