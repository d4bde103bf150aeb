"""The upstreams' own `config.json`: where their crates and their web API are.

Read at the first need and then every few minutes; kept in the index store beside the snapshots, so
that an upstream that is down does not take the crates of a reachable `dl` with it, after a restart
neither. A new one is learned in the background while the old one serves.
"""

from functools import partial
from typing import Final

from proxy.core import registry_config
from proxy.core.answers import NO_VALIDATORS, Found, Snapshot
from proxy.core.events import IntegrityFailed, Kind, StoreFailed
from proxy.core.failures import Misbehaved, StoreFailure, TimedOut, UpstreamFailure
from proxy.core.freshness import PATIENCE_S
from proxy.core.registry_config import NotARegistryConfig, RegistryConfig
from proxy.ports import Clock, IndexStore, Observer
from proxy.service.endpoint import Endpoint
from proxy.service.flights import Flights, outcome
from proxy.service.source import ASKING_DEADLINE_S, CLIENT_PATIENCE_S, Source

CONFIG_FILE: Final = "config.json"
_FRESH_S: Final = 300.0

Key = tuple[str, str]


class UpstreamConfigs:
    """What each upstream says of itself, and each mirror of one. For one event loop."""

    def __init__(self, store: IndexStore, clock: Clock, observer: Observer) -> None:
        self._store = store
        self._clock = clock
        self._observer = observer
        self._flights: Flights[Key, RegistryConfig] = Flights()
        self._known: dict[Key, tuple[RegistryConfig, float]] = {}
        # What was stored before the start: good enough when patience runs out, and not before.
        self._unconfirmed: dict[Key, RegistryConfig] = {}

    async def get(self, source: Source, endpoint: Endpoint | None = None) -> RegistryConfig:
        """Return the upstream's configuration, or an endpoint's, a few minutes old at most.

        Older where it does not answer. Raises UpstreamFailure where none was ever read.
        """
        endpoint = source.first if endpoint is None else endpoint
        key = (source.name, endpoint.mirror)
        known = self._known.get(key)
        if known is not None and self._clock.monotonic() < known[1]:
            return known[0]
        task, _ = self._flights.join(key, partial(self._fetch, source, endpoint))
        if known is not None:
            return known[0]
        for patience_s in (PATIENCE_S, CLIENT_PATIENCE_S - PATIENCE_S):
            try:
                return await outcome(task, patience_s)
            except TimeoutError:
                stored = self._unconfirmed.get(key)
                if stored is not None:
                    return stored
        raise TimedOut(f"{endpoint.upstream.name} did not answer in time; try again")

    def expect(self, source: Source) -> None:
        """Begin to read an upstream's configuration if it is sure to be needed soon and not held.

        Asks no upstream that fails, and tells nobody of a failure but the observer.
        """
        key = (source.name, "")
        if key not in self._known and not source.is_failing():
            self._flights.join(key, partial(self._fetch, source, source.first))

    def forget(self, upstream: str) -> None:
        """Ask again at the next need."""
        for key in [key for key in self._known if key[0] == upstream]:
            del self._known[key]
        self._unconfirmed.pop((upstream, ""), None)

    async def close(self) -> None:
        """End what is running."""
        await self._flights.close(0)

    async def _fetch(self, source: Source, endpoint: Endpoint) -> RegistryConfig:
        key = (source.name, endpoint.mirror)
        config = self._known[key][0] if key in self._known else None
        if config is None and not endpoint.mirror:
            # A mirror's is not stored: it is needed only while the mirror answers.
            config = await self._stored(source)
        if config is not None:
            self._unconfirmed[key] = config
        try:
            config = await self._asked(source, endpoint, has_copy=config is not None)
        except UpstreamFailure:
            if config is None:
                raise
        self._known[key] = (config, self._clock.monotonic() + _FRESH_S)
        return config

    async def _stored(self, source: Source) -> RegistryConfig | None:
        held = await self._store.get(source.name, CONFIG_FILE)
        if held is None or held.body is None:
            return None
        try:
            return registry_config.parse(held.body)
        except NotARegistryConfig as problem:
            self._observer.observe(
                IntegrityFailed("disk", f"{source.name} {CONFIG_FILE}", "", str(problem))
            )
            return None

    async def _asked(self, source: Source, endpoint: Endpoint, *, has_copy: bool) -> RegistryConfig:
        answer = await source.ask(
            Kind.CONFIG,
            CONFIG_FILE,
            lambda asked: asked.upstream.index_file(CONFIG_FILE, NO_VALIDATORS),
            has_copy=has_copy,
            received_bytes=lambda answer: len(answer.body) if isinstance(answer, Found) else 0,
            endpoints=lambda: (endpoint,),
            # Where somebody else has the crates as well, they are asked before this is asked again.
            deadline_s=lambda: ASKING_DEADLINE_S if len(source.endpoints) == 1 else 0.0,
        )
        try:
            config = _read(answer.body if isinstance(answer, Found) else None)
        except NotARegistryConfig as problem:
            failure = Misbehaved(f"{endpoint.upstream.name}: {problem}")
            source.note_failure(Kind.CONFIG, CONFIG_FILE, failure, endpoint=endpoint)
            raise failure from None
        assert isinstance(answer, Found), "what was read had a body"
        if endpoint is source.first:
            await self._keep(source, answer)
        return config

    async def _keep(self, source: Source, answer: Found) -> None:
        now = self._clock.now()
        try:
            snapshot = Snapshot(answer.body, answer.validators, now, now)
            await self._store.put(source.name, CONFIG_FILE, snapshot)
        except StoreFailure as failure:
            self._observer.observe(StoreFailed("storing an upstream's config.json", str(failure)))


def _read(body: bytes | None) -> RegistryConfig:
    if body is None:
        raise NotARegistryConfig("there is no config.json at the configured index; is it one?")
    return registry_config.parse(body)
