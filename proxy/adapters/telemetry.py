"""What happened, for dashboards and for people: the `Observer` port over Prometheus and logging.

Metric names and labels are the contract's. Every label set is bounded by the configuration and made
before the first event, so that a rate over a counter never misses its beginning. A log line is
written where something happened, once: a request is one line at level debug; an upstream's outage
is one warning at its beginning and one line at its end.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, assert_never

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from proxy.adapters import logs
from proxy.adapters.tallies import DURATION_BUCKETS_S, Tallies
from proxy.adapters.totals import Totals
from proxy.core.events import (
    Event,
    Evicted,
    How,
    IndexSent,
    IntegrityFailed,
    Kind,
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

_OUTCOMES: Final = (
    "found",
    "unchanged",
    "absent",
    "unreachable",
    "timeout",
    "status",
    "invalid",
    "forbidden",
    "mismatch",
    "offline",
    "error",
)
_BREAKER: Final = (
    "0 asked as usual, 1 failing and not asked, 2 being tried again, 3 set aside for what it sent"
)
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


class _DroppedLines(Collector):
    """How many lines of the log are missing."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Ask, whenever somebody reads the page."""
        yield CounterMetricFamily(
            "holdfast_log_lines_dropped",
            "Lines of the log that could not be written in time",
            value=logs.dropped_lines(),
        )


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
        self._registry.register(_DroppedLines())
        Info("holdfast_build", "The running version", registry=self._registry).info(
            {"version": version}
        )
        self._make_request_metrics(tuple(registries))
        self._make_upstream_metrics(tuple(upstreams))
        self._make_cache_metrics()
        self._make_reload_metrics()

    def _make_request_metrics(self, registries: tuple[str, ...]) -> None:
        self._tallies = Tallies(registries)
        self._registry.register(self._tallies)

    def _make_upstream_metrics(self, upstreams: tuple[str, ...]) -> None:
        page = self._registry
        requests = Counter(
            "holdfast_upstream_requests_total",
            "Requests made to upstreams",
            ("upstream", "kind", "outcome"),
            registry=self._registry,
        )
        self._upstream_requests = {
            (name, kind, outcome): requests.labels(name, kind.value, outcome)
            for name in upstreams
            for kind in Kind
            for outcome in _OUTCOMES
        }
        durations = Histogram(
            "holdfast_upstream_duration_seconds",
            "Time that a request to an upstream took",
            ("upstream", "kind"),
            buckets=DURATION_BUCKETS_S,
            registry=self._registry,
        )
        received = Counter(
            "holdfast_upstream_received_bytes_total",
            "Bytes of bodies received from upstreams",
            ("upstream", "kind"),
            registry=self._registry,
        )
        last_success = Gauge(
            "holdfast_upstream_last_success_timestamp_seconds",
            "When an upstream last answered",
            ("upstream",),
            registry=self._registry,
        )
        self._breaker = Gauge("holdfast_breaker_state", _BREAKER, ("upstream",), registry=page)
        self._crates_breaker = Gauge(
            "holdfast_crates_breaker_state",
            f"{_BREAKER}; of its crates and its web API",
            ("upstream",),
            registry=page,
        )
        self._mirrors = Gauge(
            "holdfast_mirror_state", _BREAKER, ("upstream", "mirror"), registry=page
        )
        names = Counter(
            "holdfast_names_total",
            "Index files that an upstream removed, brought back, or sent in an older state",
            ("upstream", "turn"),
            registry=self._registry,
        )
        self._aside = Counter(
            "holdfast_set_aside_total",
            "Times that an address of an upstream was contradicted by a digest, and set aside",
            ("upstream",),
            registry=self._registry,
        )
        for name in upstreams:
            self._aside.labels(name)
        pairs = [(name, kind) for name in upstreams for kind in Kind]
        self._upstream_durations = {pair: durations.labels(*pair) for pair in pairs}
        self._received = {pair: received.labels(*pair) for pair in pairs}
        self._last_success = {name: last_success.labels(name) for name in upstreams}
        self._names = {
            (name, turn): names.labels(name, turn)
            for name in upstreams
            for turn, _, _ in _TURNS.values()
        }
        self._totals.upstream_received_bytes.update(dict.fromkeys(upstreams, 0))
        self._totals.upstream_requests.update(dict.fromkeys(upstreams, 0))
        self._totals.upstream_last_success.update(dict.fromkeys(upstreams))

    def _make_cache_metrics(self) -> None:
        self._evicted = Counter(
            "holdfast_evicted_bytes_total",
            "Bytes of blobs removed",
            ("reason",),
            registry=self._registry,
        )
        self._integrity = Counter(
            "holdfast_integrity_failures_total",
            "Bytes that were not what they had to be",
            ("where",),
            registry=self._registry,
        )
        for reason in ("max_size", "min_free", "purge"):
            self._evicted.labels(reason)
        for where in ("upstream", "disk", "index"):
            self._integrity.labels(where)
        self._store_failures = Counter(
            "holdfast_store_failures_total",
            "Times that the cache's disk refused something; clients were served all the same",
            registry=self._registry,
        )
        self._cache = {
            figure: Gauge(
                f"holdfast_cache_{figure}",
                f"The cache's {figure} by tier",
                ("tier",),
                registry=self._registry,
            )
            for figure in ("bytes", "entries", "limit_bytes")
        }

    def _make_reload_metrics(self) -> None:
        """As Prometheus itself tells it: the start is the first that succeeded."""
        self._reload_succeeded = Gauge(
            "holdfast_config_last_reload_successful",
            "Whether the last reading of the configuration took effect",
            registry=self._registry,
        )
        self._reload_success = Gauge(
            "holdfast_config_last_reload_success_timestamp_seconds",
            "When a configuration last took effect",
            registry=self._registry,
        )
        self.config_was_read(True)

    def config_was_read(self, took_effect: bool) -> None:  # noqa: FBT001 - the one thing to say
        """Take note of a reading of the configuration."""
        self._reload_succeeded.set(took_effect)
        if took_effect:
            self._reload_success.set(self._clock.now())

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
        self._breaker.labels(upstream).set_function(index)
        self._crates_breaker.labels(upstream).set_function(crates)
        for mirror, state in mirrors.items():
            self._mirrors.labels(upstream, mirror).set_function(state)

    def set_cache(self, tier: str, *, used: int, entries: int | None, limit: int | None) -> None:
        """Set what one tier of the cache holds; what does not apply to it is None."""
        self._held[tier] = (entries or 0, used, limit or 0)
        self._cache["bytes"].labels(tier).set(used)
        if entries is not None:
            self._cache["entries"].labels(tier).set(entries)
        if limit is not None:
            self._cache["limit_bytes"].labels(tier).set(limit)

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
                self._integrity.labels(event.where).inc()
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
                self._evicted.labels(event.reason).inc(event.freed_bytes)
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
        self._store_failures.inc()
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
        self._upstream_requests[event.upstream, event.kind, event.outcome].inc()
        self._upstream_durations[event.upstream, event.kind].observe(event.duration_s)
        self._came(event)
        self._totals.upstream_requests[event.upstream] += 1
        if event.outcome in ("found", "unchanged", "absent"):
            now = self._clock.now()
            self._totals.upstream_last_success[event.upstream] = now
            self._last_success[event.upstream].set(now)

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
        self._received[event.upstream, event.kind].inc(event.received_bytes)
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
        self._aside.labels(event.upstream).inc()
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
        self._names[event.upstream, turn].inc()
        _say(level, f"{event.name} of {event.upstream} {text}", upstream=event.upstream)


def _say(level: int, message: str, **fields: object) -> None:
    logger.log(level, "%s", message, extra={"fields": fields})
