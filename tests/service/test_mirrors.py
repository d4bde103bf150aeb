"""Index files from mirrors: who is asked, in which order, with what, and what is believed."""

import pytest

from proxy.core.answers import NO_VALIDATORS, Validators
from proxy.core.events import How, MirrorSetAside
from proxy.core.failures import Misbehaved, TimedOut, Troubled, Unreachable, UpstreamFailure
from proxy.service.endpoint import ASIDE_S
from proxy.service.indexes import IndexAbsent, IndexServed
from tests.service.scene import Scene, advancing, mirror_address, turns
from tests.world import faults
from tests.world.crates import Package
from tests.world.registry import Registry
from tests.world.upstream import MakeFailure, ScriptedUpstream
from tests.world.wire import Reply

SERDE = Package("serde", "1.0.0")
NEWER = Package("serde", "1.0.1")
OTHER = Package("serde", "1.0.0", files={"NEWS": "other bytes"})
INDEX = "/index/se/rd/serde"
TEXT = (("Content-Type", "text/plain"),)


def unreachable() -> Unreachable:
    return Unreachable("crates-io cannot be reached")


FAILURES: dict[str, MakeFailure] = {
    "unreachable": unreachable,
    "timing out": lambda: TimedOut("crates-io did not answer in time"),
    "503": lambda: Troubled("answered 503", status=503, transient=True, retry_after_s=3600.0),
    "403": lambda: Troubled("answered 403", status=403, transient=False),
    "501": lambda: Troubled("answered 501", status=501, transient=False),
    "misbehaved": lambda: Misbehaved("crates-io sent a web page"),
}
REPLIES = {
    "web page": Reply(200, faults.LOGIN_PAGE, (("Content-Type", "text/html"),)),
    "garbage": Reply(200, b"\x00\xff" * 100, TEXT),
    "nothing": Reply(200, b"", TEXT),
    "another crate": Reply(200, b'{"name":"tokio","vers":"1.0.0"}\n', TEXT),
}


def spoil(upstream: ScriptedUpstream, how: str) -> None:
    """Let everything that an upstream says of index files go wrong."""
    if how in FAILURES:
        upstream.fail("/index/*", FAILURES[how])
    else:
        upstream.reply("/index/*", REPLIES[how])


async def from_mirror_alone(scene: Scene, mirror: ScriptedUpstream) -> None:
    """Have what a mirror said, stale, of an upstream that is well again."""
    scene.upstream.fail("*", unreachable)
    assert await scene.body("serde") == mirror.registry.index("serde")
    scene.upstream.heal()
    scene.clock.advance(61)
    for one in scene.everybody():
        one.clear()
    scene.tell()


@pytest.mark.parametrize("how", [*FAILURES, *REPLIES])
async def test_a_mirror_answers_for_an_upstream_that_cannot(scene: Scene, how: str) -> None:
    mirror = scene.mirror()
    scene.publish(SERDE)
    spoil(scene.upstream, how)
    served = await scene.index("serde")
    assert isinstance(served, IndexServed)
    assert served.rendered.identity == scene.registry.index("serde")
    assert (served.how, served.may_confirm) == (How.MISS, True)
    assert scene.upstream.paths() == mirror.paths() == [INDEX], "each once, and in no hurry"
    assert scene.clock.slept == []


async def test_a_mirror_is_not_asked_while_the_upstream_answers(scene: Scene) -> None:
    mirror = scene.mirror()
    scene.publish(SERDE)
    await scene.index("serde")
    assert isinstance(await scene.index("absent"), IndexAbsent)
    assert mirror.paths() == []


async def test_mirrors_are_asked_in_the_order_in_which_they_are_written(scene: Scene) -> None:
    first, second, third = scene.mirror(), scene.mirror(), scene.mirror()
    scene.publish(SERDE)
    order: list[str] = []
    for one in (scene.upstream, first):

        def failing(name: str = one.name) -> UpstreamFailure:
            order.append(name)
            return unreachable()

        one.fail("*", failing)
    assert await scene.body("serde") == scene.registry.index("serde")
    assert order == ["crates-io", "mirror-1"]
    assert (second.paths(), third.paths()) == ([INDEX], [])


async def test_when_all_fail_each_is_asked_once_a_round_and_the_upstreams_failure_is_told(
    scene: Scene,
) -> None:
    mirror = scene.mirror()
    scene.publish(SERDE)
    scene.upstream.fail("*", unreachable)
    mirror.fail("*", lambda: TimedOut("mirror-1 did not answer in time"))
    asking = scene.index("serde")
    with pytest.raises(Unreachable, match="crates-io"):
        await advancing(scene, asking)
    assert scene.upstream.paths() == mirror.paths() == [INDEX] * 3
    assert len(scene.clock.slept) == 2, "one delay between two rounds"


async def test_the_upstreams_own_word_on_when_to_come_again_holds_no_mirror_up(
    scene: Scene,
) -> None:
    mirror = scene.mirror()
    scene.publish(SERDE)
    spoil(scene.upstream, "503")
    mirror.fail("*", unreachable, times=1)
    with pytest.raises(Troubled):
        await scene.index("serde")
    assert (scene.upstream.paths(), mirror.paths()) == ([INDEX], [INDEX])
    assert await scene.body("serde") == scene.registry.index("serde")


async def test_a_mirrors_404_is_no_absence(scene: Scene) -> None:
    mirror = scene.mirror(Registry())
    scene.publish(SERDE)
    spoil(scene.upstream, "501")
    with pytest.raises(Troubled):
        await scene.index("serde")
    assert mirror.paths() == [INDEX]
    scene.upstream.heal()
    assert await scene.body("serde") == scene.registry.index("serde"), "nothing was remembered"


async def test_a_mirrors_404_takes_nothing_away(scene: Scene) -> None:
    mirror = scene.mirror(Registry())
    scene.publish(SERDE)
    await scene.index("serde")
    scene.upstream.fail("*", unreachable)
    scene.clock.advance(121)
    served = await scene.index("serde", insisting=True)
    assert isinstance(served, IndexServed)
    assert served.how is How.STALE
    assert mirror.paths() == [INDEX], "one opinion is enough for nothing"
    held = scene.held("serde")
    assert held is not None
    assert held.body is not None
    assert "serde was removed" not in scene.tell()


async def test_with_mirrors_alone_that_lack_it_a_name_is_an_outage(scene: Scene) -> None:
    scene.mirror(Registry())
    spoil(scene.upstream, "501")
    for _ in range(6):
        with pytest.raises(UpstreamFailure):
            await advancing(scene, scene.index("serde"))
    scene.upstream.heal()
    scene.clock.advance(31)
    assert isinstance(await scene.index("serde"), IndexAbsent)


async def test_each_address_is_asked_with_its_own_validators(scene: Scene) -> None:
    mirror = scene.mirror()
    scene.publish(SERDE)
    await scene.index("serde")
    of_upstream = scene.registry.history("serde")[-1].etag
    scene.clock.advance(61)
    scene.upstream.fail("*", unreachable)
    await scene.index("serde", insisting=True)
    assert mirror.asked[-1].validators == NO_VALIDATORS, "what the upstream gave is no mirror's"
    scene.clock.advance(61)
    served = await scene.index("serde", insisting=True)
    assert isinstance(served, IndexServed)
    assert served.how is How.REVALIDATED
    assert mirror.asked[-1].validators.etag == of_upstream
    scene.upstream.heal()
    scene.clock.advance(61)
    scene.upstream.clear()
    await scene.index("serde", insisting=True)
    assert scene.upstream.asked[-1].validators == NO_VALIDATORS, "nor the other way round"
    scene.clock.advance(61)
    await scene.index("serde", insisting=True)
    assert scene.upstream.asked[-1].validators.etag == of_upstream


async def test_after_a_restart_validators_are_still_their_mirrors(scene: Scene) -> None:
    mirror = scene.mirror()
    scene.publish(SERDE)
    await from_mirror_alone(scene, mirror)
    held = scene.held("serde")
    assert held is not None
    assert held.validators.mirror == mirror_address(mirror)
    await scene.restart()
    scene.upstream.fail("*", unreachable, times=1)
    await scene.index("serde", insisting=True)
    assert scene.upstream.asked[-1].validators == NO_VALIDATORS
    assert mirror.asked[-1].validators == Validators(
        held.validators.etag, held.validators.last_modified
    )


async def test_a_mirror_that_is_behind_takes_no_version_back(scene: Scene) -> None:
    behind = Registry()
    behind.publish(SERDE)
    mirror = scene.mirror(behind)
    scene.publish(SERDE, NEWER)
    before = await scene.body("serde")
    scene.upstream.fail("*", unreachable)
    scene.clock.advance(121)
    assert await scene.body("serde", insisting=True) == before
    assert mirror.paths() == [INDEX]
    assert "set aside" not in " ".join(scene.tell()), "to be late is no lie"
    behind.publish(NEWER)
    scene.clock.advance(121)
    served = await scene.index("serde", insisting=True)
    assert isinstance(served, IndexServed)
    assert served.how is not How.STALE, "once it has caught up it is good for all"


async def test_a_mirror_takes_back_nothing_that_it_has_said_itself(scene: Scene) -> None:
    theirs = Registry()
    theirs.publish(SERDE, NEWER)
    mirror = scene.mirror(theirs)
    scene.upstream.fail("*", unreachable)
    before = await scene.body("serde")
    theirs.publish(OTHER)
    scene.clock.advance(121)
    assert await scene.body("serde", insisting=True) == before
    assert f"set aside {mirror_address(mirror)}" in scene.tell()


async def test_yanking_by_a_mirror_is_believed(scene: Scene) -> None:
    theirs = Registry()
    theirs.publish(SERDE)
    scene.mirror(theirs)
    scene.publish(SERDE)
    await scene.index("serde")
    theirs.yank("serde", "1.0.0")
    scene.upstream.fail("*", unreachable)
    scene.clock.advance(121)
    assert await scene.body("serde", insisting=True) == theirs.index("serde")


async def test_a_mirror_that_contradicts_is_set_aside_for_ten_minutes_and_reported(
    scene: Scene,
) -> None:
    lying, honest = Registry(), scene.registry
    lying.publish(OTHER, NEWER)
    liar, mirror = scene.mirror(lying), scene.mirror(honest)
    scene.publish(SERDE)
    await scene.index("serde")
    scene.publish(NEWER)
    scene.upstream.fail("*", unreachable)
    scene.clock.advance(61)
    assert await scene.body("serde", insisting=True) == honest.index("serde")
    (told,) = scene.observer.of(MirrorSetAside)
    assert (told.upstream, told.mirror) == ("crates-io", mirror_address(liar))
    assert told.aside_for_s == ASIDE_S == 600.0
    assert "serde" in told.reason
    assert (liar.paths(), mirror.paths()) == ([INDEX], [INDEX])
    scene.clock.advance(ASIDE_S - 1)
    await scene.index("serde", insisting=True)
    assert len(liar.paths()) == 1, "not asked, whatever for"
    scene.clock.advance(ASIDE_S)
    await scene.index("serde", insisting=True)
    assert len(liar.paths()) == 2
    assert len(scene.observer.of(MirrorSetAside)) == 2, "and it still lies"


async def test_the_upstream_contradicts_what_a_mirror_had_given(scene: Scene) -> None:
    lying = Registry()
    lying.publish(OTHER)
    mirror = scene.mirror(lying)
    scene.publish(SERDE)
    await from_mirror_alone(scene, mirror)
    assert await scene.body("serde", insisting=True) == scene.registry.index("serde")
    assert f"set aside {mirror_address(mirror)}" in scene.tell()
    assert scene.endpoint(mirror).is_out(scene.clock.monotonic())


async def test_the_word_of_a_mirror_that_is_configured_no_more_accuses_nobody(
    scene: Scene,
) -> None:
    lying = Registry()
    lying.publish(OTHER)
    mirror = scene.mirror(lying)
    scene.publish(SERDE)
    await from_mirror_alone(scene, mirror)
    await scene.stop()
    scene.mirrors.clear()
    scene.mirror()
    scene.open_house()
    assert await scene.body("serde", insisting=True) == scene.registry.index("serde")
    assert scene.observer.of(MirrorSetAside) == []


async def test_the_upstream_is_right_though_a_mirror_had_a_later_date(scene: Scene) -> None:
    theirs = Registry()
    for minor in range(5):
        theirs.publish(Package("other", f"1.{minor}.0"))
    theirs.publish(SERDE)
    mirror = scene.mirror(theirs)
    scene.publish(SERDE, NEWER)
    await from_mirror_alone(scene, mirror)
    assert await scene.body("serde", insisting=True) == scene.registry.index("serde")
    assert "older serde refused" not in scene.tell()


async def test_the_upstream_may_have_fewer_versions_than_a_mirror_said(scene: Scene) -> None:
    theirs = Registry()
    theirs.publish(SERDE, NEWER)
    mirror = scene.mirror(theirs)
    scene.publish(SERDE)
    await from_mirror_alone(scene, mirror)
    assert await scene.body("serde", insisting=True) == scene.registry.index("serde")
    assert scene.observer.of(MirrorSetAside) == []


async def test_a_mirror_brings_no_removed_name_back(scene: Scene) -> None:
    theirs = Registry()
    theirs.publish(SERDE)
    mirror = scene.mirror(theirs)
    scene.publish(SERDE)
    await scene.index("serde")
    scene.registry.delete("serde")
    scene.clock.advance(61)
    assert isinstance(await scene.index("serde", insisting=True), IndexAbsent)
    scene.upstream.fail("*", unreachable)
    for seconds in (6, 61, 600):
        scene.clock.advance(seconds)
        try:
            served = await scene.index("serde", insisting=True)
        except UpstreamFailure:
            continue
        assert isinstance(served, IndexAbsent)
    assert INDEX in mirror.paths()
    assert "serde returned" not in scene.tell()


async def test_with_all_mirrors_aside_an_upstream_that_fails_is_an_outage_and_copies_are_served(
    scene: Scene,
) -> None:
    lying = Registry()
    lying.publish(OTHER)
    scene.mirror(lying)
    scene.publish(SERDE)
    before = await scene.body("serde")
    scene.upstream.fail("*", unreachable)
    scene.clock.advance(61)
    for _ in range(2):
        assert await scene.body("serde", insisting=True) == before
    assert scene.source.is_failing(), "nobody would answer"
    with pytest.raises(UpstreamFailure):
        await advancing(scene, scene.index("tokio"))


async def test_while_a_mirror_answers_the_upstream_is_tried_at_growing_intervals(
    scene: Scene,
) -> None:
    mirror = scene.mirror()
    names = [f"crate{number}" for number in range(200)]
    scene.publish(*(Package(name) for name in names))
    scene.upstream.fail("*", unreachable)
    for name in names:
        await scene.body(name)
        scene.clock.advance(1)
    assert len(mirror.paths()) == 200
    assert 6 <= len(scene.upstream.paths()) <= 13, "a wait each, and every half a minute at last"
    scene.upstream.heal()
    scene.clock.advance(30)
    mirror.clear()
    await scene.index("absent")
    await scene.index("absent-too")
    assert mirror.paths() == [], "one answer, and all is as before"


async def test_what_only_the_upstream_has_is_asked_of_it_though_it_failed_a_moment_ago(
    scene: Scene,
) -> None:
    mirror = scene.mirror(Registry())
    scene.publish(SERDE)
    mirror.registry.publish(Package("other"))
    scene.upstream.fail("*", unreachable, times=1)
    await scene.index("other")
    assert await scene.body("serde") == scene.registry.index("serde")
    assert mirror.paths("*serde") == [INDEX]
    await turns()


async def test_the_report_tells_of_each_address(scene: Scene) -> None:
    lying = Registry()
    lying.publish(OTHER)
    mirror = scene.mirror(lying)
    scene.publish(SERDE)
    await scene.index("serde")
    own, theirs = scene.source.report()
    assert (own.mirror, own.index, own.crates) == ("", "closed", "closed")
    assert (own.index_failing_for_s, own.set_aside_for_s, own.last_failure) == (None, None, None)
    assert theirs.mirror == mirror_address(mirror)
    scene.upstream.fail("*", unreachable)
    scene.clock.advance(61)
    await scene.index("serde", insisting=True)
    scene.clock.advance(1)
    own, theirs = scene.source.report()
    assert (own.index, own.index_failing_for_s) == ("open", 1.0)
    assert own.last_failure == "crates-io cannot be reached"
    assert (theirs.index, theirs.set_aside_for_s) == ("closed", 599.0)
    assert theirs.last_failure is not None
    assert "serde" in theirs.last_failure
