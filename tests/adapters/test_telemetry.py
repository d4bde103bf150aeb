"""The metrics page and the log, event by event."""

import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.adapters.telemetry import Telemetry
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
from proxy.core.savings import Served
from tests.world.clock import ManualClock

# The contract's list, without the prefix.
CONTRACT = {
    "requests_total": ("registry", "kind", "how", "status"),
    "request_duration_seconds": ("kind", "how"),
    "sent_bytes_total": ("registry", "kind"),
    "saved_requests_total": ("registry",),
    "saved_bytes_total": ("registry",),
    "log_lines_dropped_total": (),
    "upstream_requests_total": ("upstream", "kind", "outcome"),
    "upstream_duration_seconds": ("upstream", "kind"),
    "upstream_received_bytes_total": ("upstream", "kind"),
    "upstream_last_success_timestamp_seconds": ("upstream",),
    "breaker_state": ("upstream",),
    "flights": (),
    "connections": ("protocol",),
    "cache_bytes": ("tier",),
    "cache_entries": ("tier",),
    "cache_limit_bytes": ("tier",),
    "evicted_bytes_total": ("reason",),
    "served_age_seconds": (),
    "integrity_failures_total": ("where",),
    "build_info": ("version",),
}

SERVED = RequestServed(
    registry="crates-io",
    kind=Kind.INDEX,
    how=How.HIT,
    status=304,
    duration_s=0.002,
    sent_bytes=0,
    client="192.0.2.7",
    subject="serde",
)


LOST = RequestMisdirected(400, 0.001, client="192.0.2.7", path="/nowhere/index/")


@pytest.fixture
def telemetry() -> Telemetry:
    made = Telemetry(["crates-io", "all"], ["crates-io"], "9.9.9", ManualClock())
    made.watch_flights(lambda: 3)
    made.watch_connections({"http/1.1": lambda: 7})
    made.watch_upstream("crates-io", lambda: 1, lambda: 2, {"https://mirror.example/": lambda: 3})
    made.set_cache("blobs", used=10, entries=2, limit=100)
    return made


Sample = tuple[str, tuple[tuple[str, str], ...]]


def samples(telemetry: Telemetry) -> dict[Sample, float]:
    page, content_type = telemetry.render()
    assert content_type.startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def value(telemetry: Telemetry, name: str, **labels: str) -> float:
    return samples(telemetry)[f"holdfast_{name}", tuple(sorted(labels.items()))]


def test_every_metric_of_the_contract_is_there_with_its_labels(telemetry: Telemetry) -> None:
    found: dict[str, set[tuple[str, ...]]] = {}
    for name, labels in samples(telemetry):
        bare = name.removeprefix("holdfast_")
        for suffix in ("_bucket", "_sum", "_count"):
            bare = bare.removesuffix(suffix)
        found.setdefault(bare, set()).add(tuple(sorted(key for key, _ in labels if key != "le")))
    for name, keys in CONTRACT.items():
        assert found[name] == {tuple(sorted(keys))}, name


def test_no_event_adds_a_series(telemetry: Telemetry) -> None:
    before = set(samples(telemetry))
    events: tuple[Event, ...] = (
        SERVED,
        LOST,
        IndexSent(3.0),
        UpstreamAsked("crates-io", Kind.CRATE, "mismatch", 0.5, 100),
        UpstreamReceived("crates-io", Kind.CRATE, 100),
        UpstreamFailed("crates-io", Kind.INDEX, "serde", "no", served_stale=True, news=True),
        UpstreamRecovered("crates-io", 12.0),
        NameRemoved("crates-io", "serde"),
        NameReturned("crates-io", "serde"),
        OlderCopyRefused("crates-io", "serde"),
        OlderCopyAccepted("crates-io", "serde"),
        *(IntegrityFailed(where, "x", "a", "b") for where in ("upstream", "disk", "index")),
        StoreFailed("storing", "full"),
        MirrorSetAside("crates-io", "https://mirror.example/", "it lied", 600.0),
        *(Evicted(reason, 1, 10) for reason in ("max_size", "min_free", "purge")),
    )
    for event in events:
        telemetry.observe(event)
    after = set(samples(telemetry))
    assert after == before


def test_a_request_is_counted_by_all_its_labels(telemetry: Telemetry) -> None:
    telemetry.observe(SERVED)
    labels = {"registry": "crates-io", "kind": "index", "how": "hit", "status": "3xx"}
    assert value(telemetry, "requests_total", **labels) == 1
    assert value(telemetry, "request_duration_seconds_count", kind="index", how="hit") == 1
    assert telemetry.totals.registries["crates-io"].requests == 1
    assert telemetry.totals.registries["crates-io"].served_from_here == 1
    assert telemetry.totals.registries["all"].requests == 0


def test_what_was_saved_is_counted_by_the_way_an_answer_was_come_by(telemetry: Telemetry) -> None:
    for how in How:
        telemetry.observe(SERVED._replace(how=how, status=200, sent_bytes=1000))
    # hit, stale, coalesced, negative; and the bodies of hit, stale, coalesced, revalidated.
    assert value(telemetry, "saved_requests_total", registry="crates-io") == 4
    assert value(telemetry, "saved_bytes_total", registry="crates-io") == 4000
    assert value(telemetry, "saved_bytes_total", registry="all") == 0
    assert telemetry.served()["crates-io"] == Served(
        requests=9, served_from_here=4, sent_bytes=9000, saved_requests=4, saved_bytes=4000
    )


def test_what_came_from_upstream_is_counted_whether_it_succeeded_or_not(
    telemetry: Telemetry,
) -> None:
    telemetry.observe(UpstreamAsked("crates-io", Kind.CRATE, "found", 0.5, 1000))
    telemetry.observe(UpstreamAsked("crates-io", Kind.CRATE, "unreachable", 0.5, 20))
    telemetry.observe(UpstreamReceived("crates-io", Kind.CRATE, 4))
    received = value(telemetry, "upstream_received_bytes_total", upstream="crates-io", kind="crate")
    assert received == 1024
    assert telemetry.totals.upstream_received_bytes["crates-io"] == 1024
    assert telemetry.totals.upstream_requests["crates-io"] == 2


def test_only_an_answer_is_a_success(telemetry: Telemetry) -> None:
    def last() -> float:
        return value(telemetry, "upstream_last_success_timestamp_seconds", upstream="crates-io")

    telemetry.observe(UpstreamAsked("crates-io", Kind.INDEX, "timeout", 0.5, 0))
    assert last() == 0
    assert telemetry.totals.upstream_last_success == {"crates-io": None}
    telemetry.observe(UpstreamAsked("crates-io", Kind.INDEX, "absent", 0.5, 0))
    assert last() == ManualClock().now()
    assert telemetry.totals.upstream_last_success == {"crates-io": ManualClock().now()}


def test_gauges_ask_when_they_are_read(telemetry: Telemetry) -> None:
    assert value(telemetry, "flights") == 3
    assert value(telemetry, "connections", protocol="http/1.1") == 7
    assert value(telemetry, "breaker_state", upstream="crates-io") == 1
    assert value(telemetry, "cache_limit_bytes", tier="blobs") == 100


def test_an_outage_is_one_warning_at_its_beginning_and_one_line_at_its_end(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for news in (True, False, False):
        telemetry.observe(
            UpstreamFailed(
                "crates-io", Kind.INDEX, "serde", "it is down", served_stale=True, news=news
            )
        )
    telemetry.observe(UpstreamRecovered("crates-io", 61.4))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "it is down; what is held is served"),
        ("INFO", "crates-io answers again, after 61 s"),
    ]


def test_an_address_that_is_set_aside_is_an_error_with_its_reason_and_counted(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    assert value(telemetry, "set_aside_total", upstream="crates-io") == 0
    telemetry.observe(MirrorSetAside("crates-io", "https://mirror.example/", "it lied", 600.0))
    telemetry.observe(MirrorSetAside("crates-io", "", "it lied as well", 600.0))
    assert value(telemetry, "set_aside_total", upstream="crates-io") == 2
    mirror, own = [record.getMessage() for record in caplog.records]
    assert "https://mirror.example/" in mirror
    assert "600 s: it lied" in mirror
    assert "crates-io" in own
    assert {record.levelname for record in caplog.records} == {"ERROR"}


def test_a_removed_name_is_a_warning_and_a_refused_older_copy_is_not(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    telemetry.observe(NameRemoved("crates-io", "serde"))
    telemetry.observe(OlderCopyRefused("crates-io", "serde"))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "serde of crates-io is gone upstream" in caplog.text


def test_a_request_is_a_line_only_when_debugging(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    telemetry.observe(SERVED)
    assert not caplog.records
    caplog.set_level(logging.DEBUG)
    telemetry.observe(SERVED)
    (record,) = caplog.records
    assert record.getMessage() == "304 hit crates-io index serde"
    assert record.__dict__["fields"]["client"] == "192.0.2.7"


def test_a_request_that_led_nowhere_is_a_line_too(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    telemetry.observe(LOST)
    assert not caplog.records
    caplog.set_level(logging.DEBUG)
    telemetry.observe(LOST)
    (record,) = caplog.records
    assert record.getMessage() == "400 refused /nowhere/index/"
    assert record.__dict__["fields"]["client"] == "192.0.2.7"


def test_a_disk_in_trouble_is_said_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    telemetry = Telemetry([], [], "9.9.9", clock)
    for _ in range(3):
        telemetry.observe(StoreFailed("storing a crate", "no room"))
    clock.advance(61)
    telemetry.observe(StoreFailed("storing a crate", "no room"))
    assert [record.getMessage() for record in caplog.records] == [
        "storing a crate failed: no room",
        "storing a crate failed: no room (and 2 more since)",
    ]
    assert value(telemetry, "store_failures_total") == 4
