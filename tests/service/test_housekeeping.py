"""What an operator asks of the cache: that it takes effect at once, and says the truth about it."""

import asyncio
from dataclasses import replace

import pytest

from proxy.core.failures import NoSuchCrate, StoreFailure, Unreachable
from proxy.core.room import Limits, on_disk
from proxy.ports import Named
from proxy.service.housekeeping import Fault, Housekeeping, NoSuchRegistry, Progress, PurgeResult
from proxy.service.operations import BadOperation, Operations
from proxy.service.registry import Registry as Served
from tests.service.scene import LARGE_BYTES, Scene, one_scene
from tests.world.crates import Package
from tests.world.registry import Registry
from tests.world.upstream import ScriptedUpstream
from tests.world.wire import Reply

SERDE = Package("serde", "1.0.0")
NEWER = Package("serde", "1.0.1")
OTHER = Package("Other_Crate", "0.1.0")
SERDE_INDEX = "/index/se/rd/serde"
CRATES = "/crates/*"


class Office:
    """Housekeeping over a scene, and the progress that it reported."""

    def __init__(self, scene: Scene) -> None:
        self.progress: list[Progress] = []
        registries = {name: Served(name, source) for name, source in scene.sources.items()}
        self.housekeeping = Housekeeping(
            registries,
            scene.indexes,
            scene.crates,
            scene.configs,
            scene.index_store,
            scene.blobs,
            scene.state,
        )

    async def purge(
        self, *wanted: str, everything: bool = False, soft: bool = False, registry: str = ""
    ) -> PurgeResult:
        return await self.housekeeping.purge(
            registry or "crates-io",
            wanted,
            everything=everything,
            soft=soft,
            report=self.progress.append,
        )


async def filled(scene: Scene) -> Office:
    """Publish and fetch three versions."""
    scene.publish(SERDE, NEWER, OTHER)
    for package in (SERDE, NEWER, OTHER):
        await scene.download(package)
    await scene.settle()
    scene.tell()
    scene.upstream.clear()
    return Office(scene)


# verify


async def test_verify_finds_nothing_wrong_where_nothing_is(scene: Scene) -> None:
    office = await filled(scene)
    result = await office.housekeeping.verify(office.progress.append)
    sizes = [len(data) for data in scene.blobs.blobs.values()]
    assert (result.blobs_checked, result.blobs_bytes) == (3, sum(sizes))
    assert result.index_files_checked == 3, "two crates and config.json"
    assert result.faults == []
    assert scene.upstream.asked == []


async def test_verify_sets_aside_what_is_spoiled_and_fetches_it_anew(scene: Scene) -> None:
    office = await filled(scene)
    digest = scene.cksum(NEWER)
    whole = scene.blobs.blobs[digest]
    scene.blobs.blobs[digest] = b"zeros"
    result = await office.housekeeping.verify(office.progress.append)
    (fault,) = result.faults
    assert fault.subject == digest
    assert fault.outcome == "quarantined, and fetched again as serde 1.0.1"
    assert scene.blobs.blobs[digest] == whole
    assert scene.blobs.quarantine == {digest: b"zeros"}
    assert scene.upstream.paths() == ["/crates/serde/serde-1.0.1.crate"]
    again = await office.housekeeping.verify(office.progress.append)
    assert again.faults == []


async def test_verify_says_when_it_could_not_be_fetched_anew(scene: Scene) -> None:
    office = await filled(scene)
    digests = [scene.cksum(package) for package in (SERDE, NEWER, OTHER)]
    for digest in digests:
        scene.blobs.blobs[digest] = b"zeros"
    scene.upstream.fail(
        "/crates/serde/serde-1.0.0.crate", lambda: Unreachable("crates-io cannot be reached")
    )
    scene.upstream.reply("/crates/serde/serde-1.0.1.crate", Reply(404))
    scene.blobs.fails_at_bytes = 0
    result = await office.housekeeping.verify(office.progress.append)
    outcomes = {fault.subject: fault.outcome for fault in result.faults}
    assert outcomes[digests[0]] == "quarantined; not fetched again: crates-io cannot be reached"
    assert "(404)" in outcomes[digests[1]]
    assert outcomes[digests[2]].startswith("quarantined; not fetched again: ")
    assert scene.blobs.blobs == {}


async def test_verify_tries_every_upstream_that_named_it(scene: Scene) -> None:
    other = ScriptedUpstream(Registry(), "company")
    company = scene.join(other)
    other.registry.publish(SERDE)
    office = await filled(scene)
    await scene.download(SERDE, source=company)
    digest = scene.cksum(SERDE)
    scene.blobs.blobs[digest] = b"zeros"
    scene.upstream.fail(CRATES, lambda: Unreachable("crates-io cannot be reached"))
    result = await office.housekeeping.verify(office.progress.append)
    assert [fault.outcome for fault in result.faults] == [
        "quarantined, and fetched again as serde 1.0.0"
    ]
    assert other.paths(CRATES) == ["/crates/serde/serde-1.0.0.crate"]


async def test_verify_knows_what_it_does_not_know(scene: Scene) -> None:
    office = await filled(scene)
    stranger = "0" * 64
    scene.blobs.keep(b"of unknown origin", Named("forgotten", "serde", "1.0.0"))
    (digest,) = [one for one in scene.blobs.blobs if scene.blobs.blobs[one].startswith(b"of unk")]
    scene.blobs.blobs[digest] = b"zeros"
    result = await office.housekeeping.verify(office.progress.append)
    assert result.faults[0].outcome == "quarantined; nothing here knows where it came from"
    assert stranger not in scene.blobs.blobs


async def test_verify_removes_index_files_that_cannot_be_read(scene: Scene) -> None:
    office = await filled(scene)
    scene.index_store.points.fail("get", times=1)
    first = next(iter(scene.index_store.snapshots))[1]
    result = await office.housekeeping.verify(office.progress.append)
    assert result.faults == [Fault(f"crates-io {first}", "unreadable snapshot", "removed")]
    assert len(scene.index_store.snapshots) == 2


async def test_long_work_reports_its_progress(scene: Scene) -> None:
    packages = [Package(f"crate{number}") for number in range(130)]
    scene.publish(*packages)
    for package in packages:
        await scene.download(package)
    office = Office(scene)
    await office.housekeeping.verify(office.progress.append)
    assert office.progress == [
        Progress("hashing blobs", 64, 130),
        Progress("hashing blobs", 128, 130),
        Progress("reading index files", 64, None),
        Progress("reading index files", 128, None),
    ]


# gc and stats


async def test_gc_makes_room_and_says_how_much() -> None:
    async with one_scene() as scene:
        office = await filled(scene)
        assert (await office.housekeeping.gc()).freed_bytes == 0
        sizes = {digest: len(data) for digest, data in scene.blobs.blobs.items()}
        room_for_one = on_disk(max(sizes.values())) + 1000
        scene.blobs.limits = Limits(max_size_bytes=room_for_one, min_free_bytes=0)
        freed = (await office.housekeeping.gc()).freed_bytes
        left = set(scene.blobs.blobs)
        assert freed == sum(on_disk(size) for digest, size in sizes.items() if digest not in left)
        assert left == {scene.cksum(OTHER)}, "what was used last stays"


async def test_stats_tell_what_is_stored(scene: Scene) -> None:
    office = await filled(scene)
    scene.registry.delete("serde")
    scene.clock.advance(60)
    await scene.index("serde", insisting=True)
    stats = await office.housekeeping.stats()
    assert stats.blobs.blobs == 3
    assert stats.index_entries == 3
    held = scene.held("other_crate")
    assert held is not None
    assert held.body is not None
    assert stats.index_bytes >= len(held.body)
    assert stats.index_memory_bytes == scene.indexes.memory.used_bytes > 0
    assert [(one.upstream, one.name) for one in stats.tombstones] == [("crates-io", "serde")]


# purge


async def test_purging_a_name_forgets_index_and_blobs_in_memory_and_in_the_stores(
    scene: Scene,
) -> None:
    office = await filled(scene)
    result = await office.purge("serde")
    assert (result.index_files, result.blobs, result.unknown) == (1, 2, [])
    assert result.freed_bytes == 2 * on_disk(1)
    assert set(scene.blobs.blobs) == {scene.cksum(OTHER)}
    await scene.download(SERDE)
    assert scene.upstream.paths() == [SERDE_INDEX, "/crates/serde/serde-1.0.0.crate"]


async def test_purging_takes_names_in_any_case(scene: Scene) -> None:
    office = await filled(scene)
    result = await office.purge("OTHER_crate")
    assert (result.index_files, result.blobs, result.unknown) == (1, 1, [])
    assert scene.cksum(OTHER) not in scene.blobs.blobs


async def test_purging_a_version_forgets_its_blob_alone(scene: Scene) -> None:
    office = await filled(scene)
    result = await office.purge("serde@1.0.0")
    assert (result.index_files, result.blobs, result.unknown) == (0, 1, [])
    assert set(scene.blobs.blobs) == {scene.cksum(NEWER), scene.cksum(OTHER)}
    await scene.download(SERDE)
    assert scene.upstream.paths() == ["/crates/serde/serde-1.0.0.crate"]


async def test_purging_softly_forgets_nothing_and_asks_before_the_next_use(scene: Scene) -> None:
    office = await filled(scene)
    result = await office.purge("serde", soft=True)
    assert (result.index_files, result.blobs, result.unknown) == (1, 0, [])
    assert len(scene.blobs.blobs) == 3
    scene.tell()
    await scene.index("serde")
    assert scene.tell() == ["asked for index: unchanged", "served serde: revalidated"]
    await office.purge("serde@1.0.0", soft=True)
    scene.upstream.fail("*", lambda: Unreachable("crates-io cannot be reached"))
    scene.tell()
    await scene.index("serde")
    assert scene.tell()[-1] == "served serde: stale", "what is purged softly is there in an outage"


async def test_purging_softly_survives_a_restart(scene: Scene) -> None:
    office = await filled(scene)
    await office.purge("serde", soft=True)
    await scene.restart()
    scene.tell()
    await scene.index("serde")
    assert scene.tell() == ["asked for index: unchanged", "served serde: revalidated"]


async def test_purging_a_removed_name_softly_asks_whether_it_is_back(scene: Scene) -> None:
    office = await filled(scene)
    scene.registry.delete("serde")
    scene.clock.advance(60)
    await scene.index("serde", insisting=True)
    scene.publish(SERDE)
    await office.purge("serde", soft=True)
    assert await scene.body("serde") == scene.registry.index("serde")


async def test_purging_a_name_that_was_found_absent_asks_again(scene: Scene) -> None:
    office = Office(scene)
    await scene.index("serde")
    scene.publish(SERDE)
    result = await office.purge("serde")
    assert result.unknown == ["serde"]
    assert await scene.body("serde") == scene.registry.index("serde")


@pytest.mark.parametrize("soft", [False, True])
async def test_purging_everything(scene: Scene, soft: bool) -> None:
    office = await filled(scene)
    result = await office.purge(everything=True, soft=soft)
    assert (result.index_files, result.unknown) == (2, [])
    assert result.blobs == (0 if soft else 3)
    assert len(scene.blobs.blobs) == (3 if soft else 0)
    for package in (SERDE, OTHER):
        await scene.index(package.name.lower())
    await scene.configs.get(scene.source)
    assert len(scene.upstream.paths("/index/*")) == 3


async def test_what_another_upstream_named_too_stays(scene: Scene) -> None:
    other = ScriptedUpstream(Registry(), "company")
    company = scene.join(other)
    other.registry.publish(SERDE)
    office = await filled(scene)
    await scene.download(SERDE, source=company)
    result = await office.purge(everything=True)
    assert result.blobs == 2
    assert set(scene.blobs.blobs) == {scene.cksum(SERDE)}
    assert (await scene.download(SERDE, source=company)).how == "hit"
    assert scene.index_store.snapshots.keys() == {("company", "serde")}


@pytest.mark.parametrize("soft", [False, True])
async def test_what_is_not_held_is_named(scene: Scene, soft: bool) -> None:
    office = await filled(scene)
    wanted = ["nothing", "nothing@1.0.0", "serde"]
    if not soft:
        wanted.append("other_crate@9.9.9")
    result = await office.purge(*wanted, soft=soft)
    assert result.unknown == [text for text in wanted if text != "serde"]


async def test_a_purge_in_the_middle_of_a_flight_does_not_bring_back_what_was_forgotten(
    scene: Scene,
) -> None:
    office = await filled(scene)
    scene.clock.advance(60)
    gate = scene.upstream.hold(SERDE_INDEX)
    asking = asyncio.ensure_future(scene.index("serde", insisting=True))
    await gate.arrived()
    await office.purge("serde")
    gate.release()
    await asking
    scene.tell()
    await scene.index("serde")
    assert scene.tell() == ["asked for index: found", "served serde: miss"]


async def test_a_purge_tells_of_the_crates_that_were_there(scene: Scene) -> None:
    office = await filled(scene)
    await scene.blobs.remove([scene.cksum(SERDE)])
    result = await office.purge("serde@1.0.0", "serde")
    assert (result.blobs, result.unknown) == (1, ["serde@1.0.0"])


async def test_a_purge_of_another_registry_is_refused(scene: Scene) -> None:
    office = await filled(scene)
    with pytest.raises(NoSuchRegistry, match=r"'nowhere'.*crates-io"):
        await office.purge("serde", registry="nowhere")
    assert len(scene.blobs.blobs) == 3


async def test_a_purge_that_the_disk_refuses_says_so(scene: Scene) -> None:
    office = await filled(scene)
    scene.blobs.failing = True
    with pytest.raises(StoreFailure):
        await office.purge("serde@1.0.0")


async def test_a_large_purge_reports_its_progress(scene: Scene) -> None:
    packages = [Package(f"crate{number}") for number in range(70)]
    scene.publish(*packages)
    for package in packages:
        await scene.index(package.name)
    office = Office(scene)
    await office.purge(everything=True)
    assert office.progress == [Progress("forgetting index files", 64, 70)]


async def test_who_holds_a_lock_file_of_a_purged_version_gets_it_from_the_upstream(
    scene: Scene,
) -> None:
    office = await filled(scene)
    digest = scene.cksum(SERDE)
    await office.purge("serde")
    assert (await scene.download(SERDE, digest)).body == scene.registry.crate("serde", "1.0.0")
    scene.registry.delete("serde")
    await office.purge("serde")
    scene.clock.advance(60)
    assert isinstance(await scene.crate(SERDE, digest), NoSuchCrate)


# Operations


async def test_operations_are_data_in_and_data_out(scene: Scene) -> None:
    office = await filled(scene)
    operations = Operations(office.housekeeping, lambda: {"requests": 7})
    report = office.progress.append
    verified = await operations.perform("verify", {}, report)
    assert (verified["blobs_checked"], verified["faults"]) == (3, [])
    assert await operations.perform("gc", {}, report) == {"freed_bytes": 0}
    stats = await operations.perform("stats", {}, report)
    assert stats["used"] == {"requests": 7}
    stored = stats["stored"]
    assert isinstance(stored, dict)
    assert stored["index_entries"] == 3
    arguments = {"registry": "crates-io", "crates": ["serde"]}
    purged = await operations.perform("purge", arguments, report)
    assert (purged["index_files"], purged["blobs"]) == (1, 2)
    softly = {"registry": "crates-io", "all": True, "soft": True}
    assert (await operations.perform("purge", softly, report))["index_files"] == 1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("explode", {}),
        ("purge", {}),
        ("purge", {"registry": 7, "all": True}),
        ("purge", {"registry": "crates-io"}),
        ("purge", {"registry": "crates-io", "crates": []}),
        ("purge", {"registry": "crates-io", "crates": ["serde"], "all": True}),
        ("purge", {"registry": "crates-io", "crates": "serde"}),
        ("purge", {"registry": "crates-io", "crates": [7]}),
        ("purge", {"registry": "crates-io", "all": "yes"}),
    ],
)
async def test_what_is_no_operation_does_nothing(
    scene: Scene, name: str, arguments: dict[str, object]
) -> None:
    office = await filled(scene)
    operations = Operations(office.housekeeping, lambda: None)
    with pytest.raises(BadOperation):
        await operations.perform(name, arguments, office.progress.append)
    assert len(scene.blobs.blobs) == 3
    assert len(scene.index_store.snapshots) == 3


async def test_a_large_blob_is_verified_and_fetched_like_a_small_one(scene: Scene) -> None:
    large = replace(SERDE, name="large", padding_bytes=LARGE_BYTES)
    scene.publish(large)
    await scene.download(large)
    await scene.settle()
    digest = scene.cksum(large)
    scene.blobs.blobs[digest] = scene.blobs.blobs[digest][:-1]
    office = Office(scene)
    result = await office.housekeeping.verify(office.progress.append)
    assert [fault.outcome for fault in result.faults] == [
        "quarantined, and fetched again as large 1.0.0"
    ]
    assert scene.blobs.blobs[digest] == scene.registry.crate("large", "1.0.0")
