"""What every blob store keeps, the fake and the real: the page of `proxy.ports.BlobStore`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.core.events import Evicted, IntegrityFailed
from proxy.core.failures import StoreFailure
from proxy.core.room import Limits, on_disk
from proxy.ports import BlobStore, Draft, Named, Removed
from tests.world.blob_store import MemoryBlobStore
from tests.world.blobs import (
    BLOCK,
    ROOMY,
    SERDE,
    BlobDisk,
    held,
    listed,
    put,
    read_to_end,
    sha256,
    some_bytes,
)
from tests.world.clock import ManualClock
from tests.world.observer import Recorder
from tests.world.scratch import scratch_directory

SIZES = [0, 1, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 17]

A_FEW = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class World(Protocol):
    """A store, what it told, and what can befall it."""

    recorder: Recorder
    clock: ManualClock

    async def start(self, limits: Limits = ROOMY) -> BlobStore:
        """Return a store with nothing in it."""
        ...

    async def restart(self, *, clean: bool, limits: Limits | None = None) -> BlobStore:
        """Stop the store, or have it die, and return the one that is started after it."""
        ...

    def spoil(self, digest: str, data: bytes) -> None:
        """Replace the stored bytes behind the store's back."""
        ...


class MemoryWorld:
    def __init__(self) -> None:
        self.recorder, self.clock = Recorder(), ManualClock()
        self.store: MemoryBlobStore | None = None

    async def start(self, limits: Limits = ROOMY) -> BlobStore:
        self.store = MemoryBlobStore(limits, self.recorder, self.clock)
        return self.store

    async def restart(self, *, clean: bool, limits: Limits | None = None) -> BlobStore:
        assert self.store is not None
        self.store.limits = limits or self.store.limits
        self.store.restart(clean=clean)
        return self.store

    def spoil(self, digest: str, data: bytes) -> None:
        assert self.store is not None
        self.store.blobs[digest] = data


class DiskWorld:
    def __init__(self, root: Path, memory_bytes: int) -> None:
        self.disk, self.memory_bytes, self.limits = BlobDisk(root), memory_bytes, ROOMY
        self.recorder, self.clock = self.disk.recorder, self.disk.clock

    async def start(self, limits: Limits = ROOMY) -> BlobStore:
        await self.disk.close()
        self.disk.wipe()
        self.limits = limits
        return await self._open()

    async def restart(self, *, clean: bool, limits: Limits | None = None) -> BlobStore:
        self.limits = limits or self.limits
        if clean:
            await self.disk.close()
        else:
            self.disk.die()
        return await self._open()

    def spoil(self, digest: str, data: bytes) -> None:
        self.disk.plant(data, digest)

    async def _open(self) -> BlobStore:
        return await self.disk.open(limits=self.limits, memory_bytes=self.memory_bytes)


@pytest.fixture(params=["memory", "disk", "disk, all of it cached"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "memory":
        yield MemoryWorld()
        return
    with scratch_directory() as directory:
        world = DiskWorld(directory, 0 if request.param == "disk" else 64 << 20)
        yield world
        await world.disk.close()


async def read_draft(draft: Draft, start: int, stop: int) -> bytes:
    data = b""
    while start + len(data) < stop:
        piece = await draft.read(start + len(data), stop)
        assert piece
        data += piece
    assert await draft.read(stop, stop) == b""
    return data


async def still_refused(write: Callable[[], Awaitable[None]]) -> None:
    with pytest.raises(StoreFailure):
        await write()


@pytest.mark.parametrize("size", SIZES)
async def test_a_committed_draft_is_a_blob_with_its_bytes(world: World, size: int) -> None:
    store, data = await world.start(), some_bytes(size)
    digest = await put(store, data)
    assert await held(store, digest) == data
    assert await listed(store) == {digest}
    store = await world.restart(clean=True)
    assert await held(store, digest) == data
    assert world.recorder.events == []


async def test_what_was_never_committed_is_none(world: World) -> None:
    store = await world.start()
    await put(store, b"something")
    assert await store.open(sha256(b"anything else")) is None
    assert await store.check(sha256(b"anything else")) is None


@pytest.mark.parametrize(
    "digest",
    ["", "ab", "../../../etc/passwd", "A" * 64, "g" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n"],
)
async def test_what_is_no_digest_is_nothing(world: World, digest: str) -> None:
    store = await world.start()
    assert await store.open(digest) is None
    assert await store.check(digest) is None
    assert await store.remove([digest]) == Removed(0, 0)
    store.note_named(digest, SERDE)
    assert await store.names_of(digest) == ()
    assert await store.digests_of("crates-io", None) == ()


@A_FEW
@given(
    size=st.integers(0, 4 * BLOCK),
    pieces=st.lists(st.integers(1, 2 * BLOCK), min_size=1, max_size=12),
    cuts=st.lists(st.floats(0, 1), min_size=2, max_size=2),
    announced=st.booleans(),
)
async def test_a_draft_gives_back_whatever_was_written(
    world: World, size: int, pieces: list[int], cuts: list[float], announced: bool
) -> None:
    store, data = await world.start(), some_bytes(size)
    draft = await store.draft(size if announced else None)
    written = 0
    for piece in [*pieces, size]:
        await draft.write(data[written : written + piece])
        written = min(written + piece, size)
        start, stop = sorted(int(cut * written) for cut in cuts)
        assert await read_draft(draft, start, stop) == data[start:stop]
        assert await read_draft(draft, start, written) == data[start:written]
        assert draft.digest() == sha256(data[:written])
    await draft.commit(SERDE)
    assert await read_draft(draft, 0, size) == data
    draft.close()
    blob = await store.open(sha256(data))
    assert blob is not None
    for cut in cuts:
        assert await read_to_end(blob, int(cut * size)) == data[int(cut * size) :]
    assert await blob.read(size) == b""
    blob.close()


@pytest.mark.parametrize("size", [100, BLOCK + 100])
async def test_readers_of_a_draft_go_on_after_commit_and_discard(world: World, size: int) -> None:
    store = await world.start()
    kept, dropped = some_bytes(size, 1), some_bytes(size, 2)
    draft, other = await store.draft(size), await store.draft(size)
    await draft.write(kept)
    await other.write(dropped)
    await draft.commit(SERDE)
    await other.discard()
    assert await read_draft(draft, 50, size) == kept[50:]
    assert await read_draft(other, 50, size) == dropped[50:]
    for one in (draft, other, draft):
        one.close()
    for one in (draft, other):
        with pytest.raises(StoreFailure):
            await one.read(0, 1)
    assert await listed(store) == {sha256(kept)}


@pytest.mark.parametrize("size", [100, BLOCK + 100])
async def test_a_discarded_draft_leaves_nothing(world: World, size: int) -> None:
    store = await world.start()
    draft = await store.draft(size)
    await draft.write(some_bytes(size))
    await draft.discard()
    await draft.discard()
    draft.close()
    usage = await store.usage()
    assert (usage.blobs, usage.stored_bytes, usage.reserved_bytes, usage.drafts) == (0, 0, 0, 0)
    assert await held(store, sha256(some_bytes(size))) is None


async def test_a_closed_draft_that_was_never_finished_leaves_nothing(world: World) -> None:
    store = await world.start()
    draft = await store.draft(None)
    await draft.write(some_bytes(2 * BLOCK))
    draft.close()
    store = await world.restart(clean=True)
    usage = await store.usage()
    assert (usage.blobs, usage.reserved_bytes, usage.drafts) == (0, 0, 0)


@pytest.mark.parametrize("size", [100, BLOCK + 100])
async def test_a_finished_draft_takes_nothing_more(world: World, size: int) -> None:
    store, data = await world.start(), some_bytes(size)
    draft, other = await store.draft(size), await store.draft(size)
    for one in (draft, other):
        await one.write(data)
    await draft.commit(SERDE)
    await other.discard()
    for one in (draft, other):
        await still_refused(lambda one=one: one.write(b"more"))  # type: ignore[misc]
        await still_refused(lambda one=one: one.commit(SERDE))  # type: ignore[misc]
    await draft.discard()
    assert await held(store, sha256(data)) == data


async def test_a_draft_of_a_dead_store_is_no_blob(world: World) -> None:
    store = await world.start()
    small, large = await store.draft(100), await store.draft(None)
    await small.write(some_bytes(100))
    await large.write(some_bytes(3 * BLOCK))
    store = await world.restart(clean=False)
    assert await listed(store) == set()
    assert (await store.usage()).drafts == 0


@pytest.mark.parametrize("size", [100, 2 * BLOCK + 100])
async def test_one_digest_committed_twice_is_one_blob(world: World, size: int) -> None:
    store, data = await world.start(), some_bytes(size)
    first, second = await store.draft(size), await store.draft(size)
    for draft in (first, second):
        await draft.write(data)
    await asyncio.gather(first.commit(SERDE), second.commit(SERDE))
    assert await read_draft(first, 0, size) == await read_draft(second, 0, size) == data
    assert await held(store, sha256(data)) == data
    usage = await store.usage()
    assert (usage.blobs, usage.stored_bytes) == (1, on_disk(size))


async def test_usage_counts_whole_blocks_and_promises(world: World) -> None:
    store = await world.start(Limits(10 << 20, 0))
    await put(store, some_bytes(1, 1))
    await put(store, some_bytes(5000, 2))
    draft = await store.draft(10_000)
    usage = await store.usage()
    assert (usage.blobs, usage.stored_bytes) == (2, 4096 + 8192)
    assert (usage.drafts, usage.reserved_bytes, usage.limit_bytes) == (1, 12_288, 10 << 20)
    await draft.write(some_bytes(10_000, 3))
    await draft.commit(SERDE)
    usage = await store.usage()
    assert (usage.blobs, usage.stored_bytes) == (3, 4096 + 8192 + 12_288)
    assert (usage.drafts, usage.reserved_bytes) == (0, 0)
    store = await world.restart(clean=True)
    restarted = await store.usage()
    assert (restarted.blobs, restarted.stored_bytes) == (usage.blobs, usage.stored_bytes)


async def test_what_was_used_longest_ago_goes_first(world: World) -> None:
    store = await world.start(Limits(400_000, 0))
    digests = []
    for seed in range(4):
        digests.append(await put(store, some_bytes(90_000, seed)))
        world.clock.advance(1)
    assert await held(store, digests[0]) is not None
    world.clock.jump(-3600)
    assert await held(store, digests[1]) is not None
    store = await world.restart(clean=True)
    await put(store, some_bytes(90_000, 9))
    assert await held(store, digests[2]) is None
    assert await listed(store) == {*digests, sha256(some_bytes(90_000, 9))} - {digests[2]}
    await put(store, some_bytes(90_000, 10))
    assert await held(store, digests[3]) is None
    await put(store, some_bytes(90_000, 11))
    assert await held(store, digests[0]) is None
    assert world.recorder.of(Evicted) == [Evicted("max_size", 1, 90_112)] * 3


async def test_more_than_the_limit_is_refused_and_evicts_nothing(world: World) -> None:
    store = await world.start(Limits(400_000, 0))
    digest = await put(store, some_bytes(90_000))
    with pytest.raises(StoreFailure):
        await store.draft(400_001)
    reserved = await store.draft(300_000)
    with pytest.raises(StoreFailure):
        await store.draft(200_000)
    assert await held(store, digest) is not None
    assert (await store.usage()).reserved_bytes == on_disk(300_000)
    await reserved.discard()
    draft = await store.draft(200_000)
    assert (await store.usage()).reserved_bytes == on_disk(200_000)
    draft.close()


async def test_drafts_begun_at_once_never_promise_more_than_the_limit(world: World) -> None:
    store = await world.start(Limits(1_000_000, 0))
    for seed in range(9):
        await put(store, some_bytes(100_000, seed))
    drafts = await asyncio.gather(*[store.draft(100_000) for _ in range(8)])
    usage = await store.usage()
    assert usage.reserved_bytes == 8 * on_disk(100_000)
    assert usage.stored_bytes + usage.reserved_bytes <= 1_000_000
    # Eight are needed and a little slack: one need is never met twice.
    assert usage.blobs == 1
    refused = await asyncio.gather(
        *[store.draft(100_000) for _ in range(4)], return_exceptions=True
    )
    assert [type(one) for one in refused].count(StoreFailure) == 3
    for draft in [*drafts, *refused]:
        if not isinstance(draft, BaseException):
            draft.close()


async def test_a_draft_of_unknown_length_makes_room_as_it_grows(world: World) -> None:
    store = await world.start(Limits(2_000_000, 0))
    for seed in range(15):
        await put(store, some_bytes(100_000, seed))
    draft = await store.draft(None)
    assert (await store.usage()).blobs == 15
    data = some_bytes(1_500_000, 99)
    for start in range(0, len(data), 50_000):
        await draft.write(data[start : start + 50_000])
        usage = await store.usage()
        assert usage.stored_bytes + usage.reserved_bytes <= 2_000_000
        assert usage.reserved_bytes >= start + 50_000
    await draft.commit(SERDE)
    usage = await store.usage()
    assert 1 <= usage.blobs <= 5
    assert usage.reserved_bytes == 0
    assert await held(store, sha256(data)) == data


async def test_a_draft_that_outgrows_the_store_fails_but_is_readable(world: World) -> None:
    store = await world.start(Limits(1_000_000, 0))
    data = some_bytes(1_100_000)
    draft = await store.draft(None)
    written = 0
    with suppress(StoreFailure):
        while written < len(data):
            await draft.write(data[written : written + 50_000])
            written += 50_000
    assert 900_000 <= written <= 1_000_000
    assert await read_draft(draft, 0, written) == data[:written]
    await still_refused(lambda: draft.write(b"more"))
    await still_refused(lambda: draft.commit(SERDE))
    usage = await store.usage()
    assert (usage.blobs, usage.reserved_bytes, usage.drafts) == (0, 0, 0)


@pytest.mark.parametrize("size", [100, 2 * BLOCK + 100])
async def test_a_blob_stays_readable_when_it_is_taken_away(world: World, size: int) -> None:
    store, data = await world.start(), some_bytes(size)
    digest = await put(store, data)
    store = await world.restart(clean=True)
    blob = await store.open(digest)
    assert blob is not None
    assert await store.remove([digest, sha256(b"unknown")]) == Removed(1, on_disk(size))
    assert await read_to_end(blob) == data
    # What a reader of the removed file reads does not bring it back.
    assert await store.open(digest) is None
    assert await listed(store) == set()
    assert (await store.usage()).blobs == 0
    assert world.recorder.events == [Evicted("purge", 1, on_disk(size))]
    blob.close()
    blob.close()
    with pytest.raises(StoreFailure):
        await blob.read(0)


async def test_a_removed_blob_can_be_stored_again(world: World) -> None:
    store, data = await world.start(), some_bytes(2 * BLOCK + 9)
    digest = await put(store, data)
    old = await store.open(digest)
    assert old is not None
    await store.remove([digest])
    assert await put(store, data) == digest
    assert await held(store, digest) == await read_to_end(old) == data
    old.close()


async def test_making_room_evicts_down_to_the_limits(world: World) -> None:
    store = await world.start(Limits(10_000_000, 0))
    digests = [await put(store, some_bytes(100_000, seed)) for seed in range(90)]
    assert await store.make_room() == 0
    store = await world.restart(clean=True, limits=Limits(1_000_000, 0))
    assert await held(store, digests[0]) is not None
    assert await store.make_room() == 81 * on_disk(100_000)
    assert await listed(store) == {digests[0], *digests[-8:]}
    assert world.recorder.events == [Evicted("max_size", 81, 81 * on_disk(100_000))]
    assert await store.make_room() == 0


async def test_names_outlive_their_blobs(world: World) -> None:
    store = await world.start()
    one, other = await put(store, b"one"), sha256(b"other")
    mirrored = Named("mirror", "Serde", "1.0.0")
    newer = Named("crates-io", "Serde", "1.0.1")
    store.note_named(one, mirrored)
    store.note_named(one, mirrored)
    store.note_named(other, newer)
    for _ in range(2):
        assert set(await store.names_of(one)) == {SERDE, mirrored}
        assert len(await store.names_of(one)) == 2
        assert await store.was_named(one, SERDE)
        assert await store.was_named(other, newer)
        assert not await store.was_named(other, SERDE)
        assert not await store.was_named(one, Named("crates-io", "serde", "1.0.2"))
        assert set(await store.digests_of("crates-io", "SERDE")) == {(one, SERDE), (other, newer)}
        assert set(await store.digests_of("crates-io", None)) == {(one, SERDE), (other, newer)}
        assert await store.digests_of("mirror", "serde") == ((one, mirrored),)
        assert await store.digests_of("crates-io", "serde_derive") == ()
        assert await store.digests_of("company", None) == ()
        await store.remove([one])
        store = await world.restart(clean=True)


async def test_a_check_finds_nothing_wrong_with_a_good_blob(world: World) -> None:
    store = await world.start()
    digest = await put(store, some_bytes(5000))
    finding = await store.check(digest)
    assert finding is not None
    assert (finding.digest, finding.size_bytes, finding.fault) == (digest, 5000, None)


async def test_a_check_is_not_a_use(world: World) -> None:
    store = await world.start(Limits(250_000, 0))
    old, new = await put(store, some_bytes(90_000, 1)), await put(store, some_bytes(90_000, 2))
    assert await store.check(old) is not None
    store = await world.restart(clean=False)
    assert await store.check(old) is not None
    await put(store, some_bytes(90_000, 3))
    assert await listed(store) == {new, sha256(some_bytes(90_000, 3))}


@pytest.mark.parametrize("bad", [b"", bytes(5000), some_bytes(4999), some_bytes(5001)])
async def test_a_check_sets_a_bad_blob_aside(world: World, bad: bytes) -> None:
    store, data = await world.start(), some_bytes(5000)
    digest = await put(store, data)
    world.spoil(digest, bad)
    finding = await store.check(digest)
    assert finding is not None
    assert (finding.digest, finding.size_bytes) == (digest, len(bad))
    assert finding.fault is not None
    assert sha256(bad) in finding.fault
    assert await store.open(digest) is None
    assert await store.check(digest) is None
    assert world.recorder.events == [IntegrityFailed("disk", digest, digest, sha256(bad))]
    usage = await store.usage()
    assert (usage.blobs, usage.stored_bytes, usage.quarantined) == (0, 0, 1)


@pytest.mark.parametrize("size", [5000, 2 * BLOCK + 9])
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("change", [-1, +1, None])
async def test_a_blob_of_another_size_is_never_opened(
    world: World, size: int, clean: bool, change: int | None
) -> None:
    store, data = await world.start(), some_bytes(size)
    digest = await put(store, data)
    other = await put(store, b"whole")
    bad = b"" if change is None else some_bytes(size + change)
    world.spoil(digest, bad)
    store = await world.restart(clean=clean)
    assert await store.open(digest) is None
    expected, actual = f"{size} bytes", f"{len(bad)} bytes"
    assert world.recorder.take() == [IntegrityFailed("disk", digest, expected, actual)]
    assert await store.open(digest) is None
    assert await listed(store) == {other}
    assert (await store.usage()).quarantined == 1
    assert await put(store, data) == digest
    assert await held(store, digest) == data
    assert await held(store, other) == b"whole"
    assert world.recorder.events == []


@pytest.mark.parametrize("size", [5000, 2 * BLOCK + 9])
async def test_after_an_unclean_stop_a_zeroed_blob_is_never_opened(world: World, size: int) -> None:
    store, data = await world.start(), some_bytes(size)
    digest, other = await put(store, data), await put(store, b"whole")
    store = await world.restart(clean=False)
    world.spoil(digest, bytes(size))
    assert await asyncio.gather(*[store.open(digest) for _ in range(16)]) == [None] * 16
    assert await held(store, other) == b"whole"
    expected = IntegrityFailed("disk", digest, digest, sha256(bytes(size)))
    assert world.recorder.events == [expected]
    assert (await store.usage()).quarantined == 1
    assert await put(store, data) == digest
    store = await world.restart(clean=True)
    assert await held(store, digest) == data


async def test_a_commit_over_a_zeroed_blob_heals_it(world: World) -> None:
    store, data = await world.start(), some_bytes(2 * BLOCK + 9)
    digest = await put(store, data)
    world.spoil(digest, bytes(len(data)))
    store = await world.restart(clean=False)
    await put(store, data)
    assert await held(store, digest) == data


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "open", "remove", "check", "stop", "die", "abandon", "zero"]),
        st.integers(0, 7),
    ),
    min_size=5,
    max_size=25,
)


@A_FEW
@given(steps=STEPS)
async def test_whatever_happens_only_proven_bytes_are_returned_and_sums_agree(
    world: World, steps: list[tuple[str, int]]
) -> None:
    limits = Limits(1_500_000, 0)
    store = await world.start(limits)
    contents = [some_bytes(40_000 + 70_000 * number, number) for number in range(8)]
    digests = [sha256(content) for content in contents]
    gone: set[str] = set(digests)
    for step, number in steps:
        content, digest = contents[number], digests[number]
        match step:
            case "put":
                await put(store, content)
                gone.discard(digest)
                assert await held(store, digest) == content
            case "open":
                found = await held(store, digest)
                assert found is None if digest in gone else found in {None, content}
            case "remove":
                await store.remove([digest])
                gone.add(digest)
            case "check":
                finding = await store.check(digest)
                assert finding is None if digest in gone else True
            case "abandon":
                draft = await store.draft(len(content))
                await draft.write(content[: len(content) // 2])
                draft.close()
            case "zero" if digest in await listed(store):
                world.spoil(digest, bytes(len(content)))
                store = await world.restart(clean=False)
            case _:
                store = await world.restart(clean=step == "stop")
        usage = await store.usage()
        on_the_disk = await listed(store)
        assert on_the_disk.isdisjoint(gone)
        assert usage.stored_bytes <= limits.max_size_bytes
        assert usage.blobs == len(on_the_disk)
        assert usage.stored_bytes == sum(
            on_disk(len(contents[digests.index(one)])) for one in on_the_disk
        )
