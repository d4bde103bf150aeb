"""One index request, from the name to the bytes: plan, ask, learn, fall back.

What is held lies in three places: negative answers in memory (for seconds), rendered forms in
memory, snapshots in the store. One flight per name asks the upstream, whoever and however many want
it. Here the order of things is told; when a copy may be served and what an answer changes is
decided in `proxy.core.freshness`, what may be believed in `proxy.service.belief`.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from proxy.core.answers import Answer, Found, Snapshot, Unchanged
from proxy.core.events import (
    How,
    Kind,
    NameRemoved,
    NameReturned,
    OlderCopyAccepted,
    OlderCopyRefused,
    StoreFailed,
)
from proxy.core.failures import Misbehaved, StoreFailure, UpstreamFailure
from proxy.core.freshness import (
    NEGATIVE_FRESH_S,
    Ask,
    Learned,
    Serve,
    Turn,
    UnaskedNotModified,
    is_fresh,
    is_usable,
    learn,
    needs_second_opinion,
    plan,
    validators_for,
)
from proxy.core.memory_tier import MemoryTier
from proxy.core.names import index_path
from proxy.ports import Clock, IndexStore, Observer, StateStore
from proxy.service.admission import Admit, freely
from proxy.service.belief import agree, believe
from proxy.service.endpoint import Endpoint
from proxy.service.flights import Flights, outcome
from proxy.service.rendered import Rendered, render, with_snapshot
from proxy.service.source import Source, patience

_NEGATIVES_MAX: Final = 10_000
_LANDINGS_MAX: Final = 10_000
_OFF_LOOP_BYTES: Final = 64 * 1024

# Of what is told by somebody else: it is looked at again.
_LONG_AGO: Final = (-1, -1)

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class IndexServed:
    """An index file to send. `may_confirm`: a 304 may rest on it."""

    rendered: Rendered
    how: How
    may_confirm: bool


@dataclass(frozen=True, slots=True)
class IndexAbsent:
    """The upstream says that there is no such name."""

    how: How


@dataclass(frozen=True, slots=True)
class _Landed:
    """What a flight brought: the forms (None: absent), and whether the body was confirmed as is."""

    rendered: Rendered | None
    unchanged: bool


@dataclass(frozen=True, slots=True)
class _Look:
    """What was found held of a name, and what had happened before the look."""

    rendered: Rendered | None
    snapshot: Snapshot | None
    moment: tuple[int | None, int]


class Indexes:
    """The index files of all upstreams. For one event loop."""

    def __init__(
        self,
        store: IndexStore,
        state: StateStore,
        clock: Clock,
        observer: Observer,
        *,
        memory_bytes: int,
    ) -> None:
        self._store = store
        self._state = state
        self._clock = clock
        self._observer = observer
        self._flights: Flights[Key, _Landed] = Flights()
        self._forms: MemoryTier[Key, Rendered] = MemoryTier(memory_bytes)
        self._negatives: MemoryTier[Key, float] = MemoryTier(_NEGATIVES_MAX)
        # Whoever finds that this has grown meanwhile may have read what is to be forgotten.
        self._forgettings = 0
        # The number of the last landing of each name, to the same end.
        self._landings: MemoryTier[Key, int] = MemoryTier(_LANDINGS_MAX)
        self._landed = 0

    @property
    def memory(self) -> MemoryTier[Key, Rendered]:
        """The memory tier, for figures."""
        return self._forms

    @property
    def flights(self) -> int:
        """How many fetches are running."""
        return len(self._flights)

    async def answer(
        self, source: Source, name: str, *, insisting: bool, admit: Admit = freely
    ) -> IndexServed | IndexAbsent:
        """Answer one request for `name` (lower case). Raises UpstreamFailure: never for absence.

        `insisting`: the request is conditional, or comes from a client that asked so of late.
        `admit` is asked where no file is held and no flight is on its way.
        """
        async with patience(source):
            return await self._answer(source, name, insisting=insisting, admit=admit)

    async def _answer(
        self, source: Source, name: str, *, insisting: bool, admit: Admit
    ) -> IndexServed | IndexAbsent:
        key = (source.name, name)
        if self._is_known_absent(key):
            return IndexAbsent(How.NEGATIVE)
        look = await self._look(key)
        rendered, snapshot = look.rendered, look.snapshot
        if self._is_known_absent(key):
            return IndexAbsent(How.NEGATIVE)
        decision = plan(
            snapshot,
            source.terms,
            self._clock.now(),
            insisting=insisting,
            upstream_failing=source.is_failing(),
        )
        match decision:
            case Serve():
                if rendered is None:
                    return IndexAbsent(How.NEGATIVE)
                failing = source.is_failing()
                if decision.refresh and not failing:
                    self._ask(source, name, look)
                how = How.STALE if decision.stale else How.HIT
                return IndexServed(rendered, how, may_confirm=not decision.stale or failing)
            case Ask():
                return await self._ask_and_wait(source, name, look, decision.patience_s, admit)

    def hot(self, source: Source, name: str) -> Rendered | None:
        """Return the forms of `name` if they are in memory and fresh: the path without an await."""
        rendered = self._forms.get((source.name, name))
        if rendered is None:
            return None
        age = self._clock.now() - rendered.snapshot.confirmed_at
        return rendered if 0 <= age < source.terms.fresh_for_s else None

    def in_memory(self, source: Source, name: str) -> Rendered | None:
        """Return what memory holds of `name`, however old."""
        return self._forms.get((source.name, name))

    async def _ask_and_wait(
        self, source: Source, name: str, look: _Look, patience_s: float | None, admit: Admit
    ) -> IndexServed | IndexAbsent:
        held = look.rendered
        task, began = self._ask(source, name, look, admit if held is None else freely)
        try:
            landed = await outcome(task, patience_s)
        except TimeoutError:
            assert held is not None, "patience is for who has something to fall back on"
            return IndexServed(held, How.STALE, may_confirm=False)
        except UpstreamFailure:
            if held is None or not is_usable(held.snapshot, source.terms, self._clock.now()):
                raise
            return IndexServed(held, How.STALE, may_confirm=True)
        if landed.rendered is None:
            return IndexAbsent(How.MISS if began else How.COALESCED)
        if not began:
            return IndexServed(landed.rendered, How.COALESCED, may_confirm=True)
        how = How.REVALIDATED if landed.unchanged else How.MISS
        return IndexServed(landed.rendered, how, may_confirm=True)

    def _ask(
        self,
        source: Source,
        name: str,
        look: _Look,
        admit: Admit = freely,
        *,
        suffices: bool = True,
    ) -> tuple[asyncio.Task[_Landed], bool]:
        """Join the flight for a name, or begin one: `look` is what its beginner found held.

        `suffices`: whether that would do for now.
        """

        def begin() -> Coroutine[Any, Any, _Landed]:
            admit()
            return self._fetch(source, name, look, suffices=suffices)

        return self._flights.join((source.name, name), begin)

    async def held(self, source: Source, name: str) -> Rendered | None:
        """Return what is held of `name`, however old, asking nobody."""
        rendered, _ = await self._held((source.name, name))
        return rendered

    async def refreshed(
        self, source: Source, name: str, seen: Rendered | None, admit: Admit = freely
    ) -> Rendered | None:
        """Return `name` as the upstream has it now, None if absent. Raises UpstreamFailure.

        `seen` is what did not suffice. How long to wait is the caller's word.
        """
        if self._is_known_absent((source.name, name)):
            return None
        snapshot = seen.snapshot if seen is not None else None
        look = _Look(seen, snapshot, _LONG_AGO)
        task, _ = self._ask(source, name, look, admit, suffices=False)
        landed = await outcome(task, None)
        return landed.rendered

    async def _look(self, key: Key) -> _Look:
        moment = self._moment(key)
        return _Look(*await self._held(key), moment)

    def _moment(self, key: Key) -> tuple[int | None, int]:
        """Say what has happened to a name: while it says the same, what was found is true."""
        return self._landings.get(key), self._forgettings

    async def _held(self, key: Key) -> tuple[Rendered | None, Snapshot | None]:
        rendered = self._forms.get(key)
        if rendered is not None:
            return rendered, rendered.snapshot
        forgettings = self._forgettings
        snapshot = await self._store.get(*key)
        # A flight may have landed while the store was read; what it brought is newer.
        newer = self._forms.get(key)
        if newer is not None:
            return newer, newer.snapshot
        if snapshot is None or snapshot.body is None:
            return None, snapshot
        rendered = await _render(snapshot)
        newer = self._forms.get(key)
        if newer is not None:
            return newer, newer.snapshot
        if self._forgettings == forgettings:
            self._forms.put(key, rendered, rendered.cost_bytes)
        return rendered, snapshot

    def _is_known_absent(self, key: Key) -> bool:
        until = self._negatives.get(key)
        if until is None:
            return False
        if self._clock.monotonic() < until:
            return True
        self._negatives.discard(key)
        return False

    async def _fetch(self, source: Source, name: str, look: _Look, *, suffices: bool) -> _Landed:
        """Ask the upstream for one name, and learn: the body of a flight.

        Where another flight has landed since its beginner looked, that is the answer.
        """
        key = (source.name, name)
        seen = look.snapshot
        if look.moment != self._moment(key):
            look = await self._look(key)
        rendered, held, forgettings = look.rendered, look.snapshot, look.moment[1]
        if self._is_known_absent(key):
            return _Landed(None, unchanged=False)
        if held is not None and held != seen and is_fresh(held, source.terms, self._clock.now()):
            return _Landed(rendered, unchanged=True)
        has_copy = suffices and is_usable(held, source.terms, self._clock.now())
        ask = partial(self._asked, source, name, held, has_copy=has_copy)
        answer = await ask(new_connection=False)
        if needs_second_opinion(held, answer):
            answer = await ask(new_connection=True)
        try:
            learned = learn(held, answer, self._clock.now())
        except UnaskedNotModified:
            failure = Misbehaved(
                f"{source.name} said 304 for {name}, which was not asked with a validator"
            )
            source.note_failure(Kind.INDEX, name, failure)
            raise failure from None
        if self._forgettings != forgettings and isinstance(answer, Unchanged):
            # What was confirmed may have been purged since: it is good for those who wait.
            assert rendered is not None, "nothing else can be confirmed"
            return _Landed(rendered, unchanged=True)
        return await self._settle(key, rendered, learned, unchanged=isinstance(answer, Unchanged))

    async def _asked(
        self,
        source: Source,
        name: str,
        held: Snapshot | None,
        *,
        has_copy: bool,
        new_connection: bool,
    ) -> Answer:
        path = index_path(name)

        async def attempt(endpoint: Endpoint) -> Answer:
            answer = await endpoint.upstream.index_file(
                path, validators_for(held, endpoint.mirror), new_connection=new_connection
            )
            if not isinstance(answer, Found):
                return answer
            try:
                await believe(source, name, answer.body)
                await agree(source, endpoint, name, held, answer.body)
            except UpstreamFailure as failure:
                failure.received_bytes = len(answer.body)
                raise
            return replace(answer, validators=replace(answer.validators, mirror=endpoint.mirror))

        return await source.ask(
            Kind.INDEX,
            path.rpartition("/")[2],
            attempt,
            has_copy=has_copy,
            received_bytes=lambda answer: len(answer.body) if isinstance(answer, Found) else 0,
        )

    async def _settle(
        self, key: Key, held: Rendered | None, learned: Learned, *, unchanged: bool
    ) -> _Landed:
        """Let what was learned take effect: memory first, since it serves, then the store."""
        self._landed += 1
        self._landings.put(key, self._landed, 1)
        self._tell(key, learned.turn)
        snapshot = learned.snapshot
        if snapshot is None or snapshot.body is None:
            if held is not None:
                self._forget_forms(key)
            self._negatives.put(key, self._clock.monotonic() + NEGATIVE_FRESH_S, 1)
            if snapshot is not None:
                await self._keep(key, snapshot, body_changed=True)
            await self._record(key, learned.turn)
            return _Landed(None, unchanged=False)
        same_body = held is not None and held.snapshot.body == snapshot.body
        if held is not None and same_body:
            rendered = with_snapshot(held, snapshot)
        else:
            rendered = await _render(snapshot)
        self._negatives.discard(key)
        self._forms.put(key, rendered, rendered.cost_bytes)
        await self._keep(key, snapshot, body_changed=not same_body)
        await self._record(key, learned.turn)
        return _Landed(rendered, unchanged=unchanged or same_body)

    async def _keep(self, key: Key, snapshot: Snapshot, *, body_changed: bool) -> None:
        try:
            if body_changed:
                await self._store.put(*key, snapshot)
            else:
                await self._store.confirm(*key, snapshot)
        except StoreFailure as failure:
            self._observer.observe(StoreFailed("storing an index file", str(failure)))

    def _tell(self, key: Key, turn: Turn) -> None:
        match turn:
            case Turn.NONE:
                pass
            case Turn.REMOVED:
                self._observer.observe(NameRemoved(*key))
            case Turn.RETURNED:
                self._observer.observe(NameReturned(*key))
            case Turn.OLDER_REFUSED:
                self._observer.observe(OlderCopyRefused(*key))
            case Turn.OLDER_ACCEPTED:
                self._observer.observe(OlderCopyAccepted(*key))

    async def _record(self, key: Key, turn: Turn) -> None:
        try:
            if turn is Turn.REMOVED:
                await self._state.removed(*key, self._clock.now())
            elif turn is Turn.RETURNED:
                await self._state.returned(*key, self._clock.now())
        except StoreFailure as failure:
            self._observer.observe(StoreFailed("recording a tombstone", str(failure)))

    def forget(self, upstream: str, name: str | None) -> None:
        """Drop what memory holds of a name, or of all names of an upstream."""
        if name is not None:
            self._forget_forms((upstream, name))
            self._negatives.discard((upstream, name))
            return
        self._forgettings += 1
        self._forms.discard_where(lambda key: key[0] == upstream)
        self._negatives.discard_where(lambda key: key[0] == upstream)

    def _forget_forms(self, key: Key) -> None:
        self._forgettings += 1
        self._forms.discard(key)

    async def close(self, patience_s: float) -> None:
        """Let running flights end, then end them."""
        await self._flights.close(patience_s)


async def _render(snapshot: Snapshot) -> Rendered:
    body = snapshot.body
    assert body is not None, "only bodies are rendered"
    if len(body) > _OFF_LOOP_BYTES:
        return await asyncio.to_thread(render, snapshot)
    return render(snapshot)
