"""What is said about a run: a table on the terminal, and JSON, Markdown and bars in a directory.

The JSON has every sample, so that all the rest can be made again from it. The drawings are written
by hand as SVG: a bar to the median, a line over it from the smallest to the largest round.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Final

from benchmarks.figures import SATURATED_FROM, Cell, Figure, Row, Verdict, judge, ratio
from benchmarks.targets import TARGETS

_OURS: Final = "holdfast"
_SECTIONS: Final = {
    "cargo": "Real cargo, at a distance from a warm proxy",
    "cold": "Real cargo through an empty proxy, the registry at a distance",
    "hot": "One object over and over",
    "stampede": "Many clients at once for what nobody has",
    "memory": "Memory",
}
_MARK: Final = "†"
_LEGEND: Final = (
    f"{_MARK}: the load generator used more than {SATURATED_FROM:.0%} of its core, so the server "
    "may be faster than that."
)
_BAR_HEIGHT: Final = 16
_ROW_GAP: Final = 34
_LABEL_WIDTH: Final = 190
_PLOT_WIDTH: Final = 420


@dataclass(frozen=True, slots=True)
class Run:
    """What a run was: where, when, how, of which versions."""

    date: str
    command: str
    mode: str
    took_s: float
    machine: dict[str, str]
    versions: dict[str, str]
    registry: dict[str, str]
    left_out: tuple[str, ...]
    load_average: tuple[float, float]


def write_all(place: Path, run: Run, rows: Sequence[Row]) -> None:
    """Write the three kinds of files into a directory."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "results.json").write_text(as_json(run, rows), encoding="utf-8")
    drawings = {}
    for section in _SECTIONS:
        chosen = [row for row in rows if row.section == section and row.unit != "requests"]
        if chosen:
            (place / f"{section}.svg").write_text(as_svg(chosen), encoding="utf-8")
            drawings[section] = f"{section}.svg"
    (place / "README.md").write_text(as_markdown(run, rows, drawings), encoding="utf-8")


def as_json(run: Run, rows: Sequence[Row]) -> str:
    """Return everything that was measured, and what was made of it."""
    data = {
        "run": asdict(run),
        "rows": [_row_data(row) for row in rows],
        "targets": [_verdict_data(judge(target, rows)) for target in TARGETS],
    }
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _row_data(row: Row) -> dict[str, object]:
    ours = [cell for cell in row.cells if cell.contender.startswith(_OURS)]
    others = [cell for cell in row.cells if not cell.contender.startswith(_OURS)]
    return {
        "name": row.name,
        "section": row.section,
        "title": row.title,
        "unit": row.unit,
        "better": row.better,
        "contenders": [_cell_data(cell) for cell in row.cells],
        "ratios": [
            {"of": one.contender, "to": other.contender, **asdict(found)}
            for one in ours
            for other in others
            if (found := ratio(one, other)) is not None
        ],
    }


def _cell_data(cell: Cell) -> dict[str, object]:
    names = {name: None for each in cell.samples if each for name, _ in each.notes}
    return {
        "contender": cell.contender,
        "result": _figure_data(cell.figure),
        "server_cpu_s_per_1000_requests": _figure_data(cell.server_s_per_thousand),
        "generator_share_of_its_core": cell.generator,
        "generator_saturated": cell.is_saturated,
        "counts": {name: _figure_data(cell.note(name)) for name in names},
        "samples": [asdict(sample) if sample else None for sample in cell.samples],
        "failures": list(cell.failures),
    }


def _figure_data(of: Figure | None) -> dict[str, float] | None:
    return asdict(of) if of is not None else None


def _verdict_data(verdict: Verdict) -> dict[str, object]:
    return {
        **asdict(verdict.target),
        "measured": _figure_data(verdict.measured),
        "reached": verdict.is_reached,
        "generator_saturated": verdict.is_saturated,
    }


def as_text(rows: Sequence[Row]) -> str:
    """Return the table for a terminal."""
    lines = []
    for row in rows:
        lines.append(f"\n{row.title} [{row.name}], {row.unit}")
        for cell in row.cells:
            values = _cell_columns(cell)
            lines.append(f"  {cell.contender:<24}{values[0]:>34}  {values[1]:>12}  {values[2]}")
    lines.append("\nTargets")
    for verdict in (judge(target, rows) for target in TARGETS):
        measured, said = _verdict_words(verdict)
        direction = "≥" if verdict.target.direction == "at least" else "≤"
        limit = f"{direction} {verdict.target.limit:g}"
        lines.append(f"  {said:<12} {measured:>26}  {limit:<7} {verdict.target.what}")
    return "\n".join(lines)


def as_markdown(run: Run, rows: Sequence[Row], drawings: dict[str, str]) -> str:
    """Return the document about a run."""
    lines = [
        "# Benchmarks",
        "",
        (
            f"Written by `{run.command}` on {run.date}; the run took {run.took_s:.0f} s. "
            "Each figure is the median of interleaved rounds, with the smallest and the largest "
            "behind it. The servers share one core, what makes them work has another. "
            f"{_LEGEND}"
        ),
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [f"| {key} | {value} |" for key, value in (run.machine | run.registry).items()]
    lines += [f"| {key} | {value} |" for key, value in run.versions.items()]
    average = f"{run.load_average[0]:.1f} before, {run.load_average[1]:.1f} after"
    lines += [f"| load average | {average} |"]
    if run.left_out:
        lines += ["", f"Not installed, and left out: {', '.join(run.left_out)}."]
    lines += ["", "## What it has to reach", ""]
    lines += ["| | measured | to reach | aim | |", "|---|---|---|---|---|"]
    for verdict in (judge(target, rows) for target in TARGETS):
        measured, said = _verdict_words(verdict)
        target = verdict.target
        aim = "" if target.aim is None else f"{target.aim:g}"
        limit = f"{target.direction} {target.limit:g}"
        lines.append(f"| {target.what} | {measured} | {limit} | {aim} | {said} |")
    for section, title in _SECTIONS.items():
        chosen = [row for row in rows if row.section == section]
        if chosen:
            lines += ["", f"## {title}", ""]
            if section in drawings:
                lines += [f"![{title}]({drawings[section]})", ""]
            lines += _tables(chosen)
    return "\n".join(lines) + "\n"


def _tables(rows: Iterable[Row]) -> list[str]:
    lines = []
    for row in rows:
        lines += [f"### {row.title[0].upper()}{row.title[1:]}", ""]
        lines += [
            f"| | {row.unit} | server CPU s per 1000 | further |",
            "|---|---|---|---|",
        ]
        for cell in row.cells:
            value, cost, further = _cell_columns(cell)
            lines.append(f"| {cell.contender} | {value} | {cost} | {further} |")
        lines.append("")
    return lines[:-1]


def _cell_columns(cell: Cell) -> tuple[str, str, str]:
    """Return a cell's value, its cost in CPU time, and its further counts."""
    mark = f" {_MARK}" if cell.is_saturated else ""
    value = said(cell.figure) + mark
    cost = cell.server_s_per_thousand
    names = {name: None for each in cell.samples if each for name, _ in each.notes}
    further = [f"{name} {said(found)}" for name in names if (found := cell.note(name)) is not None]
    if cell.failures:
        further.append(f"failed {len(cell.failures)} times: {_one_line(cell.failures[-1])}")
    return value, f"{cost.median:.4f}" if cost else "", "; ".join(further)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:160]


def said(of: Figure | None) -> str:
    """Return a figure as people read it: the median and, of several rounds, the spread."""
    if of is None:
        return "failed"
    if of.count == 1 or of.low == of.high:
        return number(of.median)
    return f"{number(of.median)} ({number(of.low)}..{number(of.high)})"


def number(value: float) -> str:
    """Return a number with three digits that count.

    >>> number(28417.2), number(3.14159), number(0.01234), number(2.0)
    ('28,400', '3.14', '0.0123', '2')
    """
    if abs(value) < 1000:
        return f"{value:.3g}"
    digits = 10 ** (len(str(int(abs(value)))) - 3)
    return f"{round(value / digits) * digits:,}"


def _verdict_words(verdict: Verdict) -> tuple[str, str]:
    if verdict.is_reached is None:
        return "", "not measured"
    reached = "reached" if verdict.is_reached else "missed"
    return said(verdict.measured), reached + (f" {_MARK}" if verdict.is_saturated else "")


def as_svg(rows: Sequence[Row]) -> str:
    """Draw bars, a group for each row; each group has a scale of its own."""
    parts: list[str] = []
    down = 20
    for row in rows:
        parts.append(f'<text x="4" y="{down}" font-weight="bold">{escape(_heading(row))}</text>')
        down += 8
        shown = [(cell, found) for cell in row.cells if (found := cell.figure) is not None]
        longest = max((found.high for _, found in shown), default=0.0) or 1.0
        for cell, found in shown:
            parts += _bar(cell, found, longest, down)
            down += _BAR_HEIGHT + 3
        down += _ROW_GAP - 8
    width = _LABEL_WIDTH + _PLOT_WIDTH + 200
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {down}" width="{width}" '
        f'height="{down}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{down}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _heading(row: Row) -> str:
    return f"{row.title.replace('`', '')} ({row.unit}, {row.better} is better)"


def _bar(cell: Cell, found: Figure, longest: float, top: int) -> list[str]:
    def across(value: float) -> float:
        return round(_LABEL_WIDTH + value / longest * _PLOT_WIDTH, 1)

    colour = "#c2410c" if cell.contender.startswith(_OURS) else "#64748b"
    middle = top + _BAR_HEIGHT / 2
    mark = f" {_MARK}" if cell.is_saturated else ""
    width = round(across(found.median) - _LABEL_WIDTH, 1)
    text = f'y="{middle + 4}"'
    return [
        f'<text x="{_LABEL_WIDTH - 6}" {text} text-anchor="end">{escape(cell.contender)}</text>',
        (
            f'<rect x="{_LABEL_WIDTH}" y="{top}" width="{width}" height="{_BAR_HEIGHT}" '
            f'fill="{colour}"/>'
        ),
        (
            f'<line x1="{across(found.low)}" x2="{across(found.high)}" y1="{middle}" y2="{middle}" '
            'stroke="black"/>'
        ),
        f'<text x="{across(found.high) + 6}" {text}>{escape(said(found) + mark)}</text>',
    ]
