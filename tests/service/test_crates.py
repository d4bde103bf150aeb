"""One crate download after another: looked up, joined, proven, refused; as the story tells it."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from proxy.core.answers import Snapshot
from proxy.core.events import How
from proxy.core.failures import (
    ChecksumMismatch,
    Misbehaved,
    NoSuchCrate,
    Offline,
    StoreFailure,
    TimedOut,
    Unreachable,
    UpstreamFailure,
)
from proxy.core.room import Limits
from proxy.ports import Named
from proxy.service.crates import MISMATCH_REMEMBERED_S, CrateServed
from proxy.service.download import HOLD_BACK_BYTES
from tests.service.scene import (
    LARGE_BYTES,
    Scene,
    cut_short,
    drained,
    one_scene,
    only_downloads,
    turns,
)
from tests.world import faults
from tests.world.crates import Package, sha256
from tests.world.registry import Registry
from tests.world.upstream import MakeFailure, ScriptedUpstream, Shipment
from tests.world.wire import Reply

SERDE = Package("serde", "1.0.0")
NEWER = Package("serde", "1.0.1")
LARGE = Package("large", "1.0.0", padding_bytes=LARGE_BYTES)
SERDE_CRATE = "/crates/serde/serde-1.0.0.crate"
LARGE_CRATE = "/crates/large/large-1.0.0.crate"
CRATES = "/crates/*"
DAY = 86400.0

Bend = Callable[[bytes], bytes]


def unreachable() -> UpstreamFailure:
    return Unreachable("crates-io cannot be reached")


def flipped(body: bytes) -> bytes:
    """Return as many bytes, of which the first is another one."""
    return bytes([body[0] ^ 0xFF]) + body[1:]


def wrong_tail(body: bytes) -> bytes:
    """Return as many bytes, of which the last is another one."""
    return body[:-1] + bytes([body[-1] ^ 0xFF])


# There, or on its way


@pytest.mark.parametrize("package", [SERDE, LARGE], ids=lambda package: package.name)
@pytest.mark.parametrize("with_digest", [False, True])
async def test_a_crate_is_fetched_once_and_then_a_hit(
    scene: Scene, package: Package, with_digest: bool
) -> None:
    scene.publish(package)
    whole = scene.registry.crate(package.name, package.vers)
    digest = scene.cksum(package) if with_digest else None
    first = await scene.download(package, digest)
    assert first.body == whole
    await scene.settle()
    second = await scene.download(package, digest)
    assert (second.body, second.how, second.size_bytes) == (whole, How.HIT, len(whole))
    assert scene.tell() == [
        "asked for index: found",
        "asked for config: found",
        "asked for crate: found",
        f"served {package.name} 1.0.0: miss",
        f"served {package.name} 1.0.0: hit",
    ] or (package is LARGE)
    assert len(scene.upstream.paths(CRATES)) == 1
    assert scene.blobs.blobs == {sha256(whole): whole}
    named = Named("crates-io", package.name, "1.0.0")
    assert await scene.blobs.was_named(sha256(whole), named)


async def test_what_is_served_says_what_it_is(scene: Scene) -> None:
    scene.publish(LARGE)
    whole = scene.registry.crate("large", "1.0.0")
    flowing = await scene.crate(LARGE)
    assert isinstance(flowing, CrateServed)
    assert (flowing.digest, flowing.seekable) == (sha256(whole), False)
    assert flowing.body.size_bytes == len(whole)
    await scene.settle()
    stored = await scene.crate(LARGE)
    assert isinstance(stored, CrateServed)
    assert (stored.digest, stored.seekable) == (sha256(whole), True)
    assert await drained(stored, 1000) == whole[1000:]


@pytest.mark.parametrize("package", [SERDE, LARGE], ids=lambda package: package.name)
async def test_64_cold_clients_are_one_request_and_all_get_the_right_bytes(
    scene: Scene, package: Package
) -> None:
    scene.publish(package)
    gate = scene.upstream.hold(CRATES)
    clients = [asyncio.ensure_future(scene.download(package)) for _ in range(64)]
    await gate.arrived()
    await turns()
    gate.release()
    got = await asyncio.gather(*clients)
    whole = scene.registry.crate(package.name, package.vers)
    assert {one.body for one in got} == {whole}
    assert sorted(one.how for one in got) == [How.COALESCED] * 63 + [How.MISS]
    paths = scene.upstream.paths()
    assert len(paths) == len(set(paths)) == 3


async def test_64_clients_who_come_one_by_one_are_one_request(scene: Scene) -> None:
    scene.publish(LARGE)
    clients = []
    for _ in range(64):
        clients.append(asyncio.ensure_future(scene.download(LARGE)))
        await asyncio.sleep(0)
    got = await asyncio.gather(*clients)
    assert {one.body for one in got} == {scene.registry.crate("large", "1.0.0")}
    assert {one.how for one in got} >= {How.MISS, How.COALESCED}
    assert len(scene.upstream.paths(CRATES)) == 1


async def test_who_looked_just_before_the_landing_does_not_begin_anew(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    gate = scene.blobs.points.hang("open", once=True)
    # This one has found nothing in the store, and does not get on.
    slow = asyncio.ensure_future(scene.download(SERDE))
    await gate.arrived()
    quick = await scene.download(SERDE)
    await scene.settle()
    gate.release()
    assert (await slow).body == quick.body == scene.registry.crate("serde", "1.0.0")
    assert len(scene.upstream.paths(CRATES)) == 1


async def test_a_download_that_ended_while_the_configuration_came_is_not_begun_anew(
    scene: Scene,
) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    gate = scene.upstream.hold("/index/config.json")
    slow = asyncio.ensure_future(scene.download(SERDE))
    await gate.arrived()
    quick = asyncio.ensure_future(scene.download(SERDE))
    gate.release()
    assert (await slow).body == (await quick).body
    assert len(scene.upstream.paths(CRATES)) == 1


async def test_the_first_client_leaves_half_way_and_nothing_changes_for_the_others(
    scene: Scene,
) -> None:
    scene.publish(LARGE)
    tap = scene.upstream.tap(CRATES, chunk_bytes=50_000)
    tap.let(3)
    first = await scene.crate(LARGE)
    assert isinstance(first, CrateServed)
    assert await first.body.read(0)
    others = [asyncio.ensure_future(scene.download(LARGE)) for _ in range(3)]
    await turns()
    await first.aclose()
    tap.open()
    got = await asyncio.gather(*others)
    assert {one.body for one in got} == {scene.registry.crate("large", "1.0.0")}
    assert [one.how for one in got] == [How.COALESCED] * 3
    assert len(scene.upstream.paths(CRATES)) == 1


async def test_a_client_that_is_cancelled_while_it_waits_stops_nobody(scene: Scene) -> None:
    scene.publish(SERDE)
    gate = scene.upstream.hold(CRATES)
    first = asyncio.ensure_future(scene.download(SERDE))
    await gate.arrived()
    other = asyncio.ensure_future(scene.download(SERDE))
    await turns()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.release()
    assert (await other).body == scene.registry.crate("serde", "1.0.0")


async def test_a_crate_that_everybody_left_is_kept_for_the_next(scene: Scene) -> None:
    scene.publish(LARGE)
    tap = scene.upstream.tap(CRATES)
    tap.let(6)
    only = await scene.crate(LARGE)
    assert isinstance(only, CrateServed)
    await only.aclose()
    tap.open()
    await scene.settle()
    assert (await scene.download(LARGE)).how == How.HIT
    assert len(scene.upstream.paths(CRATES)) == 1


async def test_a_slow_reader_delays_nobody_and_gets_everything(scene: Scene) -> None:
    scene.publish(LARGE)
    whole = scene.registry.crate("large", "1.0.0")
    slow = await scene.crate(LARGE)
    assert isinstance(slow, CrateServed)
    begin = await slow.body.read(0)
    assert 0 < len(begin) < len(whole)
    assert (await scene.download(LARGE)).body == whole
    await scene.settle()
    # Evicted behind its back: it reads on all the same.
    await scene.blobs.remove([sha256(whole)])
    rest = b""
    while chunk := await slow.body.read(len(begin) + len(rest)):
        rest += chunk
        await turns(3)
    assert begin + rest == whole
    assert len(scene.upstream.paths(CRATES)) == 1


async def test_it_flows_before_it_is_there_and_the_end_is_withheld_until_it_is_proven(
    scene: Scene,
) -> None:
    scene.publish(LARGE)
    whole = scene.registry.crate("large", "1.0.0")
    tap = scene.upstream.tap(CRATES, chunk_bytes=10_000)
    chunks = -(-len(whole) // 10_000)
    tap.let(chunks - 1)
    served = await scene.crate(LARGE)
    assert isinstance(served, CrateServed)
    await tap.is_dry()
    begin = b""
    while len(begin) < len(whole) - HOLD_BACK_BYTES:
        begin += await served.body.read(len(begin))
    assert begin == whole[: len(whole) - HOLD_BACK_BYTES]
    waiting = asyncio.ensure_future(served.body.read(len(begin)))
    await turns()
    assert not waiting.done()
    tap.open()
    assert await waiting
    assert await drained(served, len(begin)) == whole[len(begin) :]


async def test_without_an_announced_length_the_end_is_withheld_as_well(scene: Scene) -> None:
    scene.publish(LARGE)
    whole = scene.registry.crate("large", "1.0.0")
    scene.upstream.ship(CRATES, Shipment(announces=False))
    tap = scene.upstream.tap(CRATES, chunk_bytes=10_000)
    tap.let(20)
    served = await scene.crate(LARGE)
    assert isinstance(served, CrateServed)
    assert served.body.size_bytes is None
    await tap.is_dry()
    begin = await served.body.read(0)
    assert begin == whole[: 200_000 - HOLD_BACK_BYTES]
    tap.open()
    assert await drained(served, len(begin)) == whole[len(begin) :]
    assert served.body.size_bytes == len(whole)


async def test_what_fits_into_what_is_withheld_is_proven_before_the_first_byte(
    scene: Scene,
) -> None:
    scene.publish(SERDE)
    size = len(scene.registry.crate("serde", "1.0.0"))
    tap = scene.upstream.tap(CRATES, chunk_bytes=size - 1)
    asking = asyncio.ensure_future(scene.crate(SERDE))
    tap.let(1)
    await tap.is_dry()
    await turns()
    assert not asking.done()
    tap.open()
    served = await asking
    assert isinstance(served, CrateServed)
    assert await drained(served) == scene.registry.crate("serde", "1.0.0")


# Wrong bytes


@pytest.mark.parametrize("bend", [flipped, wrong_tail, lambda body: body[:-1], lambda b: b + b"x"])
async def test_a_small_crate_with_wrong_bytes_is_a_failure_before_anything_is_sent(
    scene: Scene, bend: Bend
) -> None:
    scene.publish(SERDE)
    scene.upstream.ship(CRATES, Shipment(bend=bend), times=1)
    with pytest.raises(ChecksumMismatch) as caught:
        await scene.crate(SERDE)
    assert caught.value.expected == scene.cksum(SERDE)
    assert caught.value.expected in str(caught.value)
    assert caught.value.actual in str(caught.value)
    assert scene.blobs.blobs == {}
    assert scene.tell()[2:] == [
        "asked for crate: found",
        "integrity failed: upstream",
        "gave up on serde 1.0.0",
    ]
    assert not scene.source.is_failing()


@pytest.mark.parametrize("announces", [False, True])
@pytest.mark.parametrize("bend", [flipped, wrong_tail, lambda body: body[:-1], lambda b: b + b"x"])
async def test_a_large_crate_with_wrong_bytes_is_cut_short_for_everybody(
    scene: Scene, bend: Bend, announces: bool
) -> None:
    scene.publish(LARGE)
    shipment = Shipment(bend=bend, announces=announces)
    sent = shipment.bend(scene.registry.crate("large", "1.0.0"))
    scene.upstream.ship(CRATES, shipment, times=1)
    readers = [await scene.crate(LARGE) for _ in range(3)]
    for served in readers:
        assert isinstance(served, CrateServed)
        got, failure = await cut_short(served)
        assert type(failure) is ChecksumMismatch
        assert len(got) <= len(sent) - HOLD_BACK_BYTES
        assert sent.startswith(got)
        await served.aclose()
    assert scene.blobs.blobs == {}
    assert scene.blobs.drafts == []


@pytest.mark.parametrize("package", [SERDE, LARGE], ids=lambda package: package.name)
async def test_a_mismatch_is_remembered_for_a_minute(scene: Scene, package: Package) -> None:
    scene.publish(package)
    scene.upstream.ship(CRATES, Shipment(bend=flipped), times=1)
    with pytest.raises(ChecksumMismatch):
        await scene.download(package)
    await scene.settle()
    for _ in range(4):
        with pytest.raises(ChecksumMismatch):
            await scene.crate(package)
        scene.clock.advance(14.9)
    assert len(scene.upstream.paths(CRATES)) == 1
    scene.clock.advance(0.5)
    whole = scene.registry.crate(package.name, package.vers)
    assert (await scene.download(package)).body == whole


@pytest.mark.parametrize("package", [SERDE, LARGE], ids=lambda package: package.name)
async def test_a_mismatch_is_remembered_though_the_disk_fails(
    scene: Scene, package: Package
) -> None:
    scene.publish(package)
    scene.blobs.points.fail("draft")
    scene.upstream.ship(CRATES, Shipment(bend=flipped))
    with pytest.raises(ChecksumMismatch):
        await scene.download(package)
    asked = len(scene.upstream.paths(CRATES))
    scene.clock.advance(MISMATCH_REMEMBERED_S - 0.1)
    with pytest.raises(ChecksumMismatch):
        await scene.crate(package)
    assert len(scene.upstream.paths(CRATES)) == asked


async def test_a_remembered_mismatch_is_of_those_bytes_and_no_others(scene: Scene) -> None:
    scene.publish(SERDE, NEWER)
    scene.upstream.ship(SERDE_CRATE, Shipment(bend=flipped), times=1)
    with pytest.raises(ChecksumMismatch):
        await scene.crate(SERDE)
    assert (await scene.download(NEWER)).body == scene.registry.crate("serde", "1.0.1")
    # The same version with other bytes, as soon as the index says so.
    republished = replace(SERDE, files={"NEWS": "mended"})
    scene.publish(republished)
    scene.clock.advance(60 - 0.1)
    scene.indexes.forget("crates-io", "serde")
    await scene.index_store.remove("crates-io", "serde")
    assert (await scene.download(republished)).body == scene.registry.crate("serde", "1.0.0")


@pytest.mark.parametrize("padding", [1, 200_000])
async def test_a_web_page_in_place_of_a_crate_is_refused_and_not_remembered(
    scene: Scene, padding: int
) -> None:
    scene.publish(SERDE)
    page = faults.LOGIN_PAGE + b" " * padding
    scene.upstream.reply(
        CRATES, Reply(200, page, (("Content-Type", "text/html; charset=utf-8"),)), times=1
    )
    with pytest.raises(Misbehaved) as caught:
        await scene.download(SERDE)
    assert "web page" in str(caught.value)
    assert not isinstance(caught.value, ChecksumMismatch)
    assert scene.blobs.blobs == {}
    await scene.settle()
    assert (await scene.download(SERDE)).body == scene.registry.crate("serde", "1.0.0")


# Broken off


@pytest.mark.parametrize("cut_after", [0, 1, 100_000, 250_000, 306_000])
@pytest.mark.parametrize("announces", [False, True])
async def test_a_transfer_that_breaks_off_is_resumed_and_nobody_notices(
    scene: Scene, cut_after: int, announces: bool
) -> None:
    scene.publish(LARGE)
    scene.upstream.announces = announces
    scene.upstream.ship(CRATES, Shipment(cut_after=cut_after, announces=announces), times=2)
    got = await scene.download(LARGE)
    assert got.body == scene.registry.crate("large", "1.0.0")
    await scene.settle()
    assert [line for line in scene.tell() if "crate" in line] == [
        "asked for crate: unreachable",
        "asked for crate: unreachable",
        "asked for crate: found",
    ]
    assert (await scene.download(LARGE)).how == How.HIT


async def test_what_a_reader_has_is_not_sent_again(scene: Scene) -> None:
    scene.publish(LARGE)
    whole = scene.registry.crate("large", "1.0.0")
    gate_after_cut = scene.upstream.tap(CRATES, chunk_bytes=50_000)
    scene.upstream.ship(CRATES, Shipment(cut_after=200_000), times=1)
    gate_after_cut.let(4)
    served = await scene.crate(LARGE)
    assert isinstance(served, CrateServed)
    begin = await served.body.read(0)
    await scene.upstream.until_asked(4)
    writes = scene.blobs.points.passed["write"]
    gate_after_cut.let(4)
    await gate_after_cut.is_dry(2)
    await turns()
    assert scene.blobs.points.passed["write"] == writes, "the second beginning is skipped"
    gate_after_cut.open()
    assert begin + await drained(served, len(begin)) == whole


@pytest.mark.parametrize("wrong_one", [0, 1])
async def test_two_transfers_that_differ_are_caught_by_the_digest(
    scene: Scene, wrong_one: int
) -> None:
    scene.publish(LARGE)
    bends: list[Bend] = [flipped, bytes] if wrong_one == 0 else [bytes, wrong_tail]
    scene.upstream.ship(CRATES, Shipment(bend=bends[0], cut_after=200_000), times=1)
    scene.upstream.ship(CRATES, Shipment(bend=bends[1]), times=1)
    with pytest.raises(ChecksumMismatch):
        await scene.download(LARGE)
    assert scene.blobs.blobs == {}


async def test_a_second_transfer_that_is_shorter_than_the_first_is_no_end(scene: Scene) -> None:
    scene.publish(LARGE)
    scene.upstream.ship(CRATES, Shipment(cut_after=200_000), times=1)
    scene.upstream.ship(CRATES, Shipment(bend=lambda body: body[:1000]), times=1)
    with pytest.raises(Misbehaved):
        await scene.download(LARGE)
    assert scene.blobs.blobs == {}


@pytest.mark.parametrize("announced", [100_000, 200_000, 305_000, 400_000])
async def test_an_announced_length_that_is_not_the_true_one_never_completes_a_body(
    scene: Scene, announced: int
) -> None:
    scene.publish(LARGE)
    whole = scene.registry.crate("large", "1.0.0")
    scene.upstream.ship(CRATES, Shipment(cut_after=90_000, announced_bytes=announced), times=1)
    served = await scene.crate(LARGE)
    assert isinstance(served, CrateServed)
    promised = served.body.size_bytes
    got, failure = await cut_short(served)
    assert isinstance(failure, UpstreamFailure)
    assert promised == announced
    assert len(got) < promised
    assert whole.startswith(got)
    await served.aclose()
    await scene.settle()
    assert (await scene.download(LARGE)).body == whole


async def test_a_transfer_that_breaks_off_too_often_is_cut_and_heals(scene: Scene) -> None:
    scene.publish(LARGE)
    whole = scene.registry.crate("large", "1.0.0")
    scene.upstream.ship(CRATES, Shipment(cut_after=200_000), times=3)
    served = await scene.crate(LARGE)
    assert isinstance(served, CrateServed)
    got, failure = await cut_short(served)
    assert type(failure) is Unreachable
    assert 0 < len(got) <= 200_000
    assert whole.startswith(got)
    await scene.settle()
    assert scene.blobs.drafts == []
    assert (await scene.download(LARGE)).body == whole


async def test_a_transfer_that_stalls_is_asked_for_again(scene: Scene) -> None:
    scene.publish(LARGE)
    scene.upstream.patience_s = 5.0
    tap = scene.upstream.tap(CRATES, chunk_bytes=100_000)
    tap.let(1)
    asking = asyncio.ensure_future(scene.download(LARGE))
    await tap.is_dry()
    await scene.upstream.until_asked(4)
    tap.open()
    assert (await asking).body == scene.registry.crate("large", "1.0.0")
    assert [line for line in scene.tell() if "crate" in line] == [
        "asked for crate: timeout",
        "asked for crate: found",
    ]


async def test_164_crates_each_cut_once_all_come(scene: Scene) -> None:
    packages = [Package(f"crate{number}") for number in range(164)]
    scene.publish(*packages)
    for package in packages:
        path = scene.registry.download_path(package.name, package.vers)
        scene.upstream.ship(path, Shipment(cut_after=100), times=1)

    async def insistent(package: Package) -> bytes:
        # Cargo tries four times, and waits in between.
        for _ in range(3):
            try:
                return (await scene.download(package)).body
            except Unreachable:
                scene.clock.advance(1)
        return (await scene.download(package)).body

    bodies = await asyncio.gather(*map(insistent, packages))
    assert bodies == [scene.registry.crate(each.name, each.vers) for each in packages]


# Failing upstreams


@pytest.mark.parametrize("failure", [unreachable, lambda: TimedOut("late")])
async def test_what_is_stored_is_served_through_an_outage(
    scene: Scene, failure: MakeFailure
) -> None:
    scene.publish(SERDE)
    await scene.download(SERDE)
    scene.upstream.fail("*", failure)
    scene.clock.advance(365 * DAY)
    await scene.restart()
    got = await scene.download(SERDE)
    assert (got.body, got.how) == (scene.registry.crate("serde", "1.0.0"), How.HIT)


async def test_a_crate_that_is_not_held_is_an_outage_and_no_absence(scene: Scene) -> None:
    scene.publish(SERDE)
    scene.upstream.fail("*", unreachable)
    with pytest.raises(Unreachable):
        await scene.crate(SERDE)
    scene.upstream.heal()
    await scene.index("serde")
    scene.upstream.fail(CRATES, unreachable)
    with pytest.raises(Unreachable):
        await scene.crate(SERDE)
    scene.upstream.heal()
    assert (await scene.download(SERDE)).body == scene.registry.crate("serde", "1.0.0")


async def test_offline_serves_what_is_held_and_nothing_else(scene: Scene) -> None:
    scene.publish(SERDE, NEWER)
    await scene.download(SERDE)
    scene.source.offline = True
    scene.upstream.fail("*", lambda: Offline("crates-io is offline"))
    assert (await scene.download(SERDE)).how == How.HIT
    with pytest.raises(Offline):
        await scene.crate(NEWER)
    scene.clock.advance(6)
    with pytest.raises(Offline):
        await scene.crate(Package("serde", "2.0.0"))


@pytest.mark.parametrize("slow", ["/index/se/*", "/index/config.json", CRATES, "*"])
async def test_nobody_waits_longer_than_twenty_seconds(scene: Scene, slow: str) -> None:
    scene.publish(SERDE)
    scene.upstream.patience_s = 1000
    gates = [scene.upstream.hold(slow)]
    if slow == "*":
        # Each answers just before patience has run out, and the next does not answer at all.
        scene.upstream.release()
        gates = [scene.upstream.hold(pattern) for pattern in ("/index/se/*", "/index/c*", CRATES)]
        loop = asyncio.get_running_loop()
        for number, gate in enumerate(gates, start=1):
            loop.call_later(17.0 * number, gate.release)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with pytest.raises(TimedOut):
        await scene.crate(SERDE)
    assert loop.time() - begun <= 20
    for gate in gates:
        gate.release()
    await scene.settle()
    assert (await scene.download(SERDE)).body == scene.registry.crate("serde", "1.0.0")


async def test_a_download_that_nobody_had_patience_for_is_there_for_the_next(scene: Scene) -> None:
    scene.publish(SERDE)
    scene.upstream.patience_s = 1000
    gate = scene.upstream.hold(CRATES)
    with pytest.raises(TimedOut):
        await scene.crate(SERDE)
    joining = asyncio.ensure_future(scene.download(SERDE))
    await turns()
    gate.release()
    assert (await joining).how == How.COALESCED
    assert len(scene.upstream.paths(CRATES)) == 1


async def test_a_file_that_is_not_where_the_index_says_is_absent_and_not_remembered(
    scene: Scene,
) -> None:
    scene.publish(SERDE)
    scene.upstream.reply(CRATES, Reply(404), times=2)
    for _ in range(2):
        answer = await scene.crate(SERDE)
        assert isinstance(answer, NoSuchCrate)
        assert "serde 1.0.0" in answer.message
    assert (await scene.download(SERDE)).body == scene.registry.crate("serde", "1.0.0")


# Which bytes


@pytest.mark.parametrize("age_s", [0, 6])
async def test_a_version_that_the_snapshot_lacks_refreshes_it_once(
    scene: Scene, age_s: float
) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.publish(NEWER)
    scene.clock.advance(age_s)
    scene.tell()
    assert (await scene.download(NEWER)).body == scene.registry.crate("serde", "1.0.1")
    assert scene.tell() == [
        "asked for index: found",
        "asked for config: found",
        "asked for crate: found",
        "served serde 1.0.1: miss",
    ]


async def test_a_version_that_is_not_there_even_then_is_absent(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.clock.advance(6)
    scene.tell()
    for _ in range(3):
        answer = await scene.crate(NEWER)
        assert isinstance(answer, NoSuchCrate)
        assert "serde 1.0.1" in answer.message
    assert scene.tell() == ["asked for index: unchanged"], "once in a few seconds"


async def test_64_who_want_a_version_that_the_snapshot_lacks_are_one_request(
    scene: Scene,
) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.publish(NEWER)
    scene.clock.advance(6)
    scene.upstream.clear()
    got = await asyncio.gather(*(scene.download(NEWER) for _ in range(64)))
    assert {one.body for one in got} == {scene.registry.crate("serde", "1.0.1")}
    paths = scene.upstream.paths()
    assert len(paths) == len(set(paths)) == 3


async def test_a_version_that_the_snapshot_lacks_is_an_outage_while_nobody_can_tell(
    scene: Scene,
) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    scene.publish(NEWER)
    scene.clock.advance(6)
    scene.upstream.fail("*", unreachable)
    with pytest.raises(Unreachable):
        await scene.crate(NEWER)
    scene.upstream.heal()
    assert (await scene.download(NEWER)).body == scene.registry.crate("serde", "1.0.1")


async def test_a_name_that_is_not_there_is_asked_for_once_in_a_few_seconds(scene: Scene) -> None:
    for _ in range(3):
        assert isinstance(await scene.crate(SERDE), NoSuchCrate)
    assert scene.tell() == ["asked for index: absent"]
    scene.publish(SERDE)
    scene.clock.advance(5)
    assert (await scene.download(SERDE)).body == scene.registry.crate("serde", "1.0.0")


async def test_the_case_of_a_name_is_that_of_the_index(scene: Scene) -> None:
    scene.publish(Package("Inflector", "0.11.4"))
    got = await scene.download(Package("Inflector", "0.11.4"))
    assert got.body == scene.registry.crate("inflector", "0.11.4")
    assert isinstance(await scene.crate(Package("inflector", "0.11.4")), NoSuchCrate)


async def test_a_digest_that_the_index_does_not_name_is_nobodys_here(scene: Scene) -> None:
    scene.publish(SERDE, NEWER)
    await scene.download(SERDE)
    await scene.download(NEWER)
    for package, digest in ((SERDE, scene.cksum(NEWER)), (SERDE, "0" * 64)):
        answer = await scene.crate(package, digest)
        assert isinstance(answer, NoSuchCrate)
        assert digest in answer.message


async def test_a_digest_known_only_through_another_upstream_is_refused(scene: Scene) -> None:
    other = ScriptedUpstream(Registry(), "company")
    company = scene.join(other)
    secret = Package("serde", "1.0.0", files={"SECRET": "of the company"})
    other.registry.publish(secret)
    digest = other.registry.release("serde", "1.0.0").cksum
    await scene.download(secret, digest, source=company)
    for held in (False, True):
        if held:
            scene.publish(SERDE)
            scene.clock.advance(6)
        answer = await scene.crate(secret, digest)
        assert isinstance(answer, NoSuchCrate)
    assert (await scene.download(secret, digest, source=company)).how == How.HIT


async def test_the_same_bytes_in_two_registries_are_one_blob(scene: Scene) -> None:
    other = ScriptedUpstream(Registry(), "company")
    company = scene.join(other)
    scene.publish(SERDE)
    other.registry.publish(SERDE)
    await scene.download(SERDE)
    assert (await scene.download(SERDE, source=company)).how == How.HIT
    assert other.paths(CRATES) == []
    digest = scene.cksum(SERDE)
    assert await scene.blobs.was_named(digest, Named("company", "serde", "1.0.0"))


async def test_the_same_bytes_fetched_from_two_upstreams_at_once(scene: Scene) -> None:
    other = ScriptedUpstream(Registry(), "company")
    company = scene.join(other)
    scene.publish(LARGE)
    other.registry.publish(LARGE)
    whole = scene.registry.crate("large", "1.0.0")
    got = await asyncio.gather(scene.download(LARGE), scene.download(LARGE, source=company))
    assert [one.body for one in got] == [whole, whole]
    await scene.settle()
    assert scene.blobs.blobs == {sha256(whole): whole}


async def test_a_republished_version_gets_its_own_blob_and_the_old_one_stays(
    scene: Scene,
) -> None:
    scene.publish(SERDE)
    old_digest = scene.cksum(SERDE)
    old = await scene.download(SERDE)
    scene.publish(replace(SERDE, files={"NEWS": "other bytes"}))
    new_digest = scene.cksum(SERDE)
    scene.clock.advance(600)
    await scene.index("serde", insisting=True)
    new = await scene.download(SERDE)
    assert new.body == scene.registry.crate("serde", "1.0.0") != old.body
    assert (await scene.download(SERDE, new_digest)).body == new.body
    assert (await scene.download(SERDE, old_digest)).body == old.body
    assert set(scene.blobs.blobs) == {old_digest, new_digest}


async def test_who_holds_a_lock_file_is_served_though_the_name_was_removed(scene: Scene) -> None:
    scene.publish(SERDE)
    digest = scene.cksum(SERDE)
    whole = scene.registry.crate("serde", "1.0.0")
    await scene.download(SERDE)
    scene.registry.delete("serde")
    scene.clock.advance(60)
    await scene.index("serde", insisting=True)
    await scene.restart()
    assert (await scene.download(SERDE, digest)).body == whole
    assert isinstance(await scene.crate(SERDE), NoSuchCrate), "without the digest nobody is named"
    assert isinstance(await scene.crate(NEWER, digest), NoSuchCrate)


async def test_a_removed_crate_whose_blob_is_gone_too_is_absent(scene: Scene) -> None:
    scene.publish(SERDE)
    digest = scene.cksum(SERDE)
    await scene.download(SERDE)
    scene.registry.delete("serde")
    scene.clock.advance(60)
    await scene.index("serde", insisting=True)
    await scene.blobs.remove([digest])
    assert isinstance(await scene.crate(SERDE, digest), NoSuchCrate)


async def test_a_yanked_version_is_downloaded_like_any_other(scene: Scene) -> None:
    scene.publish(SERDE)
    scene.registry.yank("serde", "1.0.0")
    assert (await scene.download(SERDE)).body == scene.registry.crate("serde", "1.0.0")


@pytest.mark.parametrize(
    "dl",
    [
        "{base}/dl",
        "{base}/{prefix}/{crate}/{version}.crate",
        "{base}/{lowerprefix}/{crate}?v={version}&sum={sha256-checksum}",
    ],
)
async def test_the_upstreams_own_template_is_followed(scene: Scene, dl: str) -> None:
    scene.registry.dl = dl
    package = Package("Big_Name", "1.0.0-rc.1+build.5")
    scene.publish(package)
    got = await scene.download(package)
    assert got.body == scene.registry.crate("big_name", package.vers)


# Failing disks


async def test_a_store_without_room_makes_us_slow_and_not_dead() -> None:
    async with one_scene(limits=Limits(max_size_bytes=100_000, min_free_bytes=0)) as scene:
        scene.publish(LARGE, SERDE)
        whole = scene.registry.crate("large", "1.0.0")
        got = await asyncio.gather(*(scene.download(LARGE) for _ in range(4)))
        assert [(one.body, one.how) for one in got] == [(whole, How.BYPASS)] * 4
        assert {one.size_bytes for one in got} == {len(whole)}
        assert (await scene.download(SERDE)).how == How.MISS, "what fits is kept"
        assert (await scene.download(SERDE)).how == How.HIT
        assert scene.blobs.leaks() == []


async def test_a_store_that_cannot_begin_is_passed_by(scene: Scene) -> None:
    scene.publish(LARGE)
    scene.blobs.points.fail("draft")
    got = await scene.download(LARGE)
    assert (got.body, got.how) == (scene.registry.crate("large", "1.0.0"), How.BYPASS)
    assert only_downloads(scene.tell()) == [
        "store failed: storing large 1.0.0",
        "asked for crate: found",
        "served large 1.0.0: bypass",
    ]
    scene.upstream.clear()
    await scene.download(LARGE)
    assert len(scene.upstream.paths(CRATES)) == 1, "no second try of the disk so soon"
    scene.blobs.points.heal()
    scene.clock.advance(30)
    assert (await scene.download(LARGE)).how == How.MISS
    await scene.settle()
    assert (await scene.download(LARGE)).how == How.HIT


@pytest.mark.parametrize("fails_at_bytes", [0, 20_000, 100_000, 250_000, 300_000])
async def test_a_store_that_fails_in_the_middle_cuts_once_and_is_passed_by_after_that(
    scene: Scene, fails_at_bytes: int
) -> None:
    scene.publish(LARGE)
    whole = scene.registry.crate("large", "1.0.0")
    scene.blobs.fails_at_bytes = fails_at_bytes
    try:
        got = await scene.download(LARGE)
    except StoreFailure:
        await scene.settle()
        got = await scene.download(LARGE)
    assert (got.body, got.how) == (whole, How.BYPASS)
    assert scene.blobs.leaks() == []
    scene.blobs.fails_at_bytes = None
    scene.clock.advance(30)
    assert (await scene.download(LARGE)).body == whole
    await scene.settle()
    assert (await scene.download(LARGE)).how == How.HIT


async def test_a_store_that_cannot_commit_serves_all_the_same(scene: Scene) -> None:
    scene.publish(LARGE, SERDE)
    scene.blobs.points.fail("commit")
    for package in (LARGE, SERDE):
        whole = scene.registry.crate(package.name, package.vers)
        got = await asyncio.gather(*(scene.download(package) for _ in range(3)))
        assert [one.body for one in got] == [whole] * 3
    await scene.settle()
    assert scene.blobs.blobs == {}
    scene.blobs.points.heal()
    await scene.download(LARGE)
    await scene.settle()
    assert (await scene.download(LARGE)).how == How.HIT


async def test_passing_by_a_failing_disk_tells_the_upstreams_trouble_and_absences(
    scene: Scene,
) -> None:
    scene.publish(SERDE, LARGE)
    scene.blobs.points.fail("draft")
    scene.upstream.ship(SERDE_CRATE, Shipment(cut_after=10))
    with pytest.raises(Unreachable):
        await scene.crate(SERDE)
    scene.upstream.ship(LARGE_CRATE, Shipment(bend=flipped))
    with pytest.raises(ChecksumMismatch):
        await scene.download(LARGE)
    scene.clock.advance(MISMATCH_REMEMBERED_S)
    scene.upstream.reply(CRATES, Reply(404))
    for package in (SERDE, LARGE):
        assert isinstance(await scene.crate(package), NoSuchCrate)
    assert scene.upstream.open_bodies == 0
    scene.upstream.heal()
    assert (await scene.download(SERDE)).how == How.BYPASS


async def test_a_blob_that_cannot_be_read_is_fetched_again(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.download(SERDE)
    scene.blobs.points.fail("open", times=1)
    got = await scene.download(SERDE)
    assert (got.body, got.how) == (scene.registry.crate("serde", "1.0.0"), How.MISS)


@pytest.mark.parametrize("spoiled", [b"", b"zeros and worse"])
async def test_a_blob_that_was_spoiled_is_set_aside_and_fetched_again(
    scene: Scene, spoiled: bytes
) -> None:
    scene.publish(SERDE)
    await scene.download(SERDE)
    digest = scene.cksum(SERDE)
    scene.blobs.blobs[digest] = spoiled
    await scene.restart(clean=False)
    scene.tell()
    got = await scene.download(SERDE)
    assert got.body == scene.registry.crate("serde", "1.0.0")
    assert only_downloads(scene.tell()) == [
        "integrity failed: disk",
        "asked for crate: found",
        "served serde 1.0.0: miss",
    ]
    assert scene.blobs.quarantine == {digest: spoiled}


async def test_an_index_that_cannot_be_stored_serves_its_crates_all_the_same(
    scene: Scene,
) -> None:
    scene.publish(SERDE)
    scene.index_store.points.fail("put")
    assert (await scene.download(SERDE)).body == scene.registry.crate("serde", "1.0.0")
    assert (await scene.download(SERDE)).how == How.HIT


# For nobody in particular


async def test_fetching_brings_a_blob_in(scene: Scene) -> None:
    scene.publish(LARGE)
    digest, named = scene.cksum(LARGE), Named("crates-io", "large", "1.0.0")
    for _ in range(2):
        assert await scene.crates.fetch(scene.source, named, digest) is None
        assert set(scene.blobs.blobs) == {digest}
    assert scene.upstream.paths() == ["/index/config.json", LARGE_CRATE]
    assert scene.blobs.leaks() == []


async def test_fetching_ends_when_the_blob_is_there_and_not_when_it_was_read(
    scene: Scene,
) -> None:
    scene.publish(LARGE)
    digest = scene.cksum(LARGE)
    gate = scene.blobs.points.hang("commit")
    fetching = asyncio.ensure_future(
        scene.crates.fetch(scene.source, Named("crates-io", "large", "1.0.0"), digest)
    )
    await gate.arrived()
    await turns()
    assert not fetching.done()
    gate.release()
    assert await fetching is None
    assert set(scene.blobs.blobs) == {digest}


async def test_fetching_says_what_went_wrong(scene: Scene) -> None:
    scene.publish(SERDE, LARGE)
    named = Named("crates-io", "large", "1.0.0")
    scene.upstream.reply(CRATES, Reply(404), times=1)
    answer = await scene.crates.fetch(scene.source, named, scene.cksum(LARGE))
    assert isinstance(answer, NoSuchCrate)
    scene.upstream.ship(CRATES, Shipment(cut_after=250_000), times=3)
    with pytest.raises(Unreachable):
        await scene.crates.fetch(scene.source, named, scene.cksum(LARGE))
    with pytest.raises(ChecksumMismatch):
        await scene.crates.fetch(scene.source, named, "0" * 64)


@pytest.mark.parametrize("point", ["draft", "write", "commit"])
async def test_fetching_what_cannot_be_stored_is_no_success(scene: Scene, point: str) -> None:
    scene.publish(LARGE)
    scene.blobs.points.fail(point)
    with pytest.raises(StoreFailure):
        await scene.crates.fetch(
            scene.source, Named("crates-io", "large", "1.0.0"), scene.cksum(LARGE)
        )


# The end


async def test_a_stop_waits_for_what_may_still_land(scene: Scene) -> None:
    scene.publish(LARGE)
    tap = scene.upstream.tap(CRATES)
    tap.let(6)
    served = await scene.crate(LARGE)
    assert isinstance(served, CrateServed)
    loop = asyncio.get_running_loop()
    loop.call_later(3.0, tap.open)
    begun = loop.time()
    await scene.crates.close(5.0)
    assert loop.time() - begun == pytest.approx(3.0)
    assert len(scene.blobs.blobs) == 1


async def test_a_stop_without_patience_cuts_readers_and_leaves_nothing_behind(
    scene: Scene,
) -> None:
    scene.publish(LARGE)
    tap = scene.upstream.tap(CRATES, chunk_bytes=100_000)
    tap.let(2)
    flowing = await scene.crate(LARGE)
    assert isinstance(flowing, CrateServed)
    scene.publish(SERDE)
    gate = scene.upstream.hold(SERDE_CRATE)
    waiting = asyncio.ensure_future(scene.crate(SERDE))
    await gate.arrived()
    await scene.crates.close(0)
    with pytest.raises(UpstreamFailure):
        await waiting
    got, failure = await cut_short(flowing)
    assert isinstance(failure, UpstreamFailure)
    assert 0 < len(got) < len(scene.registry.crate("large", "1.0.0"))
    await flowing.aclose()
    assert scene.leaks() == []
    assert scene.blobs.blobs == {}


async def test_a_snapshot_of_another_time_does_not_make_a_digest_wrong(scene: Scene) -> None:
    scene.publish(SERDE)
    await scene.index("serde")
    key = ("crates-io", "serde")
    held = scene.index_store.snapshots[key]
    scene.index_store.snapshots[key] = Snapshot(held.body, held.validators, 9e9, 9e9)
    await scene.restart()
    assert (await scene.download(SERDE)).body == scene.registry.crate("serde", "1.0.0")
