"""What a blob store finds on its disk that it did not put there, or no longer finds."""

import asyncio
import errno
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.adapters.blob_files import BlobFiles
from proxy.adapters.blob_store import FileBlobStore
from proxy.adapters.ledger import Ledger
from proxy.core.events import Evicted, IntegrityFailed, StoreFailed
from proxy.core.failures import StoreFailure
from proxy.core.room import BLOCK_BYTES, Limits
from proxy.ports import Removed
from tests.world.blobs import (
    BLOCK,
    SERDE,
    BlobDisk,
    held,
    listed,
    put,
    sha256,
    some_bytes,
    until,
)
from tests.world.clock import PATIENCE_SECONDS
from tests.world.scratch import scratch_directory


@pytest.fixture
async def disk() -> AsyncIterator[BlobDisk]:
    with scratch_directory() as root:
        disk = BlobDisk(root)
        yield disk
        await disk.close()


async def until_surveyed(store: FileBlobStore) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await store._ledger._run("asking", Ledger.is_surveyed):
            await asyncio.sleep(0)


async def test_folders_and_files_are_ours_alone(disk: BlobDisk) -> None:
    old = os.umask(0)
    try:
        store = await disk.open()
        digest = await put(store, b"small")
        large = await put(store, some_bytes(2 * BLOCK))
    finally:
        os.umask(old)
    folders = [path for path in disk.directory.rglob("*") if path.is_dir()]
    assert len(folders) == 8
    for folder in [disk.directory, *folders]:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    for each in (digest, large):
        assert stat.S_IMODE(disk.blob(each).stat().st_mode) == 0o600


async def test_the_clean_marker_is_there_only_while_the_store_is_not(disk: BlobDisk) -> None:
    marker = disk.directory / "clean"
    for _ in range(2):
        store = await disk.open()
        assert not marker.exists()
        await put(store, b"something")
        await disk.close()
        assert marker.exists()
        assert not (disk.directory / "ledger-wal").exists()


async def test_drafts_are_emptied_at_the_start_and_nothing_else_is(disk: BlobDisk) -> None:
    await disk.open()
    await disk.close()
    drafts = disk.directory / "drafts"
    (drafts / "0123").write_bytes(b"half a crate")
    (drafts / "folder" / "deep").mkdir(parents=True)
    (drafts / "folder" / "deep" / "file").write_bytes(b"")
    (drafts / "link").symlink_to(disk.directory / "ledger")
    (disk.directory / "notes.txt").write_text("somebody's")
    await disk.open()
    assert list(drafts.iterdir()) == []
    assert (disk.directory / "ledger").exists()
    assert (disk.directory / "notes.txt").read_text() == "somebody's"
    assert disk.recorder.events == []


async def test_strangers_are_left_alone_and_counted_by_a_walk(disk: BlobDisk) -> None:
    store = await disk.open()
    data = some_bytes(1000)
    digest = await put(store, data)
    home, sha = disk.blob(digest).parent, disk.directory / "blobs" / "sha256"
    other = sha256(b"other")
    (home / "README").write_text("not a blob")
    (home / other).write_text("in the wrong folder")
    (home / f"{digest[:-1]}g").write_text("not hexadecimal")
    (home / digest.upper()).write_text("not lower case")
    (home / (digest[:63] + "z")).mkdir()
    (home.parent / "lost+found").mkdir()
    (sha / "file").write_text("")
    (sha / "zz").mkdir()
    (disk.directory / "blobs" / "md5").mkdir()
    disk.blob(other).parent.mkdir(parents=True)
    disk.blob(other).symlink_to(disk.blob(digest))
    before = sorted(path for path in disk.directory.rglob("*") if "ledger" not in path.name)
    await disk.close()
    store = await disk.open()
    assert (await store.usage()).strangers == 0
    assert await listed(store) == {digest}
    assert (await store.usage()).strangers == 10
    assert await held(store, digest) == data
    assert await store.open(other) is None
    assert await store.check(other) is None
    assert await store.remove([other, sha256(b"x")]) == Removed(0, 0)
    await disk.close()
    (disk.directory / "clean").unlink()
    after = sorted(path for path in disk.directory.rglob("*") if "ledger" not in path.name)
    assert after == before
    assert disk.recorder.events == []


async def test_a_pipe_and_a_folder_in_a_blobs_place_are_misses(disk: BlobDisk) -> None:
    store = await disk.open()
    pipe, folder = disk.plant(b"pipe"), disk.plant(b"folder")
    disk.blob(pipe).unlink()
    os.mkfifo(disk.blob(pipe))
    disk.blob(folder).unlink()
    disk.blob(folder).mkdir()
    assert await store.open(pipe) is None
    assert await store.open(folder) is None
    with pytest.raises(StoreFailure, match=os.strerror(errno.EISDIR)):
        await put(store, b"folder")
    assert list((disk.directory / "drafts").iterdir()) == []


@pytest.mark.parametrize("clean", [True, False])
async def test_a_lost_ledger_is_made_again_behind_the_serving_store(
    disk: BlobDisk, clean: bool
) -> None:
    store = await disk.open()
    contents = [some_bytes(5000 + seed, seed) for seed in range(40)]
    digests = [await put(store, data) for data in contents]
    for age, digest in enumerate(digests):
        os.utime(disk.blob(digest), (0, disk.clock.now() - 1000 + age))
    usage = await store.usage()
    if clean:
        await disk.close()
    else:
        disk.die()
    for part in disk.directory.glob("ledger*"):
        part.unlink()
    disk.plant(bytes(5000), digests[7])
    store = await disk.open(limits=Limits(usage.stored_bytes + 8192, 0))
    assert await held(store, digests[0]) == contents[0]
    assert await store.open(digests[7]) is None
    await until(store, lambda found: found.blobs == 39)
    assert (await store.usage()).stored_bytes == usage.stored_bytes - 8192
    assert disk.recorder.take() == [
        IntegrityFailed("disk", digests[7], digests[7], sha256(bytes(5000)))
    ]
    # What was written longest ago goes first, but for what was used since.
    await put(store, some_bytes(20_000, 99))
    assert digests[1] not in await listed(store)
    assert {digests[0], digests[39]} <= await listed(store)
    [evicted] = disk.recorder.of(Evicted)
    assert evicted.reason == "max_size"


async def test_a_survey_brings_the_store_back_below_its_limit(disk: BlobDisk) -> None:
    store = await disk.open()
    for seed in range(10):
        await put(store, some_bytes(100_000, seed))
    await disk.close()
    (disk.directory / "ledger").unlink()
    store = await disk.open(limits=Limits(500_000, 0))
    await disk.recorder.until(Evicted)
    usage = await store.usage()
    assert usage.stored_bytes <= 500_000
    assert usage.blobs == len(await listed(store)) == 4


async def test_a_file_from_the_future_is_older_than_what_is_used_now(disk: BlobDisk) -> None:
    planted = [disk.plant(some_bytes(90_000, seed)) for seed in range(3)]
    for digest in planted:
        os.utime(disk.blob(digest), (0, disk.clock.now() + 1_000_000))
    store = await disk.open(limits=Limits(380_000, 0))
    await until(store, lambda usage: usage.blobs == 3)
    disk.clock.advance(1)
    new = [await put(store, some_bytes(90_000, seed)) for seed in range(3, 6)]
    assert set(new) < await listed(store)
    assert len(await listed(store)) == 4


async def test_files_are_surveyed_again_only_after_an_unclean_stop(disk: BlobDisk) -> None:
    store = await disk.open()
    assert store._ledger.doubted.is_set()
    await until_surveyed(store)
    await disk.close()
    store = await disk.open()
    assert not store._ledger.doubted.is_set()
    disk.die()
    store = await disk.open()
    assert store._ledger.doubted.is_set()


async def test_only_the_bad_file_is_set_aside_and_not_one_that_took_its_place(
    disk: BlobDisk,
) -> None:
    files = BlobFiles(disk.directory)
    files.prepare()
    digest = disk.plant(bytes(10), sha256(b"good"))
    bad = files.open(digest)
    assert bad is not None
    good = files.place_bytes(b"good", digest)
    assert good != bad.identity
    files.set_aside(digest, bad.identity)
    assert disk.blob(digest).read_bytes() == b"good"
    assert files.quarantined() == 0
    files.set_aside(digest, good)
    assert not disk.blob(digest).exists()
    assert files.quarantined() == 1
    os.close(bad.fd)


def a_tick_later(folder: Path) -> None:
    """Return once the file system's clock has moved on: files of one tick have no order."""
    probe = folder / "probe"
    probe.touch()
    before = probe.stat().st_ctime_ns
    for _ in range(1_000_000):
        probe.touch()
        if probe.stat().st_ctime_ns > before:
            break
    probe.unlink()


@pytest.mark.parametrize("restarted", [False, True])
def test_of_what_was_set_aside_the_newest_is_kept(
    disk: BlobDisk, tmp_path: Path, *, restarted: bool
) -> None:
    limited = BlobFiles(disk.directory, quarantine_max_bytes=2 * BLOCK_BYTES)
    files = BlobFiles(disk.directory) if restarted else limited
    files.prepare()
    # By the time of their download the first is the newest.
    digests = [sha256(bytes([number])) for number in range(4)]
    for age, digest in enumerate(digests):
        disk.plant(bytes(10), digest)
        os.utime(disk.blob(digest), (1000 - age, 1000 - age))
        opened = files.open(digest)
        assert opened is not None
        files.set_aside(digest, opened.identity)
        os.close(opened.fd)
        a_tick_later(tmp_path)
    stranger = disk.directory / "quarantine" / "notes.txt"
    stranger.write_bytes(bytes(10 * BLOCK_BYTES))
    limited.prepare()
    kept = {path.name for path in (disk.directory / "quarantine").iterdir()}
    assert kept == {*digests[2:], "notes.txt"}


def test_a_bad_blob_above_the_limit_of_the_quarantine_is_thrown_away(disk: BlobDisk) -> None:
    files = BlobFiles(disk.directory, quarantine_max_bytes=BLOCK_BYTES)
    files.prepare()
    digest = disk.plant(bytes(BLOCK_BYTES + 1), sha256(b"good"))
    opened = files.open(digest)
    assert opened is not None
    files.set_aside(digest, opened.identity)
    os.close(opened.fd)
    assert files.quarantined() == 0
    assert not disk.blob(digest).exists()


async def test_rows_without_files_and_files_without_rows_are_set_right_after_an_unclean_stop(
    disk: BlobDisk,
) -> None:
    store = await disk.open()
    digests = [await put(store, some_bytes(5000, seed)) for seed in range(3)]
    disk.die()
    disk.blob(digests[0]).unlink()
    shutil.rmtree(disk.directory / "blobs" / "sha256" / digests[1][:2])
    planted = disk.plant(some_bytes(9000, 77))
    store = await disk.open()
    await until(store, lambda usage: (usage.blobs, usage.stored_bytes) == (2, 8192 + 12_288))
    assert await listed(store) == {digests[2], planted}
    assert await held(store, planted) == some_bytes(9000, 77)


async def test_a_blob_that_vanishes_is_a_miss_and_no_longer_counted(disk: BlobDisk) -> None:
    store = await disk.open()
    digest, checked = await put(store, some_bytes(5000)), await put(store, some_bytes(5000, 2))
    disk.blob(digest).unlink()
    disk.blob(checked).unlink()
    assert await store.open(digest) is None
    assert await store.check(checked) is None
    usage = await store.usage()
    assert (usage.blobs, usage.stored_bytes) == (0, 0)


async def test_a_vanished_blob_goes_instead_of_others_that_are_there(disk: BlobDisk) -> None:
    store = await disk.open(limits=Limits(1_000_000, 0))
    digests = [await put(store, some_bytes(100_000, seed)) for seed in range(9)]
    disk.blob(digests[0]).unlink()
    await put(store, some_bytes(100_000, 10))
    assert set(digests[1:]) < await listed(store)
    assert disk.recorder.events == []


async def test_a_cache_that_is_deleted_under_a_running_store_is_begun_anew(disk: BlobDisk) -> None:
    store = await disk.open(memory_bytes=0)
    digest = await put(store, b"before")
    shutil.rmtree(disk.directory)
    disk.directory.mkdir()
    assert await store.open(digest) is None
    after, large = await put(store, b"after"), await put(store, some_bytes(2 * BLOCK))
    assert await held(store, after) == b"after"
    assert await held(store, large) == some_bytes(2 * BLOCK)
    assert await listed(store) == {after, large}


ROOT = Path(__file__).parents[2]
GARBAGE = {
    "garbage": some_bytes(20_000),
    "text": b"<html>not a database</html>",
    "zeros": bytes(8192),
    "header only": b"SQLite format 3\0" + bytes(84),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("clean", [True, False])
async def test_a_ledger_of_garbage_is_moved_aside(
    disk: BlobDisk, garbage: bytes, clean: bool
) -> None:
    store = await disk.open()
    digest = await put(store, b"something")
    if clean:
        await disk.close()
    else:
        disk.die()
    (disk.directory / "ledger").write_bytes(garbage)
    (disk.directory / "ledger-wal").write_bytes(garbage)
    store = await disk.open()
    await until(store, lambda usage: usage.blobs == 1)
    assert await held(store, digest) == b"something"
    assert [event.doing for event in disk.recorder.of(StoreFailed)] == ["opening the ledger"]
    assert (disk.directory / "ledger.unreadable").read_bytes() == garbage
    await disk.close()
    disk.recorder.take()
    store = await disk.open()
    assert (await store.usage()).blobs == 1
    assert disk.recorder.events == []


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA user_version = 2",
        "DROP TABLE meta",
        "DELETE FROM meta WHERE key = 'epoch'",
        "UPDATE meta SET value = 'many' WHERE key = 'blobs'",
    ],
)
async def test_a_database_that_is_no_ledger_of_ours_is_moved_aside(
    disk: BlobDisk, statement: str
) -> None:
    store = await disk.open()
    digest = await put(store, b"something")
    await disk.close()
    with sqlite3.connect(disk.directory / "ledger") as database:
        database.execute(statement)
    database.close()
    store = await disk.open()
    await until(store, lambda usage: usage.blobs == 1)
    assert await held(store, digest) == b"something"
    assert (disk.directory / "ledger.unreadable").exists()


async def test_rows_whose_epoch_cannot_be_ended_are_not_believed(disk: BlobDisk) -> None:
    store = await disk.open()
    digest, zeroed = await put(store, some_bytes(5000, 1)), await put(store, some_bytes(5000, 2))
    await disk.close()
    with sqlite3.connect(disk.directory / "ledger") as database:
        database.execute(
            "CREATE TRIGGER stuck BEFORE UPDATE ON meta WHEN new.value <> old.value"
            " BEGIN SELECT RAISE(ABORT, 'stuck'); END"
        )
    database.close()
    (disk.directory / "clean").unlink()
    disk.plant(bytes(5000), zeroed)
    for _ in range(2):
        store = await disk.open()
        assert await store.open(zeroed) is None
        assert await held(store, digest) == some_bytes(5000, 1)
        await until(store, lambda usage: usage.blobs == 1)
        await disk.close()
        assert not (disk.directory / "clean").exists()


async def test_a_ledger_damaged_inside_is_begun_anew_when_that_is_found(disk: BlobDisk) -> None:
    store = await disk.open()
    contents = [some_bytes(4000, seed) for seed in range(300)]
    digests = [await put(store, data) for data in contents]
    await until_surveyed(store)
    await disk.close()
    ledger = disk.directory / "ledger"
    store = await disk.open()
    # What the start has read stays good; the rest is found out when it is needed.
    with ledger.open("r+b") as file:
        file.seek(2 * 4096)
        file.write(some_bytes(ledger.stat().st_size - 2 * 4096))
    assert not store._ledger.doubted.is_set()
    for digest, data in zip(digests, contents, strict=True):
        assert await held(store, digest) == data
        if disk.recorder.of(StoreFailed):
            break
    await until(store, lambda usage: usage.blobs == 300)
    for digest, data in zip(digests, contents, strict=True):
        assert await held(store, digest) == data
    assert disk.recorder.of(StoreFailed)
    assert not disk.recorder.of(IntegrityFailed)


async def test_a_locked_ledger_is_left_alone_and_believed_by_no_later_start(disk: BlobDisk) -> None:
    store = await disk.open()
    digest = await put(store, some_bytes(5000))
    await disk.close()
    other = sqlite3.connect(disk.directory / "ledger", isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    store = await disk.open()
    assert [event.doing for event in disk.recorder.of(StoreFailed)] == ["opening the ledger"]
    assert await held(store, digest) == some_bytes(5000)
    await put(store, b"while it is locked")
    await until(store, lambda usage: usage.blobs == 2)
    await disk.close()
    other.close()
    # The run that could not write the ledger was clean, but cannot have said so.
    disk.plant(bytes(5000), digest)
    store = await disk.open()
    assert await store.open(digest) is None
    await until(store, lambda usage: usage.blobs == 1)
    assert not (disk.directory / "ledger.unreadable").exists()


async def test_a_store_whose_ledger_fails_goes_on_serving(disk: BlobDisk) -> None:
    store = await disk.open()
    old = await put(store, some_bytes(5000, 1))
    planted = disk.plant(some_bytes(5000, 2))
    bad = disk.plant(bytes(5000), sha256(b"bad"))
    ledger = store._ledger._ledger
    assert ledger is not None
    ledger._db.close()
    assert await held(store, old) == some_bytes(5000, 1)
    for _ in range(2):
        assert await held(store, planted) == some_bytes(5000, 2)
    assert await store.open(bad) is None
    new, large = await put(store, b"new"), await put(store, some_bytes(2 * BLOCK, 3))
    assert await held(store, new) == b"new"
    assert await held(store, large) == some_bytes(2 * BLOCK, 3)
    store.note_named(new, SERDE)
    assert await store.was_named(new, SERDE)
    assert await store.names_of(new) == ()
    assert await store.digests_of("crates-io", None) == ()
    assert await listed(store) == {old, planted, new, large}
    assert len(disk.recorder.of(IntegrityFailed)) == 1
    disk.die()
    await disk.close()
    assert disk.recorder.of(StoreFailed)
    disk.recorder.take()
    store = await disk.open()
    assert await held(store, large) == some_bytes(2 * BLOCK, 3)
    await until(store, lambda usage: usage.blobs == 4)


async def test_a_blob_cut_short_while_it_is_read_fails_and_is_gone_afterwards(
    disk: BlobDisk,
) -> None:
    store = await disk.open()
    digest = await put(store, some_bytes(3 * BLOCK))
    blob = await store.open(digest)
    assert blob is not None
    assert await blob.read(0) == some_bytes(3 * BLOCK)[:BLOCK]
    os.truncate(disk.blob(digest), BLOCK + 10)
    with pytest.raises(StoreFailure, match="shorter"):
        await blob.read(BLOCK)
    blob.close()
    assert await store.open(digest) is None
    expected = IntegrityFailed("disk", digest, f"{3 * BLOCK} bytes", f"{BLOCK + 10} bytes")
    assert disk.recorder.events == [expected]
    assert (disk.directory / "quarantine" / digest).stat().st_size == BLOCK + 10


async def test_a_cache_directory_that_cannot_be_made_is_refused(disk: BlobDisk) -> None:
    disk.directory.write_text("a file")
    with pytest.raises(StoreFailure, match="preparing the cache directory"):
        await disk.open()


WRITES_UNTIL_KILLED = """
import asyncio, random, sys
from pathlib import Path
from proxy.adapters.blob_store import FileBlobStore
from proxy.adapters.clock import SystemClock
from proxy.core.room import BLOCK_BYTES, Limits
from proxy.ports import Named

class Deaf:
    def observe(self, event): pass

async def main():
    store = FileBlobStore(Path(sys.argv[1]), Limits(1 << 30, 0), Deaf(), SystemClock(), 0)
    await store.open_store()
    async def write(seed):
        while True:
            seed += 1000
            chance = random.Random(seed)
            draft = await store.draft(None)
            for _ in range(chance.choice([1, 1, 1, 40])):
                await draft.write(chance.randbytes(chance.randrange(20_000)))
            await draft.commit(Named("crates-io", "serde", "1.0.0"))
            draft.close()
            print(draft.digest(), flush=True)
    await asyncio.gather(*[write(seed) for seed in range(8)])

asyncio.run(main())
"""


async def test_what_a_killed_process_had_committed_is_there_and_nothing_else_is_believed(
    disk: BlobDisk,
) -> None:
    committed: set[str] = set()
    for kills in range(1, 4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITES_UNTIL_KILLED, str(disk.directory)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for _ in range(20 * kills):
            committed.add(process.stdout.readline().strip())
        process.send_signal(signal.SIGKILL)
        committed.update(line.strip() for line in process.stdout if len(line) == 65)
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
    store = await disk.open()
    assert list((disk.directory / "drafts").iterdir()) == []
    found = await listed(store)
    assert committed <= found
    await until(store, lambda usage: usage.blobs == len(found))
    for digest in found:
        data = await held(store, digest)
        assert data is not None
        assert sha256(data) == digest
    assert disk.recorder.events == []
