"""The metrics of the contract: all of them there from the start, with label sets that stay put.

A series that begins with the first event has no rate for it, and one for every name that a client
can think of fills the memory of two machines.
"""

import asyncio
import logging
from collections.abc import Mapping

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.web.conftest import Proxy, Serve, bring_in, crate_url, index_url
from tests.world import faults
from tests.world.registry import Registry
from tests.world.server import RegistryServer

# Label names by metric, less the histograms' own.
CONTRACT: Mapping[str, set[str]] = {
    "requests_total": {"registry", "kind", "how", "status"},
    "request_duration_seconds_bucket": {"kind", "how", "le"},
    "request_duration_seconds_count": {"kind", "how"},
    "request_duration_seconds_sum": {"kind", "how"},
    "sent_bytes_total": {"registry", "kind"},
    "upstream_requests_total": {"upstream", "kind", "outcome"},
    "upstream_duration_seconds_bucket": {"upstream", "kind", "le"},
    "upstream_received_bytes_total": {"upstream", "kind"},
    "upstream_last_success_timestamp_seconds": {"upstream"},
    "breaker_state": {"upstream"},
    "flights": set(),
    "connections": {"protocol"},
    "cache_bytes": {"tier"},
    "cache_entries": {"tier"},
    "cache_limit_bytes": {"tier"},
    "evicted_bytes_total": {"reason"},
    "served_age_seconds_bucket": {"le"},
    "integrity_failures_total": {"where"},
    "build_info": {"version"},
}
# What the upkeep of a serving process fills in; see the tests of whole processes.
BY_UPKEEP = {"cache_bytes", "cache_entries", "cache_limit_bytes"}

Series = tuple[str, tuple[tuple[str, str], ...]]


async def series(proxy: Proxy) -> dict[Series, float]:
    """Return every series of ours on the page, and its value."""
    answer = await proxy.ask("/metrics")
    assert answer.status == 200
    return {
        (sample.name.removeprefix("holdfast_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
        if sample.name.startswith("holdfast_")
    }


async def test_every_metric_of_the_contract_is_there_before_anything_happened(
    proxy: Proxy,
) -> None:
    labels: dict[str, set[str]] = {}
    for name, pairs in await series(proxy):
        labels.setdefault(name, {label for label, _ in pairs})
    expected = {name: names for name, names in CONTRACT.items() if name not in BY_UPKEEP}
    assert {name: labels.get(name) for name in expected} == expected


async def test_whatever_happens_no_series_appears(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, crates_io={"fresh_for": "0s", "stale_while_revalidate": "0s"})
    before = set(await series(proxy))
    upstream.fail("/index/pl/*", faults.login_page())
    upstream.fail("/crates/Mixed_Case/*", faults.wrong_bytes("same length"))
    upstream.fail("/index/3/*", faults.redirect(faults.LINK_LOCAL_URL))
    upstream.fail("/index/1/*", faults.status(500), times=3)
    for url in (
        index_url("small"),
        index_url("small"),
        index_url("missing"),
        index_url("plus"),
        index_url("abc"),
        index_url("a"),
        "/crates-io/index/no/such/path",
        "/crates-io/index/config.json",
        "/nowhere/index/config.json",
        "/nowhere-else/index/config.json",
        crate_url(stocked, "small"),
        crate_url(stocked, "large"),
        "/crates-io/crates/Mixed_Case/1.0.0/download",
        "/crates-io/crates/small/9.9.9/download",
        "/crates-io/api/v1/crates?q=x",
        "/",
        "/-/nothing",
    ):
        for method in ("GET", "HEAD", "PUT"):
            await proxy.ask(url, method=method)
    upstream.stop()
    await proxy.ask(index_url("small"))
    await proxy.ask(index_url("late"))
    assert set(await series(proxy)) == before


async def test_every_registry_and_upstream_is_there_from_the_start(
    serve: Serve, upstream: RegistryServer
) -> None:
    proxy = await serve(
        upstream,
        upstreams={"company": {"index": upstream.index_url}},
        registries={"team": {"upstreams": ["company"]}},
    )
    found: dict[str, set[str]] = {}
    for _, pairs in await series(proxy):
        for label, value in pairs:
            found.setdefault(label, set()).add(value)
    assert found["registry"] == {"crates-io", "company", "team", ""}
    assert found["upstream"] == {"crates-io", "company"}
    assert found["kind"] == {"config", "index", "crate", "api", ""}
    assert found["status"] == {"2xx", "3xx", "4xx", "5xx"}
    assert found["how"] == {
        *("hit", "stale", "revalidated", "miss", "coalesced"),
        *("negative", "refused", "bypass", "error"),
    }


async def test_what_leads_nowhere_is_counted_and_logged_without_making_labels(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    targets = ("/nowhere/index/config.json", "/index/", f"/{'x' * 900}?token=secret")
    with caplog.at_level(logging.DEBUG, "proxy"):
        for target in targets:
            assert (await proxy.ask(target)).status == 400
    labels = {"registry": "", "kind": "", "how": "refused", "status": "4xx"}
    assert proxy.metric("requests_total", **labels) == len(targets)
    lines = [each.getMessage() for each in caplog.records if "400 refused" in each.getMessage()]
    assert lines[:2] == ["400 refused /nowhere/index/config.json", "400 refused /index/"]
    assert len(lines) == len(targets)
    assert len(lines[2]) < 300
    assert "secret" not in lines[2]


async def test_bytes_are_counted_as_they_were_sent_and_received(
    proxy: Proxy, stocked: Registry
) -> None:
    crate = len(stocked.crate("large", "1.0.0"))
    url = crate_url(stocked, "large")
    await bring_in(proxy, url)
    sent = proxy.metric("sent_bytes_total", registry="crates-io", kind="crate")
    assert sent % crate == 0
    await proxy.ask(url, {"Range": "bytes=0-99"})
    await proxy.ask(url, method="HEAD")
    await proxy.ask(url, {"If-None-Match": "*"})
    assert proxy.metric("sent_bytes_total", registry="crates-io", kind="crate") == sent + 100
    assert proxy.metric("upstream_received_bytes_total", upstream="crates-io", kind="crate") == (
        crate
    )
    index = len(stocked.index("large"))
    assert proxy.metric("upstream_received_bytes_total", upstream="crates-io", kind="index") == (
        index
    )
    packed = await proxy.ask(index_url("many"), {"Accept-Encoding": "gzip"})
    await proxy.ask(index_url("many"), {"If-None-Match": "*"})
    assert proxy.metric("sent_bytes_total", registry="crates-io", kind="index") == len(packed.body)


async def test_what_upstreams_said_is_counted_by_kind_and_outcome(
    proxy: Proxy, stocked: Registry, upstream: RegistryServer
) -> None:
    upstream.fail("/index/ma/*", faults.status(500), times=1)
    for name in ("small", "many", "missing"):
        await proxy.ask(index_url(name))

    def asked(outcome: str) -> float:
        labels = {"upstream": "crates-io", "kind": "index", "outcome": outcome}
        return proxy.metric("upstream_requests_total", **labels)

    assert (asked("found"), asked("absent"), asked("status")) == (2, 1, 1)
    assert proxy.metric("upstream_last_success_timestamp_seconds", upstream="crates-io") > 1e9
    assert proxy.metric("upstream_duration_seconds_count", upstream="crates-io", kind="index") == 4


async def test_the_breaker_shows_an_upstream_that_fails(
    proxy: Proxy, stocked: Registry, upstream: RegistryServer
) -> None:
    assert proxy.metric("breaker_state", upstream="crates-io") == 0
    upstream.stop()
    await proxy.ask(index_url("small"))
    assert proxy.metric("breaker_state", upstream="crates-io") == 1
    upstream.start()
    await proxy.ask(index_url("small"))
    assert proxy.metric("breaker_state", upstream="crates-io") == 0


async def test_flights_and_connections_are_those_of_now(
    proxy: Proxy, stocked: Registry, upstream: RegistryServer
) -> None:
    assert proxy.metric("flights") == 0
    with upstream.hold("/index/sm/*") as gate:
        asking = asyncio.create_task(proxy.ask(index_url("small")))
        await gate.arrived(1)
        assert proxy.metric("flights") == 1
        assert proxy.metric("connections") == 1
    await asking
    assert proxy.metric("flights") == 0


async def test_wrong_bytes_are_counted_by_where_they_came_from(
    proxy: Proxy, stocked: Registry, upstream: RegistryServer
) -> None:
    upstream.fail("/crates/small/*", faults.wrong_bytes("same length"))
    await proxy.ask(crate_url(stocked, "small"))
    assert proxy.metric("integrity_failures_total", where="upstream") == 1
    assert proxy.metric("integrity_failures_total", where="disk") == 0
