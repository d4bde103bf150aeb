"""An upstream in memory: held to the same contract suite as the one that is asked over HTTP.

What it has is a `Registry`, the same that stands behind the scripted servers, so that publishing,
yanking, deleting and older copies mean the same on both sides. What goes wrong is said here, by
patterns of the path (`/index/se/rd/serde`, `/crates/*`): another reply, a failure of the port, a
body that is bent or broken off, a request that is held at a gate, a body that flows as a test lets
it. Everything that was asked is kept, in order.

Waiting is bounded as the port promises: what is held for longer than `patience_s` is a TimedOut.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from proxy.core.answers import NO_VALIDATORS, Absent, Answer, Found, Unchanged, Validators
from proxy.core.failures import Misbehaved, TimedOut, Troubled, Unreachable, UpstreamFailure
from proxy.ports import ApiAnswer, CrateBody, Upstream
from tests.world.clock import PATIENCE_SECONDS
from tests.world.registry import INDEX, Registry
from tests.world.wire import Reply, Request

T = TypeVar("T")
MakeFailure = Callable[[], UpstreamFailure]
_HTML = "text/html"
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


def broken_off() -> UpstreamFailure:
    """Make the failure of a connection that was lost."""
    return Unreachable("the upstream broke off")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it was made; what it asked with, and over which kind of connection."""

    path: str
    validators: Validators = NO_VALIDATORS
    new_connection: bool = False


@dataclass(frozen=True, slots=True)
class Shipment:
    """How the body of a crate goes wrong.

    `bend` changes the bytes, `cut_after` ends them early by `failure`; `announces` is whether a
    length is announced, and `announced_bytes` a length that is not the true one.
    """

    bend: Callable[[bytes], bytes] = bytes
    cut_after: int | None = None
    failure: MakeFailure = broken_off
    announces: bool = True
    announced_bytes: int | None = None
    content_type: str | None = None


class Gate:
    """Keeps the requests it is for waiting until it is released."""

    def __init__(self, pattern: str = "*") -> None:
        self.pattern = pattern
        self._open = asyncio.Event()
        self._arrivals = Count()

    async def hold(self) -> None:
        """Wait for the release."""
        if not self._open.is_set():
            self._arrivals.add()
            await self._open.wait()

    async def arrived(self, count: int = 1) -> None:
        """Wait until so many have come to the gate since it was set up."""
        await self._arrivals.reached(count)

    def release(self) -> None:
        """Let everything pass, now and later."""
        self._open.set()


class Tap:
    """Lets chunks of bodies through, as many as the test has asked for."""

    def __init__(self, pattern: str, chunk_bytes: int) -> None:
        self.pattern = pattern
        self.chunk_bytes = chunk_bytes
        self._credit = 0.0
        self._credited = asyncio.Event()
        self._waits = Count()
        self._passed = Count()

    async def one(self) -> None:
        """Wait until a chunk may go."""
        while self._credit < 1:
            self._credited.clear()
            self._waits.add()
            await self._credited.wait()
        self._credit -= 1
        self._passed.add()

    def let(self, chunks: float) -> None:
        """Let so many more chunks through, over all bodies together."""
        self._credit += chunks
        self._credited.set()

    def open(self) -> None:
        """Let everything through from now on."""
        self.let(math.inf)

    async def is_dry(self, times: int = 1) -> None:
        """Wait until bodies have come to wait for their next chunk so many times in all."""
        await self._waits.reached(times)


class Count:
    """A number that grows, and somebody who waits for it to."""

    def __init__(self) -> None:
        self.value = 0
        self._changed = asyncio.Event()

    def add(self) -> None:
        """Count one."""
        self.value += 1
        self._changed.set()

    async def reached(self, value: int) -> None:
        """Wait until the number is `value`, or more."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.value < value:
                self._changed.clear()
                await self._changed.wait()


@dataclass(slots=True)
class _Rule(Generic[T]):
    pattern: str
    what: T
    times: float


class _Script(Generic[T]):
    """Things to happen to requests, the first that fits and has something left."""

    def __init__(self) -> None:
        self._rules: list[_Rule[T]] = []

    def add(self, pattern: str, what: T, times: int | None) -> None:
        self._rules.append(_Rule(pattern, what, math.inf if times is None else times))

    def take(self, path: str) -> T | None:
        for rule in self._rules:
            if rule.times > 0 and fnmatchcase(path, rule.pattern):
                rule.times -= 1
                return rule.what
        return None

    def clear(self) -> None:
        self._rules.clear()


class ScriptedUpstream(Upstream):
    """An upstream at `http://<name>.test`. For one event loop."""

    def __init__(
        self,
        registry: Registry,
        name: str = "crates-io",
        *,
        absent_statuses: frozenset[int] = frozenset({404, 410, 451}),
        index_max_bytes: int = 1 << 26,
        crate_max_bytes: int = 1 << 30,
        patience_s: float = 15.0,
    ) -> None:
        self.registry = registry
        self.patience_s = patience_s
        self.chunk_bytes = 16 * 1024
        self.announces = True
        self.asked: list[Asked] = []
        self.open_bodies = 0
        self._name = name
        self._absent_statuses = absent_statuses
        self._index_max_bytes = index_max_bytes
        self._crate_max_bytes = crate_max_bytes
        self._failures: _Script[MakeFailure] = _Script()
        self._replies: _Script[Reply] = _Script()
        self._shipments: _Script[Shipment] = _Script()
        self._gates: list[Gate] = []
        self._taps: list[Tap] = []
        self._arrivals = Count()

    @property
    def name(self) -> str:
        return self._name

    @property
    def url(self) -> str:
        """Its origin."""
        return f"http://{self._name}.test"

    def crate_url(self, name: str, vers: str) -> str:
        """Return where a version is downloaded from."""
        return self.url + self.registry.download_path(name, vers)

    def fail(self, pattern: str, failure: MakeFailure, *, times: int | None = None) -> None:
        """Let requests fail, each with a failure of its own."""
        self._failures.add(pattern, failure, times)

    def reply(self, pattern: str, reply: Reply, *, times: int | None = None) -> None:
        """Answer with `reply`, whatever the registry would say."""
        self._replies.add(pattern, reply, times)

    def ship(self, pattern: str, shipment: Shipment, *, times: int | None = None) -> None:
        """Let the bodies of crates go wrong."""
        self._shipments.add(pattern, shipment, times)

    def heal(self) -> None:
        """Forget every fault, and release whatever is held."""
        self._failures.clear()
        self._replies.clear()
        self._shipments.clear()
        self.release()

    def hold(self, pattern: str = "*") -> Gate:
        """Keep requests waiting, once they have been noted."""
        gate = Gate(pattern)
        self._gates.append(gate)
        return gate

    def tap(self, pattern: str = "*", *, chunk_bytes: int = 16 * 1024) -> Tap:
        """Withhold bodies of crates; the test lets chunks through."""
        tap = Tap(pattern, chunk_bytes)
        self._taps.append(tap)
        return tap

    def release(self) -> None:
        """Release whatever is held, and hold nothing more."""
        for gate in self._gates:
            gate.release()
        for tap in self._taps:
            tap.open()
        self._gates.clear()
        self._taps.clear()

    def paths(self, pattern: str = "*") -> list[str]:
        """Return the paths asked for since the last `clear`, in order."""
        return [each.path for each in self.asked if fnmatchcase(each.path, pattern)]

    def clear(self) -> None:
        """Forget what was asked so far."""
        self.asked.clear()

    async def index_file(
        self, path: str, validators: Validators, *, new_connection: bool = False
    ) -> Answer:
        headers = {}
        if validators.etag is not None:
            headers["if-none-match"] = validators.etag
        if validators.last_modified is not None:
            headers["if-modified-since"] = validators.last_modified
        reply = await self._ask(Asked(INDEX + path, validators, new_connection), "", headers)
        if reply.status == 304:
            if validators == NO_VALIDATORS:
                raise Misbehaved("304 to what was asked without a validator")
            return Unchanged()
        if reply.status in self._absent_statuses:
            return Absent(reply.status)
        _require_ok(reply)
        if _media_type(reply) == _HTML:
            raise Misbehaved("a web page in place of an index file")
        if len(reply.body) > self._index_max_bytes:
            raise Misbehaved("too much")
        return Found(
            reply.body, Validators(_header(reply, "etag"), _header(reply, "last-modified"))
        )

    @asynccontextmanager
    async def crate(self, url: str) -> AsyncIterator[CrateBody | Absent]:
        parts = urlsplit(url)
        self.open_bodies += 1
        try:
            reply = await self._ask(Asked(parts.path), parts.query, {})
            if reply.status in self._absent_statuses:
                yield Absent(reply.status)
                return
            _require_ok(reply)
            shipment = self._shipments.take(parts.path) or Shipment(announces=self.announces)
            body = _ScriptedBody(self, parts.path, reply, shipment, self._crate_max_bytes)
            if (body.length_bytes or 0) > self._crate_max_bytes:
                raise Misbehaved("too much")
            yield body
        finally:
            self.open_bodies -= 1

    async def api_get(self, url: str) -> ApiAnswer:
        parts = urlsplit(url)
        reply = await self._ask(Asked(parts.path), parts.query, {})
        return ApiAnswer(reply.status, _media_type(reply), reply.body)

    async def until_asked(self, count: int) -> None:
        """Wait until so many requests have come, ever."""
        await self._arrivals.reached(count)

    async def _ask(self, asked: Asked, query: str, headers: dict[str, str]) -> Reply:
        self.asked.append(asked)
        self._arrivals.add()
        with self.in_time():
            async with asyncio.timeout(self.patience_s):
                for gate in [one for one in self._gates if fnmatchcase(asked.path, one.pattern)]:
                    await gate.hold()
        failure = self._failures.take(asked.path)
        if failure is not None:
            raise failure()
        scripted = self._replies.take(asked.path)
        if scripted is not None:
            return scripted
        if self.registry.token is not None:
            headers["authorization"] = self.registry.token
        return self.registry.answer(
            Request(
                connection=0,
                arrived_at=0.0,
                method="GET",
                target=f"{asked.path}?{query}" if query else asked.path,
                headers={"host": f"{self._name}.test", **headers},
                body=b"",
            )
        )

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """Say in the port's words that patience has run out."""
        try:
            yield
        except TimeoutError:
            raise TimedOut(f"{self._name} did not answer in time") from None

    def tap_for(self, path: str) -> Tap | None:
        """Return the tap that the body of `path` flows through."""
        return next((tap for tap in self._taps if fnmatchcase(path, tap.pattern)), None)


class _ScriptedBody(CrateBody):
    def __init__(
        self,
        upstream: ScriptedUpstream,
        path: str,
        reply: Reply,
        shipment: Shipment,
        max_bytes: int,
    ) -> None:
        self._upstream = upstream
        self._path = path
        self._reply = reply
        self._shipment = shipment
        self._max_bytes = max_bytes
        self._body = shipment.bend(reply.body)

    @property
    def length_bytes(self) -> int | None:
        if not self._shipment.announces:
            return None
        announced = self._shipment.announced_bytes
        return len(self._body) if announced is None else announced

    @property
    def content_type(self) -> str:
        return self._shipment.content_type or _media_type(self._reply)

    async def chunks(self) -> AsyncIterator[bytes]:
        tap = self._upstream.tap_for(self._path)
        size = tap.chunk_bytes if tap is not None else self._upstream.chunk_bytes
        cut = self._shipment.cut_after
        body = self._body if cut is None else self._body[:cut]
        for start in range(0, len(body), size):
            if tap is not None:
                with self._upstream.in_time():
                    async with asyncio.timeout(self._upstream.patience_s):
                        await tap.one()
            else:
                # Where the real one waits for the network, others get their turn.
                await asyncio.sleep(0)
            if start + size > self._max_bytes and len(body) > self._max_bytes:
                raise Misbehaved("too much")
            yield body[start : start + size]
        if cut is not None:
            raise self._shipment.failure()


def _require_ok(reply: Reply) -> None:
    if reply.status != 200:
        retry_after = _header(reply, "retry-after")
        raise Troubled(
            f"answered {reply.status}",
            status=reply.status,
            transient=reply.status in _TRANSIENT,
            retry_after_s=float(retry_after) if retry_after is not None else None,
        )


def _header(reply: Reply, name: str) -> str | None:
    return next((value for key, value in reply.headers if key.lower() == name), None)


def _media_type(reply: Reply) -> str:
    return (_header(reply, "content-type") or "").partition(";")[0].strip().lower()
