"""What commands show to people."""

import pytest

from proxy.cli_reports import Meter, size, stats_lines


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 * 2**20, "5.0 MiB"),
        (3 * 2**30 + 2**29, "3.5 GiB"),
        (2**41, "2.0 TiB"),
    ],
)
def test_sizes_are_written_for_people(count: int, text: str) -> None:
    assert size(count) == text


def test_stats_of_a_cache_that_nobody_serves() -> None:
    stored = {
        "blobs": {
            "blobs": 2,
            "stored_bytes": 2048,
            "limit_bytes": 2**30,
            "memory_bytes": 0,
            "quarantined": 1,
        },
        "index_entries": 5,
        "index_bytes": 4096,
        "index_memory_bytes": 0,
        "tombstones": [
            {"name": "gone", "upstream": "crates-io", "removed_at": 1.0, "returned_at": None},
            {"name": "back", "upstream": "crates-io", "removed_at": 1.0, "returned_at": 2.0},
        ],
    }
    count = {"saved_requests": 3, "saved_bytes": 2048}
    registries = {"crates-io": {"today": count, "since_start": None, "ever": count}}
    saved = {"since": 0.0, "day": "1970-01-01", "registries": registries}
    lines = list(stats_lines({"stored": stored, "used": None, "saved": saved}))
    assert lines[0].split() == ["crates", "2,", "2.0", "KiB", "of", "1.0", "GiB"]
    assert any(line.startswith("quarantined") for line in lines)
    assert any("gone of crates-io" in line and "again" not in line for line in lines)
    assert any("back of crates-io, there again" in line for line in lines)
    assert lines[-2:] == [
        "saved by crates-io: 3 requests and 2.0 KiB today; 3 requests and 2.0 KiB since 1970-01-01",
        "nothing is serving",
    ]


def test_stats_tell_of_an_upstreams_addresses_what_is_wrong_with_them() -> None:
    well = {
        "mirror": "",
        "index": "closed",
        "crates": "closed",
        "index_failing_for_s": None,
        "crates_failing_for_s": None,
        "set_aside_for_s": None,
        "last_failure": "an old story",
    }
    failing = {
        **well,
        "index": "open",
        "crates": "half_open",
        "index_failing_for_s": 61.2,
        "crates_failing_for_s": 5.0,
        "last_failure": "down",
    }
    aside = {**well, "mirror": "http://b.test/", "set_aside_for_s": 599.0, "last_failure": "lied"}
    blobs = {"blobs": 0, "stored_bytes": 0, "limit_bytes": 1, "memory_bytes": 0, "quarantined": 0}
    stored = {
        "blobs": blobs,
        "index_entries": 0,
        "index_bytes": 0,
        "index_memory_bytes": 0,
        "tombstones": [],
    }
    used = {
        "registries": {},
        "upstream_received_bytes": {},
        "addresses": {
            "crates-io": [well, {**well, "mirror": "http://a.test/"}],
            "company": [failing, aside],
        },
    }
    assert list(stats_lines({"stored": stored, "used": used}))[3:] == [
        "crates-io (http://a.test/): well",
        "company: index failing for 61 s, not asked; crates failing for 5 s, being tried (down)",
        "company (http://b.test/): set aside for 599 s more (lied)",
    ]


def test_work_that_takes_long_is_told_in_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 1.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr("proxy.cli_reports.time.monotonic", lambda: next(times))
    with Meter() as meter:
        meter.show("hashing blobs", 1, 100)
        meter.show("hashing blobs", 2, 100)
        meter.show("hashing blobs", 3, None)
    assert capsys.readouterr().err == "hashing blobs: 2 of 100\n"
