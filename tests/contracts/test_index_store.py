"""What every index store keeps, the fake and the real: the page of `proxy.ports.IndexStore`."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.adapters.index_behind import BehindIndexStore
from proxy.adapters.index_store import DiskIndexStore
from proxy.core.answers import NO_VALIDATORS, Snapshot, Validators
from proxy.ports import IndexStore
from tests.world.index_store import MemoryIndexStore
from tests.world.observer import Recorder

SNAPSHOT = Snapshot(
    b'{"name":"serde"}\n',
    Validators('"abc"', "Mon, 01 Jan 2024 00:00:00 GMT"),
    100.25,
    200.5,
    150.0,
)
TOMBSTONE = Snapshot(None, NO_VALIDATORS, 300.0, 300.0)

SAME_STORE_FOR_EVERY_EXAMPLE = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=["memory", "disk", "behind"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[IndexStore]:
    if request.param == "memory":
        yield MemoryIndexStore()
        return
    recorder = Recorder()
    disk = await DiskIndexStore(tmp_path / "index", recorder).open()
    if request.param == "disk":
        yield disk
    else:
        behind = BehindIndexStore(disk, recorder)
        yield behind
        await behind.close()
    await disk.close()
    assert recorder.events == []


async def names_of(store: IndexStore, upstream: str) -> list[str]:
    return sorted([name async for name in store.names(upstream)])


async def test_what_was_never_put_is_none(store: IndexStore) -> None:
    assert await store.get("crates-io", "serde") is None
    assert await names_of(store, "crates-io") == []
    assert (await store.usage())[0] == 0


@pytest.mark.parametrize(
    "snapshot",
    [
        SNAPSHOT,
        TOMBSTONE,
        replace(SNAPSHOT, body=b""),
        replace(SNAPSHOT, older_since=None),
        replace(SNAPSHOT, validators=NO_VALIDATORS),
        replace(SNAPSHOT, validators=Validators('W/"\u00e9 \udcff"', None)),
        replace(SNAPSHOT, confirmed_at=0.0),
        replace(SNAPSHOT, learned_at=1_753_999_999.123_456_7, confirmed_at=-1e-9),
        replace(SNAPSHOT, body=bytes(3 * 2**20)),
        replace(SNAPSHOT, body=random.Random(1).randbytes(2**20)),
    ],
    ids=[
        "plain",
        "tombstone",
        "empty",
        "not older",
        "no validators",
        "odd validators",
        "to be asked again",
        "odd times",
        "3 MiB of zeros",
        "1 MiB of noise",
    ],
)
async def test_what_was_put_comes_back_as_it_was(store: IndexStore, snapshot: Snapshot) -> None:
    await store.put("crates-io", "serde", snapshot)
    assert await store.get("crates-io", "serde") == snapshot


async def test_config_json_is_a_name_like_any_other(store: IndexStore) -> None:
    await store.put("crates-io", "config.json", SNAPSHOT)
    assert await store.get("crates-io", "config.json") == SNAPSHOT
    assert await names_of(store, "crates-io") == ["config.json"]


async def test_a_put_takes_the_place_of_all_that_was_there(store: IndexStore) -> None:
    newer = Snapshot(b"newer", NO_VALIDATORS, 1.0, 2.0)
    for snapshot in (SNAPSHOT, newer, TOMBSTONE, SNAPSHOT):
        await store.put("crates-io", "serde", snapshot)
        assert await store.get("crates-io", "serde") == snapshot
    assert (await store.usage())[0] == 1


async def test_upstreams_and_names_are_kept_apart(store: IndexStore) -> None:
    places = [
        (upstream, name) for upstream in ("a", "a-b", "a0", "b") for name in ("x", "x-y", "x_y")
    ]
    for upstream, name in places:
        body = f"{upstream} {name}".encode()
        await store.put(upstream, name, replace(SNAPSHOT, body=body))
    for upstream, name in places:
        body = f"{upstream} {name}".encode()
        assert await store.get(upstream, name) == replace(SNAPSHOT, body=body)
        assert await names_of(store, upstream) == ["x", "x-y", "x_y"]
    assert await names_of(store, "a-") == []
    assert (await store.usage())[0] == len(places)


async def test_confirming_replaces_everything_but_the_body(store: IndexStore) -> None:
    await store.put("crates-io", "serde", SNAPSHOT)
    confirmed = Snapshot(SNAPSHOT.body, Validators('"new"', None), 100.5, 900.125, None)
    await store.confirm("crates-io", "serde", confirmed)
    assert await store.get("crates-io", "serde") == confirmed


async def test_confirming_a_tombstone_moves_its_time(store: IndexStore) -> None:
    await store.put("crates-io", "serde", TOMBSTONE)
    confirmed = replace(TOMBSTONE, confirmed_at=305.0)
    await store.confirm("crates-io", "serde", confirmed)
    assert await store.get("crates-io", "serde") == confirmed


@pytest.mark.parametrize("snapshot", [SNAPSHOT, TOMBSTONE], ids=["body", "tombstone"])
async def test_confirming_what_is_not_there_stores_nothing(
    store: IndexStore, snapshot: Snapshot
) -> None:
    await store.confirm("crates-io", "serde", snapshot)
    assert await store.get("crates-io", "serde") is None
    assert await names_of(store, "crates-io") == []


@pytest.mark.parametrize(
    ("held", "confirmed"),
    [
        (SNAPSHOT, replace(SNAPSHOT, body=b"what came before", confirmed_at=900.0)),
        (SNAPSHOT, replace(TOMBSTONE, confirmed_at=900.0)),
        (TOMBSTONE, replace(SNAPSHOT, confirmed_at=900.0)),
    ],
    ids=["another body", "a body", "a tombstone"],
)
async def test_confirming_another_body_than_the_one_held_stores_nothing(
    store: IndexStore, held: Snapshot, confirmed: Snapshot
) -> None:
    await store.put("crates-io", "serde", held)
    await store.confirm("crates-io", "serde", confirmed)
    assert await store.get("crates-io", "serde") == held


async def test_what_is_removed_is_gone_and_said_to_have_been_there(store: IndexStore) -> None:
    await store.put("crates-io", "serde", SNAPSHOT)
    await store.put("crates-io", "rand", TOMBSTONE)
    assert await store.remove("crates-io", "serde") is True
    assert await store.remove("crates-io", "serde") is False
    assert await store.remove("elsewhere", "rand") is False
    assert await store.get("crates-io", "serde") is None
    assert await names_of(store, "crates-io") == ["rand"]
    await store.confirm("crates-io", "serde", SNAPSHOT)
    assert await store.get("crates-io", "serde") is None


async def test_of_puts_at_once_the_last_to_start_wins(store: IndexStore) -> None:
    # The first takes longest: it has the most to do.
    puts = [
        replace(SNAPSHOT, body=random.Random(size).randbytes(size), learned_at=float(size))
        for size in (2**20, 2**16, 2**4)
    ]
    await asyncio.gather(*(store.put("crates-io", "serde", each) for each in puts))
    assert await store.get("crates-io", "serde") == puts[-1]


async def test_readers_meet_whole_snapshots_while_there_is_writing(store: IndexStore) -> None:
    versions = [
        replace(SNAPSHOT, body=bytes([number]) * 2**14, learned_at=float(number))
        for number in range(40)
    ]
    await store.put("crates-io", "serde", versions[0])

    async def write() -> None:
        for version in versions[1:]:
            await store.put("crates-io", "serde", version)
            await store.confirm("crates-io", "serde", version)

    async def read() -> list[int]:
        seen: list[int] = []
        while not seen or seen[-1] != len(versions) - 1:
            held = await store.get("crates-io", "serde")
            assert held is not None
            seen.append(versions.index(held))
            await asyncio.sleep(0)
        return seen

    async with asyncio.timeout(30):
        _, *readings = await asyncio.gather(write(), read(), read(), read())
    assert all(seen == sorted(seen) for seen in readings)


async def test_a_cancelled_put_leaves_the_old_or_the_new(store: IndexStore) -> None:
    new = replace(SNAPSHOT, body=random.Random(2).randbytes(2**20))
    await store.put("crates-io", "serde", SNAPSHOT)
    put = asyncio.ensure_future(store.put("crates-io", "serde", new))
    await asyncio.sleep(0)
    put.cancel()
    with suppress(asyncio.CancelledError):
        await put
    assert await store.get("crates-io", "serde") in (SNAPSHOT, new)


async def test_more_names_than_a_page_are_all_listed_once(store: IndexStore) -> None:
    expected = sorted(f"crate-{number}" for number in range(2_345))
    await asyncio.gather(*(store.put("crates-io", name, TOMBSTONE) for name in expected))
    await store.put("crates-io-2", "other", TOMBSTONE)
    assert await names_of(store, "crates-io") == expected
    assert (await store.usage())[0] == len(expected) + 1


async def test_names_may_be_removed_while_they_are_listed(store: IndexStore) -> None:
    expected = [f"crate-{number:04}" for number in range(1_500)]
    await asyncio.gather(*(store.put("crates-io", name, TOMBSTONE) for name in expected))
    seen = []
    async for name in store.names("crates-io"):
        assert await store.remove("crates-io", name)
        seen.append(name)
    assert sorted(seen) == expected
    assert await names_of(store, "crates-io") == []


async def test_usage_grows_with_what_is_put(store: IndexStore) -> None:
    _, before = await store.usage()
    await store.put("crates-io", "noise", replace(SNAPSHOT, body=random.Random(3).randbytes(2**18)))
    entries, after = await store.usage()
    assert entries == 1
    assert after - before >= 2**18


times = st.floats(allow_nan=False, allow_infinity=False)
validators = st.none() | st.text(st.characters(blacklist_characters="\r\n\0"), max_size=20)
snapshots = st.builds(
    Snapshot,
    st.none() | st.binary(max_size=400),
    st.builds(Validators, validators, validators),
    times,
    times,
    st.none() | times,
)


@SAME_STORE_FOR_EVERY_EXAMPLE
@given(snapshot=snapshots)
async def test_any_snapshot_survives(store: IndexStore, snapshot: Snapshot) -> None:
    await store.put("crates-io", "serde", snapshot)
    assert await store.get("crates-io", "serde") == snapshot


steps = st.tuples(
    st.sampled_from(["put", "confirm", "remove"]),
    st.sampled_from(["one", "two", "one-two"]),
    st.sampled_from(["a", "b"]),
    st.builds(
        Snapshot,
        st.sampled_from([None, b"", b"x", b"y"]),
        st.just(NO_VALIDATORS),
        times,
        times,
        st.none(),
    ),
)


@SAME_STORE_FOR_EVERY_EXAMPLE
@given(script=st.lists(steps, max_size=12))
async def test_any_calls_in_any_order_leave_what_a_dictionary_would_hold(
    store: IndexStore, script: list[tuple[str, str, str, Snapshot]]
) -> None:
    model: dict[tuple[str, str], Snapshot] = {}
    for upstream in ("one", "two", "one-two"):
        for name in ("a", "b"):
            await store.remove(upstream, name)
    for verb, upstream, name, snapshot in script:
        held = model.get((upstream, name))
        if verb == "put":
            await store.put(upstream, name, snapshot)
            model[upstream, name] = snapshot
        elif verb == "confirm":
            await store.confirm(upstream, name, snapshot)
            if held is not None and held.body == snapshot.body:
                model[upstream, name] = snapshot
        else:
            assert await store.remove(upstream, name) is (held is not None)
            model.pop((upstream, name), None)
    for upstream in ("one", "two", "one-two"):
        for name in ("a", "b"):
            assert await store.get(upstream, name) == model.get((upstream, name))
        assert await names_of(store, upstream) == sorted(
            name for owner, name in model if owner == upstream
        )
    assert (await store.usage())[0] == len(model)
