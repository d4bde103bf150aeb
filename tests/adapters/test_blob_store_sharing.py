"""What the blob store shares among many readers, and what it does when its callers leave."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.adapters.blob_drafts import FileDraft
from proxy.adapters.blob_store import FileBlobStore
from proxy.adapters.blocks import FileBlob
from proxy.core.events import Evicted
from proxy.core.failures import StoreFailure
from proxy.core.room import Limits
from proxy.ports import Blob, Named
from tests.world.blobs import (
    BLOCK,
    SERDE,
    BlobDisk,
    held,
    listed,
    put,
    read_to_end,
    sha256,
    some_bytes,
    until,
)
from tests.world.clock import PATIENCE_SECONDS
from tests.world.scratch import scratch_directory

MEMORY = 64 << 20


@pytest.fixture
async def disk() -> AsyncIterator[BlobDisk]:
    with scratch_directory() as root:
        disk = BlobDisk(root)
        yield disk
        await disk.close()


def descriptors_below(disk: BlobDisk) -> int:
    """Count this process's open descriptors of files in `blobs` and `drafts`."""
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
        except FileNotFoundError:
            continue
        count += target.startswith((f"{disk.directory}/blobs", f"{disk.directory}/drafts"))
    return count


async def until_descriptors(disk: BlobDisk, count: int) -> None:
    """Wait for descriptors to be closed, which happens in threads."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while descriptors_below(disk) != count:
            await asyncio.sleep(0)


async def opened(store: FileBlobStore, digest: str) -> Blob:
    blob = await store.open(digest)
    assert blob is not None
    return blob


async def test_a_thousand_readers_share_one_descriptor_and_one_copy(disk: BlobDisk) -> None:
    store = await disk.open()
    data = some_bytes(10 * BLOCK + 5)
    digest = await put(store, data)
    await disk.close()
    store = await disk.open(memory_bytes=MEMORY)
    blobs = await asyncio.gather(*[opened(store, digest) for _ in range(1000)])
    await until_descriptors(disk, 1)
    for number in range(11):
        blocks = await asyncio.gather(*[blob.read(number * BLOCK) for blob in blobs])
        assert {id(block) for block in blocks} == {id(blocks[0])}
        assert blocks[0] == data[number * BLOCK : (number + 1) * BLOCK]
    assert (await store.usage()).memory_bytes < len(data) + 11 * 1000
    for blob in blobs:
        blob.close()


async def test_readers_at_the_same_time_share_a_read_though_nothing_is_kept(
    disk: BlobDisk,
) -> None:
    store = await disk.open(memory_bytes=0)
    digest = await put(store, some_bytes(3 * BLOCK))
    blobs = [await opened(store, digest) for _ in range(100)]
    blocks = await asyncio.gather(*[blob.read(BLOCK) for blob in blobs])
    assert {id(block) for block in blocks} == {id(blocks[0])}
    assert (await store.usage()).memory_bytes == 0
    for blob in blobs:
        blob.close()


async def test_memory_is_bounded_and_gives_way_to_what_is_used(disk: BlobDisk) -> None:
    store = await disk.open(memory_bytes=1_000_000)
    digests = [await put(store, some_bytes(100_000, seed)) for seed in range(30)]
    large = await put(store, some_bytes(3_000_000, 99))
    for digest in digests:
        assert await held(store, digest) is not None
    assert await held(store, large) == some_bytes(3_000_000, 99)
    usage = await store.usage()
    assert 500_000 < usage.memory_bytes <= usage.memory_limit_bytes == 1_000_000


@pytest.mark.parametrize("size", [0, 100, BLOCK])
async def test_a_small_blob_in_memory_is_opened_and_read_without_waiting(
    disk: BlobDisk, size: int
) -> None:
    store = await disk.open(memory_bytes=MEMORY)
    data = some_bytes(size)
    digest = await put(store, data)
    opening = store.open(digest)
    with pytest.raises(StopIteration) as ended:
        opening.send(None)
    blob: Blob = ended.value.value
    reading = blob.read(0)
    with pytest.raises(StopIteration) as ended:
        reading.send(None)
    assert ended.value.value == data
    assert blob.size_bytes == size


async def test_a_use_from_memory_counts_for_eviction(disk: BlobDisk) -> None:
    store = await disk.open(limits=Limits(300_000, 0), memory_bytes=MEMORY)
    first, second = await put(store, some_bytes(90_000, 1)), await put(store, some_bytes(90_000, 2))
    disk.clock.advance(1)
    assert await held(store, first) is not None
    await put(store, some_bytes(120_000, 3))
    assert await listed(store) == {first, sha256(some_bytes(120_000, 3))}
    assert await store.open(second) is None


async def test_uses_are_written_every_few_seconds_and_survive_a_death(disk: BlobDisk) -> None:
    store = await disk.open()
    first, second = await put(store, some_bytes(90_000, 1)), await put(store, some_bytes(90_000, 2))
    await held(store, first)
    store.note_named(second, Named("mirror", "serde", "1.0.0"))
    await disk.clock.until_sleeping()
    disk.clock.advance(5)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while store._ledger._uses or store._ledger._names:
            await asyncio.sleep(0)
    disk.die()
    store = await disk.open(limits=Limits(250_000, 0))
    assert await store.was_named(second, Named("mirror", "serde", "1.0.0"))
    await put(store, some_bytes(90_000, 3))
    assert second not in await listed(store)
    assert first in await listed(store)


async def test_many_uses_are_written_without_waiting_for_the_time(disk: BlobDisk) -> None:
    store = await disk.open()
    for number in range(2_100):
        store.note_named(sha256(b"%d" % number), SERDE)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while store._ledger._names:
            await asyncio.sleep(0)
    disk.die()
    store = await disk.open()
    assert len(await store.digests_of("crates-io", "serde")) == 2_100


async def test_a_blob_being_read_may_be_evicted(disk: BlobDisk) -> None:
    store = await disk.open(limits=Limits(2_000_000, 0), memory_bytes=0)
    data = some_bytes(3 * BLOCK)
    blob = await opened(store, await put(store, data))
    assert await blob.read(0) == data[:BLOCK]
    await put(store, some_bytes(1_900_000, 2))
    assert disk.recorder.of(Evicted)
    assert await store.open(sha256(data)) is None
    assert await read_to_end(blob) == data
    await until_descriptors(disk, 1)
    blob.close()


async def test_a_draft_waits_for_its_own_need_and_the_rest_goes_behind_its_back(
    disk: BlobDisk,
) -> None:
    await disk.open()
    await disk.close()
    database = sqlite3.connect(disk.directory / "ledger")
    with database:
        database.execute("UPDATE meta SET value = 1 WHERE key = 'surveyed'")
        database.executemany(
            "INSERT INTO blobs VALUES (?, 4096, ?, 0)",
            [(bytes.fromhex(sha256(b"%d" % number)), number) for number in range(10_000)],
        )
    database.close()
    store = await disk.open(limits=Limits(10_000 * 4096, 0))
    assert (await store.usage()).blobs == 10_000
    draft = await store.draft(4096)
    assert 10_000 - 200 < (await store.usage()).blobs < 10_000
    # A fiftieth below the limit, and no further.
    await until(store, lambda usage: usage.blobs == 10_000 - 200 - 1)
    await draft.discard()
    await (await store.draft(4096)).discard()
    assert (await store.usage()).blobs == 10_000 - 200 - 1


async def test_followers_of_a_draft_get_the_same_objects(disk: BlobDisk) -> None:
    store = await disk.open(memory_bytes=MEMORY)
    data = some_bytes(2 * BLOCK + 1000)
    draft = await store.draft(len(data))
    await draft.write(data[: BLOCK + 500])
    for start, stop in ((0, BLOCK), (BLOCK, BLOCK + 500)):
        pieces = await asyncio.gather(*[draft.read(start, stop) for _ in range(50)])
        assert {id(piece) for piece in pieces} == {id(pieces[0])}
        assert pieces[0] == data[start:stop]
    await draft.write(data[BLOCK + 500 :])
    await draft.commit(SERDE)
    blob = await opened(store, sha256(data))
    for start in (0, BLOCK, 2 * BLOCK):
        assert await blob.read(start) is await draft.read(start, len(data))
    assert (await store.usage()).memory_bytes < len(data) + 3 * 1000
    await until_descriptors(disk, 1)
    draft.close()
    blob.close()


async def test_nothing_is_left_open_when_all_have_left(disk: BlobDisk) -> None:
    store = await disk.open(memory_bytes=0)
    digest = await put(store, some_bytes(3 * BLOCK))
    for turn in range(30):
        opening = asyncio.create_task(store.open(digest))
        checking = asyncio.create_task(store.check(digest))
        drafting = asyncio.create_task(store.draft(None))
        for _ in range(turn):
            await asyncio.sleep(0)
        for task in (opening, checking, drafting):
            task.cancel()
        found, _, draft = await asyncio.gather(opening, checking, drafting, return_exceptions=True)
        if isinstance(found, FileBlob):
            assert await found.read(0) == some_bytes(3 * BLOCK)[:BLOCK]
            found.close()
        if isinstance(draft, FileDraft):
            await draft.write(some_bytes(2 * BLOCK))
            assert await draft.read(0, BLOCK) == some_bytes(2 * BLOCK)[:BLOCK]
            draft.close()
    await disk.close()
    assert descriptors_below(disk) == 0
    assert (await store.usage()).reserved_bytes == 0
    assert (await store.usage()).drafts == 0
    assert store._room.written_bytes == 0


async def test_a_reader_that_leaves_takes_nobody_with_it(disk: BlobDisk) -> None:
    store = await disk.open(memory_bytes=0)
    data = some_bytes(3 * BLOCK)
    digest = await put(store, data)
    blobs = [await opened(store, digest) for _ in range(3)]
    readings = [asyncio.create_task(blob.read(BLOCK)) for blob in blobs]
    await asyncio.sleep(0)
    readings[0].cancel()
    blobs[0].close()
    assert await asyncio.gather(*readings[1:]) == [data[BLOCK : 2 * BLOCK]] * 2
    openings = [asyncio.create_task(store.open(digest)) for _ in range(3)]
    await asyncio.sleep(0)
    openings[0].cancel()
    for other in await asyncio.gather(*openings[1:]):
        assert other is not None
        assert await read_to_end(other) == data
        other.close()
    for blob in blobs[1:]:
        blob.close()
    await until_descriptors(disk, 0)


async def test_a_dropped_draft_leaves_nothing_in_memory(disk: BlobDisk) -> None:
    store = await disk.open(memory_bytes=MEMORY)
    draft = await store.draft(None)
    await draft.write(some_bytes(3 * BLOCK))
    assert (await store.usage()).memory_bytes > 2 * BLOCK
    await draft.discard()
    assert await draft.read(0, BLOCK) == some_bytes(3 * BLOCK)[:BLOCK]
    draft.close()
    assert (await store.usage()).memory_bytes == 0


async def test_a_draft_closed_in_the_middle_of_a_write_leaves_nothing(disk: BlobDisk) -> None:
    for patience in range(12):
        store = await disk.open(memory_bytes=MEMORY)
        draft = await store.draft(None)
        writing = asyncio.create_task(draft.write(some_bytes(3 * BLOCK)))
        for _ in range(patience):
            await asyncio.sleep(0)
        writing.cancel()
        draft.close()
        await asyncio.gather(writing, return_exceptions=True)
        await disk.close()
        assert descriptors_below(disk) == 0
        assert list((disk.directory / "drafts").iterdir()) == []
        usage = await store.usage()
        assert (usage.memory_bytes, usage.reserved_bytes, usage.drafts) == (0, 0, 0)
        assert store._room.written_bytes == 0


@pytest.mark.parametrize("size", [100, 3 * BLOCK])
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(patience=st.integers(0, 12))
async def test_a_cancelled_commit_is_whole_or_has_left_nothing(
    disk: BlobDisk, size: int, patience: int
) -> None:
    await disk.close()
    disk.wipe()
    store = await disk.open()
    data = some_bytes(size)
    draft = await store.draft(size)
    await draft.write(data)
    committing = asyncio.create_task(draft.commit(SERDE))
    for _ in range(patience):
        await asyncio.sleep(0)
    committing.cancel()
    draft.close()
    await asyncio.gather(committing, return_exceptions=True)
    await disk.close()
    store = await disk.open()
    usage = await store.usage()
    assert await held(store, sha256(data)) == (data if usage.blobs else None)
    assert usage.blobs == len(await listed(store))
    assert disk.recorder.events == []
    assert list((disk.directory / "drafts").iterdir()) == []


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(patience=st.integers(0, 12))
async def test_a_cancelled_write_happened_or_did_not(disk: BlobDisk, patience: int) -> None:
    await disk.close()
    disk.wipe()
    store = await disk.open()
    first, second, third = some_bytes(100, 1), some_bytes(3 * BLOCK, 2), some_bytes(BLOCK, 3)
    draft = await store.draft(5 * BLOCK)
    await draft.write(first)
    writing = asyncio.create_task(draft.write(second))
    for _ in range(patience):
        await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await draft.write(third)
    await draft.commit(SERDE)
    draft.close()
    assert draft.digest() in {sha256(first + second + third), sha256(first + third)}
    data = await held(store, draft.digest())
    assert data in {first + second + third, first + third}


async def test_a_closed_store_misses_and_refuses_without_other_errors(disk: BlobDisk) -> None:
    store = await disk.open(memory_bytes=0)
    data = some_bytes(2 * BLOCK)
    digest = await put(store, data)
    blob, draft = await opened(store, digest), await store.draft(None)
    await store.close()
    assert await store.open(digest) is None
    for refused in (
        blob.read(0),
        draft.write(data),
        draft.commit(SERDE),
        store.draft(10),
        store.remove([digest]),
        store.make_room(),
        store.check(digest),
    ):
        with pytest.raises(StoreFailure):
            await refused
    await draft.discard()
    draft.close()
    blob.close()
    assert await listed(store) == set()
    assert await store.names_of(digest) == ()
    assert (await store.usage()).blobs == 1
    await store.close()


async def test_removal_and_refetching_at_once_end_in_a_whole_blob_or_none(
    disk: BlobDisk,
) -> None:
    store = await disk.open(memory_bytes=MEMORY)
    data = some_bytes(2 * BLOCK + 1)
    digest = sha256(data)
    for turn in range(15):
        # Much else is removed with it, so that removal is under way for a while.
        others = [disk.plant(b"%d %d" % (turn, number)) for number in range(150)]
        await asyncio.gather(
            put(store, data),
            store.remove([digest, *others]),
            held(store, digest),
            put(store, data),
            store.check(digest),
            store.remove([digest]),
        )
        usage = await store.usage()
        assert usage.blobs == len(await listed(store))
        assert await held(store, digest) == (data if usage.blobs else None)


async def test_drafts_that_begin_together_look_at_the_file_system_once_and_share_its_room(
    disk: BlobDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = 10
    store = await disk.open(limits=Limits(max_size_bytes=blocks * 4096, min_free_bytes=0))
    looks = []
    look = os.statvfs

    def counted(path: os.PathLike[str]) -> os.statvfs_result:
        looks.append(path)
        return look(path)

    monkeypatch.setattr(os, "statvfs", counted)
    drafts = await asyncio.gather(*(store.draft(1) for _ in range(blocks)))
    assert len(looks) <= 2, "the survey of a new store may look too"
    assert (await store.usage()).reserved_bytes == blocks * 4096
    for refused in await asyncio.gather(
        *(store.draft(1) for _ in range(3)), return_exceptions=True
    ):
        assert isinstance(refused, StoreFailure)
    for draft in drafts:
        await draft.discard()
        draft.close()
