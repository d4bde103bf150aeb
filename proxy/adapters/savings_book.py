"""What the cache saved, kept beyond a restart: `<cache.dir>/savings.json`.

The counts of a run are made elsewhere, request by request, as plain integers; here somebody comes
by every few seconds and adds up what is new since the last time. The file is written once a minute
if something has changed, and at the stop: a kill costs a minute of counting. It lies in the cache,
since it tells of this cache, and like all that is there it may be lost: a file that is missing or
cannot be understood counts for nothing, one that cannot be written is written later.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final, Self

from proxy.core.savings import Savings, Served
from proxy.ports import Clock

_VERSION: Final = 1
_FILE_MAX_BYTES: Final = 4 * 1024 * 1024
_COUNT_MAX: Final = 2**63
# The year 5138: beyond it there are times that are no dates.
_SINCE_MAX: Final = 1e11
_WRITTEN_EVERY_S: Final = 60.0

Counts = Callable[[], Mapping[str, Served]]


class SavingsBook:
    """The savings of one cache. For one event loop.

    `served` tells what each registry has answered since the start. Without it nothing is counted
    or written, and the book is only read.
    """

    def __init__(self, path: Path, served: Counts | None, clock: Clock) -> None:
        self._path = path
        self._served = served
        self._clock = clock
        self._settled: Mapping[str, Served] = {}
        self._savings = Savings.begun(clock.now())
        self._written: Savings | None = None
        self._written_at = clock.monotonic()

    async def open(self) -> Self:
        """Read what earlier runs have counted."""
        found = await asyncio.to_thread(_read, self._path)
        if found is not None:
            self._savings = self._written = found
        return self

    async def close(self) -> None:
        """Write what has been counted."""
        await self._write()

    async def keep(self) -> None:
        """Add up what is new, and write it if that is due."""
        self._settle()
        if self._clock.monotonic() - self._written_at >= _WRITTEN_EVERY_S:
            await self._write()

    def now(self) -> Savings:
        """Return the counts up to now."""
        self._settle()
        return self._savings

    def report(self) -> dict[str, object]:
        """Tell the counts of each registry: today, since the start if there was one, ever."""
        savings, start = self.now(), self._settled
        return {
            "since": savings.since,
            "day": savings.day,
            "registries": {
                name: {
                    "today": asdict(savings.today.get(name, Served())),
                    "since_start": asdict(start[name]) if name in start else None,
                    "ever": asdict(ever),
                }
                for name, ever in savings.ever.items()
            },
        }

    def _settle(self) -> None:
        now = self._clock.now()
        if self._served is None:
            # What was today when it was written may be yesterday.
            nothing = dict.fromkeys(self._savings.ever, Served())
            self._savings = self._savings.settled(nothing, now)
            return
        served = self._served()
        new = {name: count - self._settled.get(name, Served()) for name, count in served.items()}
        self._savings = self._savings.settled(new, now)
        self._settled = served

    async def _write(self) -> None:
        self._settle()
        if self._served is None or self._savings == self._written:
            return
        savings = self._savings
        self._written_at = self._clock.monotonic()
        with contextlib.suppress(OSError):
            await asyncio.to_thread(_write, self._path, savings)
            self._written = savings


def _write(path: Path, savings: Savings) -> None:
    document = {
        "version": _VERSION,
        "since": savings.since,
        "day": savings.day,
        "today": {name: asdict(count) for name, count in savings.today.items()},
        "ever": {name: asdict(count) for name, count in savings.ever.items()},
    }
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(json.dumps(document), encoding="ascii")
    draft.replace(path)


def _read(path: Path) -> Savings | None:
    try:
        with path.open("rb") as file:
            document: object = json.loads(file.read(_FILE_MAX_BYTES))
        if not isinstance(document, dict) or document["version"] != _VERSION:
            return None
        since, day = document["since"], document["day"]
        if not isinstance(since, int | float) or not isinstance(day, str):
            return None
        if not 0 <= since < _SINCE_MAX:
            return None
        return Savings(float(since), day, _counts(document["today"]), _counts(document["ever"]))
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None


def _counts(found: object) -> dict[str, Served]:
    if not isinstance(found, dict):
        raise TypeError
    return {str(name): _count(count) for name, count in found.items()}


def _count(found: object) -> Served:
    """Read one count. A number that is not there is 0: an earlier version did not keep it."""
    if not isinstance(found, dict):
        raise TypeError
    numbers = {field.name: found.get(field.name, 0) for field in fields(Served)}
    if not all(type(number) is int and 0 <= number < _COUNT_MAX for number in numbers.values()):
        raise ValueError
    return Served(**numbers)
