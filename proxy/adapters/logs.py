"""How log records are written: JSON lines for machines, one plain line for people.

A record's message reads by itself; what can be searched for is in `fields`. Control characters in
what came from outside are escaped, so that nobody writes a line of ours; of a traceback, which has
lines of its own, each is indented.

`configure` is for commands: a line is written when the call returns. `configured_apart` is for
`serve`, which must not stand still because nobody reads what it writes (`log_thread`).
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Final, Literal

from proxy.adapters.log_thread import LogThread, to_descriptor

_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(32), 127, 0x85, 0x2028, 0x2029)}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `at`, `level`, `logger`, `message`, and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        entry: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            entry.update({key: value for key, value in fields.items() if key not in entry})
        if record.exc_info is not None:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=True)


class ConsoleFormatter(logging.Formatter):
    """Time, level, message."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        at = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        line = f"{at} {record.levelname.lower():7} {record.getMessage().translate(_CONTROL)}"
        if record.exc_info is not None:
            told = self.formatException(record.exc_info).splitlines()
            line = "\n".join((line, *(f"    {each.translate(_CONTROL)}" for each in told)))
        return line


LogFormat = Literal["console", "json"]


def configure(log_format: LogFormat | None, level: str, stream: IO[str] | None = None) -> None:
    """Send all logging to `stream` (standard error), in one form, from `level` up."""
    out = sys.stderr if stream is None else stream
    _install(logging.StreamHandler(out), log_format, level, out)


@contextmanager
def configured_apart(
    log_format: LogFormat | None, level: str, stream: IO[str] | None = None
) -> Iterator[None]:
    """Do the same, with a thread that writes, for as long as the context lasts.

    `stream` must have a file descriptor. Its own buffer is passed by: at the exit the interpreter
    would wait for a lock that a thread in the middle of a write still has.
    """
    out = sys.stderr if stream is None else stream
    out.flush()
    handler = LogThread(to_descriptor(out.fileno()))
    _install(handler, log_format, level, out)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def dropped_lines() -> int:
    """Return how many lines could not be written since the start."""
    handlers = logging.getLogger().handlers
    return sum(handler.dropped for handler in handlers if isinstance(handler, LogThread))


def _install(
    handler: logging.Handler, log_format: LogFormat | None, level: str, out: IO[str]
) -> None:
    chosen = log_format or ("console" if out.isatty() else "json")
    handler.setFormatter(ConsoleFormatter() if chosen == "console" else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)
    # Its lines about malformed requests and vanished clients are ours to count, not to repeat.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Write what is as important as `level` or more, from now on."""
    logging.getLogger().setLevel(level.upper())
