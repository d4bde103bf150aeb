"""Many names: memory stays where it is, and the event loop is never kept waiting."""

import asyncio
import json
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

from proxy.adapters.index_disk import open_rows
from proxy.adapters.index_rows import Metadata, write_body, write_metadata
from proxy.adapters.index_store import DiskIndexStore
from proxy.core.answers import NO_VALIDATORS, Snapshot
from tests.world.observer import Recorder

SNAPSHOT = Snapshot(b'{"name":"serde","vers":"1.0.0"}\n' * 60, NO_VALIDATORS, 100.0, 200.0)
NAMES = 20_000

READER = """
import asyncio, json, sys
from pathlib import Path
from proxy.adapters.index_store import DiskIndexStore
from tests.world.observer import Recorder

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

async def main():
    store = await DiskIndexStore(Path(sys.argv[1]), Recorder()).open()
    held = [await store.get("crates-io", f"crate-{number:05}") for number in range(200)]
    assert None not in held
    held.clear()
    before = resident_bytes()
    count = 0
    async for name in store.names("crates-io"):
        count += 1
        if count % 10 == 0:
            snapshot = await store.get("crates-io", name)
            assert snapshot is not None
            await store.confirm("crates-io", name, snapshot)
    entries, _ = await store.usage()
    print(json.dumps([count, entries, resident_bytes() - before]))
    await store.close()

asyncio.run(main())
"""


async def test_twenty_thousand_names_take_no_more_memory_than_two_hundred(tmp_path: Path) -> None:
    metadata = Metadata.of(SNAPSHOT)
    assert SNAPSHOT.body is not None
    assert metadata.body is not None
    body = write_body(SNAPSHOT.body, metadata.body)
    (tmp_path / "index").mkdir()
    cache = open_rows(tmp_path / "index")
    with cache.transact():
        for number in range(NAMES):
            key = f"crates-io/crate-{number:05}"
            cache.set(f"m:{key}", write_metadata(key, metadata))
            cache.set(f"b:{key}", body)
    cache.close()
    reader = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        READER,
        str(tmp_path / "index"),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, _ = await reader.communicate()
    count, entries, grown_bytes = json.loads(output)
    assert (count, entries) == (NAMES, NAMES)
    assert grown_bytes < 12 * 2**20


async def test_large_bodies_are_hashed_compressed_and_inflated_off_the_event_loop(
    tmp_path: Path,
) -> None:
    store = await DiskIndexStore(tmp_path / "index", Recorder()).open()
    large = replace(SNAPSHOT, body=random.Random(1).randbytes(2**22).hex().encode())
    for act in (
        store.put("crates-io", "large", large),
        store.get("crates-io", "large"),
        store.confirm("crates-io", "large", large),
    ):
        # Time on a processor, which does not count waiting for one.
        loop_s, process_s = time.thread_time(), time.process_time()
        await act
        loop_s, process_s = time.thread_time() - loop_s, time.process_time() - process_s
        assert loop_s < process_s / 3
    await store.close()


async def test_confirming_does_not_write_the_body_again(tmp_path: Path) -> None:
    store = await DiskIndexStore(tmp_path / "index", Recorder()).open()
    large = replace(SNAPSHOT, body=random.Random(1).randbytes(2**20))
    await store.put("crates-io", "large", large)

    def checkpoint() -> None:
        assert store._cache is not None
        store._cache._sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    await store._run(checkpoint)
    await store.confirm("crates-io", "large", replace(large, confirmed_at=900.0))
    written = (tmp_path / "index" / "cache.db-wal").stat().st_size
    assert 0 < written < 2**16
    await store.close()


async def test_the_space_of_what_is_removed_goes_back_to_the_disk(tmp_path: Path) -> None:
    store = await DiskIndexStore(tmp_path / "index", Recorder()).open()
    large = replace(SNAPSHOT, body=random.Random(1).randbytes(2**20))
    await store.put("crates-io", "large", large)
    await store.remove("crates-io", "large")
    await store.close()
    assert (tmp_path / "index" / "cache.db").stat().st_size < 2**17
