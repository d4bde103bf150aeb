"""A database that somebody else has had in their hands: nothing in it runs, opens or deletes."""

import hashlib
import json
import pickle  # noqa: TID251 - what must never be unpickled has to be made
import sqlite3
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from proxy.adapters.index_disk import DATABASE, ForeignRow, RowDisk, open_rows
from proxy.adapters.index_rows import BodyRef, Metadata, write_body, write_metadata
from proxy.adapters.index_store import DiskIndexStore
from proxy.core.answers import NO_VALIDATORS, Snapshot, Validators
from proxy.core.events import IntegrityFailed, StoreFailed
from tests.world.observer import Recorder

SNAPSHOT = Snapshot(b'{"name":"serde"}\n', Validators('"abc"', None), 100.0, 200.0)
NEWER = replace(SNAPSHOT, body=b"newer", confirmed_at=300.0)

MODE_RAW, MODE_BINARY, MODE_TEXT, MODE_PICKLE = 1, 2, 3, 4


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], object], tuple[Path]]:
        return Path.touch, (self.path,)


class World:
    """A store's folder, a file outside of it, and the events so far."""

    def __init__(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "cache" / "index"
        self.directory.parent.mkdir()
        self.outside = tmp_path / "outside.val"
        self.outside.write_bytes(b"not yours")
        self.proof = tmp_path / "executed"
        self.recorder = Recorder()

    @asynccontextmanager
    async def store(self) -> AsyncIterator[DiskIndexStore]:
        store = await DiskIndexStore(self.directory, self.recorder).open()
        try:
            yield store
        finally:
            await store.close()

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.directory / DATABASE)) as connection, connection:
            yield connection

    async def with_serde(self) -> Self:
        async with self.store() as store:
            await store.put("crates-io", "serde", SNAPSHOT)
            await store.put("crates-io", "rand", SNAPSHOT)
        return self

    @property
    def moved_aside(self) -> list[str]:
        return sorted(
            path.name for path in self.directory.parent.iterdir() if ".corrupt-" in path.name
        )


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return await World(tmp_path).with_serde()


@pytest.mark.parametrize("row", ["m:crates-io/serde", "b:crates-io/serde"])
async def test_a_pickled_value_is_a_miss_and_is_never_unpickled(world: World, row: str) -> None:
    payload = pickle.dumps(Touch(world.proof))
    with world.database() as database:
        database.execute(
            "UPDATE Cache SET mode = ?, value = ? WHERE key = ?", (MODE_PICKLE, payload, row)
        )
    async with world.store() as store:
        assert await store.get("crates-io", "serde") is None
        await store.confirm("crates-io", "serde", SNAPSHOT)
        assert await store.get("crates-io", "serde") is None
        await store.put("crates-io", "serde", NEWER)
        assert await store.get("crates-io", "serde") == NEWER
        assert await store.get("crates-io", "rand") == SNAPSHOT
    assert not world.proof.exists()
    pickle.loads(payload)
    assert world.proof.exists(), "the payload is a dud"


async def test_a_pickled_key_is_nobodys_and_is_never_unpickled(world: World) -> None:
    payload = pickle.dumps(Touch(world.proof))
    with world.database() as database:
        database.execute(
            "INSERT INTO Cache (key, raw, mode, value) VALUES (?, 0, ?, ?)",
            (payload, MODE_PICKLE, payload),
        )
    async with world.store() as store:
        assert sorted([name async for name in store.names("crates-io")]) == ["rand", "serde"]
        assert (await store.usage())[0] == 2
        assert await store.remove("crates-io", "serde")
    assert not world.proof.exists()


@pytest.mark.parametrize("mode", [MODE_RAW, MODE_BINARY, MODE_TEXT, MODE_PICKLE])
@pytest.mark.parametrize("row", ["m:crates-io/serde", "b:crates-io/serde"])
async def test_a_file_that_a_row_names_is_neither_read_nor_deleted(
    world: World, row: str, mode: int
) -> None:
    # What lies outside would be believed if it were read.
    reference = BodyRef.of(b"planted")
    metadata = Metadata(reference, NO_VALIDATORS, 1.0, 1.0, None)
    planted = (
        write_metadata("crates-io/serde", metadata)
        if row.startswith("m")
        else write_body(b"planted", reference)
    )
    world.outside.write_bytes(planted)
    for name in ("../../outside.val", str(world.outside)):
        assert (world.directory / name).resolve() == world.outside
        for act in ("overwrite", "remove", "confirm"):
            async with world.store() as store:
                await store.put("crates-io", "serde", SNAPSHOT)
            with world.database() as database:
                database.execute(
                    "UPDATE Cache SET mode = ?, filename = ?, value = NULL, size = 9 WHERE key = ?",
                    (mode, name, row),
                )
            async with world.store() as store:
                assert await store.get("crates-io", "serde") is None
                if act == "overwrite":
                    await store.put("crates-io", "serde", NEWER)
                    assert await store.get("crates-io", "serde") == NEWER
                elif act == "remove":
                    await store.remove("crates-io", "serde")
                else:
                    await store.confirm("crates-io", "serde", SNAPSHOT)
            assert world.outside.read_bytes() == planted


@pytest.mark.parametrize("row", ["m:crates-io/serde", "b:crates-io/serde"])
async def test_a_row_that_names_a_file_beside_its_value_is_a_miss(world: World, row: str) -> None:
    with world.database() as database:
        database.execute("UPDATE Cache SET filename = '../../outside.val' WHERE key = ?", (row,))
    async with world.store() as store:
        assert await store.get("crates-io", "serde") is None
        assert await store.get("crates-io", "rand") == SNAPSHOT


async def test_diskcache_itself_is_given_no_way_to_a_file(world: World) -> None:
    with world.database() as database:
        database.execute("UPDATE Cache SET filename = '../../outside.val', expire_time = 1")
    cache = open_rows(world.directory)
    cache.set("m:crates-io/serde", b"replaced")
    cache.delete("m:crates-io/rand")
    cache.pop("b:crates-io/rand")
    cache.expire()
    cache.clear()
    cache.close()
    assert world.outside.read_bytes() == b"not yours"


@pytest.mark.parametrize("value", ["text", 7, 1.5, None], ids=str)
async def test_a_value_that_is_not_bytes_is_a_miss(world: World, value: object) -> None:
    with world.database() as database:
        database.execute("UPDATE Cache SET value = ? WHERE key = 'm:crates-io/serde'", (value,))
    async with world.store() as store:
        assert await store.get("crates-io", "serde") is None
        await store.put("crates-io", "serde", NEWER)
        assert await store.get("crates-io", "serde") == NEWER


async def test_a_row_that_is_not_even_text_is_a_miss_and_can_be_replaced(world: World) -> None:
    with world.database() as database:
        database.execute("UPDATE Cache SET filename = CAST(x'ff' AS TEXT)")
    async with world.store() as store:
        assert await store.get("crates-io", "serde") is None
        await store.put("crates-io", "serde", NEWER)
        assert await store.get("crates-io", "serde") == NEWER
        assert await store.remove("crates-io", "rand")


async def test_a_row_that_has_expired_is_a_miss_and_can_be_replaced(world: World) -> None:
    with world.database() as database:
        database.execute("UPDATE Cache SET expire_time = 1")
    async with world.store() as store:
        assert await store.get("crates-io", "serde") is None
        await store.put("crates-io", "serde", NEWER)
        assert await store.get("crates-io", "serde") == NEWER


async def test_names_that_are_no_names_are_not_listed(world: World) -> None:
    with world.database() as database:
        for name in ("../../etc/passwd", "", "a/b", "x\ny", "\u00e9", "a" * 65):
            database.execute(
                "INSERT INTO Cache (key, raw, mode, value) VALUES (?, 1, 1, x'00')",
                (f"m:crates-io/{name}",),
            )
    async with world.store() as store:
        assert sorted([name async for name in store.names("crates-io")]) == ["rand", "serde"]


async def test_planted_settings_are_not_taken_up(world: World) -> None:
    settings: dict[str, object] = {
        "cull_limit": 1000,
        "eviction_policy": "least-recently-used",
        "size_limit": 1,
        "statistics": 1,
        "disk_min_file_size": 1,
        "disk__directory": str(world.outside.parent),
        "sqlite_mmap_size": 2**30,
        "sqlite_cache_size": 2**20,
        "sqlite_writable_schema": 1,
        "sqlite_journal_mode": "off",
        "_directory": str(world.outside.parent),
        "_timeout": "soon",
        "_disk": None,
        "get": 7,
        "set": 7,
        "transact": 7,
    }
    with world.database() as database:
        database.executemany("INSERT OR REPLACE INTO Settings VALUES (?, ?)", settings.items())
    async with world.store() as store:
        for number in range(20):
            await store.put("crates-io", f"crate-{number}", SNAPSHOT)
        assert await store.get("crates-io", "serde") == SNAPSHOT
        assert (await store.usage())[0] == 22
    assert [path.name for path in world.outside.parent.glob("*.db")] == []
    assert [path.name for path in world.directory.glob("**/*.val")] == []
    assert world.recorder.events == []
    cache = open_rows(world.directory)
    pragmas = {
        pragma: cache._sql(f"PRAGMA {pragma}").fetchone()[0]
        for pragma in ("mmap_size", "cache_size", "journal_mode", "trusted_schema")
    }
    stored = dict(cache._sql("SELECT key, value FROM Settings"))
    assert cache.directory == str(world.directory)
    cache.close()
    assert pragmas == {
        "mmap_size": 0,
        "cache_size": -4096,
        "journal_mode": "wal",
        "trusted_schema": 0,
    }
    assert stored.keys().isdisjoint({"_directory", "_disk", "get", "sqlite_writable_schema"})
    assert (stored["cull_limit"], stored["eviction_policy"]) == (0, "none")


async def test_a_planted_trigger_is_dropped(world: World) -> None:
    with world.database() as database:
        for name in ('wipe "all"', "Settings_count_insert2"):
            quoted = name.replace('"', '""')
            database.execute(
                f'CREATE TRIGGER "{quoted}" AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END'
            )
    async with world.store() as store:
        await store.put("crates-io", "new", SNAPSHOT)
        assert await store.get("crates-io", "new") == SNAPSHOT
        assert await store.get("crates-io", "serde") == SNAPSHOT
    assert world.moved_aside == []


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE stranger (x)",
        "CREATE VIEW stranger AS SELECT * FROM Cache",
        "CREATE INDEX stranger ON Cache (value)",
        "ALTER TABLE Cache RENAME COLUMN value TO worth",
        "DROP TABLE Settings; CREATE VIEW Settings AS SELECT 'sqlite_x' AS key, 1 AS value",
        "DROP TABLE Cache; CREATE TABLE Cache (key, raw, value)",
    ],
)
async def test_a_database_of_another_shape_is_moved_aside(world: World, script: str) -> None:
    with closing(sqlite3.connect(world.directory / DATABASE)) as database:
        database.executescript(script)
    async with world.store() as store:
        assert await store.get("crates-io", "serde") is None
        await store.put("crates-io", "serde", NEWER)
        assert await store.get("crates-io", "serde") == NEWER
    assert world.moved_aside == ["index.corrupt-1"]
    assert [type(event) for event in world.recorder.events] == [StoreFailed]


async def test_statistics_that_an_operator_gathered_do_no_harm(world: World) -> None:
    with world.database() as database:
        database.execute("ANALYZE")
    async with world.store() as store:
        assert await store.get("crates-io", "serde") == SNAPSHOT
    assert world.moved_aside == []


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
async def test_a_symbolic_link_is_not_followed(world: World, suffix: str) -> None:
    elsewhere = world.outside.with_name("elsewhere.db")
    (world.directory / DATABASE).rename(elsewhere)
    if not suffix:
        before = elsewhere.read_bytes()
    else:
        elsewhere.write_bytes(before := b"not yours either")
    (world.directory / (DATABASE + suffix)).symlink_to(elsewhere)
    async with world.store() as store:
        await store.put("crates-io", "serde", NEWER)
        assert await store.get("crates-io", "serde") == NEWER
    assert elsewhere.read_bytes() == before
    assert world.moved_aside == ["index.corrupt-1"]


async def test_a_sound_gzip_of_another_body_of_the_same_length_is_a_miss(world: World) -> None:
    assert SNAPSHOT.body is not None
    forged = write_body(SNAPSHOT.body.replace(b"serde", b"ferde"), BodyRef.of(SNAPSHOT.body))
    with world.database() as database:
        database.execute("UPDATE Cache SET value = ? WHERE key = 'b:crates-io/serde'", (forged,))
    async with world.store() as store:
        assert await store.get("crates-io", "serde") is None
        assert await store.get("crates-io", "rand") == SNAPSHOT
    assert [event.subject for event in world.recorder.of(IntegrityFailed)] == ["crates-io/serde"]


async def test_a_bomb_inflates_no_further_than_its_metadata_says(world: World) -> None:
    bomb = write_body(bytes(50 * 2**20), BodyRef.of(SNAPSHOT.body or b""))
    with world.database() as database:
        database.execute("UPDATE Cache SET value = ? WHERE key = 'b:crates-io/serde'", (bomb,))
    async with world.store() as store:
        assert await store.get("crates-io", "serde") is None
    (event,) = world.recorder.events
    assert isinstance(event, IntegrityFailed)
    assert event.actual == "a gzip of another length"


async def test_a_body_that_is_recorded_as_too_large_is_not_inflated(world: World) -> None:
    async with world.store() as store:
        await store.put("crates-io", "large", replace(SNAPSHOT, body=bytes(2**20)))
    store = DiskIndexStore(world.directory, world.recorder, max_body_bytes=2**19)
    assert await store.get("crates-io", "large") is None
    assert await store.get("crates-io", "serde") == SNAPSHOT
    await store.close()
    assert world.recorder.events == []


SOUND: dict[str, object] = {
    "key": "crates-io/serde",
    "body": None,
    "etag": None,
    "last_modified": None,
    "learned_at": 1,
    "confirmed_at": 1,
    "older_since": None,
}


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        b"[" * 50_000,
        b"1" * 5_000,
        b"\xff",
        json.dumps(SOUND | {"etag": "a\r\nEvil: 1"}).encode(),
        json.dumps(SOUND | {"etag": 1}).encode(),
        json.dumps(SOUND | {"learned_at": True}).encode(),
        json.dumps(SOUND | {"learned_at": 10**400}).encode(),
        json.dumps(SOUND | {"older_since": "1"}).encode(),
        json.dumps(SOUND | {"body": []}).encode(),
        json.dumps(SOUND | {"body": {"sha256": "", "length": -2}}).encode(),
    ],
    ids=lambda content: content[:100].decode(errors="replace"),
)
async def test_metadata_that_proves_itself_and_makes_no_sense_is_a_miss(
    world: World, content: bytes
) -> None:
    plant_metadata(world, content)
    async with world.store() as store:
        assert await store.get("crates-io", "serde") is None
        await store.confirm("crates-io", "serde", SNAPSHOT)
        assert await store.get("crates-io", "serde") is None
    assert world.recorder.events == []


async def test_metadata_that_proves_itself_and_makes_sense_is_taken(world: World) -> None:
    plant_metadata(world, json.dumps(SOUND).encode())
    async with world.store() as store:
        assert await store.get("crates-io", "serde") == Snapshot(None, NO_VALIDATORS, 1, 1)


def plant_metadata(world: World, content: bytes) -> None:
    header = struct.pack(
        ">4sBcQ32s", b"HFix", 1, b"m", len(content), hashlib.sha256(content).digest()
    )
    with world.database() as database:
        database.execute(
            "UPDATE Cache SET value = ? WHERE key = 'm:crates-io/serde'", (header + content,)
        )


@pytest.mark.parametrize("key", [b"bytes", 1, 1.5, None, ("a", "b")], ids=str)
def test_keys_that_are_not_text_are_refused(key: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        RowDisk(str(tmp_path)).put(key)


@pytest.mark.parametrize("value", ["text", 1, 1.5, None, ["x"], bytearray(b"x")], ids=str)
def test_values_that_are_not_bytes_are_refused(value: object, tmp_path: Path) -> None:
    disk = RowDisk(str(tmp_path))
    with pytest.raises(TypeError):
        disk.store(value, read=False)
    with pytest.raises(TypeError):
        disk.store(b"bytes", read=True)


def test_no_value_is_large_enough_for_a_file(tmp_path: Path) -> None:
    disk = RowDisk(str(tmp_path), min_file_size=0)
    size, mode, filename, value = disk.store(bytes(10**6), read=False)
    assert (size, mode, filename, bytes(value)) == (0, MODE_RAW, None, bytes(10**6))
    with pytest.raises(ForeignRow):
        disk.filename()
    with pytest.raises(ForeignRow):
        disk.get(pickle.dumps("key"), 0)
