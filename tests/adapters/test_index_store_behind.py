"""The index store that writes behind: what its callers wait for, and what they do not."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from proxy.adapters.index_behind import BehindIndexStore
from proxy.core.answers import NO_VALIDATORS, Snapshot
from proxy.core.events import StoreFailed
from proxy.core.failures import StoreFailure
from tests.service.scene import turns
from tests.service.trouble import TroubledIndexStore
from tests.world.observer import Recorder

FIRST = Snapshot(b"first\n", NO_VALIDATORS, 100.0, 100.0)
SECOND = Snapshot(b"second\n", NO_VALIDATORS, 200.0, 200.0)
TOMBSTONE = Snapshot(None, NO_VALIDATORS, 300.0, 300.0)
SERDE = ("crates-io", "serde")
RAND = ("crates-io", "rand")


@pytest.fixture
def disk() -> TroubledIndexStore:
    return TroubledIndexStore()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def store(disk: TroubledIndexStore, recorder: Recorder) -> AsyncIterator[BehindIndexStore]:
    behind = BehindIndexStore(disk, recorder, max_waiting_bytes=100)
    yield behind
    disk.points.heal()
    await behind.close()


async def test_who_puts_does_not_wait_for_the_disk(
    store: BehindIndexStore, disk: TroubledIndexStore
) -> None:
    disk.points.hang("put")
    await store.put(*SERDE, FIRST)
    await turns()
    assert disk.snapshots == {}
    assert await store.get(*SERDE) == FIRST
    disk.points.heal()
    await store.close()
    assert disk.snapshots == {SERDE: FIRST}


async def test_snapshots_are_written_one_after_the_other_so_that_reads_come_between(
    store: BehindIndexStore, disk: TroubledIndexStore
) -> None:
    gate = disk.points.hang("put")
    for name in ("serde", "rand", "log"):
        await store.put("crates-io", name, FIRST)
    await gate.arrived()
    await turns()
    assert disk.points.passed["put"] == 1
    assert await store.get("crates-io", "other") is None


async def test_of_a_name_only_the_newest_is_kept_waiting(
    store: BehindIndexStore, disk: TroubledIndexStore
) -> None:
    gate = disk.points.hang("put", once=True)
    await store.put(*RAND, FIRST)
    await gate.arrived()
    for number in range(1000):
        await store.put(*SERDE, replace(FIRST, learned_at=float(number)))
    await store.put(*SERDE, SECOND)
    gate.release()
    await store.close()
    assert disk.snapshots == {RAND: FIRST, SERDE: SECOND}
    assert disk.points.passed["put"] == 2


async def test_what_is_put_while_its_elder_is_written_is_written_after_it(
    store: BehindIndexStore, disk: TroubledIndexStore
) -> None:
    gate = disk.points.hang("put", once=True)
    await store.put(*SERDE, FIRST)
    await gate.arrived()
    await store.put(*SERDE, SECOND)
    assert await store.get(*SERDE) == SECOND
    gate.release()
    await store.close()
    assert disk.snapshots == {SERDE: SECOND}


async def test_a_confirmation_of_what_is_noted_is_noted_with_it(
    store: BehindIndexStore, disk: TroubledIndexStore
) -> None:
    gate = disk.points.hang("put")
    await store.put(*RAND, FIRST)
    await gate.arrived()
    confirmed = replace(FIRST, confirmed_at=500.0)
    await store.put(*SERDE, FIRST)
    await store.confirm(*SERDE, confirmed)
    await store.confirm(*SERDE, replace(SECOND, confirmed_at=600.0))
    disk.points.heal()
    await store.close()
    assert disk.snapshots == {RAND: FIRST, SERDE: confirmed}


async def test_what_is_removed_is_not_written_any_more(
    store: BehindIndexStore, disk: TroubledIndexStore
) -> None:
    gate = disk.points.hang("put", once=True)
    await store.put(*RAND, FIRST)
    await gate.arrived()
    await store.put(*SERDE, FIRST)
    assert await store.remove(*SERDE)
    assert await store.get(*SERDE) is None
    gate.release()
    await store.close()
    assert disk.snapshots == {RAND: FIRST}


async def test_a_tombstone_is_on_the_disk_before_anybody_is_told_and_is_not_overtaken(
    store: BehindIndexStore, disk: TroubledIndexStore
) -> None:
    gate = disk.points.hang("put", once=True)
    await store.put(*RAND, FIRST)
    await gate.arrived()
    await store.put(*SERDE, FIRST)
    await store.put(*SERDE, TOMBSTONE)
    assert disk.snapshots == {SERDE: TOMBSTONE}
    gate.release()
    await store.close()
    assert disk.snapshots == {RAND: FIRST, SERDE: TOMBSTONE}


async def test_a_tombstone_that_cannot_be_written_fails(
    store: BehindIndexStore, disk: TroubledIndexStore
) -> None:
    disk.points.fail("put")
    with pytest.raises(StoreFailure):
        await store.put(*SERDE, TOMBSTONE)


async def test_what_cannot_be_written_is_told_and_the_next_is_written(
    store: BehindIndexStore, disk: TroubledIndexStore, recorder: Recorder
) -> None:
    disk.points.fail("put", times=1)
    await store.put(*SERDE, FIRST)
    await store.put(*RAND, FIRST)
    await store.flush()
    (told,) = recorder.of(StoreFailed)
    assert told.doing == "storing an index file"
    assert disk.snapshots == {RAND: FIRST}
    assert await store.get(*SERDE) is None


async def test_names_and_usage_count_what_is_noted(store: BehindIndexStore) -> None:
    await store.put(*SERDE, FIRST)
    assert [name async for name in store.names("crates-io")] == ["serde"]
    await store.put(*RAND, FIRST)
    assert (await store.usage())[0] == 2


async def test_what_waits_is_bounded_and_then_who_puts_waits_too(
    store: BehindIndexStore, disk: TroubledIndexStore
) -> None:
    disk.points.hang("put")
    large = replace(FIRST, body=bytes(101))
    await store.put(*SERDE, large)
    putting = asyncio.ensure_future(store.put(*RAND, FIRST))
    await turns()
    assert not putting.done()
    disk.points.heal()
    await putting
    await store.close()
    assert disk.snapshots == {SERDE: large, RAND: FIRST}
