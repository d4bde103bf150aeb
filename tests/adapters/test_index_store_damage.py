"""Broken rows, broken pages, broken files, a broken disk: never a wrong answer, and it heals."""

import asyncio
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.adapters import index_disk
from proxy.adapters.index_disk import DATABASE, RowCache, open_rows
from proxy.adapters.index_store import DiskIndexStore
from proxy.core.answers import NO_VALIDATORS, Snapshot, Validators
from proxy.core.events import IntegrityFailed, StoreFailed
from proxy.core.failures import StoreFailure
from tests.world.observer import Recorder

SNAPSHOT = Snapshot(b'{"name":"serde"}\n' * 9, Validators('"abc"', None), 100.0, 200.0)
NEWER = replace(SNAPSHOT, body=b"newer", confirmed_at=300.0)


def edit(directory: Path, statement: str, values: tuple[object, ...] = ()) -> None:
    with closing(sqlite3.connect(directory / DATABASE)) as database, database:
        database.execute(statement, values)


def read(directory: Path, key: str) -> bytes:
    with closing(sqlite3.connect(directory / DATABASE)) as database:
        ((value,),) = database.execute("SELECT value FROM Cache WHERE key = ?", (key,))
    assert isinstance(value, bytes)
    return value


async def stored(directory: Path, snapshots: dict[str, Snapshot]) -> None:
    store = DiskIndexStore(directory, Recorder())
    for name, snapshot in snapshots.items():
        await store.put("crates-io", name, snapshot)
    await store.close()


def moved_aside(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.parent.glob("*.corrupt-*"))


async def test_half_of_a_pair_is_a_miss_that_is_reported_once(tmp_path: Path) -> None:
    await stored(tmp_path / "index", {"serde": SNAPSHOT, "rand": SNAPSHOT})
    edit(tmp_path / "index", "DELETE FROM Cache WHERE key = 'b:crates-io/serde'")
    edit(tmp_path / "index", "DELETE FROM Cache WHERE key = 'm:crates-io/rand'")
    recorder = Recorder()
    store = DiskIndexStore(tmp_path / "index", recorder)
    for _ in range(2):
        assert await store.get("crates-io", "serde") is None
        assert await store.get("crates-io", "rand") is None
    assert [name async for name in store.names("crates-io")] == []
    await store.close()
    (event,) = recorder.events
    assert isinstance(event, IntegrityFailed)
    assert (event.where, event.subject, event.actual) == ("index", "crates-io/serde", "nothing")


async def test_confirming_half_of_a_pair_stores_nothing(tmp_path: Path) -> None:
    await stored(tmp_path / "index", {"serde": SNAPSHOT})
    edit(tmp_path / "index", "DELETE FROM Cache WHERE key = 'b:crates-io/serde'")
    before = read(tmp_path / "index", "m:crates-io/serde")
    store = DiskIndexStore(tmp_path / "index", Recorder())
    await store.confirm("crates-io", "serde", replace(SNAPSHOT, confirmed_at=900.0))
    await store.close()
    assert read(tmp_path / "index", "m:crates-io/serde") == before


async def test_the_halves_of_two_pairs_are_a_miss(tmp_path: Path) -> None:
    other = replace(SNAPSHOT, body=b'{"name":"rand"}\n' * 9)
    await stored(tmp_path / "index", {"serde": SNAPSHOT, "rand": other})
    body = read(tmp_path / "index", "b:crates-io/rand")
    edit(tmp_path / "index", "UPDATE Cache SET value = ? WHERE key = 'b:crates-io/serde'", (body,))
    recorder = Recorder()
    store = DiskIndexStore(tmp_path / "index", recorder)
    assert await store.get("crates-io", "serde") is None
    assert await store.get("crates-io", "rand") == other
    await store.close()
    assert [event.subject for event in recorder.of(IntegrityFailed)] == ["crates-io/serde"]


async def test_a_whole_pair_under_another_name_is_a_miss(tmp_path: Path) -> None:
    await stored(tmp_path / "index", {"serde": SNAPSHOT})
    edit(tmp_path / "index", "UPDATE Cache SET key = replace(key, 'serde', 'rand')")
    recorder = Recorder()
    store = DiskIndexStore(tmp_path / "index", recorder)
    assert await store.get("crates-io", "rand") is None
    await store.close()
    (event,) = recorder.of(IntegrityFailed)
    assert (event.expected, event.actual) == ("crates-io/rand", "crates-io/serde")


@pytest.mark.parametrize("row", ["m:crates-io/serde", "b:crates-io/serde"])
async def test_every_flipped_bit_and_every_cut_is_a_miss_or_harmless(
    tmp_path: Path, row: str
) -> None:
    await stored(tmp_path / "index", {"serde": SNAPSHOT})
    whole = read(tmp_path / "index", row)
    bad = [whole[:cut] for cut in range(len(whole))] + [whole + b"\0", whole + whole]
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        bad.append(bytes(flipped))
    recorder = Recorder()
    store = DiskIndexStore(tmp_path / "index", recorder)
    survivors = 0
    for value in bad:
        await store.put("crates-io", "serde", SNAPSHOT)

        def plant(value: bytes = value) -> None:
            cache = store._cache
            assert cache is not None
            cache.set(row, value)

        await store._run(plant)
        held = await store.get("crates-io", "serde")
        assert held in (None, SNAPSHOT)
        survivors += held is not None
    await store.close()
    # Five bytes of a gzip header say when and where it was made; nothing hangs on them.
    assert survivors <= (6 if row.startswith("b") else 0)
    assert len(recorder.of(IntegrityFailed)) > len(whole)


def mixed_snapshots() -> dict[str, Snapshot]:
    chance = random.Random(7)
    snapshots = {}
    for number in range(100):
        size = chance.choice([0, 60, 900, 5_000, 30_000])
        body = chance.randbytes(size) if number % 9 else None
        snapshots[f"crate-{number}"] = Snapshot(body, NO_VALIDATORS, float(number), 1.0)
    return snapshots


def flip(content: bytearray, chance: random.Random) -> None:
    for _ in range(40):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def flip_header(content: bytearray, chance: random.Random) -> None:
    content[chance.randrange(100)] ^= 1 << chance.randrange(8)


def flip_schema(content: bytearray, chance: random.Random) -> None:
    for _ in range(4):
        content[chance.randrange(100, 8192)] ^= 1 << chance.randrange(8)


def zero_pages(content: bytearray, chance: random.Random) -> None:
    for _ in range(6):
        page = chance.randrange(1, len(content) // 4096)
        content[page * 4096 : (page + 1) * 4096] = bytes(4096)


def swap_pages(content: bytearray, chance: random.Random) -> None:
    for _ in range(4):
        one, two = (chance.randrange(1, len(content) // 4096) * 4096 for _ in range(2))
        content[one : one + 4096], content[two : two + 4096] = (
            content[two : two + 4096],
            content[one : one + 4096],
        )


def truncate(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(len(content)) :]


def fill_with_noise(content: bytearray, chance: random.Random) -> None:
    content[:] = chance.randbytes(len(content))


DAMAGES = [flip, flip_header, flip_schema, zero_pages, swap_pages, truncate, fill_with_noise]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_a_damaged_file_gives_what_was_put_or_nothing_and_heals(
    tmp_path: Path, damage: Callable[[bytearray, random.Random], None]
) -> None:
    snapshots = mixed_snapshots()
    await stored(tmp_path / "index", snapshots)
    pristine = (tmp_path / "index" / DATABASE).read_bytes()
    for seed in range(4):
        directory = tmp_path / str(seed) / "index"
        directory.mkdir(parents=True)
        content = bytearray(pristine)
        damage(content, random.Random(seed))
        (directory / DATABASE).write_bytes(content)
        store = await DiskIndexStore(directory, Recorder()).open()
        for name, snapshot in snapshots.items():
            assert await store.get("crates-io", name) in (None, snapshot)
        listed = [name async for name in store.names("crates-io")]
        assert len(listed) <= len(snapshots) + 40
        # The first round may meet the damage and begin a new database; the second stays.
        renewed = {name: replace(each, learned_at=-1.0) for name, each in snapshots.items()}
        for _ in range(2):
            for name, snapshot in renewed.items():
                await store.put("crates-io", name, snapshot)
        await store.close()

        again = await DiskIndexStore(directory, Recorder()).open()
        healed = 0
        for name, snapshot in renewed.items():
            held = await again.get("crates-io", name)
            assert held in (None, snapshots[name], snapshot)
            healed += held == snapshot
        # Keys in a scrambled page may go on being missed: it is a cache, they are fetched again.
        assert healed > 0.8 * len(snapshots)
        assert len(moved_aside(directory)) <= 1
        await again.close()


async def test_a_file_that_is_no_database_is_moved_aside_and_only_the_last_is_kept(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "index"
    for number in (1, 2, 3):
        if not directory.exists():
            directory.mkdir()
        for path in directory.iterdir():
            path.unlink()
        (directory / DATABASE).write_bytes(b"number %d " % number * 1000)
        recorder = Recorder()
        store = await DiskIndexStore(directory, recorder).open()
        assert await store.get("crates-io", "serde") is None
        await store.put("crates-io", "serde", SNAPSHOT)
        assert await store.get("crates-io", "serde") == SNAPSHOT
        await store.close()
        assert moved_aside(directory) == [f"index.corrupt-{number}"]
        (event,) = recorder.events
        assert isinstance(event, StoreFailed)
        assert f"moved aside to index.corrupt-{number}" in event.reason
    kept = (tmp_path / "index.corrupt-3" / DATABASE).read_bytes()
    assert kept.startswith(b"number 3 ")


async def test_a_broken_database_that_is_too_large_is_not_kept(tmp_path: Path) -> None:
    directory = tmp_path / "index"
    directory.mkdir()
    (directory / DATABASE).write_bytes(b"no database" * 1000)
    store = await DiskIndexStore(directory, Recorder(), corrupt_max_bytes=10_000).open()
    await store.put("crates-io", "serde", SNAPSHOT)
    assert await store.get("crates-io", "serde") == SNAPSHOT
    assert moved_aside(directory) == []
    await store.close()


async def test_a_header_that_forbids_writing_is_damage_and_not_a_disk_for_reading_only(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "index"
    await stored(directory, {"serde": SNAPSHOT})
    content = bytearray((directory / DATABASE).read_bytes())
    # The file format's "write version": above 2, a database may only be read.
    content[18] = 7
    (directory / DATABASE).write_bytes(content)
    store = await DiskIndexStore(directory, Recorder()).open()
    await store.put("crates-io", "serde", NEWER)
    assert await store.get("crates-io", "serde") == NEWER
    assert moved_aside(directory) == ["index.corrupt-1"]
    await store.close()


def test_a_commit_that_fails_leaves_no_transaction_behind(tmp_path: Path) -> None:
    cache = open_rows(tmp_path / "index")
    sql = cache._sql
    sql("PRAGMA foreign_keys = ON")
    sql("CREATE TABLE p (x PRIMARY KEY)")
    sql("CREATE TABLE c (x REFERENCES p DEFERRABLE INITIALLY DEFERRED)")
    # Only at the COMMIT does SQLite look whether these were kept.
    with pytest.raises(sqlite3.IntegrityError), cache.transact():
        sql("INSERT INTO c VALUES (1)")
    cache.abandon()
    with cache.transact():
        cache.set("key", b"value")
    assert cache.get("key") == b"value"
    assert sql("SELECT COUNT(*) FROM c").fetchone() == (0,)
    cache.close()


async def test_damage_that_a_write_meets_begins_a_new_database_at_once(tmp_path: Path) -> None:
    directory = tmp_path / "index"
    await stored(directory, mixed_snapshots())
    recorder = Recorder()
    store = await DiskIndexStore(directory, recorder).open()
    database = directory / DATABASE
    content = database.read_bytes()
    # All but the first page, which was looked at when the store was opened.
    database.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    assert await store.get("crates-io", "crate-1") is None
    await store.put("crates-io", "serde", SNAPSHOT)
    assert await store.get("crates-io", "serde") == SNAPSHOT
    assert moved_aside(directory) == ["index.corrupt-1"]
    assert [event.doing for event in recorder.of(StoreFailed)] == ["open the index store"]
    await store.close()


async def test_a_folder_that_vanishes_comes_back_with_the_next_write(tmp_path: Path) -> None:
    directory = tmp_path / "index"
    store = await DiskIndexStore(directory, Recorder()).open()
    await store.put("crates-io", "serde", SNAPSHOT)
    shutil.rmtree(directory)
    await store.put("crates-io", "serde", NEWER)
    assert await store.get("crates-io", "serde") == NEWER
    await store.close()
    again = await DiskIndexStore(directory, Recorder()).open()
    assert await again.get("crates-io", "serde") == NEWER
    await again.close()


async def test_a_store_that_cannot_be_opened_misses_and_says_so_until_it_can(
    tmp_path: Path,
) -> None:
    recorder = Recorder()
    (tmp_path / "index").write_bytes(b"in the way")
    store = await DiskIndexStore(tmp_path / "index", recorder).open()
    assert [event.doing for event in recorder.of(StoreFailed)] == ["open the index store"]
    assert await store.get("crates-io", "serde") is None
    assert [name async for name in store.names("crates-io")] == []
    assert (await store.usage())[0] == 0
    writes = [
        store.put("crates-io", "serde", SNAPSHOT),
        store.confirm("crates-io", "serde", SNAPSHOT),
        store.remove("crates-io", "serde"),
    ]
    for write in writes:
        with pytest.raises(StoreFailure, match=r"^cannot open the index store: [^\n]+$"):
            await write
    (tmp_path / "index").unlink()
    await store.put("crates-io", "serde", SNAPSHOT)
    assert await store.get("crates-io", "serde") == SNAPSHOT
    await store.close()


async def limit_pages(store: DiskIndexStore, pages: int) -> None:
    def limit() -> None:
        cache = store._cache
        assert isinstance(cache, RowCache)
        cache._sql(f"PRAGMA max_page_count = {pages}").fetchall()

    await store._run(limit)


async def test_a_full_disk_refuses_writes_keeps_reads_and_recovers(tmp_path: Path) -> None:
    recorder = Recorder()
    noise = [replace(SNAPSHOT, body=random.Random(seed).randbytes(200_000)) for seed in range(3)]
    store = await DiskIndexStore(tmp_path / "index", recorder).open()
    await store.put("crates-io", "serde", noise[0])
    await limit_pages(store, 1)
    for _ in range(3):
        with pytest.raises(StoreFailure, match=r"crates-io/rand: [^\n]*full") as failure:
            await store.put("crates-io", "rand", noise[1])
        assert "\n" not in str(failure.value)
        assert await store.get("crates-io", "rand") is None
        assert await store.get("crates-io", "serde") == noise[0]
    with pytest.raises(StoreFailure):
        await store.put("crates-io", "serde", replace(noise[1], body=(noise[1].body or b"") * 2))
    assert await store.get("crates-io", "serde") in (None, noise[0])
    await limit_pages(store, 2**30)
    await store.put("crates-io", "rand", noise[2])
    assert await store.get("crates-io", "rand") == noise[2]
    await store.close()
    assert recorder.events == []
    assert moved_aside(tmp_path / "index") == []


async def test_a_database_that_another_process_has_locked_is_a_failure_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_disk, "BUSY_TIMEOUT_S", 0.05)
    store = await DiskIndexStore(tmp_path / "index", Recorder()).open()
    await store.put("crates-io", "serde", SNAPSHOT)
    with closing(sqlite3.connect(tmp_path / "index" / DATABASE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreFailure, match="crates-io/serde: database is locked"):
            await store.put("crates-io", "serde", NEWER)
        assert await store.get("crates-io", "serde") == SNAPSHOT
        other.execute("ROLLBACK")
    await store.put("crates-io", "serde", NEWER)
    assert await store.get("crates-io", "serde") == NEWER
    await store.close()


async def test_a_folder_whose_name_would_be_expanded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELSEWHERE", "surprise")
    store = DiskIndexStore(tmp_path / "$ELSEWHERE", Recorder())
    with pytest.raises(StoreFailure, match="would expand the"):
        await store.put("crates-io", "serde", SNAPSHOT)
    await store.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_body_above_the_ceiling_is_refused(tmp_path: Path) -> None:
    store = DiskIndexStore(tmp_path / "index", Recorder(), max_body_bytes=100)
    await store.put("crates-io", "serde", replace(SNAPSHOT, body=bytes(100)))
    with pytest.raises(StoreFailure, match="more than 100 bytes"):
        await store.put("crates-io", "serde", replace(SNAPSHOT, body=bytes(101)))
    assert await store.get("crates-io", "serde") == replace(SNAPSHOT, body=bytes(100))
    await store.close()


async def test_a_closed_store_holds_nothing_and_takes_nothing(tmp_path: Path) -> None:
    store = await DiskIndexStore(tmp_path / "index", Recorder()).open()
    last = asyncio.ensure_future(store.put("crates-io", "serde", SNAPSHOT))
    await asyncio.sleep(0)
    await store.close()
    await last
    await store.close()
    assert await store.get("crates-io", "serde") is None
    assert [name async for name in store.names("crates-io")] == []
    assert await store.usage() == (0, 0)
    for write in (
        store.put("crates-io", "serde", NEWER),
        store.confirm("crates-io", "serde", SNAPSHOT),
        store.remove("crates-io", "serde"),
    ):
        with pytest.raises(StoreFailure, match="closed"):
            await write
    again = await DiskIndexStore(tmp_path / "index", Recorder()).open()
    assert await again.get("crates-io", "serde") == SNAPSHOT
    await again.close()


WRITER = """
import asyncio, hashlib, sys
from pathlib import Path
from proxy.adapters.index_store import DiskIndexStore
from tests.adapters.test_index_store_damage import generation
from tests.world.observer import Recorder

async def main():
    store = await DiskIndexStore(Path(sys.argv[1]), Recorder()).open()
    number = int(sys.argv[2])
    while True:
        number += 1
        for name in ("small", "large"):
            await store.put("crates-io", name, generation(name, number))
            if number % 3 == 0:
                await store.put("crates-io", name, generation(name, number))
        print(number, flush=True)

asyncio.run(main())
"""


def generation(name: str, number: int) -> Snapshot:
    """Build the snapshot that the writer put in its round `number`."""
    body = random.Random(f"{name} {number}").randbytes(100 if name == "small" else 150_000)
    return Snapshot(body, Validators(f'"{number}"', None), float(number), float(number))


async def test_a_writer_that_is_killed_leaves_whole_snapshots_and_all_it_reported(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "index"
    number = 0
    for kill_after in (1, 4, 9):
        writer = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            WRITER,
            str(directory),
            str(number),
            cwd=Path(__file__).parents[2],
            stdout=asyncio.subprocess.PIPE,
        )
        assert writer.stdout is not None
        async with asyncio.timeout(30):
            reported = number
            while reported < number + kill_after:
                reported = int(await writer.stdout.readline())
            writer.kill()
            rest = await writer.stdout.read()
            await writer.wait()
        reported = max([reported, *(int(line) for line in rest.split(b"\n")[:-1])])
        recorder = Recorder()
        store = await DiskIndexStore(directory, recorder).open()
        for name in ("small", "large"):
            held = await store.get("crates-io", name)
            assert held is not None
            number = int(held.learned_at)
            assert reported <= number <= reported + 1
            assert held == generation(name, number)
        await store.close()
        assert recorder.events == []
