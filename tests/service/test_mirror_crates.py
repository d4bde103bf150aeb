"""Crates from mirrors: before the first byte anybody may be asked, then nobody else; and lies."""

import asyncio

import pytest

from proxy.core.events import IntegrityFailed, MirrorSetAside
from proxy.core.failures import (
    ChecksumMismatch,
    Crowded,
    Misbehaved,
    NoSuchCrate,
    TimedOut,
    Troubled,
    Unreachable,
    UpstreamFailure,
)
from proxy.service.crates import MISMATCH_REMEMBERED_S
from proxy.service.endpoint import ASIDE_S
from tests.service.scene import (
    LARGE_BYTES,
    Scene,
    advancing,
    cut_short,
    drained,
    mirror_address,
    turns,
)
from tests.world import faults
from tests.world.crates import Package, crate_file
from tests.world.registry import Registry
from tests.world.upstream import MakeFailure, ScriptedUpstream, Shipment
from tests.world.wire import Reply

SERDE = Package("serde", "1.0.0")
LARGE = Package("serde", "1.0.0", padding_bytes=LARGE_BYTES)
CRATE = "/crates/serde/serde-1.0.0.crate"
CONFIG = "/index/config.json"
WRONG = Shipment(bend=lambda body: body[:-1] + b"!")


def unreachable() -> Unreachable:
    return Unreachable("crates-io cannot be reached")


def paths(upstream: ScriptedUpstream) -> list[str]:
    """Return which crates an upstream was asked for."""
    return upstream.paths("/crates/*")


FAILURES: dict[str, MakeFailure] = {
    "unreachable": unreachable,
    "timing out": lambda: TimedOut("crates-io did not answer in time"),
    "503": lambda: Troubled("answered 503", status=503, transient=True),
    "403": lambda: Troubled("answered 403", status=403, transient=False),
    "crowded": lambda: Crowded("all connections are in use"),
    "misbehaved": lambda: Misbehaved("a crate over limits.crate"),
}


@pytest.mark.parametrize("package", [SERDE, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("how", FAILURES)
async def test_a_mirror_has_what_the_upstream_cannot_give(
    scene: Scene, package: Package, how: str
) -> None:
    mirror = scene.mirror()
    scene.publish(package)
    scene.upstream.fail("/crates/*", FAILURES[how])
    got = await scene.download(package)
    assert got.body == crate_file(package)
    assert paths(scene.upstream) == paths(mirror) == [CRATE]
    assert scene.clock.slept == []


async def test_a_mirror_may_have_them_somewhere_else(scene: Scene) -> None:
    theirs = Registry(dl="{base}/files/{crate}/{version}")
    theirs.publish(SERDE)
    mirror = scene.mirror(theirs)
    scene.publish(SERDE)
    scene.upstream.fail("/crates/*", unreachable)
    assert (await scene.download(SERDE)).body == crate_file(SERDE)
    assert mirror.paths() == [CONFIG, "/files/serde/1.0.0"]
    stored = scene.index_store.snapshots["crates-io", "config.json"].body
    assert stored is not None
    assert b"crates-io.test" in stored, "a mirror's word on where its crates are is its own"


async def test_with_no_word_of_where_its_crates_are_the_next_is_asked(scene: Scene) -> None:
    first, second = scene.mirror(), scene.mirror()
    scene.publish(SERDE)
    await scene.index("serde")
    scene.upstream.fail("*", unreachable)
    first.reply(CONFIG, Reply(404))
    assert (await scene.download(SERDE)).body == crate_file(SERDE)
    assert (paths(scene.upstream), paths(first), paths(second)) == ([], [], [CRATE])
    assert scene.clock.slept == [], "each configuration was asked for once"


async def test_a_mirrors_known_configuration_outlives_its_answers(scene: Scene) -> None:
    mirror = scene.mirror()
    packages = [Package("serde", f"1.0.{number}") for number in range(5)]
    scene.publish(*packages)
    scene.upstream.fail("/crates/*", unreachable)
    await scene.download(packages[0])
    scene.clock.advance(301)
    mirror.fail(CONFIG, unreachable)
    for package in packages[1:]:
        assert (await scene.download(package)).body == crate_file(package)
    assert mirror.paths(CONFIG) == [CONFIG] * 2, "and it is not asked for with each"


async def test_a_mirrors_404_is_no_absence(scene: Scene) -> None:
    mirror = scene.mirror(Registry())
    scene.publish(SERDE)
    scene.upstream.fail("/crates/*", FAILURES["403"])
    with pytest.raises(Troubled):
        await scene.download(SERDE)
    assert paths(mirror) == [CRATE]


async def test_a_version_that_a_mirrors_index_lacks_is_an_outage_and_no_absence(
    scene: Scene,
) -> None:
    behind = Registry()
    behind.publish(SERDE)
    scene.mirror(behind)
    newer = Package("serde", "1.0.1")
    scene.publish(SERDE, newer)
    scene.upstream.fail("*", unreachable)
    for wanted in (None, scene.cksum(newer)):
        with pytest.raises(Unreachable, match=r"serde 1\.0\.1"):
            await advancing(scene, scene.crate(newer, wanted))
    assert (await scene.download(SERDE)).body == crate_file(SERDE)
    scene.upstream.heal()
    scene.clock.advance(31)
    assert (await scene.download(newer)).body == crate_file(newer), "nothing was remembered"


async def test_the_upstreams_404_is_one_and_no_mirror_is_asked(scene: Scene) -> None:
    mirror = scene.mirror()
    scene.publish(SERDE)
    scene.upstream.reply("/crates/*", Reply(404))
    assert isinstance(await scene.crate(SERDE), NoSuchCrate)
    assert mirror.paths() == []


async def test_what_broke_off_before_the_first_byte_begins_anew_elsewhere(scene: Scene) -> None:
    mirror = scene.mirror()
    scene.publish(LARGE)
    other = Shipment(bend=lambda _: b"x" * 200_000, cut_after=60_000, announces=False)
    scene.upstream.ship("/crates/*", other)
    got = await scene.download(LARGE)
    assert got.body == crate_file(LARGE), "nothing of the first is left in it"
    assert paths(scene.upstream) == paths(mirror) == [CRATE]


async def test_a_length_that_one_announced_does_not_bind_the_next(scene: Scene) -> None:
    scene.mirror()
    scene.publish(SERDE)
    scene.upstream.ship("/crates/*", Shipment(cut_after=0, announced_bytes=5))
    got = await scene.download(SERDE)
    assert (got.body, got.size_bytes) == (crate_file(SERDE), len(crate_file(SERDE)))


@pytest.mark.parametrize("bend", [bytes, lambda body: b"x" * len(body)], ids=["true", "wrong"])
async def test_once_bytes_have_flowed_nobody_else_goes_on_with_them(
    scene: Scene, bend: type[bytes]
) -> None:
    mirror = scene.mirror()
    scene.publish(LARGE)
    scene.upstream.ship("/crates/*", Shipment(bend=bend, cut_after=250_000))
    served = await scene.crate(LARGE)
    assert not isinstance(served, NoSuchCrate)
    got, failure = await advancing(scene, cut_short(served))
    assert isinstance(failure, Unreachable)
    assert bend(crate_file(LARGE)).startswith(got), "from one address, to the last byte"
    assert mirror.paths() == []
    scene.upstream.fail("/crates/*", unreachable)
    scene.upstream._shipments.clear()
    assert (await advancing(scene, scene.download(LARGE))).body == crate_file(LARGE)
    assert paths(mirror) == [CRATE], "the next try is free to go elsewhere"


async def test_once_bytes_have_flowed_the_one_they_came_from_may_go_on(scene: Scene) -> None:
    mirror = scene.mirror()
    scene.publish(LARGE)
    scene.upstream.ship("/crates/*", Shipment(cut_after=250_000), times=1)
    assert (await scene.download(LARGE)).body == crate_file(LARGE)
    assert mirror.paths() == []


async def test_readers_of_a_transfer_that_moved_on_get_one_body(scene: Scene) -> None:
    scene.mirror()
    scene.publish(LARGE)
    gate = scene.upstream.hold("/crates/*")
    readers = [asyncio.ensure_future(scene.download(LARGE)) for _ in range(5)]
    await gate.arrived()
    scene.upstream.fail("/crates/*", unreachable)
    gate.release()
    assert {got.body for got in await asyncio.gather(*readers)} == {crate_file(LARGE)}


async def test_a_small_crate_with_wrong_bytes_comes_from_the_next(scene: Scene) -> None:
    liar, mirror = scene.mirror(), scene.mirror()
    scene.publish(SERDE)
    await scene.index("serde")
    scene.upstream.fail("/crates/*", unreachable)
    liar.ship("/crates/*", WRONG)
    got = await scene.download(SERDE)
    assert got.body == crate_file(SERDE)
    (told,) = scene.observer.of(MirrorSetAside)
    assert told.mirror == mirror_address(liar)
    (broken,) = scene.observer.of(IntegrityFailed)
    assert "mirror-1" in broken.where or "mirror-1" in str(broken)
    assert paths(liar) == paths(mirror) == [CRATE]


@pytest.mark.parametrize("page", [False, True], ids=["wrong bytes", "a web page"])
async def test_a_large_crate_with_wrong_bytes_is_broken_off_and_comes_from_the_next(
    scene: Scene, page: bool
) -> None:
    liar, mirror = scene.mirror(), scene.mirror()
    scene.publish(LARGE)
    await scene.index("serde")
    scene.upstream.fail("/crates/*", unreachable)
    liar.ship("/crates/*", Shipment(bend=WRONG.bend, content_type="text/html" if page else None))
    served = await scene.crate(LARGE)
    assert not isinstance(served, NoSuchCrate)
    got, failure = await cut_short(served)
    assert isinstance(failure, Misbehaved)
    assert len(got) < len(crate_file(LARGE))
    assert scene.endpoint(liar).is_out(scene.clock.monotonic())
    got_anew = await advancing(scene, scene.download(LARGE))
    assert got_anew.body == crate_file(LARGE), "the mismatch was the liar's, and is not remembered"
    assert (paths(liar), paths(mirror)) == ([CRATE], [CRATE])


async def test_a_mirror_that_was_set_aside_is_asked_again_after_ten_minutes(scene: Scene) -> None:
    liar = scene.mirror()
    other = Package("serde", "1.0.1")
    scene.publish(SERDE, other)
    await scene.index("serde")
    scene.upstream.fail("/crates/*", FAILURES["403"])
    liar.ship("/crates/*", WRONG, times=1)
    with pytest.raises(ChecksumMismatch):
        await scene.download(SERDE)
    scene.clock.advance(ASIDE_S - 1)
    with pytest.raises(UpstreamFailure):
        await advancing(scene, scene.download(other))
    assert paths(liar) == [CRATE]
    scene.clock.advance(1)
    assert (await scene.download(other)).body == crate_file(other)


async def test_the_upstream_itself_is_asked_last_for_crates_when_its_bytes_were_wrong(
    scene: Scene,
) -> None:
    mirror = scene.mirror()
    second, third = Package("serde", "1.0.1"), Package("other")
    scene.publish(SERDE, second, third)
    scene.upstream.ship("/crates/*", WRONG, times=1)
    assert (await scene.download(SERDE)).body == crate_file(SERDE)
    assert [told.mirror for told in scene.observer.of(MirrorSetAside)] == [""]
    scene.upstream.clear()
    assert (await scene.download(second)).body == crate_file(second)
    assert (paths(scene.upstream), len(paths(mirror))) == ([], 2)
    await scene.index("other")
    assert scene.upstream.paths("/index/*") == ["/index/ot/he/other"], "its word is still taken"
    mirror.reply("/crates/other/*", Reply(404))
    assert (await scene.download(third)).body == crate_file(third), "what only it has it gives"
    scene.clock.advance(ASIDE_S)
    scene.upstream.clear()
    scene.publish(Package("new"))
    await scene.download(Package("new"))
    assert len(paths(scene.upstream)) == 1


async def test_an_upstream_whose_large_crate_was_wrong_is_not_asked_for_it_next(
    scene: Scene,
) -> None:
    scene.mirror()
    scene.publish(LARGE)
    scene.upstream.ship("/crates/*", WRONG)
    served = await scene.crate(LARGE)
    assert not isinstance(served, NoSuchCrate)
    await cut_short(served)
    assert (await scene.download(LARGE)).body == crate_file(LARGE)


async def test_where_all_have_wrong_bytes_each_is_asked_once_and_that_is_remembered(
    scene: Scene,
) -> None:
    mirrors = [scene.mirror(), scene.mirror()]
    scene.publish(SERDE)
    for one in (scene.upstream, *mirrors):
        one.ship("/crates/*", WRONG)
    for _ in range(3):
        with pytest.raises(ChecksumMismatch):
            await scene.download(SERDE)
    assert [paths(one) for one in (scene.upstream, *mirrors)] == [[CRATE]] * 3
    for one in (scene.upstream, *mirrors):
        one.heal()
    scene.clock.advance(MISMATCH_REMEMBERED_S)
    assert (await scene.download(SERDE)).body == crate_file(SERDE)
    assert len(paths(mirrors[0])) == 1, "mirrors are aside for longer"


async def test_where_the_others_cannot_be_asked_the_wrong_bytes_are_what_is_told(
    scene: Scene,
) -> None:
    mirror = scene.mirror()
    scene.publish(SERDE)
    scene.upstream.ship("/crates/*", WRONG)
    mirror.fail("*", FAILURES["403"])
    for _ in range(2):
        with pytest.raises(ChecksumMismatch):
            await scene.download(SERDE)
    assert paths(scene.upstream) == [CRATE], "and remembered"


async def test_a_web_page_from_the_upstream_is_not_remembered_though_a_mirror_lacks_it(
    scene: Scene,
) -> None:
    scene.mirror(Registry())
    scene.publish(SERDE)
    page = Reply(200, faults.LOGIN_PAGE, (("Content-Type", "text/html"),))
    scene.upstream.reply("/crates/*", page, times=1)
    with pytest.raises(Misbehaved):
        await scene.download(SERDE)
    assert (await scene.download(SERDE)).body == crate_file(SERDE)


async def test_a_mirror_whose_index_was_wrong_is_accused_by_the_upstreams_bytes(
    scene: Scene,
) -> None:
    lying = Registry()
    lying.publish(Package("serde", "1.0.0", files={"NEWS": "other bytes"}))
    mirror = scene.mirror(lying)
    scene.publish(SERDE)
    scene.upstream.fail("*", unreachable)
    await scene.index("serde")
    scene.upstream.heal()
    with pytest.raises(ChecksumMismatch):
        await scene.download(SERDE)
    assert [told.mirror for told in scene.observer.of(MirrorSetAside)] == [mirror_address(mirror)]
    assert paths(mirror) == []
    scene.clock.advance(121)
    await scene.index("serde", insisting=True)
    assert (await scene.download(SERDE)).body == crate_file(SERDE)


async def test_with_a_disk_that_fails_a_lying_mirror_is_set_aside_all_the_same(
    scene: Scene,
) -> None:
    liar, mirror = scene.mirror(), scene.mirror()
    scene.publish(SERDE)
    await scene.index("serde")
    scene.upstream.fail("/crates/*", FAILURES["403"])
    scene.blobs.points.fail("draft")
    liar.ship("/crates/*", WRONG)
    with pytest.raises(ChecksumMismatch):
        await scene.download(SERDE)
    assert (await scene.download(SERDE)).body == crate_file(SERDE)
    assert paths(mirror) == [CRATE]


async def test_the_breaker_of_crates_is_apart_from_the_indexs(scene: Scene) -> None:
    scene.mirror()
    scene.publish(SERDE, Package("serde", "1.0.1"))
    scene.upstream.fail("/crates/*", unreachable)
    await scene.download(SERDE)
    own = scene.endpoint(scene.upstream)
    assert own.crates.failing_since is not None
    assert own.index.failing_since is None
    scene.upstream.clear()
    await scene.download(Package("serde", "1.0.1"))
    assert paths(scene.upstream) == [], "spared"
    await scene.index("absent")
    assert scene.upstream.paths() == ["/index/ab/se/absent"]


async def test_want_of_our_own_connections_opens_no_breaker(scene: Scene) -> None:
    scene.mirror()
    packages = [Package("serde", f"1.0.{number}") for number in range(5)]
    scene.publish(*packages)
    scene.upstream.fail("/crates/*", FAILURES["crowded"])
    for package in packages:
        await scene.download(package)
    assert len(paths(scene.upstream)) == 5
    assert scene.endpoint(scene.upstream).crates.failing_since is None


async def test_a_long_transfer_tells_at_its_beginning_that_the_upstream_answers(
    scene: Scene,
) -> None:
    scene.publish(LARGE, Package("other"))
    scene.upstream.fail("/crates/*", unreachable, times=9)
    for _ in range(3):
        with pytest.raises(UpstreamFailure):
            await advancing(scene, scene.download(LARGE))
    assert scene.source.report()[0].crates == "open"
    scene.clock.advance(31)
    tap = scene.upstream.tap("/crates/serde/*", chunk_bytes=100_000)
    tap.let(1)
    served = await scene.crate(LARGE)
    assert not isinstance(served, NoSuchCrate)
    assert scene.source.report()[0].crates == "closed"
    assert (await scene.download(Package("other"))).body == crate_file(Package("other"))
    tap.open()
    assert await drained(served) == crate_file(LARGE)
    await turns()
