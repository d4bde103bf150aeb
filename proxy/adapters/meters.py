"""The metrics of the page that are not about single requests: made here, moved by `telemetry`.

Names and labels are the contract's. Every label set is bounded by the configuration and made before
the first event, so that a rate over a counter never misses its beginning. Requests are counted in
`tallies`.
"""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from proxy.adapters import logs
from proxy.adapters.tallies import DURATION_BUCKETS_S
from proxy.core.events import Kind

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
# What may become of a name: see `proxy.core.events`.
TURNS: Final = ("removed", "returned", "older_refused", "older_accepted")
_BREAKER: Final = (
    "0 asked as usual, 1 failing and not asked, 2 being tried again, 3 set aside for what it sent"
)


class Meters:
    """Counters and gauges on one page."""

    def __init__(self, page: CollectorRegistry, upstreams: tuple[str, ...]) -> None:
        page.register(_DroppedLines())
        self._make_upstream_metrics(page, upstreams)
        self._make_cache_metrics(page)
        self._make_reload_metrics(page)

    def _make_upstream_metrics(self, page: CollectorRegistry, upstreams: tuple[str, ...]) -> None:
        requests = Counter(
            "holdfast_upstream_requests_total",
            "Requests made to upstreams",
            ("upstream", "kind", "outcome"),
            registry=page,
        )
        self.upstream_requests = {
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
            registry=page,
        )
        received = Counter(
            "holdfast_upstream_received_bytes_total",
            "Bytes of bodies received from upstreams",
            ("upstream", "kind"),
            registry=page,
        )
        last_success = Gauge(
            "holdfast_upstream_last_success_timestamp_seconds",
            "When an upstream last answered",
            ("upstream",),
            registry=page,
        )
        self.breaker = Gauge("holdfast_breaker_state", _BREAKER, ("upstream",), registry=page)
        self.crates_breaker = Gauge(
            "holdfast_crates_breaker_state",
            f"{_BREAKER}; of its crates and its web API",
            ("upstream",),
            registry=page,
        )
        self.mirrors = Gauge(
            "holdfast_mirror_state", _BREAKER, ("upstream", "mirror"), registry=page
        )
        names = Counter(
            "holdfast_names_total",
            "Index files that an upstream removed, brought back, or sent in an older state",
            ("upstream", "turn"),
            registry=page,
        )
        self.aside = Counter(
            "holdfast_set_aside_total",
            "Times that an address of an upstream was contradicted by a digest, and set aside",
            ("upstream",),
            registry=page,
        )
        for name in upstreams:
            self.aside.labels(name)
        pairs = [(name, kind) for name in upstreams for kind in Kind]
        self.upstream_durations = {pair: durations.labels(*pair) for pair in pairs}
        self.received = {pair: received.labels(*pair) for pair in pairs}
        self.last_success = {name: last_success.labels(name) for name in upstreams}
        self.names = {
            (name, turn): names.labels(name, turn) for name in upstreams for turn in TURNS
        }

    def _make_cache_metrics(self, page: CollectorRegistry) -> None:
        self.evicted = Counter(
            "holdfast_evicted_bytes_total",
            "Bytes of blobs removed",
            ("reason",),
            registry=page,
        )
        self.integrity = Counter(
            "holdfast_integrity_failures_total",
            "Bytes that were not what they had to be",
            ("where",),
            registry=page,
        )
        for reason in ("max_size", "min_free", "purge"):
            self.evicted.labels(reason)
        for where in ("upstream", "disk", "index"):
            self.integrity.labels(where)
        self.store_failures = Counter(
            "holdfast_store_failures_total",
            "Times that the cache's disk refused something; clients were served all the same",
            registry=page,
        )
        self.cache = {
            figure: Gauge(
                f"holdfast_cache_{figure}",
                f"The cache's {figure} by tier",
                ("tier",),
                registry=page,
            )
            for figure in ("bytes", "entries", "limit_bytes")
        }

    def _make_reload_metrics(self, page: CollectorRegistry) -> None:
        """As Prometheus itself tells it: the start is the first that succeeded."""
        self.reload_succeeded = Gauge(
            "holdfast_config_last_reload_successful",
            "Whether the last reading of the configuration took effect",
            registry=page,
        )
        self.reload_success = Gauge(
            "holdfast_config_last_reload_success_timestamp_seconds",
            "When a configuration last took effect",
            registry=page,
        )


class _DroppedLines(Collector):
    """How many lines of the log are missing."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Ask, whenever somebody reads the page."""
        yield CounterMetricFamily(
            "holdfast_log_lines_dropped",
            "Lines of the log that could not be written in time",
            value=logs.dropped_lines(),
        )
