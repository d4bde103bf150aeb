"""Plain numbers and the metrics library's own counters, fed alike, tell the same page."""

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, Metric

from proxy.adapters.tallies import DURATION_BUCKETS_S, Tallies
from proxy.core.events import How, Kind, RequestServed
from proxy.core.savings import saves_bytes, saves_request

REGISTRIES = ("crates-io", "house")
# Dashboards are written for these: a bound that moves breaks them.
AGES_S = (1, 5, 10, 30, 60, 120, 300, 900, 3600, 21_600, 86_400, 604_800)
edges = st.sampled_from([*DURATION_BUCKETS_S, *map(float, AGES_S), 0.0, 1e9])
seconds = edges | st.floats(0, 1e6)
served = st.builds(
    RequestServed,
    st.sampled_from(REGISTRIES),
    st.sampled_from(Kind),
    st.sampled_from(How),
    st.sampled_from([200, 206, 304, 400, 404, 416, 500, 503, 599]),
    seconds,
    st.integers(0, 10**9),
    st.just("192.0.2.1"),
    st.just("serde"),
)
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(metrics: Iterable[Metric]) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in metrics
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def by_the_library(events: list[RequestServed], ages_s: list[float]) -> Samples:
    """Count with the library's own classes, labels not made before they are needed."""
    registry = CollectorRegistry()
    labels = ["registry", "kind", "how", "status"]
    requests = Counter("holdfast_requests", "a", labels, registry=registry)
    sent = Counter("holdfast_sent_bytes", "a", labels[:2], registry=registry)
    name = "holdfast_request_duration_seconds"
    durations = Histogram(name, "a", labels[1:3], registry=registry, buckets=DURATION_BUCKETS_S)
    saved = Counter("holdfast_saved_requests", "a", labels[:1], registry=registry)
    saved_bytes = Counter("holdfast_saved_bytes", "a", labels[:1], registry=registry)
    age = Histogram("holdfast_served_age_seconds", "a", registry=registry, buckets=AGES_S)
    for event in events:
        status = f"{event.status // 100}xx"
        requests.labels(event.registry, event.kind.value, event.how.value, status).inc()
        sent.labels(event.registry, event.kind.value).inc(event.sent_bytes)
        durations.labels(event.kind.value, event.how.value).observe(event.duration_s)
        if saves_request(event.how):
            saved.labels(event.registry).inc()
        if saves_bytes(event.how):
            saved_bytes.labels(event.registry).inc(event.sent_bytes)
    for each in ages_s:
        age.observe(each)
    return samples(registry.collect())


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.lists(served, max_size=20), st.lists(seconds, max_size=10))
def test_what_is_told_is_what_the_library_would_have_counted(
    events: list[RequestServed], ages_s: list[float]
) -> None:
    tallies = Tallies(REGISTRIES)
    for event in events:
        tallies.count(event)
    for each in ages_s:
        tallies.sent(each)
    told = samples(tallies.collect())
    expected = by_the_library(events, ages_s)
    assert {key: told[key] for key in expected} == expected
    # All else is there from the beginning, and zero.
    assert {told[key] for key in told.keys() - expected.keys()} <= {0.0}
    # Reading the page changes nothing.
    assert samples(tallies.collect()) == told


def test_every_label_set_is_there_before_anything_is_counted() -> None:
    told = samples(Tallies(REGISTRIES).collect())
    requests = [labels for name, labels in told if name == "holdfast_requests_total"]
    # One more is for what leads to no registry.
    assert len(requests) == len(REGISTRIES) * len(Kind) * len(How) * 4 + 1
    assert set(told.values()) == {0.0}
