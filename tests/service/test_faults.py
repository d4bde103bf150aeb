"""Every place where a journey waits, and everything that can happen there.

The upstream's answer, each part of a crate's body, each call of each store: it fails, it hangs, the
client leaves there, the house stops there. Whatever happens, nobody is told anything wrong, nobody
waits for ever, nothing is left behind, and as soon as things go well again the truth is told.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import pytest

from proxy.core.failures import NoSuchCrate, StoreFailure, Unreachable, UpstreamFailure
from proxy.service.crates import CrateServed
from proxy.service.indexes import IndexServed
from tests.service.scene import LARGE_BYTES, Scene, drained, one_scene, turns
from tests.service.trouble import Points
from tests.world.crates import Package, crate_file, sha256
from tests.world.upstream import ScriptedUpstream, Shipment

SERDE = Package("serde", "1.0.0")
NEWER = Package("serde", "1.0.1")
LARGE = Package("serde", "1.0.0", padding_bytes=LARGE_BYTES)
ABSENT = b"absent"
CLIENTS = 3
PATIENCE_S = 20.0

# Where requests to the upstream are, by the word that a journey uses for them.
UPSTREAM = {"index": "/index/se/*", "config": "/index/config.json", "crate": "/crates/*"}


@dataclass(frozen=True, slots=True)
class Journey:
    """What has happened before, what clients ask for, what is true, and where they come past.

    `acceptable` is what else may be served while things go wrong.
    """

    name: str
    prepare: Callable[[Scene], Awaitable[None]]
    go: Callable[[Scene], Awaitable[bytes]]
    truth: Callable[[Scene], bytes]
    passes: tuple[str, ...]
    acceptable: Callable[[Scene], set[bytes]] = lambda _: set()


async def index(scene: Scene) -> bytes:
    """Ask for the index file."""
    answer = await scene.index("serde", insisting=True)
    return answer.rendered.identity if isinstance(answer, IndexServed) else ABSENT


def crate(package: Package, digest: str | None = None) -> Callable[[Scene], Awaitable[bytes]]:
    """Ask for a crate."""

    async def go(scene: Scene) -> bytes:
        served = await scene.crate(package, digest)
        if isinstance(served, NoSuchCrate):
            return ABSENT
        assert isinstance(served, CrateServed)
        try:
            return await drained(served)
        finally:
            await served.aclose()

    return go


def publishing(package: Package) -> Callable[[Scene], Awaitable[None]]:
    async def prepare(scene: Scene) -> None:
        scene.publish(package)

    return prepare


async def learned(scene: Scene) -> None:
    """Have an index file in the store that is stale, and nothing in memory."""
    scene.publish(SERDE)
    await scene.index("serde")
    scene.clock.advance(60)
    await scene.restart()


async def outdated(scene: Scene) -> None:
    await learned(scene)
    scene.publish(NEWER)


async def deleted(scene: Scene) -> None:
    await learned(scene)
    scene.registry.delete("serde")


async def returned(scene: Scene) -> None:
    await deleted(scene)
    await scene.index("serde", insisting=True)
    scene.publish(NEWER)
    scene.clock.advance(5)
    await scene.restart()


async def stored(scene: Scene) -> None:
    scene.publish(LARGE)
    await scene.download(LARGE)
    await scene.settle()
    await scene.restart()


async def locked(scene: Scene) -> None:
    """Have a blob of a name that was removed."""
    scene.publish(SERDE)
    await scene.download(SERDE)
    scene.registry.delete("serde")
    scene.clock.advance(60)
    await scene.index("serde", insisting=True)
    await scene.restart()


async def lacking(scene: Scene) -> None:
    """Have a snapshot without the newest version."""
    scene.publish(SERDE)
    await scene.index("serde")
    scene.publish(NEWER)
    scene.clock.advance(6)
    await scene.restart()


async def spoiled(scene: Scene) -> None:
    """Have an upstream that sends the wrong bytes, for now."""
    scene.publish(LARGE)
    scene.upstream.ship("/crates/*", Shipment(bend=lambda body: body[:-1] + b"!"))


def mirrored(package: Package) -> Callable[[Scene], Awaitable[None]]:
    """Have an upstream that cannot be reached, and a mirror."""

    async def prepare(scene: Scene) -> None:
        scene.mirror()
        scene.publish(package)
        scene.upstream.fail("*", lambda: Unreachable("crates-io cannot be reached"))

    return prepare


def lied_to(package: Package) -> Callable[[Scene], Awaitable[None]]:
    """Have an upstream that cannot be reached, a mirror that lies, and one that does not."""

    async def prepare(scene: Scene) -> None:
        liar = scene.mirror()
        await mirrored(package)(scene)
        liar.ship("/crates/*", Shipment(bend=lambda body: body[:-1] + b"!"))

    return prepare


def index_now(scene: Scene) -> bytes:
    return scene.registry.index("serde")


def index_before(scene: Scene) -> set[bytes]:
    return {state.body for state in scene.registry.history("serde")}


def of(package: Package) -> Callable[[Scene], bytes]:
    return lambda _: crate_file(package)


def first_index(_: Scene) -> set[bytes]:
    """Return the only index file that was ever learned of a crate that is gone."""
    scene = Scene()
    scene.publish(SERDE)
    return {scene.registry.index("serde")}


COLD_CRATE = ("index", "config", "crate", "get", "put", "open", "draft", "write", "commit")
LIED_TO = ("config", "crate", "draft", "write", "discard", "commit")
JOURNEYS = [
    Journey("index", publishing(SERDE), index, index_now, ("index", "get", "put")),
    Journey("index confirmed", learned, index, index_now, ("index", "get", "confirm")),
    Journey("index outdated", outdated, index, index_now, ("index", "get", "put"), index_before),
    Journey(
        "index removed",
        deleted,
        index,
        lambda _: ABSENT,
        ("index", "get", "put", "removed"),
        first_index,
    ),
    Journey("index returned", returned, index, index_now, ("index", "get", "put", "returned")),
    Journey("small crate", publishing(SERDE), crate(SERDE), of(SERDE), COLD_CRATE),
    Journey(
        "large crate", publishing(LARGE), crate(LARGE), of(LARGE), (*COLD_CRATE, "body", "read")
    ),
    Journey("stored crate", stored, crate(LARGE), of(LARGE), ("get", "open")),
    Journey(
        "crate of a lock file",
        locked,
        crate(SERDE, sha256(crate_file(SERDE))),
        of(SERDE),
        ("get", "open"),
        # A store that cannot be read is a miss, and the upstream has no such crate any more.
        acceptable=lambda _: {ABSENT},
    ),
    Journey("crate lacking", lacking, crate(NEWER), of(NEWER), ("index", "get", "put", "crate")),
    Journey("index of a mirror", mirrored(SERDE), index, index_now, ("index", "get", "put")),
    Journey("small crate of a mirror", mirrored(SERDE), crate(SERDE), of(SERDE), COLD_CRATE),
    Journey(
        "large crate of a mirror",
        mirrored(LARGE),
        crate(LARGE),
        of(LARGE),
        (*COLD_CRATE, "body", "read"),
    ),
    Journey("wrong crate of a mirror", lied_to(SERDE), crate(SERDE), of(SERDE), LIED_TO),
    Journey("wrong crate", spoiled, crate(LARGE), of(LARGE), ("crate", "write", "discard")),
]
PLACES = [
    pytest.param(journey, place, id=f"{journey.name}: {place}")
    for journey in JOURNEYS
    for place in journey.passes
]


class Stop(Protocol):
    """Somewhere to be held up."""

    async def __call__(self) -> None:
        """Wait until somebody has come there."""
        ...


def asked_last(scene: Scene) -> ScriptedUpstream:
    """Return the upstream, or its last mirror if it has some."""
    return scene.mirrors[-1] if scene.mirrors else scene.upstream


def points_of(scene: Scene, place: str) -> Points:
    """Return the store that `place` is in."""
    if place in ("get", "put", "confirm"):
        return scene.index_store.points
    if place in ("removed", "returned"):
        return scene.state.points
    return scene.blobs.points


def fail_at(scene: Scene, place: str) -> None:
    """Let everything fail there."""
    if place in UPSTREAM:
        asked_last(scene).fail(UPSTREAM[place], lambda: Unreachable("crates-io broke off"))
    elif place == "body":
        asked_last(scene).ship("/crates/*", Shipment(cut_after=150_000))
    else:
        points_of(scene, place).fail(place)


def hang_at(scene: Scene, place: str) -> Stop:
    """Let everything hang there; returns what waits until somebody does."""
    if place in UPSTREAM:
        return asked_last(scene).hold(UPSTREAM[place]).arrived
    if place == "body":
        tap = asked_last(scene).tap("/crates/*", chunk_bytes=50_000)
        tap.let(3)
        return tap.is_dry
    return points_of(scene, place).hang(place).arrived


def heal(scene: Scene) -> None:
    """Let everything go well."""
    for upstream in scene.everybody():
        upstream.heal()
    for points in (scene.index_store.points, scene.state.points, scene.blobs.points):
        points.heal()


async def at_the_same_time(scene: Scene, journey: Journey) -> list[asyncio.Task[bytes]]:
    """Let some clients begin, one after the other."""
    clients = []
    for _ in range(CLIENTS):
        clients.append(asyncio.ensure_future(journey.go(scene)))
        await turns(2)
    return clients


def assert_not_wrong(scene: Scene, journey: Journey, outcome: bytes | BaseException) -> None:
    """See that an outcome is the truth, something that may be served, or an honest failure."""
    if isinstance(outcome, BaseException):
        assert isinstance(outcome, UpstreamFailure | StoreFailure), repr(outcome)
    else:
        assert outcome in {journey.truth(scene), *journey.acceptable(scene)}


async def assert_healed(scene: Scene, journey: Journey) -> None:
    """See that the truth is told once things go well and what is remembered has passed."""
    heal(scene)
    await scene.settle()
    scene.clock.advance(61)
    for _ in range(2):
        assert await journey.go(scene) == journey.truth(scene)
        await scene.settle()
    assert scene.blobs.leaks() == []


@pytest.mark.parametrize(("journey", "place"), PLACES)
async def test_it_fails(journey: Journey, place: str) -> None:
    async with one_scene() as scene:
        await journey.prepare(scene)
        scene.upstream.clear()
        scene.tell()
        fail_at(scene, place)
        clients = await at_the_same_time(scene, journey)
        for outcome in await asyncio.gather(*clients, return_exceptions=True):
            assert_not_wrong(scene, journey, outcome)
        if place in UPSTREAM:
            assert asked_last(scene).paths(UPSTREAM[place])
        elif place != "body":
            assert points_of(scene, place).passed[place] > 0
        await assert_healed(scene, journey)


@pytest.mark.parametrize(("journey", "place"), PLACES)
async def test_it_hangs(journey: Journey, place: str) -> None:
    async with one_scene() as scene:
        await journey.prepare(scene)
        somebody_is_there = hang_at(scene, place)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        clients = await at_the_same_time(scene, journey)
        await somebody_is_there()
        if place == "read":
            # The first byte is there, and the disk does not give the next: that is the rim's wait.
            heal(scene)
        for outcome in await asyncio.gather(*clients, return_exceptions=True):
            assert_not_wrong(scene, journey, outcome)
        flowing = place == "body"
        assert loop.time() - begun <= (3 * scene.upstream.patience_s if flowing else PATIENCE_S)
        await assert_healed(scene, journey)


@pytest.mark.parametrize(("journey", "place"), PLACES)
async def test_a_client_leaves(journey: Journey, place: str) -> None:
    async with one_scene() as scene:
        await journey.prepare(scene)
        somebody_is_there = hang_at(scene, place)
        first, *others = await at_the_same_time(scene, journey)
        await somebody_is_there()
        first.cancel()
        await turns()
        # What is wrong with the bytes stays wrong; everything else goes well for those who stay.
        heal(scene)
        for outcome in await asyncio.gather(*others, return_exceptions=True):
            if journey.prepare is spoiled:
                assert_not_wrong(scene, journey, outcome)
            else:
                assert outcome == journey.truth(scene)
        await assert_healed(scene, journey)


@pytest.mark.parametrize(("journey", "place"), PLACES)
async def test_everybody_leaves(journey: Journey, place: str) -> None:
    async with one_scene() as scene:
        await journey.prepare(scene)
        somebody_is_there = hang_at(scene, place)
        clients = await at_the_same_time(scene, journey)
        await somebody_is_there()
        for client in clients:
            client.cancel()
        await turns()
        await assert_healed(scene, journey)


@pytest.mark.parametrize(("journey", "place"), PLACES)
async def test_the_house_stops(journey: Journey, place: str) -> None:
    async with one_scene() as scene:
        await journey.prepare(scene)
        somebody_is_there = hang_at(scene, place)
        clients = await at_the_same_time(scene, journey)
        await somebody_is_there()
        stopping = asyncio.ensure_future(scene.stop())
        await turns()
        heal(scene)
        await stopping
        for outcome in await asyncio.gather(*clients, return_exceptions=True):
            # A client whose flight is cancelled is cancelled with it.
            if not isinstance(outcome, asyncio.CancelledError):
                assert_not_wrong(scene, journey, outcome)
        await scene.restart(clean=False)
        await assert_healed(scene, journey)
