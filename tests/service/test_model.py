"""Anything may happen to an upstream and to us, in any order: what must hold all the same.

Hypothesis publishes, yanks, deletes, registers anew, republishes with other bytes; lets the
upstream fail, lie, hang, fall behind and recover; evicts, spoils, purges, restarts, moves clocks;
and asks. Whatever it makes up:

- no index file is served that the upstream never had, and none that it said is gone for good;
- no crate is served whose bytes are not those that an index line named;
- "absent" is said only where the upstream said so when it was last asked with success;
- no 304 rests on a stale copy unless the upstream was failing;
- while all is well nobody gets a failure, and in the end everybody gets the truth.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from proxy.core import sparse
from proxy.core.answers import Absent, Answer, Found, Validators
from proxy.core.events import How
from proxy.core.failures import (
    ChecksumMismatch,
    Misbehaved,
    NoSuchCrate,
    StoreFailure,
    TimedOut,
    Troubled,
    Unreachable,
    UpstreamFailure,
)
from proxy.core.names import index_path
from proxy.core.room import Limits
from proxy.service.crates import MISMATCH_REMEMBERED_S, CrateServed
from proxy.service.housekeeping import Housekeeping
from proxy.service.indexes import IndexAbsent, IndexServed
from proxy.service.registry import Registry as Served
from proxy.service.source import Source
from tests.service.scene import PUBLIC, Scene, drained, turns
from tests.world import faults
from tests.world.crates import Package, sha256
from tests.world.loop import TimelessLoop
from tests.world.registry import INDEX, Registry
from tests.world.upstream import MakeFailure, ScriptedUpstream, Shipment
from tests.world.wire import Reply

NAMES: Final = ("a", "bb", "Serde", "serde_json")
VERSIONS: Final = ("1.0.0", "1.1.0")
# Each version has several possible contents; one of them is long enough to flow before it is there.
CONTENTS: Final = ("first", "second", "long")
PACKAGES: Final = {
    (name, vers, content): Package(
        name, vers, files={"NEWS": content}, padding_bytes=100_000 if content == "long" else 0
    )
    for name in NAMES
    for vers in VERSIONS
    for content in CONTENTS
}
ROOM_FOR_A_FEW: Final = Limits(max_size_bytes=300_000, min_free_bytes=0)

names = st.sampled_from(NAMES)
versions = st.sampled_from(VERSIONS)
contents = st.sampled_from(CONTENTS)
FAILURES: Final[dict[str, MakeFailure]] = {
    "unreachable": lambda: Unreachable("crates-io cannot be reached"),
    "troubled": lambda: Troubled("crates-io answered 503", status=503, transient=True),
    "forbidden": lambda: Troubled("crates-io answered 403", status=403, transient=False),
    "late": lambda: TimedOut("crates-io did not answer in time"),
    "misbehaved": lambda: Misbehaved("crates-io sent a web page"),
}
OUTAGES: Final = (*FAILURES, "silent", "login", "garbage", "empty")
CRATE_TROUBLES: Final = ("cut", "wrong", "lost files")


class Witness(ScriptedUpstream):
    """An upstream that remembers what it last said of each index file, and over which connection.

    `opinions` are the connections, new or not, of the absences since the last body.
    """

    def __init__(self, registry: Registry, name: str = "crates-io") -> None:
        super().__init__(registry, name)
        self.said: dict[str, Answer] = {}
        self.opinions: dict[str, list[bool]] = {}

    async def index_file(
        self, path: str, validators: Validators, *, new_connection: bool = False
    ) -> Answer:
        answer = await super().index_file(path, validators, new_connection=new_connection)
        if isinstance(answer, Absent) or (isinstance(answer, Found) and _is_believed(path, answer)):
            self.said[path] = answer
        if isinstance(answer, Absent):
            self.opinions.setdefault(path, []).append(new_connection)
        else:
            self.opinions[path] = []
        return answer


def _is_believed(path: str, found: Found) -> bool:
    """Tell whether a body counts as something said: garbage is not learned, and not remembered."""
    return sparse.check(found.body, path.rpartition("/")[2]) is None


class House(RuleBasedStateMachine):
    """The proxy in front of one upstream, and a memory of everything that was ever true."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=TimelessLoop)
        self.bodies: defaultdict[str, set[bytes]] = defaultdict(set)
        self.crates: dict[str, bytes] = {}
        self.named: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self.outage: str | None = None
        self.lied_at = float("-inf")
        self.is_behind = False

    def run(self, work: Awaitable[Any]) -> Any:
        """Let the loop go on until `work` is done; what else is under way goes on with it.

        Whoever waits for time gets it: in the loop's time and the clock's.
        """

        async def awaiting() -> Any:
            working = asyncio.ensure_future(work)
            while not working.done():
                await asyncio.wait({working}, timeout=0.5)
                if hasattr(self, "scene") and self.scene.clock.sleeping:
                    self.scene.clock.advance(0.5)
            return working.result()

        return self.runner.run(awaiting())

    @initialize(memory_bytes=st.sampled_from([0, 3000, 1 << 20]))
    def open(self, memory_bytes: int) -> None:
        async def make() -> Scene:
            return self.make_scene(memory_bytes)

        self.scene: Scene = self.run(make())
        for name in NAMES[:-1]:
            self.publish(name, "1.0.0", "first")

    def make_scene(self, memory_bytes: int) -> Scene:
        """Make the house and its upstream."""
        scene = Scene(memory_bytes=memory_bytes, limits=ROOM_FOR_A_FEW)
        self.upstream = Witness(scene.registry)
        self.upstream.patience_s = 15.0
        scene.upstream = self.upstream
        scene.source = scene.join(self.upstream, PUBLIC)
        return scene

    def teardown(self) -> None:
        if hasattr(self, "scene"):
            try:
                self.converge()
            finally:
                self.runner.run(self.scene.close())
        self.runner.close()

    # What happens upstream

    def exists(self, name: str) -> bool:
        return name.lower() in self.scene.registry.names()

    def note(self, name: str) -> None:
        self.bodies[name.lower()].add(self.scene.registry.index(name))

    @rule(
        change=st.sampled_from(
            ["publish", "publish", "publish", "yank", "unyank", "delete", "fall behind"]
        ),
        name=names,
        vers=versions,
        content=contents,
    )
    def upstream_changes(self, change: str, name: str, vers: str, content: str) -> None:
        match change:
            case "publish":
                self.publish(name, vers, content)
            case "delete":
                self.delete(name)
            case "fall behind":
                self.fall_behind(name)
            case _:
                self.yank(name, vers, yanked=change == "yank")

    def publish(self, name: str, vers: str, content: str) -> None:
        """Publish a version, or publish it again with other bytes; also after a deletion."""
        self.scene.publish(PACKAGES[name, vers, content])
        data = self.scene.registry.crate(name, vers)
        if self.named[name, vers] != {sha256(data)}:
            # Whoever asks by a line of before gets other bytes than that line says.
            self.lied_at = self.scene.clock.monotonic()
        self.crates[sha256(data)] = data
        self.named[name, vers].add(sha256(data))
        self.note(name)

    def yank(self, name: str, vers: str, *, yanked: bool) -> None:
        if not self.exists(name) or (name, vers) not in self.current(name):
            return
        (self.scene.registry.yank if yanked else self.scene.registry.unyank)(name, vers)
        self.note(name)

    def current(self, name: str) -> set[tuple[str, str]]:
        """Return the versions that are published now."""
        if not self.exists(name):
            return set()
        body = self.scene.registry.index(name)
        return {(name, vers) for vers in VERSIONS if f'"vers":"{vers}"'.encode() in body}

    def delete(self, name: str) -> None:
        if self.exists(name):
            self.scene.registry.delete(name)

    def fall_behind(self, name: str) -> None:
        """Let an edge of the upstream have an older state of one file for a while."""
        if self.exists(name) and self.outage is None:
            older = self.scene.registry.history(name)[0].reply()
            self.upstream.reply(INDEX + index_path(name), older, times=2)
            self.is_behind = True

    @rule(kind=st.sampled_from([None, *OUTAGES, *CRATE_TROUBLES]))
    def fail(self, kind: str | None) -> None:
        self.recover()
        if kind is None:
            return
        self.outage = kind
        if kind in FAILURES:
            self.upstream.fail("*", FAILURES[kind])
        elif kind == "silent":
            self.upstream.hold("*")
        elif kind == "login":
            page = Reply(200, faults.LOGIN_PAGE, (("Content-Type", "text/html"),))
            self.upstream.reply("*", page)
        elif kind in ("garbage", "empty"):
            body = b"" if kind == "empty" else b"\x00\xff" * 100
            self.upstream.reply("*", Reply(200, body, (("Content-Type", "text/plain"),)))
            self.lied_at = self.scene.clock.monotonic()
        elif kind == "cut":
            self.upstream.ship("/crates/*", Shipment(cut_after=50))
        elif kind == "wrong":
            self.upstream.ship("/crates/*", Shipment(bend=lambda body: body[:-1] + b"\x00!"))
            self.lied_at = self.scene.clock.monotonic()
        else:
            self.upstream.reply("/crates/*", Reply(404))

    def recover(self) -> None:
        if self.outage in ("wrong", "garbage", "empty"):
            self.lied_at = self.scene.clock.monotonic()
        self.outage = None
        self.is_behind = False
        self.upstream.heal()

    # What happens to us

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0, 30.0, 61.0, 125.0, 901.0, 8 * 86400.0]))
    def wait(self, seconds: float) -> None:
        self.scene.clock.advance(seconds)
        self.run(turns())

    @rule(seconds=st.sampled_from([-8 * 86400.0, -3600.0, -30.0, -3.0, 3.0, 3600.0, 8 * 86400.0]))
    def jump(self, seconds: float) -> None:
        self.scene.clock.jump(seconds)

    @rule(
        what=st.sampled_from(["evict", "spoil", "lose", "purge", "purge", "disk", "restart"]),
        name=names,
        vers=st.none() | versions,
        number=st.integers(0, 5),
        flag=st.booleans(),
        point=st.sampled_from(["put", "confirm", "draft", "write", "commit", "removed"]),
    )
    def we_suffer(
        self, what: str, name: str, vers: str | None, number: int, flag: bool, point: str
    ) -> None:
        match what:
            case "evict":
                self.evict_blob(number)
            case "spoil":
                self.spoil_blob(number, keep_length=flag)
            case "lose":
                self.lose_snapshot(name)
            case "purge":
                self.purge(None if number == 0 else name, vers, soft=flag)
            case "disk":
                self.fail_disk(point, times=number)
            case _:
                self.restart(clean=flag)

    def restart(self, *, clean: bool) -> None:
        self.run(self.scene.restart(clean=clean))

    def evict_blob(self, number: int) -> None:
        held = sorted(self.scene.blobs.blobs)
        if held:
            self.run(self.scene.blobs.remove([held[number % len(held)]]))

    def spoil_blob(self, number: int, *, keep_length: bool) -> None:
        """Spoil a blob behind our back, as a crash does: the stop was not clean then."""
        held = sorted(self.scene.blobs.blobs)
        if held:
            digest = held[number % len(held)]
            data = self.scene.blobs.blobs[digest]
            self.scene.blobs.blobs[digest] = bytes(len(data)) if keep_length else data[:-1]
            self.run(self.scene.restart(clean=False))

    def lose_snapshot(self, name: str) -> None:
        self.scene.index_store.snapshots.pop(("crates-io", name.lower()), None)

    def fail_disk(self, point: str, *, times: int) -> None:
        store: Any = self.scene.index_store
        if point in ("draft", "write", "commit"):
            store = self.scene.blobs
        elif point == "removed":
            store = self.scene.state
        store.points.fail(point, times=times)

    def purge(self, name: str | None, vers: str | None, *, soft: bool) -> None:
        housekeeping = Housekeeping(
            {"crates-io": Served("crates-io", self.scene.source)},
            self.scene.indexes,
            self.scene.crates,
            self.scene.configs,
            self.scene.index_store,
            self.scene.blobs,
            self.scene.state,
        )
        wanted = [] if name is None else [name if vers is None else f"{name}@{vers}"]
        purging = housekeeping.purge(
            "crates-io", wanted, everything=name is None, soft=soft, report=lambda _: None
        )
        try:
            self.run(purging)
        except StoreFailure:
            assert soft, "only what is confirmed can be refused here"

    # What is asked

    @rule(asked=st.lists(names, min_size=1, max_size=6), insisting=st.booleans())
    def ask(self, asked: list[str], insisting: bool) -> None:
        for name in asked:
            self.ask_index(name, insisting=insisting)

    @rule(insisting=st.booleans(), seconds=st.sampled_from([3.0, 61.0, 125.0]))
    def ask_and_ask_again(self, insisting: bool, seconds: float) -> None:
        """Have everything held, and asked for when it has aged."""
        self.ask(list(NAMES), insisting=True)
        self.wait(seconds)
        self.ask(list(NAMES), insisting=insisting)

    def is_troubled(self) -> bool:
        """Tell whether the upstream fails, or did so lately enough not to be pressed."""
        return self.outage in OUTAGES or self.scene.source.is_failing()

    def ask_index(self, name: str, *, insisting: bool) -> None:
        failing = self.is_troubled()
        held = self.scene.held(name.lower())
        try:
            served = self.run(self.scene.index(name.lower(), insisting=insisting))
        except UpstreamFailure:
            assert self.may_fail(failing=failing)
            return
        if isinstance(served, IndexAbsent) and held is not None and held.body is not None:
            assert True in self.upstream.opinions[index_path(name)], "no second opinion"
        self.check_index(name, served, failing=failing, insisting=insisting)

    def may_fail(self, *, failing: bool) -> bool:
        """Tell whether there may be a failure; `failing` is what `is_troubled` said before."""
        del failing
        return self.outage is not None

    def check_index(
        self, name: str, served: IndexServed | IndexAbsent, *, failing: bool, insisting: bool
    ) -> None:
        said = self.upstream.said.get(index_path(name))
        if isinstance(served, IndexAbsent):
            assert isinstance(said, Absent)
            return
        body, snapshot = served.rendered.identity, served.rendered.snapshot
        assert body in self.bodies[name.lower()]
        assert body == snapshot.body
        is_fresh = 0 <= self.scene.clock.now() - snapshot.confirmed_at < PUBLIC.fresh_for_s
        assert is_fresh or served.how == How.STALE
        if served.how == How.STALE:
            assert not (served.may_confirm and not failing)
            assert not (insisting and not failing), "while all is well nobody who insists gets it"
        elif not self.is_behind:
            assert isinstance(said, Found)
            assert body == said.body or self.was_refused(name, said.body)

    def was_refused(self, name: str, offered: bytes) -> bool:
        """Tell whether the upstream last offered an older copy, which was not taken."""
        held = self.scene.held(name.lower())
        in_memory = self.run(self.scene.indexes.held(self.scene.source, name.lower()))
        kept = in_memory.snapshot if in_memory is not None else held
        return kept is not None and kept.older_since is not None and kept.body != offered

    @rule(
        asked=st.lists(st.tuples(names, versions), min_size=1, max_size=6),
        digest=st.none() | st.integers(0, 5),
    )
    def fetch(self, asked: list[tuple[str, str]], digest: int | None) -> None:
        for name, vers in asked:
            self.download(name, vers, digest)

    def download(self, name: str, vers: str, digest: int | None) -> None:
        failing = self.is_troubled()
        wanted: str | None = None
        if digest is not None:
            known = sorted(self.crates) or ["0" * 64]
            wanted = known[digest % len(known)]
        try:
            served = self.run(self.fetched(name, vers, wanted))
        except StoreFailure:
            return  # cut in the middle by our own disk: the client comes again
        except ChecksumMismatch as mismatch:
            since = self.scene.clock.monotonic() - self.lied_at
            is_outdated = mismatch.expected != self.cksum_now(name, vers)
            assert self.outage is not None or since <= MISMATCH_REMEMBERED_S or is_outdated
            return
        except UpstreamFailure:
            assert self.may_fail(failing=failing)
            return
        if isinstance(served, NoSuchCrate):
            self.check_absent_crate(name, vers, wanted)
            return
        assert sha256(served) in self.named[name, vers]
        assert wanted in (None, sha256(served))

    def cksum_now(self, name: str, vers: str) -> str | None:
        if (name, vers) not in self.current(name):
            return None
        return self.scene.registry.release(name, vers).cksum

    async def fetched(self, name: str, vers: str, wanted: str | None) -> bytes | NoSuchCrate:
        served = await self.scene.crate(PACKAGES[name, vers, "first"], wanted)
        if isinstance(served, NoSuchCrate):
            return served
        assert isinstance(served, CrateServed)
        try:
            return await drained(served)
        finally:
            await served.aclose()

    def check_absent_crate(self, name: str, vers: str, wanted: str | None) -> None:
        said = self.upstream.said.get(index_path(name))
        if self.outage == "lost files" or isinstance(said, Absent) or self.is_behind:
            return
        assert isinstance(said, Found)
        lines = [line for line in said.body.splitlines() if f'"vers":"{vers}"'.encode() in line]
        listed = [line for line in lines if wanted is None or wanted.encode() in line]
        # A file that is listed in a snapshot may have been removed or replaced meanwhile.
        is_there = (name, vers) in self.current(name) and (
            wanted is None or self.scene.registry.release(name, vers).cksum == wanted
        )
        assert not (listed and is_there)

    @precondition(lambda self: self.outage is None)
    @rule(name=names, vers=versions, meanwhile=st.sampled_from(["delete", "publish", "restart"]))
    def race(self, name: str, vers: str, meanwhile: str) -> None:
        """Let several ask at once while something happens, and see that each gets sense."""

        async def racing() -> list[Any]:
            gate = self.upstream.hold("*")
            asking: list[asyncio.Task[Any]] = []
            for insisting in (False, True):
                asking += [
                    asyncio.ensure_future(self.scene.index(name.lower(), insisting=insisting)),
                    asyncio.ensure_future(self.fetched(name, vers, None)),
                ]
                await turns(5)
            if meanwhile == "delete":
                self.delete(name)
            elif meanwhile == "publish":
                self.publish(name, vers, "second")
            else:
                await self.scene.restart()
            gate.release()
            self.upstream.release()
            results: list[Any] = await asyncio.gather(*asking, return_exceptions=True)
            return results

        outcomes: list[object] = self.run(racing())
        for outcome in outcomes:
            if isinstance(outcome, IndexServed):
                assert outcome.rendered.identity in self.bodies[name.lower()]
            elif isinstance(outcome, bytes):
                assert sha256(outcome) in self.named[name, vers]
            elif isinstance(outcome, BaseException):
                allowed = UpstreamFailure | StoreFailure
                if meanwhile == "restart":
                    allowed |= asyncio.CancelledError
                assert isinstance(outcome, allowed), repr(outcome)

    # The end

    def converge(self) -> None:
        """Let all be well and time pass: then everybody gets the truth."""
        self.recover()
        for points in (
            self.scene.index_store.points,
            self.scene.blobs.points,
            self.scene.state.points,
        ):
            points.heal()
        self.run(self.scene.settle())
        # Twice: what an upstream says once of an older state is not taken for fifteen minutes.
        for _ in range(2):
            self.scene.clock.advance(1000.0)
            for name in NAMES:
                self.run(self.scene.index(name.lower(), insisting=True))
        for name in NAMES:
            served = self.run(self.scene.index(name.lower(), insisting=True))
            if not self.exists(name):
                assert isinstance(served, IndexAbsent)
                continue
            assert isinstance(served, IndexServed)
            assert served.rendered.identity == self.scene.registry.index(name)
            for _, vers in self.current(name):
                whole = self.scene.registry.crate(name, vers)
                assert self.run(self.fetched(name, vers, None)) == whole
                assert self.run(self.fetched(name, vers, sha256(whole))) == whole
        self.run(self.scene.restart(clean=False))
        for digest in list(self.scene.blobs.blobs):
            self.run(self.scene.blobs.check(digest))
        for digest, data in self.scene.blobs.blobs.items():
            assert digest in self.crates
            assert sha256(data) == digest


class MirroredHouse(House):
    """The same with a mirror, which may be honest, behind, down, or send wrong bytes.

    What a mirror's index says of a crate that nobody has asked for before is believed, so the
    mirror does not lie there: that is for transcripts (`test_mirrors`).
    """

    def make_scene(self, memory_bytes: int) -> Scene:
        scene = super().make_scene(memory_bytes)
        self.mirror = Witness(scene.registry, "mirror")
        self.mirror_lies = False
        scene.source = Source(
            self.upstream, PUBLIC, scene.clock, scene.observer, mirrors=(("m", self.mirror),)
        )
        scene.sources[scene.source.name] = scene.source
        return scene

    @rule(kind=st.sampled_from(["honest", "behind", "empty", "unreachable", "silent", "wrong"]))
    def mirror_turns(self, kind: str) -> None:
        self.mirror.heal()
        self.mirror_lies = kind == "wrong"
        registry = self.scene.registry
        if kind in ("behind", "empty"):
            # What is published from now on it does not have, or nothing at all.
            registry = registry.copy() if kind == "behind" else Registry()
        self.mirror.registry = registry
        if kind == "unreachable":
            self.mirror.fail("*", FAILURES[kind])
        elif kind == "silent":
            self.mirror.hold("*")
        elif kind == "wrong":
            self.mirror.ship("/crates/*", Shipment(bend=lambda body: body[:-1] + b"\x00!"))

    def is_troubled(self) -> bool:
        own = self.scene.source.first
        return super().is_troubled() or own.index.failing_since is not None

    def may_fail(self, *, failing: bool) -> bool:
        return failing or super().may_fail(failing=failing)

    def check_index(
        self, name: str, served: IndexServed | IndexAbsent, *, failing: bool, insisting: bool
    ) -> None:
        if isinstance(served, IndexServed) and served.rendered.snapshot.validators.mirror:
            body = served.rendered.identity
            assert body in self.bodies[name.lower()]
            said = self.mirror.said[index_path(name)]
            assert isinstance(said, Found)
            assert served.how != How.STALE or failing or not insisting
            return
        super().check_index(name, served, failing=failing, insisting=insisting)

    def download(self, name: str, vers: str, digest: int | None) -> None:
        aside = self.scene.source.first.is_aside(self.scene.clock.monotonic())
        if self.mirror_lies or aside:
            self.lied_at = self.scene.clock.monotonic()
        super().download(name, vers, digest)


@pytest.mark.parametrize(("house", "examples"), [(House, 300), (MirroredHouse, 150)])
def test_whatever_happens_nothing_wrong_is_served_and_the_truth_comes_out(
    house: type[House], examples: int
) -> None:
    run_state_machine_as_test(
        house,
        settings=settings(
            derandomize=True,
            deadline=None,
            max_examples=examples,
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
            # What explains a failure takes longer than the failure.
            phases=(Phase.generate, Phase.shrink),
        ),
    )
