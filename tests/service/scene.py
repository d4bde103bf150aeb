"""The journeys in a scripted world, and what came of them as a story that can be read.

A `Scene` has one upstream (more with `join`), a clock that stands still, stores that can be
troubled, and the journeys between them. Whatever is observed and whatever is served becomes a line
of the story, so that a test compares what happened, in order, with what should have.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from proxy.core.answers import Snapshot
from proxy.core.events import (
    Event,
    Evicted,
    How,
    IntegrityFailed,
    MirrorSetAside,
    NameRemoved,
    NameReturned,
    OlderCopyAccepted,
    OlderCopyRefused,
    StoreFailed,
    UpstreamAsked,
    UpstreamFailed,
    UpstreamRecovered,
)
from proxy.core.failures import NoSuchCrate, StoreFailure, UpstreamFailure
from proxy.core.freshness import Terms
from proxy.core.room import Limits
from proxy.service.crates import Crates, CrateServed
from proxy.service.download import Address
from proxy.service.endpoint import Endpoint
from proxy.service.indexes import IndexAbsent, Indexes, IndexServed
from proxy.service.source import Source
from proxy.service.upstream_configs import UpstreamConfigs
from tests.service.trouble import TroubledBlobStore, TroubledIndexStore, TroubledStateStore
from tests.world.clock import ManualClock
from tests.world.crates import Package
from tests.world.observer import Recorder
from tests.world.registry import Registry
from tests.world.upstream import ScriptedUpstream

T = TypeVar("T")

PUBLIC = Terms(fresh_for_s=60.0, stale_while_revalidate_s=60.0, stale_if_error_s=7 * 86400.0)
INTERNAL = Terms(fresh_for_s=10.0, stale_while_revalidate_s=0.0, stale_if_error_s=7 * 86400.0)
KIBIBYTE = 1024
# Well over what is held back, so that it flows before it is proven.
LARGE_BYTES = 300 * KIBIBYTE
ROOMY = Limits(max_size_bytes=1 << 30, min_free_bytes=0)


class Storyteller(Recorder):
    """Keeps events, and tells them."""

    def __init__(self) -> None:
        super().__init__()
        self.story: list[str] = []

    def observe(self, event: Event) -> None:
        super().observe(event)
        line = told(event)
        if line is not None:
            self.story.append(line)

    def tell(self) -> list[str]:
        """Return the story since the last time."""
        told_now, self.story = self.story, []
        return told_now


def told(event: Event) -> str | None:
    """Put an event into words."""
    match event:
        case UpstreamAsked():
            return f"asked for {event.kind}: {event.outcome}"
        case UpstreamFailed():
            return f"gave up on {event.subject}" + (", served stale" if event.served_stale else "")
        case UpstreamRecovered():
            return f"recovered after {event.failing_for_s:g} s"
        case MirrorSetAside():
            return f"set aside {event.mirror or event.upstream}"
        case NameRemoved():
            return f"{event.name} was removed"
        case NameReturned():
            return f"{event.name} returned"
        case OlderCopyRefused():
            return f"older {event.name} refused"
        case OlderCopyAccepted():
            return f"older {event.name} accepted"
        case StoreFailed():
            return f"store failed: {event.doing}"
        case IntegrityFailed():
            return f"integrity failed: {event.where}"
        case Evicted():
            return f"evicted {event.blobs} by {event.reason}"
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Got:
    """A crate as a client got it, to its end."""

    body: bytes
    how: How
    size_bytes: int | None


def always(url: str) -> Address:
    """Return what says that every endpoint has the file at `url`."""

    async def address(_: Endpoint) -> str:
        return url

    return address


class Scene:
    """One house with its journeys, and the world around it."""

    def __init__(
        self, *, terms: Terms = PUBLIC, memory_bytes: int = 1 << 24, limits: Limits = ROOMY
    ) -> None:
        self.clock = ManualClock()
        self.observer = Storyteller()
        self.registry = Registry()
        self.upstream = ScriptedUpstream(self.registry)
        self.index_store = TroubledIndexStore()
        self.state = TroubledStateStore()
        self.blobs = TroubledBlobStore(limits, self.observer, self.clock)
        self.memory_bytes = memory_bytes
        self.mirrors: list[ScriptedUpstream] = []
        self._mirror_numbers = count(1)
        self.sources: dict[str, Source] = {}
        self.source = self.join(self.upstream, terms)
        self._served: list[CrateServed] = []
        self.open_house()

    def join(self, upstream: ScriptedUpstream, terms: Terms = PUBLIC) -> Source:
        """Add an upstream."""
        source = Source(upstream, terms, self.clock, self.observer)
        self.sources[upstream.name] = source
        return source

    def mirror(self, registry: Registry | None = None) -> ScriptedUpstream:
        """Add a mirror of the first upstream, of the same contents unless it has its own.

        Before anything is asked: the source is made anew.
        """
        name = f"mirror-{next(self._mirror_numbers)}"
        self.mirrors.append(ScriptedUpstream(registry or self.registry, name))
        mirrors = tuple((mirror_address(one), one) for one in self.mirrors)
        self.source = Source(
            self.upstream, self.source.terms, self.clock, self.observer, mirrors=mirrors
        )
        self.sources[self.upstream.name] = self.source
        return self.mirrors[-1]

    def endpoint(self, upstream: ScriptedUpstream) -> Endpoint:
        """Return what is known of an address of the first upstream."""
        return next(one for one in self.source.endpoints if one.upstream is upstream)

    def everybody(self) -> list[ScriptedUpstream]:
        """Return all who can be asked."""
        upstreams = [one.upstream for source in self.sources.values() for one in source.endpoints]
        return [one for one in upstreams if isinstance(one, ScriptedUpstream)]

    def open_house(self) -> None:
        """Make the journeys, with nothing in memory."""
        self.configs = UpstreamConfigs(self.index_store, self.clock, self.observer)
        self.indexes = Indexes(
            self.index_store,
            self.state,
            self.clock,
            self.observer,
            memory_bytes=self.memory_bytes,
        )
        self.crates = Crates(self.indexes, self.configs, self.blobs, self.clock, self.observer)

    async def restart(self, *, clean: bool = True) -> None:
        """Stop the house and open it again over the same stores."""
        await self.stop()
        self.blobs.restart(clean=clean)
        for name, source in list(self.sources.items()):
            self.sources[name] = Source(
                source.upstream,
                source.terms,
                self.clock,
                self.observer,
                source.offline,
                source.mirrors,
            )
        self.source = self.sources[self.source.name]
        self.open_house()

    async def stop(self) -> None:
        """End what is running, as a stop does that has no patience left."""
        await self.crates.close(0)
        await self.indexes.close(0)
        await self.configs.close()

    async def settle(self) -> None:
        """Wait until nothing is under way any more; whoever waits for time gets it."""
        async with asyncio.timeout(600):
            while self.indexes.flights or self.crates.flights:
                await asyncio.sleep(0.01)
                if self.clock.sleeping:
                    self.clock.advance(0.5)
        await turns()

    async def index(
        self, name: str, *, insisting: bool = False, source: Source | None = None
    ) -> IndexServed | IndexAbsent:
        """Ask for an index file as the rim does, and tell what was served."""
        asked = source or self.source
        hot = self.indexes.hot(asked, name)
        served = (
            IndexServed(hot, How.HIT, may_confirm=True)
            if hot is not None
            else await self.indexes.answer(asked, name, insisting=insisting)
        )
        what = f"no {name}" if isinstance(served, IndexAbsent) else name
        confirmed = isinstance(served, IndexServed) and served.may_confirm
        self.observer.story.append(
            f"served {what}: {served.how}" + ("" if confirmed else ", no 304" * (what == name))
        )
        return served

    async def body(self, name: str, *, insisting: bool = False) -> bytes:
        """Return the body of an index file that must be there."""
        served = await self.index(name, insisting=insisting)
        assert isinstance(served, IndexServed)
        return served.rendered.identity

    async def crate(
        self, package: Package, sha256: str | None = None, *, source: Source | None = None
    ) -> CrateServed | NoSuchCrate:
        """Ask for a crate; what is served is closed at the end of the scene, if not before."""
        served = await self.crates.open(source or self.source, package.name, package.vers, sha256)
        if isinstance(served, CrateServed):
            self._served.append(served)
        return served

    async def download(
        self, package: Package, sha256: str | None = None, *, source: Source | None = None
    ) -> Got:
        """Download a crate to its end, and tell what was served. Raises what breaks it off."""
        served = await self.crate(package, sha256, source=source)
        assert isinstance(served, CrateServed), served
        self.observer.story.append(f"served {package.name} {package.vers}: {served.how}")
        try:
            body = await drained(served)
        finally:
            await served.aclose()
        return Got(body, served.how, served.body.size_bytes)

    def publish(self, *packages: Package) -> None:
        """Publish packages to the upstream."""
        self.registry.publish(*packages)

    def cksum(self, package: Package) -> str:
        """Return the checksum that the upstream's index gives now."""
        return self.registry.release(package.name, package.vers).cksum

    def held(self, name: str) -> Snapshot | None:
        """Return what the index store holds."""
        return self.index_store.snapshots.get((self.source.name, name))

    def tell(self) -> list[str]:
        """Return the story since the last time."""
        return self.observer.tell()

    async def close(self) -> None:
        """End the scene; whatever is not given back then is a leak."""
        for upstream in self.everybody():
            upstream.heal()
        for points in (self.index_store.points, self.state.points, self.blobs.points):
            points.heal()
        for served in self._served:
            await served.aclose()
        while self.clock.sleeping:
            self.clock.advance(3600)
            await asyncio.sleep(0)
        await self.crates.close(600)
        await self.indexes.close(600)
        await self.configs.close()
        assert self.leaks() == []

    def leaks(self) -> list[str]:
        """Name everything that is still held, open or running."""
        leaks = self.blobs.leaks()
        for upstream in self.everybody():
            leaks += ["connection"] * upstream.open_bodies
        leaks += ["download"] * self.crates.flights + ["index flight"] * self.indexes.flights
        here = asyncio.current_task()
        leaks += [str(task) for task in asyncio.all_tasks() if task is not here]
        return leaks


def mirror_address(mirror: ScriptedUpstream) -> str:
    """Return what a mirror is known by."""
    return f"{mirror.url}/index/"


async def advancing(scene: Scene, work: Awaitable[T]) -> T:
    """Await, and let time pass for whoever sleeps."""
    working = asyncio.ensure_future(work)
    while not working.done():
        await asyncio.wait({working}, timeout=0.01)
        if scene.clock.sleeping:
            scene.clock.advance(0.5)
    return working.result()


async def drained(served: CrateServed, offset: int = 0) -> bytes:
    """Read a body to its end."""
    parts = []
    while chunk := await served.body.read(offset):
        parts.append(chunk)
        offset += len(chunk)
    return b"".join(parts)


async def cut_short(served: CrateServed) -> tuple[bytes, UpstreamFailure | StoreFailure]:
    """Read a body that must break off: return what came of it, and what it broke off with."""
    got = b""
    try:
        while chunk := await served.body.read(len(got)):
            got += chunk
    except (UpstreamFailure, StoreFailure) as failure:
        return got, failure
    raise AssertionError("the body ended as if it were whole")


@asynccontextmanager
async def one_scene(**given: object) -> AsyncIterator[Scene]:
    """Play one scene, and look for leaks at its end."""
    scene = Scene(**given)  # type: ignore[arg-type]
    try:
        yield scene
    finally:
        await scene.close()


async def turns(count: int = 20) -> None:
    """Let everybody else have their turn, so often that all is done that needs no time."""
    for _ in range(count):
        await asyncio.sleep(0)


def only_downloads(story: list[str]) -> list[str]:
    """Leave out of a story what was asked of the index and of config.json."""
    return [line for line in story if not line.startswith(("asked for index", "asked for config"))]
