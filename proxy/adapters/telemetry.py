"""What happened, for dashboards and for people: the `Observer` port over Prometheus and logging.

Metric names and labels are the contract's. Every label set is bounded by the configuration and made
before the first event, so that a rate over a counter never misses its beginning. A log line is
written where something happened, once: a request is one line at level debug; an upstream's outage
is one warning at its beginning and one line at its end.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final, assert_never

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from proxy.adapters.meters import Meters
from proxy.adapters.tallies import Tallies
from proxy.adapters.totals import Totals
from proxy.core.events import (
    Event,
    Evicted,
    How,
    IndexSent,
    IntegrityFailed,
    MirrorSetAside,
    NameRemoved,
    NameReturned,
    OlderCopyAccepted,
    OlderCopyRefused,
    RequestMisdirected,
    RequestServed,
    StoreFailed,
    UpstreamAsked,
    UpstreamFailed,
    UpstreamReceived,
    UpstreamRecovered,
)
from proxy.core.savings import Savings, Served
from proxy.ports import Clock, Observer
from proxy.service.overview import Known

logger = logging.getLogger(__name__)

_STORE_TROUBLE_SAID_EVERY_S: Final = 60.0
_TURNS: Final = {
    NameRemoved: (
        "removed",
        logging.WARNING,
        "is gone upstream, asked twice; its crates are kept",
    ),
    NameReturned: (
        "returned",
        logging.WARNING,
        "had been removed and is there again: the same owner?",
    ),
    OlderCopyRefused: (
        "older_refused",
        logging.INFO,
        "came in an older state; ours is kept for now",
    ),
    OlderCopyAccepted: (
        "older_accepted",
        logging.WARNING,
        "stays in an older state upstream; it is believed",
    ),
}


class Telemetry(Observer):
    """Counts and logs events. For one event loop; `render` gives the metrics page."""

    def __init__(
        self, registries: Iterable[str], upstreams: Iterable[str], version: str, clock: Clock
    ) -> None:
        # A "_created" series beside every counter doubles the page, and no dashboard reads it.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._clock = clock
        self._store_trouble: tuple[float | None, int] = (None, 0)
        self._totals = Totals()
        self._held: dict[str, tuple[int, int, int]] = {}
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        Info("holdfast_build", "The running version", registry=self._registry).info(
            {"version": version}
        )
        self._tallies = Tallies(registries)
        self._registry.register(self._tallies)
        names = tuple(upstreams)
        self._meters = Meters(self._registry, names)
        self._totals.upstream_received_bytes.update(dict.fromkeys(names, 0))
        self._totals.upstream_requests.update(dict.fromkeys(names, 0))
        self._totals.upstream_last_success.update(dict.fromkeys(names))
        self.config_was_read(True)

    def config_was_read(self, took_effect: bool) -> None:  # noqa: FBT001 - the one thing to say
        """Take note of a reading of the configuration."""
        self._meters.reload_succeeded.set(took_effect)
        if took_effect:
            self._meters.reload_success.set(self._clock.now())

    def served(self) -> dict[str, Served]:
        """Return what each registry has answered since the start."""
        return self._tallies.served()

    @property
    def totals(self) -> Totals:
        """What has been done since the start, up to now."""
        return replace(self._totals, registries=self.served())

    def known(self, savings: Savings) -> Known:
        """Return what an overview is made of, together with `savings`."""
        return Known(
            last_success=self._totals.upstream_last_success,
            blobs=self._held.get("blobs"),
            index_files=self._held.get("index", (0, 0, 0))[0],
            disk_refused_at=self._totals.last_store_failure,
            saved_since=savings.since,
            saved_today=savings.today,
            saved_ever=savings.ever,
        )

    def watch_flights(self, flights: Callable[[], int]) -> None:
        """Let the gauge of running fetches ask `flights` when it is read."""
        gauge = Gauge("holdfast_flights", "Fetches running now", registry=self._registry)
        gauge.set_function(flights)

    def watch_connections(self, connections: Mapping[str, Callable[[], int]]) -> None:
        """Let the gauge of open connections, by protocol, ask when it is read."""
        gauge = Gauge(
            "holdfast_connections", "Open connections", ("protocol",), registry=self._registry
        )
        for protocol, count in connections.items():
            gauge.labels(protocol).set_function(count)

    def watch_upstream(
        self,
        upstream: str,
        index: Callable[[], int],
        crates: Callable[[], int],
        mirrors: Mapping[str, Callable[[], int]],
    ) -> None:
        """Let the gauges of an upstream's breakers ask for their states when they are read."""
        self._meters.breaker.labels(upstream).set_function(index)
        self._meters.crates_breaker.labels(upstream).set_function(crates)
        for mirror, state in mirrors.items():
            self._meters.mirrors.labels(upstream, mirror).set_function(state)

    def set_cache(self, tier: str, *, used: int, entries: int | None, limit: int | None) -> None:
        """Set what one tier of the cache holds; what does not apply to it is None."""
        self._held[tier] = (entries or 0, used, limit or 0)
        self._meters.cache["bytes"].labels(tier).set(used)
        if entries is not None:
            self._meters.cache["entries"].labels(tier).set(entries)
        if limit is not None:
            self._meters.cache["limit_bytes"].labels(tier).set(limit)

    def render(self) -> tuple[bytes, str]:
        """Return the metrics page and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def observe(self, event: Event) -> None:
        """Count an event, and log it where somebody should read it."""
        match event:
            case RequestServed():
                self._request(event)
            case RequestMisdirected():
                self._misdirected(event)
            case IndexSent():
                self._tallies.sent(event.age_s)
            case UpstreamAsked() | UpstreamReceived():
                self._upstream_gave(event)
            case UpstreamFailed() | UpstreamRecovered() | MirrorSetAside():
                self._upstream_turned(event)
            case NameRemoved() | NameReturned() | OlderCopyRefused() | OlderCopyAccepted():
                self._name_turned(event)
            case IntegrityFailed():
                self._meters.integrity.labels(event.where).inc()
                _say(
                    logging.ERROR,
                    f"{event.subject}: bytes from the {event.where} are not what they must be",
                    where=event.where,
                    subject=event.subject,
                    expected=event.expected,
                    actual=event.actual,
                )
            case StoreFailed():
                self._store_failed(event)
            case Evicted():
                self._meters.evicted.labels(event.reason).inc(event.freed_bytes)
                _say(
                    logging.INFO,
                    f"{event.blobs} crates made room ({event.reason})",
                    reason=event.reason,
                    freed_bytes=event.freed_bytes,
                )
            case _ as never:
                assert_never(never)

    def _store_failed(self, event: StoreFailed) -> None:
        """Say that the disk is in trouble once a minute, not at every request."""
        self._meters.store_failures.inc()
        self._totals.store_failures += 1
        self._totals.last_store_failure = self._clock.now()
        now = self._clock.monotonic()
        said_at, unsaid = self._store_trouble
        if said_at is not None and now - said_at < _STORE_TROUBLE_SAID_EVERY_S:
            self._store_trouble = said_at, unsaid + 1
            return
        self._store_trouble = now, 0
        more = f" (and {unsaid} more since)" if unsaid else ""
        _say(logging.ERROR, f"{event.doing} failed: {event.reason}{more}", doing=event.doing)

    def _request(self, event: RequestServed) -> None:
        self._tallies.count(event)
        if logger.isEnabledFor(logging.DEBUG):
            _say(
                logging.DEBUG,
                f"{event.status} {event.how} {event.registry} {event.kind} {event.subject}",
                registry=event.registry,
                kind=event.kind.value,
                how=event.how.value,
                status=event.status,
                duration_ms=round(event.duration_s * 1000, 2),
                sent_bytes=event.sent_bytes,
                client=event.client,
                subject=event.subject,
            )

    def _misdirected(self, event: RequestMisdirected) -> None:
        self._tallies.misdirected()
        if logger.isEnabledFor(logging.DEBUG):
            _say(
                logging.DEBUG,
                f"{event.status} {How.REFUSED} {event.path}",
                how=How.REFUSED.value,
                status=event.status,
                duration_ms=round(event.duration_s * 1000, 2),
                client=event.client,
                path=event.path,
            )

    def _asked(self, event: UpstreamAsked) -> None:
        self._meters.upstream_requests[event.upstream, event.kind, event.outcome].inc()
        self._meters.upstream_durations[event.upstream, event.kind].observe(event.duration_s)
        self._came(event)
        self._totals.upstream_requests[event.upstream] += 1
        if event.outcome in ("found", "unchanged", "absent"):
            now = self._clock.now()
            self._totals.upstream_last_success[event.upstream] = now
            self._meters.last_success[event.upstream].set(now)

    def _upstream_gave(self, event: UpstreamAsked | UpstreamReceived) -> None:
        if isinstance(event, UpstreamAsked):
            self._asked(event)
        else:
            self._came(event)

    def _upstream_turned(self, event: UpstreamFailed | UpstreamRecovered | MirrorSetAside) -> None:
        match event:
            case UpstreamFailed():
                self._failed(event)
            case UpstreamRecovered():
                _say(
                    logging.INFO,
                    f"{event.upstream} answers again, after {event.failing_for_s:.0f} s",
                    upstream=event.upstream,
                )
            case MirrorSetAside():
                self._set_aside(event)

    def _came(self, event: UpstreamAsked | UpstreamReceived) -> None:
        self._meters.received[event.upstream, event.kind].inc(event.received_bytes)
        self._totals.upstream_received_bytes[event.upstream] += event.received_bytes

    def _failed(self, event: UpstreamFailed) -> None:
        consequence = "; what is held is served" if event.served_stale else ""
        _say(
            logging.WARNING if event.news else logging.DEBUG,
            f"{event.reason}{consequence}",
            upstream=event.upstream,
            kind=event.kind.value,
            subject=event.subject,
        )

    def _set_aside(self, event: MirrorSetAside) -> None:
        address = event.mirror or "its own address"
        self._meters.aside.labels(event.upstream).inc()
        _say(
            logging.ERROR,
            f"{address} of {event.upstream} is not asked for {event.aside_for_s:.0f} s: "
            f"{event.reason}",
            upstream=event.upstream,
            mirror=event.mirror,
        )

    def _name_turned(
        self, event: NameRemoved | NameReturned | OlderCopyRefused | OlderCopyAccepted
    ) -> None:
        turn, level, text = _TURNS[type(event)]
        self._meters.names[event.upstream, turn].inc()
        _say(level, f"{event.name} of {event.upstream} {text}", upstream=event.upstream)


def _say(level: int, message: str, **fields: object) -> None:
    logger.log(level, "%s", message, extra={"fields": fields})
