"""What every upstream keeps, the fake and the real: the page of `proxy.ports.Upstream`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace

import pytest

from proxy.adapters.egress import Egress, EgressTerms
from proxy.adapters.upstream import HttpUpstream, UpstreamTerms
from proxy.core.addresses import AddressGuard, Origin
from proxy.core.answers import NO_VALIDATORS, Absent, Found, Unchanged, Validators
from proxy.core.failures import (
    ForbiddenAddress,
    Misbehaved,
    TimedOut,
    Troubled,
    Unreachable,
    UpstreamFailure,
)
from proxy.ports import CrateBody, Upstream
from tests.world import faults
from tests.world.crates import Package
from tests.world.registry import Registry
from tests.world.server import RegistryServer
from tests.world.upstream import ScriptedUpstream, Shipment
from tests.world.wire import Reply

SERDE = Package("serde", "1.0.1")
LARGE = Package("large", "1.0.0", padding_bytes=300_000)
INDEX_PATH = "se/rd/serde"
SERDE_INDEX = "/index/se/rd/serde"
CRATES = "/crates/*"
IMPATIENT_S = 0.6


@dataclass(frozen=True, slots=True)
class Given:
    """What an upstream is made with."""

    absent_statuses: frozenset[int] = frozenset({404, 410, 451})
    index_max_bytes: int = 1 << 20
    crate_max_bytes: int = 1 << 20
    patience_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """One way to go wrong, for each of the two; without a fault the server is stopped."""

    name: str
    fault: faults.Fault | None
    script: Callable[[ScriptedUpstream, str], None]

    def __str__(self) -> str:
        return self.name


@dataclass(slots=True)
class World:
    """A registry, the upstream before it, and what can be done to the two."""

    registry: Registry
    upstream: Upstream
    url: str
    server: RegistryServer | None

    def suffer(self, trouble: Trouble, pattern: str) -> None:
        """Let requests for `pattern` meet with trouble from now on."""
        if isinstance(self.upstream, ScriptedUpstream):
            trouble.script(self.upstream, pattern)
            return
        assert self.server is not None
        if trouble.fault is None:
            self.server.stop()
        else:
            self.server.fail(pattern, trouble.fault)

    def heal(self) -> None:
        """Let everything go well again."""
        if isinstance(self.upstream, ScriptedUpstream):
            self.upstream.heal()
            return
        assert self.server is not None
        self.server.heal()
        self.server.stop()
        self.server.start()

    async def asked(self, count: int) -> None:
        """Wait until so many requests have arrived."""
        if isinstance(self.upstream, ScriptedUpstream):
            await self.upstream.until_asked(count)
            return
        assert self.server is not None
        await self.server.arrived("*", count)

    def crate_url(self, package: Package) -> str:
        """Return where a package is downloaded from."""
        return self.url + self.registry.download_path(package.name, package.vers)


Start = Callable[..., "World"]


@pytest.fixture(params=["scripted", "http"])
async def start(request: pytest.FixtureRequest, registry: Registry) -> AsyncIterator[Start]:
    """Make an upstream before the registry: `start(index_max_bytes=100)`."""
    async with AsyncExitStack() as stack:

        def scripted(**given: object) -> World:
            terms = replace(Given(), **given)  # type: ignore[arg-type]
            upstream = ScriptedUpstream(
                registry,
                absent_statuses=terms.absent_statuses,
                index_max_bytes=terms.index_max_bytes,
                crate_max_bytes=terms.crate_max_bytes,
                patience_s=terms.patience_s,
            )
            stack.callback(upstream.release)
            return World(registry, upstream, upstream.url, None)

        def http(**given: object) -> World:
            terms = replace(Given(), **given)  # type: ignore[arg-type]
            server = stack.enter_context(RegistryServer(registry))
            index_url = f"{server.url}/index/"
            egress = Egress(
                EgressTerms(
                    connections=8,
                    connect_timeout_s=terms.patience_s,
                    idle_timeout_s=terms.patience_s,
                ),
                AddressGuard(Origin.of(index_url)),
            )
            stack.push_async_callback(egress.close)
            upstream = HttpUpstream(
                UpstreamTerms(
                    name="crates-io",
                    index_url=index_url,
                    user_agent="holdfast/test",
                    absent_statuses=terms.absent_statuses,
                    index_max_bytes=terms.index_max_bytes,
                    crate_max_bytes=terms.crate_max_bytes,
                    first_byte_timeout_s=terms.patience_s,
                    idle_timeout_s=terms.patience_s,
                ),
                egress,
            )
            return World(registry, upstream, server.url, server)

        yield scripted if request.param == "scripted" else http


async def found(world: World, path: str = INDEX_PATH) -> Found:
    answer = await world.upstream.index_file(path, NO_VALIDATORS)
    assert isinstance(answer, Found)
    return answer


async def downloaded(world: World, package: Package) -> bytes:
    """Return the whole of a crate, which must come."""
    async with world.upstream.crate(world.crate_url(package)) as body:
        assert not isinstance(body, Absent)
        return b"".join([chunk async for chunk in body.chunks()])


async def received(body: CrateBody) -> tuple[bytes, UpstreamFailure]:
    """Return what comes of a crate that must break off, and what it broke off with."""
    got = b""
    try:
        async with aclosing(body.chunks()) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                got += chunk
    except UpstreamFailure as failure:
        return got, failure
    raise AssertionError("the body ended as if it were whole")


async def test_an_index_file_comes_whole_and_with_its_validators(
    start: Start, registry: Registry
) -> None:
    world = start()
    registry.publish(SERDE, Package("serde", "1.0.2"))
    current = registry.history("serde")[-1]
    answer = await found(world)
    assert answer.body == registry.index("serde")
    assert answer.validators.etag == current.etag
    assert answer.validators.last_modified == "Thu, 01 Jan 2026 00:00:01 GMT"
    assert world.upstream.name == "crates-io"


async def test_a_registry_without_validators_gives_none(start: Start, registry: Registry) -> None:
    world = start()
    registry.publish(SERDE)
    bare = Reply(200, registry.index("serde"), (("Content-Type", "text/plain"),))
    world.suffer(replying(bare), SERDE_INDEX)
    assert await found(world) == Found(registry.index("serde"), NO_VALIDATORS)


async def test_config_json_lies_at_the_root_of_the_index(start: Start) -> None:
    world = start()
    answer = await found(world, "config.json")
    assert f'"dl": "{world.url}/crates/'.encode() in answer.body


@pytest.mark.parametrize(
    "kept",
    [
        lambda all_of_them: all_of_them,
        lambda all_of_them: Validators(etag=all_of_them.etag),
        lambda all_of_them: Validators(last_modified=all_of_them.last_modified),
    ],
    ids=["both", "etag", "last-modified"],
)
@pytest.mark.parametrize("new_connection", [False, True])
async def test_either_validator_confirms_a_copy_until_something_changes(
    start: Start,
    registry: Registry,
    kept: Callable[[Validators], Validators],
    new_connection: bool,
) -> None:
    world = start()
    registry.publish(SERDE)
    validators = kept((await found(world)).validators)

    async def again() -> object:
        return await world.upstream.index_file(
            INDEX_PATH, validators, new_connection=new_connection
        )

    assert await again() == Unchanged()
    registry.yank("serde", "1.0.1")
    changed = await again()
    assert isinstance(changed, Found)
    assert b'"yanked":true' in changed.body


async def test_what_is_not_there_is_absent(start: Start, registry: Registry) -> None:
    world = start()
    registry.publish(SERDE)
    assert await world.upstream.index_file("no/th/nothing", NO_VALIDATORS) == Absent(404)
    async with world.upstream.crate(f"{world.url}/crates/serde/serde-9.9.9.crate") as body:
        assert body == Absent(404)


@pytest.mark.parametrize("status", [400, 403, 410, 451])
async def test_only_the_declared_statuses_mean_absent(
    start: Start, registry: Registry, status: int
) -> None:
    registry.publish(SERDE)
    declared = start(absent_statuses=frozenset({status}))
    declared.suffer(replying(Reply(status)), "*")
    assert await declared.upstream.index_file(INDEX_PATH, NO_VALIDATORS) == Absent(status)
    async with declared.upstream.crate(declared.crate_url(SERDE)) as body:
        assert body == Absent(status)
    undeclared = start(absent_statuses=frozenset({404}))
    undeclared.suffer(replying(Reply(status)), "*")
    with pytest.raises(Troubled) as caught:
        await undeclared.upstream.index_file(INDEX_PATH, NO_VALIDATORS)
    assert caught.value.status == status
    with pytest.raises(Troubled):
        async with undeclared.upstream.crate(undeclared.crate_url(SERDE)):
            pass


def replying(reply: Reply) -> Trouble:
    """Answer with `reply`, whatever was asked."""
    return Trouble(
        f"replies {reply.status}",
        faults.instead("reply", reply),
        lambda upstream, pattern: upstream.reply(pattern, reply),
    )


def failing(name: str, fault: faults.Fault | None, failure: type[UpstreamFailure]) -> Trouble:
    """Go wrong on the wire, or as the failure that this has to be."""
    return Trouble(
        name, fault, lambda upstream, pattern: upstream.fail(pattern, lambda: failure(name))
    )


HTML = Reply(200, faults.LOGIN_PAGE, (("Content-Type", "text/html; charset=utf-8"),))
GONE_ELSEWHERE = faults.redirect(faults.LINK_LOCAL_URL)
BEFORE_THE_BODY = [
    (failing("refused", None, Unreachable), Unreachable),
    (failing("reset", faults.reset("before the head"), Unreachable), Unreachable),
    (failing("reset in the head", faults.reset("in the head"), Unreachable), Unreachable),
    (failing("redirect loop", faults.redirect_loop(), Misbehaved), Misbehaved),
    (failing("forbidden", GONE_ELSEWHERE, ForbiddenAddress), ForbiddenAddress),
    (replying(Reply(206, b"half of it")), Troubled),
    (replying(Reply(304)), UpstreamFailure),
    *((replying(Reply(status)), Troubled) for status in (401, 403, 407, 429, 500, 502, 503, 504)),
]


@pytest.mark.parametrize(("trouble", "expected"), BEFORE_THE_BODY, ids=str)
async def test_trouble_is_a_failure_of_its_kind_and_never_an_absence(
    start: Start, registry: Registry, trouble: Trouble, expected: type[UpstreamFailure]
) -> None:
    world = start()
    registry.publish(SERDE)
    world.suffer(trouble, "*")
    with pytest.raises(expected):
        await world.upstream.index_file(INDEX_PATH, NO_VALIDATORS)
    with pytest.raises(expected):
        async with world.upstream.crate(world.crate_url(SERDE)):
            pass
    world.heal()
    assert (await found(world)).body == registry.index("serde")
    assert await downloaded(world, SERDE) == registry.crate("serde", "1.0.1")


@pytest.mark.parametrize(
    ("status", "transient", "failing"),
    [
        (401, False, False),
        (403, False, False),
        (429, True, True),
        (500, True, True),
        (501, False, True),
        (503, True, True),
        (504, True, True),
    ],
)
async def test_a_status_tells_whether_it_may_pass_and_whether_the_upstream_is_failing(
    start: Start, status: int, transient: bool, failing: bool
) -> None:
    world = start()
    world.suffer(replying(Reply(status)), "*")
    with pytest.raises(Troubled) as caught:
        await world.upstream.index_file(INDEX_PATH, NO_VALIDATORS)
    said = (caught.value.status, caught.value.transient, caught.value.failing)
    assert said == (status, transient, failing)
    assert caught.value.retry_after_s is None


async def test_an_upstream_says_when_to_come_again(start: Start) -> None:
    world = start()
    world.suffer(replying(Reply(503, b"", (("Retry-After", "7"),))), "*")
    with pytest.raises(Troubled) as caught:
        await world.upstream.index_file(INDEX_PATH, NO_VALIDATORS)
    assert caught.value.retry_after_s == 7.0


async def test_a_web_page_is_no_index_file(start: Start, registry: Registry) -> None:
    world = start()
    registry.publish(SERDE)
    world.suffer(replying(HTML), SERDE_INDEX)
    with pytest.raises(Misbehaved) as caught:
        await world.upstream.index_file(INDEX_PATH, NO_VALIDATORS)
    assert not caught.value.failing
    assert not caught.value.transient


async def test_a_web_page_in_place_of_a_crate_says_what_it_is(
    start: Start, registry: Registry
) -> None:
    world = start()
    registry.publish(SERDE)
    world.suffer(replying(HTML), CRATES)
    async with world.upstream.crate(world.crate_url(SERDE)) as body:
        assert not isinstance(body, Absent)
        assert body.content_type == "text/html"


async def test_silence_is_a_timeout(start: Start, registry: Registry) -> None:
    world = start(patience_s=IMPATIENT_S)
    registry.publish(SERDE)
    world.suffer(
        Trouble("hangs", faults.hang(), lambda upstream, pattern: ignore(upstream.hold(pattern))),
        "*",
    )
    with pytest.raises(TimedOut):
        await world.upstream.index_file(INDEX_PATH, NO_VALIDATORS)
    with pytest.raises(TimedOut):
        async with world.upstream.crate(world.crate_url(SERDE)):
            pass


def ignore(_: object) -> None:
    """Do nothing with a value that only a lambda wanted to return."""


@pytest.mark.parametrize("fault", [faults.cut(), faults.cut_chunked()], ids=str)
async def test_a_cut_index_file_is_none(
    start: Start, registry: Registry, fault: faults.Fault
) -> None:
    world = start()
    registry.publish(SERDE)
    world.suffer(failing("cut", fault, Unreachable), SERDE_INDEX)
    with pytest.raises(Unreachable):
        await world.upstream.index_file(INDEX_PATH, NO_VALIDATORS)
    world.heal()
    assert (await found(world)).body == registry.index("serde")


async def test_the_ceiling_of_an_index_file_is_exact(start: Start, registry: Registry) -> None:
    registry.publish(SERDE)
    size = len(registry.index("serde"))
    assert len((await found(start(index_max_bytes=size))).body) == size
    with pytest.raises(Misbehaved):
        await found(start(index_max_bytes=size - 1))


@pytest.mark.parametrize("package", [SERDE, LARGE], ids=lambda package: package.name)
async def test_a_crate_comes_whole_with_the_length_that_was_announced(
    start: Start, registry: Registry, package: Package
) -> None:
    world = start()
    registry.publish(package)
    whole = registry.crate(package.name, package.vers)
    async with world.upstream.crate(world.crate_url(package)) as body:
        assert not isinstance(body, Absent)
        assert body.length_bytes == len(whole)
        assert body.content_type == "application/gzip"
        chunks = [chunk async for chunk in body.chunks()]
    assert b"".join(chunks) == whole
    assert all(chunks), "no empty chunk"


async def test_a_crate_may_come_without_an_announced_length(
    start: Start, registry: Registry
) -> None:
    world = start()
    registry.publish(LARGE)
    world.suffer(
        Trouble(
            "unframed",
            faults.unframed(),
            lambda upstream, pattern: upstream.ship(pattern, Shipment(announces=False)),
        ),
        CRATES,
    )
    async with world.upstream.crate(world.crate_url(LARGE)) as body:
        assert not isinstance(body, Absent)
        assert body.length_bytes is None
        whole = b"".join([chunk async for chunk in body.chunks()])
    assert whole == registry.crate("large", "1.0.0")


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (
            Trouble(
                "cut",
                faults.cut(),
                lambda upstream, pattern: upstream.ship(pattern, Shipment(cut_after=150_000)),
            ),
            Unreachable,
        ),
        (
            Trouble(
                "cut without a length",
                faults.cut_chunked(),
                lambda upstream, pattern: upstream.ship(
                    pattern, Shipment(cut_after=150_000, announces=False)
                ),
            ),
            Unreachable,
        ),
        (
            Trouble(
                "reset",
                faults.reset("in the body"),
                lambda upstream, pattern: upstream.ship(pattern, Shipment(cut_after=150_000)),
            ),
            Unreachable,
        ),
        (
            Trouble(
                "stall",
                faults.stall(),
                lambda upstream, pattern: upstream.tap(pattern, chunk_bytes=50_000).let(3),
            ),
            TimedOut,
        ),
    ],
    ids=str,
)
async def test_a_crate_that_breaks_off_says_so(
    start: Start, registry: Registry, trouble: Trouble, expected: type[UpstreamFailure]
) -> None:
    world = start(patience_s=IMPATIENT_S if expected is TimedOut else 20.0)
    registry.publish(LARGE)
    whole = registry.crate("large", "1.0.0")
    world.suffer(trouble, CRATES)
    async with world.upstream.crate(world.crate_url(LARGE)) as body:
        assert not isinstance(body, Absent)
        got, failure = await received(body)
    assert type(failure) is expected
    assert failure.transient
    assert len(got) < len(whole)
    assert whole.startswith(got)


async def test_an_announced_crate_over_the_ceiling_is_refused_at_once(
    start: Start, registry: Registry
) -> None:
    registry.publish(LARGE)
    size = len(registry.crate("large", "1.0.0"))
    assert len(await downloaded(start(crate_max_bytes=size), LARGE)) == size
    world = start(crate_max_bytes=size - 1)
    with pytest.raises(Misbehaved):
        async with world.upstream.crate(world.crate_url(LARGE)):
            pass


async def test_an_unannounced_crate_is_cut_at_the_ceiling(start: Start, registry: Registry) -> None:
    world = start(crate_max_bytes=200_000)
    registry.publish(LARGE)
    world.suffer(
        Trouble(
            "unframed",
            faults.unframed(),
            lambda upstream, pattern: upstream.ship(pattern, Shipment(announces=False)),
        ),
        CRATES,
    )
    async with world.upstream.crate(world.crate_url(LARGE)) as body:
        assert not isinstance(body, Absent)
        got, failure = await received(body)
    assert type(failure) is Misbehaved
    assert len(got) <= 200_000


async def test_a_crate_may_be_left_half_way(start: Start, registry: Registry) -> None:
    world = start()
    registry.publish(LARGE)
    for _ in range(20):
        async with world.upstream.crate(world.crate_url(LARGE)) as body:
            assert not isinstance(body, Absent)
            async with aclosing(body.chunks()) as chunks:  # type: ignore[type-var]
                first = await anext(chunks)
            assert registry.crate("large", "1.0.0").startswith(first)
    assert await downloaded(world, LARGE) == registry.crate("large", "1.0.0")


async def test_a_call_that_is_cancelled_leaves_nothing_behind(
    start: Start, registry: Registry
) -> None:
    world = start()
    registry.publish(SERDE)
    world.suffer(
        Trouble("hangs", faults.hang(), lambda upstream, pattern: ignore(upstream.hold(pattern))),
        "*",
    )
    for number in range(1, 13):
        task = asyncio.ensure_future(world.upstream.index_file(INDEX_PATH, NO_VALIDATORS))
        await world.asked(number)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    world.heal()
    assert (await found(world)).body == registry.index("serde")


async def test_many_are_answered_at_once(start: Start, registry: Registry) -> None:
    world = start()
    packages = [Package(f"crate{number}") for number in range(24)]
    registry.publish(*packages)
    bodies = await asyncio.gather(*(downloaded(world, package) for package in packages))
    assert bodies == [registry.crate(package.name, package.vers) for package in packages]


@pytest.mark.parametrize("path", ["/api/v1/crates?q=ser", "/api/v1/nothing"])
async def test_the_web_api_speaks_for_itself(start: Start, registry: Registry, path: str) -> None:
    world = start()
    registry.publish(SERDE)
    answer = await world.upstream.api_get(world.url + path)
    assert answer.status == (200 if "?" in path else 404)
    assert answer.content_type == "application/json"
    assert (b'"name": "serde"' in answer.body) is ("?" in path)


async def test_a_web_api_that_is_away_is_a_failure(start: Start) -> None:
    world = start()
    world.suffer(failing("refused", None, Unreachable), "*")
    with pytest.raises(Unreachable):
        await world.upstream.api_get(f"{world.url}/api/v1/crates?q=ser")
