"""What every state store keeps, the fake and the real: the page of `proxy.ports.StateStore`."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.adapters.state_store import SqliteStateStore
from proxy.ports import StateStore, Tombstone
from tests.world.state_store import MemoryStateStore


@pytest.fixture(params=["memory", "disk"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StateStore]:
    if request.param == "memory":
        yield MemoryStateStore()
        return
    disk = await SqliteStateStore(tmp_path / "state").open()
    yield disk
    await disk.close()


async def test_at_first_there_are_none(store: StateStore) -> None:
    assert await store.tombstones() == ()


async def test_a_removal_is_recorded_with_its_exact_time(store: StateStore) -> None:
    at = 1_753_999_999.123_456_7
    await store.removed("crates-io", "serde", at)
    assert await store.tombstones() == (Tombstone("crates-io", "serde", at, None),)


async def test_a_return_ends_the_removal_and_keeps_it(store: StateStore) -> None:
    await store.removed("crates-io", "serde", 10.0)
    await store.returned("crates-io", "serde", 20.5)
    assert await store.tombstones() == (Tombstone("crates-io", "serde", 10.0, 20.5),)


async def test_every_removal_of_a_name_is_kept(store: StateStore) -> None:
    await store.removed("crates-io", "serde", 10.0)
    await store.returned("crates-io", "serde", 20.0)
    await store.removed("crates-io", "serde", 30.0)
    assert await store.tombstones() == (
        Tombstone("crates-io", "serde", 30.0, None),
        Tombstone("crates-io", "serde", 10.0, 20.0),
    )


async def test_a_removal_told_twice_is_one_from_the_first_time_on(store: StateStore) -> None:
    await store.removed("crates-io", "serde", 10.0)
    await store.removed("crates-io", "serde", 11.0)
    assert await store.tombstones() == (Tombstone("crates-io", "serde", 10.0, None),)


async def test_a_return_told_twice_is_one_from_the_first_time_on(store: StateStore) -> None:
    await store.removed("crates-io", "serde", 10.0)
    await store.returned("crates-io", "serde", 20.0)
    await store.returned("crates-io", "serde", 21.0)
    assert await store.tombstones() == (Tombstone("crates-io", "serde", 10.0, 20.0),)


async def test_the_return_of_what_was_never_removed_is_nothing(store: StateStore) -> None:
    await store.returned("crates-io", "serde", 20.0)
    assert await store.tombstones() == ()


async def test_upstreams_and_names_are_kept_apart(store: StateStore) -> None:
    await store.removed("a", "x", 1.0)
    await store.removed("b", "x", 2.0)
    await store.removed("a", "y", 3.0)
    await store.returned("a", "x", 4.0)
    assert await store.tombstones() == (
        Tombstone("a", "y", 3.0, None),
        Tombstone("b", "x", 2.0, None),
        Tombstone("a", "x", 1.0, 4.0),
    )


async def test_of_removals_at_the_same_time_the_last_told_comes_first(store: StateStore) -> None:
    for name in ("x", "y", "z"):
        await store.removed("a", name, 5.0)
    assert [one.name for one in await store.tombstones()] == ["z", "y", "x"]


async def test_removals_told_at_once_are_all_kept(store: StateStore) -> None:
    await asyncio.gather(*(store.removed("a", f"x{number}", 1.0) for number in range(50)))
    assert {one.name for one in await store.tombstones()} == {f"x{number}" for number in range(50)}


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    script=st.lists(
        st.tuples(st.booleans(), st.sampled_from("xyz"), st.floats(0, 1e10)), max_size=12
    ),
)
async def test_any_story_is_told_as_it_happened(
    store: StateStore, script: list[tuple[bool, str, float]]
) -> None:
    # The store is the same for every example; a name that comes again has told nothing yet.
    upstream = f"after-{len(await store.tombstones())}"
    ended: list[tuple[str, float, float]] = []
    still: dict[str, float] = {}
    for removing, name, at in script:
        if removing:
            await store.removed(upstream, name, at)
            still.setdefault(name, at)
        else:
            await store.returned(upstream, name, at)
            if name in still:
                ended.append((name, still.pop(name), at))
    told = [one for one in await store.tombstones() if one.upstream == upstream]
    assert sorted((one.name, one.removed_at) for one in told if one.returned_at is None) == sorted(
        still.items()
    )
    assert sorted(
        (one.name, one.removed_at, one.returned_at) for one in told if one.returned_at is not None
    ) == sorted(ended)
    assert [one.removed_at for one in told] == sorted(
        (one.removed_at for one in told), reverse=True
    )
