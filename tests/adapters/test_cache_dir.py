"""One holder at a time, and nothing touched that a newer Holdfast may have written."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.adapters.cache_dir import OURS, CacheDirectory, CacheInUse, CacheTooNew, Format
from proxy.core.failures import StoreFailure

HOLDER = """
import sys
from pathlib import Path
from proxy.adapters.cache_dir import CacheDirectory, CacheInUse

try:
    with CacheDirectory(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except CacheInUse as in_use:
    print(in_use.pid, flush=True)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def contents(path: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(entry.relative_to(path)): (entry.stat().st_mtime_ns, entry.read_bytes())
        for entry in path.rglob("*")
        if entry.is_file()
    }


def test_a_new_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cache"
    with CacheDirectory(path) as cache:
        assert cache.path == path
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert (path / "format").read_bytes() == b"1\n"
        assert (path / "lock").read_bytes() == b"%d\n" % os.getpid()
        assert stat.S_IMODE((path / "lock").stat().st_mode) == 0o600
    assert sorted(entry.name for entry in path.iterdir()) == ["format", "lock"]


def test_it_can_be_taken_again_once_let_go(tmp_path: Path) -> None:
    cache = CacheDirectory(tmp_path)
    cache.close()
    cache.close()
    before = (tmp_path / "format").stat().st_mtime_ns
    with CacheDirectory(tmp_path):
        assert (tmp_path / "format").stat().st_mtime_ns == before


def test_a_second_holder_is_refused_by_directory_and_process(tmp_path: Path) -> None:
    with CacheDirectory(tmp_path), pytest.raises(CacheInUse) as refusal:
        CacheDirectory(tmp_path)
    assert refusal.value.pid == os.getpid()
    assert str(tmp_path) in str(refusal.value)
    assert f"process {os.getpid()}" in str(refusal.value)
    with CacheDirectory(tmp_path):
        pass


def test_a_holder_in_another_process_is_told_and_its_death_lets_go(tmp_path: Path) -> None:
    with hold(tmp_path) as holder:
        try:
            assert first_line(holder) == "held"
            with pytest.raises(CacheInUse) as refusal:
                CacheDirectory(tmp_path)
            assert refusal.value.pid == holder.pid
        finally:
            holder.kill()
    with CacheDirectory(tmp_path):
        assert (tmp_path / "lock").read_bytes() == b"%d\n" % os.getpid()


def test_another_process_is_refused_while_this_one_holds(tmp_path: Path) -> None:
    with CacheDirectory(tmp_path):
        with hold(tmp_path) as other:
            output, _ = other.communicate(timeout=30)
        assert output.strip() == str(os.getpid())
        # Its coming and going has not loosened the lock.
        with pytest.raises(CacheInUse):
            CacheDirectory(tmp_path)


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    holders = [hold(tmp_path / "cache") for _ in range(4)]
    try:
        lines = [first_line(holder) for holder in holders]
    finally:
        for holder in holders:
            holder.communicate(timeout=30)
    assert lines.count("held") == 1
    held_by = str(holders[lines.index("held")].pid)
    # Who comes between the lock and the writing of its holder's number learns no number.
    assert set(lines) <= {"held", held_by, "None"}


@pytest.mark.parametrize("content", ["gibberish", ""])
def test_a_lock_file_without_a_number_is_still_a_lock(tmp_path: Path, content: str) -> None:
    with CacheDirectory(tmp_path):
        (tmp_path / "lock").write_text(content)
        with pytest.raises(CacheInUse, match="another process") as refusal:
            CacheDirectory(tmp_path)
    assert refusal.value.pid is None


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"2\n", Format(2)),
        (b"2", Format(2)),
        (b"2.0\n", Format(2)),
        (b"999\n", Format(999)),
        (b"1.2\n", Format(1, 2)),
        (b"1.10\n", Format(1, 10)),
        (b"1.\n", None),
        (b".1\n", None),
        (b"1.01\n", None),
        (b"1.1.0\n", None),
        (b"1.-1\n", None),
        (b"", None),
        (b"0\n", None),
        (b"-1\n", None),
        (b"01\n", None),
        (b"1\n\n", None),
        (b"1\n2\n", None),
        (b" 1\n", None),
        (b"one\n", None),
        (b"\xff\xfe", None),
        ("\u0661\n".encode(), None),
        (b"1" * 100, None),
        (b"1\n" + b"\0" * 100, None),
    ],
)
def test_a_format_that_we_do_not_know_is_refused_and_nothing_is_touched(
    tmp_path: Path, content: bytes, found: Format | None
) -> None:
    (tmp_path / "format").write_bytes(content)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "one").write_bytes(b"theirs")
    before = contents(tmp_path)
    with pytest.raises(CacheTooNew) as refusal:
        CacheDirectory(tmp_path)
    assert refusal.value.found == found
    assert str(tmp_path) in str(refusal.value)
    assert contents(tmp_path) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["blobs", "format"]


def test_a_format_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "format").mkdir()
    with pytest.raises(CacheTooNew):
        CacheDirectory(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["format"]


def test_a_format_without_its_line_end_is_known(tmp_path: Path) -> None:
    (tmp_path / "format").write_text(f"{OURS}")
    with CacheDirectory(tmp_path):
        assert (tmp_path / "format").read_text() == f"{OURS}"


@pytest.mark.parametrize("found", [b"1.1\n", b"1.1", b"1.0\n"])
def test_a_format_that_this_one_can_live_with_is_used_and_left_standing(
    tmp_path: Path, found: bytes
) -> None:
    (tmp_path / "format").write_bytes(found)
    with CacheDirectory(tmp_path, Format(1)):
        pass
    assert (tmp_path / "format").read_bytes() == found


@pytest.mark.parametrize(
    ("found", "ours", "then"),
    [
        ("1", Format(1, 1), "1.1\n"),
        ("1", Format(1, 7), "1.7\n"),
        ("1.3", Format(2), "2\n"),
        ("2", Format(4, 2), "4.2\n"),
    ],
)
def test_an_older_format_becomes_ours_and_what_is_there_stays(
    tmp_path: Path, found: str, ours: Format, then: str
) -> None:
    (tmp_path / "format").write_text(f"{found}\n")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "one").write_bytes(b"theirs")
    with CacheDirectory(tmp_path, ours):
        assert (tmp_path / "format").read_text() == then
        assert (tmp_path / "blobs" / "one").read_bytes() == b"theirs"


def test_one_minor_step_ahead_is_used_and_two_are_not() -> None:
    ours = Format(2, 3)
    used = [Format(1, 99), Format(2), Format(2, 3), Format(2, 4)]
    assert [ours.may_use(found) for found in used] == [True] * 4
    assert not ours.may_use(Format(2, 5))
    assert not ours.may_use(Format(3))


def test_a_directory_with_strangers_in_it_is_taken_and_they_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"mine")
    before = contents(tmp_path)["notes.txt"]
    with CacheDirectory(tmp_path):
        assert contents(tmp_path)["notes.txt"] == before


def test_a_refused_holder_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    (tmp_path / "format.draft").mkdir()
    for _ in range(2):
        with pytest.raises(StoreFailure, match="cannot use the cache directory"):
            CacheDirectory(tmp_path)
    (tmp_path / "format.draft").rmdir()
    with CacheDirectory(tmp_path):
        pass


def test_a_path_that_cannot_be_a_directory_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    for path in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(StoreFailure, match="cannot use the cache directory"):
            CacheDirectory(path)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"mine")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "lock").symlink_to(tmp_path / "outside")
    with pytest.raises(StoreFailure):
        CacheDirectory(tmp_path / "cache")
    assert (tmp_path / "outside").read_bytes() == b"mine"
