"""One proxy, one upstream per fault, and what came of it: the experiment behind the fault table.

Every case has an upstream of its own in the proxy's configuration, so that the failures of one say
nothing of the health of another; behind all of them is one scripted server, which plays each case's
fault to the requests for that case's crate. All cases are asked at once.

Each case is tried on two crates, because one cannot be observed twice. The fault is healed for the
first, which tells whether the proxy heals with its upstream; for the second it stays, and once the
proxy was restarted with every upstream down, its answer tells what had been kept.
"""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
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
_HEALING_SECONDS: Final = 12.0
_POLL_SECONDS: Final = 0.2


class Situation(Enum):
    """What is asked for, and what is held of it when the upstream begins to fail."""

    INDEX_COLD = "an index file of which nothing is held"
    INDEX_STALE = "an index file of which a copy is held that is no longer fresh"
    SMALL_CRATE = "a crate of up to 64 KiB that is not held"
    LARGE_CRATE = "a longer crate that is not held"
    HELD_CRATE = "a crate that is held"

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
    """What one case came to.

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
class Try:
    """One fault to be tried, with further settings of its upstream.

    Without a fault the upstream refuses connections. What is `remembered` by the proxy is not
    waited for to heal.
    """

    fault: Fault | None
    settings: Mapping[str, object] = field(default_factory=dict)
    remembered: bool = False


@dataclass(frozen=True, slots=True)
class _Subject:
    """A crate that a fault is tried on."""

    upstream: str
    crate: str
    index: bytes
    data: bytes
    cksum: str

    @property
    def index_url(self) -> str:
        return f"/{self.upstream}/index/{index_path(self.crate)}"

    @property
    def crate_url(self) -> str:
        return f"/{self.upstream}/crates/{self.crate}/1.0.0/{self.cksum}"


class Experiment:
    """A registry, its two servers (one of which will refuse connections), and a proxy before them.

    `trials` are made in one `situation`; everything is stopped by `close`.
    """

    def __init__(
        self,
        root: Path,
        situation: Situation,
        trials: Sequence[Try],
        server: RegistryServer,
        refusing: RegistryServer,
        registry: Registry,
    ) -> None:
        self._situation = situation
        self._trials = trials
        self._server = server
        self._refusing = refusing
        self._registry = registry
        self._healed = [self._publish(number, "healed") for number in range(len(trials))]
        self._failing = [self._publish(number, "failing") for number in range(len(trials))]
        self._proxy = Holdfast(root, {"limits": _LIMITS, "upstreams": self._upstreams()})

    def _publish(self, number: int, fate: str) -> _Subject:
        crate = _crate(fate, number)
        padding = LARGE_BYTES if self._situation is Situation.LARGE_CRATE else 0
        self._registry.publish(Package(crate, padding_bytes=padding))
        release = self._registry.release(crate, "1.0.0")
        assert release.data is not None
        index = self._registry.index(crate)
        return _Subject(f"upstream-{number}", crate, index, release.data, release.cksum)

    def _upstreams(self) -> dict[str, Mapping[str, object]]:
        return {
            f"upstream-{number}": {
                "index": (self._refusing if each.fault is None else self._server).index_url,
                "fresh_for": "0s",
                "stale_while_revalidate": "0s",
                "connect_timeout": "1s",
                "idle_timeout": "1s",
                **each.settings,
            }
            for number, each in enumerate(self._trials)
        }

    def run(self) -> list[Seen]:
        """Make the trials; returns what came of each."""
        with self._proxy:
            asyncio.run(self._prepare())
            self._break()
            everything = [*self._healed, *self._failing]
            asked = asyncio.run(self._ask_all(everything))
            for healed, failing in zip(
                asked[: len(self._trials)], asked[len(self._trials) :], strict=True
            ):
                assert healed[0] == failing[0], (
                    f"one fault, two outcomes: {healed[0]}, {failing[0]}"
                )
            heals = self._heal()
            self._server.stop()
            self._refusing.stop()
            self._proxy.restart()
            kept = asyncio.run(self._ask_all(self._failing))
        return [
            Seen(
                got=first[0],
                kept=NOTHING if left[0].status == 503 else left[0].said,
                heals=healed,
                seconds=max(first[1], second[1]),
            )
            for first, second, left, healed in zip(
                asked[: len(self._trials)],
                asked[len(self._trials) :],
                kept,
                heals,
                strict=True,
            )
        ]

    async def _prepare(self) -> None:
        """Bring in what the situation presupposes, and change the registry where it must differ."""
        subjects = [*self._healed, *self._failing]
        if self._situation is Situation.INDEX_COLD:
            return
        for got, _ in await self._ask_all(subjects, index=True):
            assert got.said == THE_FILE, got
        if self._situation is Situation.HELD_CRATE:
            for got, _ in await self._ask_all(subjects):
                assert got.said == THE_FILE, got
        if self._situation is Situation.INDEX_STALE:
            for each in subjects:
                self._registry.publish(Package(each.crate, "1.1.0"))
        elif not self._situation.is_index:
            # Where crates are is asked for once, and must be known while it is broken.
            await asyncio.gather(
                *(
                    ask(self._proxy.port, f"/{each.upstream}/api/v1/crates?q=x")
                    for each in self._healed
                )
            )

    def _break(self) -> None:
        for number, each in enumerate(self._trials):
            if each.fault is not None:
                for fate in ("healed", "failing"):
                    self._server.fail(self._pattern(_crate(fate, number)), each.fault)
        self._refusing.stop()

    def _pattern(self, crate: str) -> str:
        return f"/index/{index_path(crate)}" if self._situation.is_index else f"/crates/{crate}/*"

    def _heal(self) -> list[bool]:
        self._server.heal()
        for number, each in enumerate(self._trials):
            if each.fault is not None:
                self._server.fail(self._pattern(_crate("failing", number)), each.fault)
        self._refusing.start()
        return asyncio.run(self._all_heal())

    async def _all_heal(self) -> list[bool]:
        pairs = zip(self._healed, self._trials, strict=True)
        return list(
            await asyncio.gather(
                *(
                    self._heals(each, 0 if trial.remembered else _HEALING_SECONDS)
                    for each, trial in pairs
                )
            )
        )

    async def _heals(self, subject: _Subject, patience_seconds: float) -> bool:
        until = time.monotonic() + patience_seconds
        while True:
            got, _ = await self._ask(subject, index=self._situation.is_index)
            if got.said == THE_FILE or time.monotonic() >= until:
                return got.said == THE_FILE
            await asyncio.sleep(_POLL_SECONDS)

    async def _ask_all(
        self, subjects: Sequence[_Subject], *, index: bool | None = None
    ) -> list[tuple[Got, float]]:
        wanted = self._situation.is_index if index is None else index
        return list(await asyncio.gather(*(self._ask(each, index=wanted) for each in subjects)))

    async def _ask(self, subject: _Subject, *, index: bool) -> tuple[Got, float]:
        begun = time.monotonic()
        url = subject.index_url if index else subject.crate_url
        try:
            answer = await ask(self._proxy.port, url)
        except BrokenOff as broken:
            got = self._judged(subject, broken.answer, index=index, whole=False)
        else:
            got = self._judged(subject, answer, index=index, whole=True)
        return got, time.monotonic() - begun

    def _judged(self, subject: _Subject, answer: Answer, *, index: bool, whole: bool) -> Got:
        """Say what an answer was; fail at once if it breaks a promise without exceptions."""
        how = answer.how or ""
        if answer.status == 200:
            return Got(200, how, self._which(subject, answer.body, index=index, whole=whole))
        assert whole, f"an error cut short: {answer}"
        assert answer.headers["content-type"] == "text/plain; charset=utf-8", answer
        assert answer.headers["cache-control"] == "no-store", answer
        assert answer.headers.get("retry-after") == ("5" if answer.status == 503 else None), answer
        assert len(answer.body) <= 512, answer
        line = answer.body.decode()
        assert line.endswith("\n"), answer
        assert line.count("\n") == 1, answer
        return Got(answer.status, how, _impersonal(line.rstrip("\n"), subject))

    def _which(self, subject: _Subject, body: bytes, *, index: bool, whole: bool) -> str:
        if not index:
            if not whole:
                return CUT_SHORT
            assert body == subject.data, "wrong bytes in a complete transfer"
            return THE_FILE
        assert whole, "an index file cut short"
        if body == self._registry.index(subject.crate):
            return THE_FILE
        assert body == subject.index, "an index file that never was"
        return THE_OLD_FILE


def _crate(fate: str, number: int) -> str:
    # Of one length and one beginning, so that they look alike wherever a message shows them.
    return f"serde-{fate:7}-{number:02}".replace(" ", "x")


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
