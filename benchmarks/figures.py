"""What is made of measurements: medians, ratios, their spread, and whether they are enough.

Rounds are interleaved: in one round every contender is measured once, one after the other. A ratio
is therefore taken round by round, between two measurements a few seconds apart, and its spread is
that of the rounds. What slows the whole machine for a while falls on both sides of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

SATURATED_FROM: Final = 0.9

Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A median and the smallest and largest of what it was taken from."""

    median: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one contender.

    `generator` is the share of its core that the load generator used, `server_s` the server's CPU
    seconds, `requests` how many requests they were spent on; None where there is no such thing.
    `notes` are further counts by name, bytes for example.
    """

    value: float
    generator: float | None = None
    server_s: float | None = None
    requests: int | None = None
    notes: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """What one contender did in one row: a sample for each round, in order; None if it failed."""

    contender: str
    samples: tuple[Sample | None, ...]
    failures: tuple[str, ...] = ()

    @property
    def figure(self) -> Figure | None:
        """The values' median and spread; None if every round failed."""
        return figure([sample.value for sample in self.samples if sample is not None])

    @property
    def generator(self) -> float | None:
        """The share of its core that the generator used, in the median."""
        shares = [each.generator for each in self.samples if each and each.generator is not None]
        return median(shares) if shares else None

    @property
    def is_saturated(self) -> bool:
        """Whether the generator rather than the server may have set the pace."""
        return self.generator is not None and self.generator > SATURATED_FROM

    @property
    def server_s_per_thousand(self) -> Figure | None:
        """The server's CPU seconds for a thousand requests."""
        return figure(
            [
                each.server_s / each.requests * 1000
                for each in self.samples
                if each is not None and each.server_s is not None and each.requests
            ]
        )

    def note(self, name: str) -> Figure | None:
        """Return the median and spread of one of the further counts."""
        return figure(
            [
                value
                for each in self.samples
                if each is not None
                for named, value in each.notes
                if named == name
            ]
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One measure, taken of all who can be measured so."""

    name: str
    section: str
    title: str
    unit: str
    better: Better
    cells: tuple[Cell, ...]

    def cell(self, contender: str) -> Cell | None:
        """Return what a contender did; None if it took no part."""
        return next((cell for cell in self.cells if cell.contender == contender), None)


@dataclass(frozen=True, slots=True)
class Target:
    """A figure to reach: one contender over another, in one row.

    `per` says of what: of the row's values, or of the server's CPU seconds per request. With
    `limit` for a row where higher is better the ratio must not be below, else not above it; `aim`
    is what would be better still.
    """

    what: str
    row: str
    contender: str
    baseline: str | None
    limit: float
    aim: float | None = None
    direction: Literal["at least", "at most"] = "at least"
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target, what was measured, and whether that reaches it (None: was not measured)."""

    target: Target
    measured: Figure | None
    is_reached: bool | None
    is_saturated: bool


def figure(values: Sequence[float]) -> Figure | None:
    """Return the median and the spread, or None of nothing."""
    if not values:
        return None
    return Figure(median(values), min(values), max(values), len(values))


def ratio(of: Cell, to: Cell, *, inverted: bool = False) -> Figure | None:
    """Return `of` over `to`, round by round; rounds in which either failed are left out."""
    top, bottom = (to, of) if inverted else (of, to)
    return figure(
        [
            one.value / other.value
            for one, other in zip(top.samples, bottom.samples, strict=False)
            if one is not None and other is not None and other.value
        ]
    )


def judge(target: Target, rows: Sequence[Row]) -> Verdict:
    """Compare what was measured with what it must reach."""
    row = next((row for row in rows if row.name == target.row), None)
    contender = row.cell(target.contender) if row else None
    if row is None or contender is None:
        return Verdict(target, None, None, is_saturated=False)
    saturated = contender.is_saturated
    if target.baseline is None:
        measured = contender.figure
    else:
        baseline = row.cell(target.baseline)
        if baseline is None:
            return Verdict(target, None, None, is_saturated=False)
        measured = ratio(contender, baseline, inverted=target.inverted)
        saturated = saturated or baseline.is_saturated
    if measured is None:
        return Verdict(target, None, None, is_saturated=saturated)
    reached = (
        measured.median >= target.limit
        if target.direction == "at least"
        else measured.median <= target.limit
    )
    return Verdict(target, measured, reached, is_saturated=saturated)
