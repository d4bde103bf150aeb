"""What only the state store on disk has: a file, a schema, and an upgrade path."""

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from proxy.adapters.state_store import _LADDER, SCHEMA_VERSION, SqliteStateStore
from proxy.core.failures import StoreFailure
from proxy.ports import Tombstone


async def test_what_was_recorded_outlives_the_process(tmp_path: Path) -> None:
    store = await SqliteStateStore(tmp_path / "state").open()
    await store.removed("crates-io", "serde", 10.0)
    await store.close()
    again = await SqliteStateStore(tmp_path / "state").open()
    assert await again.tombstones() == (Tombstone("crates-io", "serde", 10.0, None),)
    await again.close()


async def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    store = await SqliteStateStore(tmp_path / "deep" / "state").open()
    await store.removed("crates-io", "serde", 10.0)
    directory = tmp_path / "deep" / "state"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    await store.close()
    assert modes == {"state.db": 0o600, "state.db-wal": 0o600, "state.db-shm": 0o600}


async def test_a_file_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "state.db").touch(mode=0o644)
    store = await SqliteStateStore(tmp_path).open()
    await store.close()
    assert stat.S_IMODE((tmp_path / "state.db").stat().st_mode) == 0o600


async def test_the_schema_says_its_version(tmp_path: Path) -> None:
    store = await SqliteStateStore(tmp_path).open()
    await store.close()
    with closing(sqlite3.connect(tmp_path / "state.db")) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 2**31 - 1, -1])
async def test_a_file_of_another_version_is_refused_by_name_and_left_as_it_is(
    tmp_path: Path, version: int
) -> None:
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE tomorrow (x)")
        database.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    with pytest.raises(StoreFailure) as failure:
        await SqliteStateStore(tmp_path).open()
    message = str(failure.value)
    assert str(path) in message
    assert f"schema version {version}" in message
    assert f"knows {SCHEMA_VERSION}" in message
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.db"]


@pytest.mark.parametrize("oldest", [SCHEMA_VERSION + 1, None, "1"])
async def test_a_newer_file_that_does_not_name_our_schema_is_refused(
    tmp_path: Path, oldest: object
) -> None:
    with closing(sqlite3.connect(tmp_path / "state.db")) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 2}")
        database.execute("CREATE TABLE compatible (oldest)")
        if oldest is not None:
            database.execute("INSERT INTO compatible VALUES (?)", (oldest,))
        database.commit()
    before = (tmp_path / "state.db").read_bytes()
    with pytest.raises(StoreFailure, match="written by a newer one"):
        await SqliteStateStore(tmp_path).open()
    assert (tmp_path / "state.db").read_bytes() == before


async def test_a_step_that_only_adds_is_taken_back_and_forth(tmp_path: Path) -> None:
    ladder = (*_LADDER, ("CREATE TABLE tomorrow (x)", "INSERT INTO tomorrow VALUES (7)"))
    removed = []
    for number, steps in enumerate((_LADDER, ladder, _LADDER, ladder)):
        store = await SqliteStateStore(tmp_path, steps).open()
        await store.removed("crates-io", f"name-{number}", float(number))
        removed.append(f"name-{number}")
        assert sorted(tomb.name for tomb in await store.tombstones()) == removed
        await store.close()
    with closing(sqlite3.connect(tmp_path / "state.db")) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (len(ladder),)
        assert database.execute("SELECT * FROM tomorrow").fetchall() == [(7,)]
        assert database.execute("SELECT * FROM compatible").fetchall() == [(1,)]


async def test_a_migration_that_was_interrupted_is_made_good(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = await SqliteStateStore(tmp_path).open()
    await store.close()
    # What a kill before the COMMIT of the first migration leaves: nothing.
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE tombstones")
        database.execute("PRAGMA user_version = 0")
    store = await SqliteStateStore(tmp_path).open()
    await store.removed("crates-io", "serde", 10.0)
    assert len(await store.tombstones()) == 1
    await store.close()


async def test_a_file_that_is_no_database_stops_the_start_and_is_left_as_it_is(
    tmp_path: Path,
) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"somebody's notes " * 500)
    with pytest.raises(StoreFailure, match="cannot open the state store") as failure:
        await SqliteStateStore(tmp_path).open()
    assert str(path) in str(failure.value)
    assert path.read_bytes() == b"somebody's notes " * 500


async def test_a_folder_that_cannot_be_made_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreFailure, match="cannot open the state store"):
        await SqliteStateStore(tmp_path / "file" / "state").open()


async def test_a_disk_that_is_full_is_a_failure_and_passes(tmp_path: Path) -> None:
    store = await SqliteStateStore(tmp_path).open()

    def limit(pages: int) -> None:
        assert store._connection is not None
        store._connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()

    await store._run("limit", lambda: limit(1))
    long_name = "crate-" + "x" * 50_000
    with pytest.raises(StoreFailure, match=r"cannot record the removal of crates-io/[^\n]* full"):
        await store.removed("crates-io", long_name, 10.0)
    assert await store.tombstones() == ()
    await store._run("lift", lambda: limit(2**30))
    await store.removed("crates-io", "serde", 20.0)
    assert await store.tombstones() == (Tombstone("crates-io", "serde", 20.0, None),)
    await store.close()


async def test_a_closed_store_refuses(tmp_path: Path) -> None:
    store = await SqliteStateStore(tmp_path).open()
    await store.close()
    await store.close()
    for call in (
        store.removed("a", "b", 1.0),
        store.returned("a", "b", 1.0),
        store.tombstones(),
    ):
        with pytest.raises(StoreFailure, match="closed"):
            await call
