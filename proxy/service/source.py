"""One upstream as the journeys see it: its endpoints, its terms, and what its last answers told.

Asking with patience is here too. Every request to an upstream goes through `ask`: the endpoints in
their order, each as its breaker allows; then, if what went wrong may pass, the same again after a
delay. Only this feeds breakers, retry budget and the events about requests.

A mirror is asked when what stands before it could not answer. So its word that something is absent
proves nothing: the failure before it stands. It may give what we lack, never take away.

While somebody else can be asked, an endpoint that fails is tried again as rarely as if a copy were
held; only when nobody else has answered is it pressed.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from proxy.core.answers import Absent, Unchanged
from proxy.core.breaker import AS_USUAL, TURNED_AWAY, Admission, BreakerState
from proxy.core.events import Kind, MirrorSetAside, UpstreamAsked, UpstreamFailed, UpstreamRecovered
from proxy.core.failures import Misbehaved, Spared, TimedOut, UpstreamFailure
from proxy.core.freshness import Terms
from proxy.core.retry import RetryBudget, delay_before_retry
from proxy.ports import Clock, Observer, Upstream
from proxy.service.endpoint import ASIDE_S, Endpoint, EndpointReport

T = TypeVar("T")

# Beside the breaker's states, 0 to 2.
SET_ASIDE: Final = 3
# Cargo gives up at 30 s and our promise is 20, so every attempt of a flight is over before that.
ASKING_DEADLINE_S: Final = 17.0
# How long a client is kept waiting for a first word. A flight may go on longer, for the next one.
CLIENT_PATIENCE_S: Final = 18.0


@dataclass(frozen=True, slots=True)
class _Question(Generic[T]):
    """What is asked, whoever is asked."""

    kind: Kind
    subject: str
    attempt: Callable[[Endpoint], Awaitable[T]]
    received_bytes: Callable[[T], int]
    has_copy: bool
    endpoints: Callable[[], Sequence[Endpoint]]
    failed_probes: dict[Endpoint, int]


@dataclass(slots=True)
class _Turn(Generic[T]):
    """What came of asking all endpoints once: an answer, failures, or nobody could be asked."""

    answer: tuple[T] | None = None
    failed: list[tuple[Endpoint, UpstreamFailure]] = field(default_factory=list)
    asked: list[Endpoint] = field(default_factory=list)

    def not_asked(self, endpoints: Sequence[Endpoint]) -> list[Endpoint]:
        """Return who was turned away."""
        return [one for one in endpoints if one not in self.asked]


@dataclass(slots=True)
class Source:
    """An upstream with its terms. One per configured upstream, shared by all registries.

    `upstream` is asked first; `mirrors`, each with its address, are its equivalents. Between two
    requests to its web API there are `api_interval_s`.
    """

    upstream: Upstream
    terms: Terms
    clock: Clock
    observer: Observer
    offline: bool = False
    mirrors: tuple[tuple[str, Upstream], ...] = ()
    api_interval_s: float = 0.0
    budget: RetryBudget = field(default_factory=RetryBudget)
    endpoints: tuple[Endpoint, ...] = field(init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        mirrors = (Endpoint(upstream, address) for address, upstream in self.mirrors)
        self.endpoints = (Endpoint(self.upstream), *mirrors)

    @property
    def name(self) -> str:
        """The upstream's name."""
        return self.upstream.name

    def set_terms(self, terms: Terms) -> None:
        """Hold copies to other terms, those that are held already too."""
        self.terms = terms

    @property
    def first(self) -> Endpoint:
        """The upstream itself."""
        return self.endpoints[0]

    def is_failing(self) -> bool:
        """Tell whether copies should be served without waiting: nobody would answer just now."""
        if self.offline:
            return True
        now = self.clock.monotonic()
        return all(one.is_out(now) or one.index.is_failing(now) for one in self.endpoints)

    def state(self, kind: Kind, endpoint: Endpoint) -> Callable[[], int]:
        """Return what tells a breaker's state; 3 is an endpoint that is set aside."""

        def now() -> int:
            moment = self.clock.monotonic()
            if endpoint.is_out(moment) or endpoint.comes_last(kind, moment):
                return SET_ASIDE
            if self.offline:
                return int(BreakerState.OPEN)
            return int(endpoint.breaker(kind).state(moment))

        return now

    def report(self) -> tuple[EndpointReport, ...]:
        """Tell how each address is, the upstream's own first."""
        now = self.clock.monotonic()
        return tuple(one.report(now) for one in self.endpoints)

    def endpoint(self, mirror: str) -> Endpoint | None:
        """Return the endpoint that is known as `mirror`; the upstream itself for the empty one."""
        return next((one for one in self.endpoints if one.mirror == mirror), None)

    async def ask(
        self,
        kind: Kind,
        subject: str,
        attempt: Callable[[Endpoint], Awaitable[T]],
        *,
        has_copy: bool,
        received_bytes: Callable[[T], int],
        deadline_s: Callable[[], float] = lambda: ASKING_DEADLINE_S,
        endpoints: Callable[[], Sequence[Endpoint]] | None = None,
    ) -> T:
        """Call `attempt` until it answers, retrying what may pass. Raises UpstreamFailure.

        `has_copy` says that somebody can be served without this: then a failing upstream is not
        pressed. `subject` is for the log, `received_bytes` tells the size of an answer. No attempt
        begins later than `deadline_s` after the first. `endpoints` narrows whom to ask, anew before
        each: once bytes have gone to a client, nobody else can go on with them.
        """
        self.budget.deposit()
        whom = (lambda: self.endpoints) if endpoints is None else endpoints
        probes = {one: one.breaker(kind).failed_probes for one in self.endpoints}
        question = _Question(kind, subject, attempt, received_bytes, has_copy, whom, probes)
        begun = self.clock.monotonic()
        number = 1
        while True:
            turn = await self._go_round(question)
            if turn.answer is not None:
                return turn.answer[0]
            remaining_s = deadline_s() - (self.clock.monotonic() - begun)
            if not turn.failed:
                await self._wait_for_admission(question, turn.not_asked(whom()), remaining_s)
                continue
            passing = [failure for _, failure in turn.failed if not failure.noted]
            delay = None
            if passing:
                delay = self._delay(passing[0], number, remaining_s, has_copy=has_copy)
            if delay is None:
                for endpoint, passed in turn.failed:
                    self._gave_up(endpoint, kind, subject, passed, has_copy=has_copy)
                raise min(turn.failed, key=lambda each: self.endpoints.index(each[0]))[1]
            await self.clock.sleep(delay)
            number += 1

    async def _go_round(self, question: "_Question[T]") -> "_Turn[T]":
        """Ask one endpoint after the other, as their breakers allow, until one answers.

        Who was spared for another's sake is asked at the end, if that one did not answer.
        """
        turn: _Turn[T] = _Turn()
        now = self.clock.monotonic()
        order = sorted(self.endpoints, key=lambda one: one.comes_last(question.kind, now))
        for endpoint in (*order, *order):
            if endpoint in turn.asked or endpoint not in question.endpoints():
                continue
            others = order[order.index(endpoint) + 1 :]
            admission = self._admission(endpoint, question, turn, others)
            if admission.may_ask:
                turn.asked.append(endpoint)
                await self._ask_one(endpoint, admission, question, turn)
            if turn.answer is not None:
                break
        return turn

    def _admission(
        self,
        endpoint: Endpoint,
        question: "_Question[T]",
        turn: "_Turn[T]",
        others: Sequence[Endpoint],
    ) -> Admission:
        now = self.clock.monotonic()
        if endpoint.is_out(now):
            return TURNED_AWAY
        can_be_asked = set(turn.not_asked(question.endpoints())).intersection(others)
        spares = question.has_copy or any(
            not one.is_out(now) and one.breaker(question.kind).failing_since is None
            for one in can_be_asked
        )
        return endpoint.breaker(question.kind).admit(now, spares=spares)

    async def _ask_one(
        self,
        endpoint: Endpoint,
        admission: Admission,
        question: "_Question[T]",
        turn: "_Turn[T]",
    ) -> None:
        """Ask one endpoint, and note in `turn` what came of it."""
        try:
            answer = await self._attempt(endpoint, admission, question)
        except UpstreamFailure as failure:
            turn.failed.append((endpoint, failure))
            if admission.probe:
                self._gave_up(
                    endpoint,
                    question.kind,
                    question.subject,
                    failure,
                    has_copy=question.has_copy,
                    admission=admission,
                )
            return
        if isinstance(answer, Absent) and endpoint is not self.first:
            return
        for passed, reason in turn.failed:
            self._gave_up(passed, question.kind, question.subject, reason, has_copy=False)
        turn.answer = (answer,)

    async def _attempt(
        self, endpoint: Endpoint, admission: Admission, question: "_Question[T]"
    ) -> T:
        """Ask one endpoint once. A probe that tells nothing of it makes room for the next."""
        kind = question.kind
        begun = self.clock.monotonic()
        told = False
        try:
            answer = await question.attempt(endpoint)
        except UpstreamFailure as failure:
            if failure.noted:
                # It failed before it asked: for want of an address, which was told of.
                raise
            told = failure.failing
            duration_s = self.clock.monotonic() - begun
            self._asked(kind, failure.outcome, duration_s, failure.received_bytes)
            raise
        else:
            told = True
            duration_s = self.clock.monotonic() - begun
            self._asked(kind, _outcome_of(answer), duration_s, question.received_bytes(answer))
            self.answered(endpoint, kind)
            return answer
        finally:
            if admission.probe and not told:
                endpoint.breaker(kind).release(admission)
                self._wake()

    def _delay(
        self, failure: UpstreamFailure, number: int, remaining_s: float, *, has_copy: bool
    ) -> float | None:
        if has_copy and failure.failing:
            return None
        if failure.transient and failure.received_bytes and number == 1:
            # It was answering, and broke off: no sign of an upstream that must be spared.
            return 0.0
        delay = delay_before_retry(
            failure, attempt=number, jitter=self.clock.jitter(), remaining_s=remaining_s
        )
        return delay if delay is not None and self.budget.withdraw() else None

    async def _wait_for_admission(
        self, question: "_Question[T]", left: Sequence[Endpoint], remaining_s: float
    ) -> None:
        """Wait until a breaker may let somebody through. Raises Spared where that is too long.

        `left` are those that were not asked. Whoever has waited for a probe in vain has heard the
        truth, and does not wait for the next.
        """
        now = self.clock.monotonic()
        usable = [one for one in left if not one.is_out(now)]
        if not usable:
            # What is left is set aside, and that was for something.
            failure = left[0].last_failure if left else None
            if failure is None:
                failure = Misbehaved(f"mirrors of {self.name} alone could be asked, and lack it")
            raise failure.with_traceback(None)
        wait_s, endpoint = min(
            ((one.breaker(question.kind).wait_s(now), one) for one in usable),
            key=lambda each: (each[1].breaker(question.kind).probing, each[0]),
        )
        soonest = endpoint.breaker(question.kind)
        in_vain = soonest.failed_probes > question.failed_probes[endpoint]
        if question.has_copy or in_vain or wait_s >= remaining_s:
            raise Spared(self.name, endpoint.last_failure, wait_s)
        if not soonest.probing:
            await self.clock.sleep(wait_s)
            return
        # A probe is under way, and tells when it is over.
        changed = self._changed
        try:
            async with asyncio.timeout(remaining_s):
                await changed.wait()
        except TimeoutError:
            raise Spared(self.name, endpoint.last_failure, wait_s) from None

    def _wake(self) -> None:
        """Wake whoever waits for a probe to end."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def note_failure(
        self,
        kind: Kind,
        subject: str,
        failure: UpstreamFailure,
        *,
        news: bool = True,
        endpoint: Endpoint | None = None,
    ) -> None:
        """Take note of a failure outside `ask`: a body that broke off, a document not believed.

        `news` is False where another event has told of it.
        """
        told = endpoint if endpoint is not None else self.first
        self._gave_up(told, kind, subject, failure, has_copy=False, news=news)

    def _gave_up(
        self,
        endpoint: Endpoint,
        kind: Kind,
        subject: str,
        failure: UpstreamFailure,
        *,
        has_copy: bool,
        news: bool = True,
        admission: Admission = AS_USUAL,
    ) -> None:
        """Take note that an endpoint could not answer, once for each failure."""
        if failure.noted:
            return
        failure.noted = True
        endpoint.last_failure = failure
        if failure.failing:
            breaker = endpoint.breaker(kind)
            news = news and breaker.failing_since is None
            breaker.failed(self.clock.monotonic(), admission)
            self._wake()
        self.observer.observe(
            UpstreamFailed(self.name, kind, subject, str(failure), served_stale=has_copy, news=news)
        )

    def set_aside(self, endpoint: Endpoint, failure: UpstreamFailure) -> bool:
        """Set an endpoint aside that was contradicted; tells whether another one can be asked.

        The only endpoint is never set aside: nobody else could be.
        """
        now = self.clock.monotonic()
        if len(self.endpoints) == 1:
            return False
        if not endpoint.is_aside(now):
            endpoint.set_aside(now, failure)
            self.observer.observe(MirrorSetAside(self.name, endpoint.mirror, str(failure), ASIDE_S))
        return any(one is not endpoint and not one.is_out(now) for one in self.endpoints)

    def answered(self, endpoint: Endpoint, kind: Kind) -> None:
        """Take note of an answer, or of its beginning where it may be long in coming."""
        failing_for = endpoint.breaker(kind).answered(self.clock.monotonic())
        if failing_for is None:
            return
        self._wake()
        if endpoint is self.first and kind in (Kind.INDEX, Kind.CONFIG):
            self.observer.observe(UpstreamRecovered(self.name, failing_for))

    def _asked(self, kind: Kind, outcome: str, duration_s: float, received: int) -> None:
        self.observer.observe(UpstreamAsked(self.name, kind, outcome, duration_s, received))


@asynccontextmanager
async def patience(source: Source) -> AsyncIterator[None]:
    """Bound all that a client waits for before its first byte, our own disk included.

    Raises TimedOut; what flights there are go on for the next client.
    """
    try:
        async with asyncio.timeout(CLIENT_PATIENCE_S):
            yield
    except TimeoutError:
        raise TimedOut(f"{source.name} did not answer in time; try again") from None


def _outcome_of(answer: object) -> str:
    if isinstance(answer, Absent):
        return "absent"
    return "unchanged" if isinstance(answer, Unchanged) else "found"
