"""One proxy, one upstream per fault, and what came of it: the experiment behind the fault table.

Every fault has an upstream of its own in the proxy's configuration, so that the failures of one say
nothing of the health of another; behind all of them is one scripted server, which plays each fault
to the requests for the crates that it is tried on. All are asked for at once, or nearly.

Each fault is tried in several situations, and in each on two crates, because one cannot be observed
twice. The fault is healed for the first, which tells whether the proxy heals with its upstream; for
the second it stays, and once the proxy was restarted with every upstream down, its answer tells
what had been kept.
"""

import asyncio
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from pathlib import Path
from typing import Final

from tests.web.http11 import BrokenOff, ask
from tests.world.crates import Package
from tests.world.faults import Fault
from tests.world.holdfast import Answer, Holdfast
from tests.world.registry import Registry, index_path
from tests.world.server import RegistryServer

LONGEST_WAIT_SECONDS: Final = 20.0
LARGE_BYTES: Final = 400_000
_LIMITS: Final = {"index": "64KiB", "crate": "1MiB"}
_TERMS: Final = {
    "fresh_for": "0s",
    "stale_while_revalidate": "0s",
    "connect_timeout": "2s",
    "idle_timeout": "2s",
}
_HEALING_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.3
_ASKED_AT_ONCE: Final = 60


class Situation(Enum):
    """What is asked for, and what is held of it when the upstream begins to fail."""

    INDEX_COLD = "an index file of which nothing is held"
    INDEX_STALE = "an index file of which a copy is held that is no longer fresh"
    SMALL_CRATE = "a crate of up to 64 KiB that is not held"
    LARGE_CRATE = "a longer crate that is not held"

    @property
    def is_index(self) -> bool:
        """Whether it is about an index file."""
        return self in (Situation.INDEX_COLD, Situation.INDEX_STALE)


@dataclass(frozen=True, slots=True)
class Got:
    """What a client got: `said` is the line of an error, or which file came, or how much of it."""

    status: int
    how: str
    said: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What one trial came to.

    `kept` is said in the words of `Got.said`; `heals` tells whether the right file came within a
    few seconds of the upstream's recovery, and `seconds` how long the slower first answer took.
    """

    got: Got
    kept: str
    heals: bool
    seconds: float


THE_FILE: Final = "the file"
THE_OLD_FILE: Final = "the older file that was held"
CUT_SHORT: Final = "a transfer that is broken off"
NOTHING: Final = "nothing"


@dataclass(frozen=True, slots=True)
class Trial:
    """A fault in a situation. Without a fault the upstream refuses connections.

    What is `remembered` by the proxy is not waited for to heal.
    """

    situation: Situation
    fault: Fault | None
    remembered: bool = False


@dataclass(frozen=True, slots=True)
class Suspect:
    """One upstream, with its settings, and what it is tried with."""

    trials: Sequence[Trial]
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Subject:
    """A crate that a fault is tried on, and what was published of it at first."""

    upstream: str
    trial: Trial
    crate: str
    index: bytes
    data: bytes
    cksum: str

    @property
    def index_url(self) -> str:
        return f"/{self.upstream}/index/{index_path(self.crate)}"

    @property
    def url(self) -> str:
        """What is asked for on the proxy."""
        if self.trial.situation.is_index:
            return self.index_url
        return f"/{self.upstream}/crates/{self.crate}/1.0.0/{self.cksum}"

    @property
    def pattern(self) -> str:
        """What the proxy asks the upstream for."""
        if self.trial.situation.is_index:
            return f"/index/{index_path(self.crate)}"
        return f"/crates/{self.crate}/*"


class Experiment:
    """A registry, its two servers, one of which will refuse connections, and a proxy before them.

    `run` makes all trials once.
    """

    def __init__(
        self,
        root: Path,
        suspects: Sequence[Suspect],
        server: RegistryServer,
        refusing: RegistryServer,
        registry: Registry,
    ) -> None:
        self._server = server
        self._refusing = refusing
        self._registry = registry
        self._numbers = count()
        pairs = [
            (self._publish(f"upstream-{number}", trial), self._publish(f"upstream-{number}", trial))
            for number, suspect in enumerate(suspects)
            for trial in suspect.trials
        ]
        self._healed = [healed for healed, _ in pairs]
        self._failing = [failing for _, failing in pairs]
        upstreams = {
            f"upstream-{number}": {"index": self._index_of(suspect), **_TERMS, **suspect.settings}
            for number, suspect in enumerate(suspects)
        }
        self._proxy = Holdfast(root, {"limits": _LIMITS, "upstreams": upstreams})

    def _index_of(self, suspect: Suspect) -> str:
        refuses = any(trial.fault is None for trial in suspect.trials)
        return (self._refusing if refuses else self._server).index_url

    def _publish(self, upstream: str, trial: Trial) -> _Subject:
        # Of one length and one beginning, so that all look alike wherever a message shows them.
        crate = f"serde-{next(self._numbers):04}"
        padding = LARGE_BYTES if trial.situation is Situation.LARGE_CRATE else 0
        self._registry.publish(Package(crate, padding_bytes=padding))
        release = self._registry.release(crate, "1.0.0")
        assert release.data is not None
        index = self._registry.index(crate)
        return _Subject(upstream, trial, crate, index, release.data, release.cksum)

    def run(self) -> list[Seen]:
        """Make the trials; returns what came of each, in their order."""
        everything = [*self._healed, *self._failing]
        with self._proxy:
            asyncio.run(self._prepare(everything))
            self._break(everything)
            self._refusing.stop()
            asked = asyncio.run(self._ask_all(everything))
            self._server.heal()
            self._break(self._failing)
            self._refusing.start()
            heals = asyncio.run(self._all_heal())
            self._server.stop()
            self._refusing.stop()
            self._proxy.restart()
            left = asyncio.run(self._ask_all(self._failing))
        first, second = asked[: len(self._healed)], asked[len(self._healed) :]
        return [
            _seen(one, other, kept, heals=healed)
            for one, other, kept, healed in zip(first, second, left, heals, strict=True)
        ]

    async def _prepare(self, subjects: Iterable[_Subject]) -> None:
        """Bring in what the situations presuppose, and change the registry where it must differ."""
        held = [each for each in subjects if each.trial.situation is not Situation.INDEX_COLD]
        turns = asyncio.Semaphore(_ASKED_AT_ONCE)

        async def bring_in(subject: _Subject) -> None:
            async with turns:
                answer = await ask(self._proxy.port, subject.index_url)
            assert (answer.status, answer.body) == (200, subject.index), answer

        async def learn_where_crates_are(upstream: str) -> None:
            async with turns:
                await ask(self._proxy.port, f"/{upstream}/api/v1/crates?q=x")

        upstreams = {each.upstream for each in held}
        await asyncio.gather(
            *(bring_in(each) for each in held),
            *(learn_where_crates_are(upstream) for upstream in upstreams),
        )
        for each in held:
            if each.trial.situation is Situation.INDEX_STALE:
                self._registry.publish(Package(each.crate, "1.1.0"))

    def _break(self, subjects: Iterable[_Subject]) -> None:
        for each in subjects:
            if each.trial.fault is not None:
                self._server.fail(each.pattern, each.trial.fault)

    async def _all_heal(self) -> list[bool]:
        turns = asyncio.Semaphore(_ASKED_AT_ONCE)
        return list(await asyncio.gather(*(self._heals(each, turns) for each in self._healed)))

    async def _heals(self, subject: _Subject, turns: asyncio.Semaphore) -> bool:
        patience_seconds = 0.0 if subject.trial.remembered else _HEALING_SECONDS
        until = time.monotonic() + patience_seconds
        while True:
            got, _ = await self._ask(subject, turns)
            if got.said == THE_FILE or time.monotonic() >= until:
                return got.said == THE_FILE
            await asyncio.sleep(_POLL_SECONDS)

    async def _ask_all(self, subjects: Iterable[_Subject]) -> list[tuple[Got, float]]:
        turns = asyncio.Semaphore(_ASKED_AT_ONCE)
        return list(await asyncio.gather(*(self._ask(each, turns) for each in subjects)))

    async def _ask(self, subject: _Subject, turns: asyncio.Semaphore) -> tuple[Got, float]:
        async with turns:
            begun = time.monotonic()
            try:
                answer = await ask(self._proxy.port, subject.url)
            except BrokenOff as broken:
                got = self._judged(subject, broken.answer, whole=False)
            else:
                got = self._judged(subject, answer, whole=True)
            return got, time.monotonic() - begun

    def _judged(self, subject: _Subject, answer: Answer, *, whole: bool) -> Got:
        """Say what an answer was; fail at once if it breaks a promise without exceptions."""
        how = answer.how or ""
        if answer.status == 200:
            return Got(200, how, self._which(subject, answer.body, whole=whole))
        assert whole, f"an error cut short: {answer}"
        assert answer.headers["content-type"] == "text/plain; charset=utf-8", answer
        assert answer.headers["cache-control"] == "no-store", answer
        assert answer.headers.get("retry-after") == ("5" if answer.status == 503 else None), answer
        assert len(answer.body) <= 512, answer
        line = answer.body.decode()
        assert line.endswith("\n"), answer
        assert line.count("\n") == 1, answer
        return Got(answer.status, how, _impersonal(line.rstrip("\n"), subject))

    def _which(self, subject: _Subject, body: bytes, *, whole: bool) -> str:
        if not subject.trial.situation.is_index:
            if not whole:
                return CUT_SHORT
            assert body == subject.data, "wrong bytes in a complete transfer"
            return THE_FILE
        assert whole, "an index file cut short"
        if body == self._registry.index(subject.crate):
            return THE_FILE
        assert body == subject.index, "an index file that never was"
        return THE_OLD_FILE


def _seen(
    one: tuple[Got, float], other: tuple[Got, float], kept: tuple[Got, float], *, heals: bool
) -> Seen:
    (got, took), (got_too, took_too) = one, other
    assert got == got_too, "one fault, two outcomes"
    left = kept[0]
    assert left.status in (200, 503), f"the upstream is down, and yet: {left}"
    return Seen(got, NOTHING if left.status == 503 else left.said, heals, max(took, took_too))


def _impersonal(line: str, subject: _Subject) -> str:
    """Take out of an error line what differs from run to run."""
    line = line.replace(subject.upstream, "crates-io").replace(subject.crate, "serde")
    line = line.replace(subject.cksum, "<digest>")
    # How a parser complains is the parser's business.
    line = re.sub(r"(does not speak HTTP: ).*", r"\1...", line)
    line = re.sub(r"\b[0-9a-f]{64}\b", "<another digest>", line)
    # What is shown of a bad line ends in the middle of one.
    line = re.sub(r"[0-9a-f]{12,63}'$", "...'", line)
    line = re.sub(r"(a crate of )\d+( bytes)", r"\1<many>\2", line)
    return re.sub(r"127\.0\.0\.1(:|', )\d+", r"127.0.0.1\g<1><port>", line)
