"""The counts of requests, kept as plain numbers and told as metrics when somebody reads the page.

A metrics library's counter costs about a microsecond each time, and a request moves five of them:
at tens of thousands of requests a second that is a tenth of the core. Here a request adds to plain
integers; the label sets are made once, from the configuration, so that a rate over a counter never
misses its beginning and no client can make one.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from proxy.core.events import How, Kind, RequestServed

DURATION_BUCKETS_S: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 300.0),
)
_AGE_BUCKETS_S: Final = (
    *(1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0),
    *(6 * 3600.0, 86400.0, 7 * 86400.0),
)
_CLASSES: Final = ("2xx", "3xx", "4xx", "5xx")


class _Spread:
    """A histogram: how many were at most each bound, and beyond the last."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def told(self) -> tuple[Sequence[tuple[str, float]], float]:
        """Return the cumulative buckets, as the metrics page has them, and the sum."""
        buckets: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            running += count
            le: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
            buckets.append((le, float(running)))
        return buckets, self._sum


class _Tally:
    """What was answered in one way: one registry, kind, how and class of status."""

    __slots__ = ("durations", "requests", "sent_bytes")

    def __init__(self, durations: _Spread) -> None:
        self.durations = durations
        self.requests = 0
        self.sent_bytes = 0


class Tallies(Collector):
    """Counts answered requests. For one event loop; `collect` is called in the same one."""

    def __init__(self, registries: Iterable[str]) -> None:
        self._durations = {(kind, how): _Spread(DURATION_BUCKETS_S) for kind in Kind for how in How}
        self._tallies = {
            (name, kind, how, status): _Tally(self._durations[kind, how])
            for name in registries
            for kind in Kind
            for how in How
            for status in range(2, 6)
        }
        self._age = _Spread(_AGE_BUCKETS_S)
        self._misdirections = 0

    def count(self, event: RequestServed) -> None:
        """Count one request."""
        tally = self._tallies[event.registry, event.kind, event.how, event.status // 100]
        tally.requests += 1
        tally.sent_bytes += event.sent_bytes
        tally.durations.add(event.duration_s)

    def misdirected(self) -> None:
        """Count a request that led to nothing of ours."""
        self._misdirections += 1

    def sent(self, age_s: float) -> None:
        """Count an index file that was sent, by the age of the upstream's last word on it."""
        self._age.add(age_s)

    def collect(self) -> Iterator[Metric]:
        """Tell the counts as metrics."""
        requests = CounterMetricFamily(
            "holdfast_requests", "Requests answered", labels=("registry", "kind", "how", "status")
        )
        sent: dict[tuple[str, Kind], int] = {}
        for (name, kind, how, status), tally in self._tallies.items():
            labels = (name, kind.value, how.value, _CLASSES[status - 2])
            requests.add_metric(labels, tally.requests)
            sent[name, kind] = sent.get((name, kind), 0) + tally.sent_bytes
        # No registry can be called "", and no client makes a label.
        requests.add_metric(("", "", How.REFUSED.value, "4xx"), self._misdirections)
        yield requests
        durations = HistogramMetricFamily(
            "holdfast_request_duration_seconds",
            "Time from a request's head to the end of its answer",
            labels=("kind", "how"),
        )
        for (kind, how), spread in self._durations.items():
            durations.add_metric((kind.value, how.value), *spread.told())
        yield durations
        bytes_sent = CounterMetricFamily(
            "holdfast_sent_bytes", "Bytes of bodies sent to clients", labels=("registry", "kind")
        )
        for (name, kind), count in sent.items():
            bytes_sent.add_metric((name, kind.value), count)
        yield bytes_sent
        age = HistogramMetricFamily(
            "holdfast_served_age_seconds",
            "Age of the upstream's last word on an index file that was sent",
        )
        age.add_metric((), *self._age.told())
        yield age
