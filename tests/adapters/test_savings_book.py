"""The counts outlive the process; a file that is no good counts for nothing."""

import json
from pathlib import Path

import pytest

from proxy.adapters.savings_book import SavingsBook
from proxy.core.savings import Served
from tests.world.clock import ManualClock

ONE = Served(1, 1, 100, 1, 100)
DAY = 86400.0


class Counter:
    """What a run has answered so far."""

    def __init__(self) -> None:
        self.served = {"a": Served()}

    def __call__(self) -> dict[str, Served]:
        return dict(self.served)

    def count(self, more: Served = ONE) -> None:
        self.served["a"] += more


def saved(book: SavingsBook, span: str) -> object:
    registries = book.report()["registries"]
    assert isinstance(registries, dict)
    count = registries["a"][span]
    return None if count is None else count["saved_requests"]


async def test_counts_are_of_today_of_the_run_and_of_all_time(tmp_path: Path) -> None:
    clock, first, second = ManualClock(), Counter(), Counter()
    book = await SavingsBook(tmp_path / "savings.json", first, clock).open()
    first.count()
    first.count()
    await book.close()
    again = await SavingsBook(tmp_path / "savings.json", second, clock).open()
    second.count()
    assert [saved(again, span) for span in ("today", "since_start", "ever")] == [3, 1, 3]
    clock.advance(DAY)
    second.count()
    assert [saved(again, span) for span in ("today", "since_start", "ever")] == [1, 2, 4]
    assert again.report()["since"] == book.report()["since"]


async def test_it_is_written_once_a_minute_and_only_if_something_was_answered(
    tmp_path: Path,
) -> None:
    path, clock, counter = tmp_path / "savings.json", ManualClock(), Counter()
    book = await SavingsBook(path, counter, clock).open()
    counter.count()
    await book.keep()
    assert not path.exists()
    clock.advance(61)
    await book.keep()
    first = path.stat()
    clock.advance(61)
    await book.keep()
    assert path.stat().st_mtime_ns == first.st_mtime_ns
    assert path.stat().st_ino == first.st_ino
    counter.count()
    await book.keep()
    assert path.stat().st_ino != first.st_ino
    assert [entry.name for entry in tmp_path.iterdir()] == ["savings.json"]


async def test_a_command_reads_and_writes_nothing(tmp_path: Path) -> None:
    path, clock, counter = tmp_path / "savings.json", ManualClock(), Counter()
    book = await SavingsBook(path, counter, clock).open()
    counter.count()
    await book.close()
    before = path.read_bytes()
    clock.advance(DAY)
    reader = await SavingsBook(path, None, clock).open()
    assert [saved(reader, span) for span in ("today", "since_start", "ever")] == [0, None, 1]
    await reader.keep()
    await reader.close()
    assert path.read_bytes() == before


GOOD = {"version": 1, "since": 5.0, "day": "2026-01-01", "today": {}, "ever": {}}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "7",
        "[" * 100_000,
        json.dumps({**GOOD, "version": 2}),
        json.dumps({**GOOD, "since": "yesterday"}),
        json.dumps({**GOOD, "since": float("nan")}),
        json.dumps({**GOOD, "since": 1e300}),
        json.dumps({**GOOD, "day": 7}),
        json.dumps({**GOOD, "ever": []}),
        json.dumps({**GOOD, "ever": {"a": 7}}),
        json.dumps({**GOOD, "ever": {"a": {"requests": -1}}}),
        json.dumps({**GOOD, "ever": {"a": {"requests": 1.5}}}),
        json.dumps({**GOOD, "today": {"a": {"requests": 2**63}}}),
        json.dumps({key: GOOD[key] for key in ("version", "since", "day")}),
    ],
)
async def test_a_file_that_is_no_good_counts_for_nothing_and_is_written_anew(
    tmp_path: Path, content: str
) -> None:
    path, clock, counter = tmp_path / "savings.json", ManualClock(), Counter()
    path.write_text(content)
    book = await SavingsBook(path, counter, clock).open()
    assert saved(book, "ever") == 0
    assert book.report()["since"] == clock.now()
    counter.count()
    await book.close()
    assert saved(await SavingsBook(path, None, clock).open(), "ever") == 1


async def test_numbers_that_an_earlier_version_did_not_keep_are_nothing(tmp_path: Path) -> None:
    path = tmp_path / "savings.json"
    path.write_text(json.dumps({**GOOD, "ever": {"a": {"saved_requests": 4, "mood": "good"}}}))
    book = await SavingsBook(path, Counter(), ManualClock()).open()
    assert saved(book, "ever") == 4


async def test_a_file_that_cannot_be_written_is_written_later(tmp_path: Path) -> None:
    path, clock, counter = tmp_path / "gone" / "savings.json", ManualClock(), Counter()
    book = await SavingsBook(path, counter, clock).open()
    counter.count()
    clock.advance(61)
    await book.keep()
    path.parent.mkdir()
    clock.advance(61)
    await book.keep()
    assert path.exists()
