"""Our `config.json`: it must lead the client back by the road on which it came.

How an address is chosen is `proxy.core.forwarded`'s and tested there; here it is followed from the
socket and the headers to the document, for every road that a request can take.
"""

import json
import logging
from collections.abc import Mapping

import pytest

from tests.web import http11
from tests.web.conftest import Proxy, Serve, crate_url, index_url
from tests.world.registry import Registry
from tests.world.server import RegistryServer

CONFIG = "/crates-io/index/config.json"
CONFIG_OF_UPSTREAM = "/index/config.json"
TRUSTING = {"trusted_proxies": ["127.0.0.0/8"]}


async def api_of(
    proxy: Proxy, headers: Mapping[str, str] | None = None, target: str = CONFIG
) -> str:
    """Return where `config.json` says that the registry's API is."""
    answer = await proxy.ask(target, headers)
    assert answer.status == 200, answer
    document = json.loads(answer.body)
    assert document["dl"] == document["api"] + "/crates/{crate}/{version}/{sha256-checksum}"
    assert set(document) == {"dl", "api"}
    api: str = document["api"]
    return api


async def test_it_is_never_stored_never_304_and_needs_no_upstream(
    proxy: Proxy, upstream: RegistryServer
) -> None:
    upstream.stop()
    for headers in (
        {},
        {"If-None-Match": "*"},
        {"If-Modified-Since": "Wed, 01 Jan 2099 00:00:00 GMT"},
        {"Range": "bytes=0-3"},
    ):
        answer = await proxy.ask(CONFIG, headers)
        assert (answer.status, answer.how) == (200, "hit")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"] == "application/json"
        assert "etag" not in answer.headers
        json.loads(answer.body)


async def test_it_leads_to_the_host_that_the_client_named(proxy: Proxy) -> None:
    for host in (
        "localhost:8080",
        "crates.example",
        "Crates.Example:443",
        "192.0.2.7:8080",
        "[2001:db8::7]:8080",
        "[::1]",
    ):
        assert await api_of(proxy, {"Host": host}) == f"{proxy.scheme}://{host}/crates-io"


async def test_it_never_leads_to_the_unspecified_address(proxy: Proxy) -> None:
    here = f"{proxy.url}/crates-io"
    for host in ("0.0.0.0", "[::]", "[::ffff:0.0.0.0]"):
        assert await api_of(proxy, {"Host": f"{host}:{proxy.port}"}) == here, host
        assert await api_of(proxy, {"Host": host}) == here, host


async def test_without_a_host_it_leads_to_the_address_of_the_connection(proxy: Proxy) -> None:
    answer = await http11.raw(proxy.port, f"GET {CONFIG} HTTP/1.0\r\n\r\n".encode(), tls=proxy.tls)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0]
    assert json.loads(body)["api"] == f"{proxy.url}/crates-io"


async def test_a_host_that_is_none_is_400(proxy: Proxy) -> None:
    for host in (
        "crates.example/evil",
        "user@crates.example",
        "a b",
        "x:port",
        "[::1",
        "<script>",
        "caf\u00e9.example",
    ):
        answer = await proxy.ask(CONFIG, {"Host": host})
        assert answer.status == 400, host
        assert host.encode("latin-1") not in answer.body


async def test_a_public_url_is_what_counts_wherever_the_client_came_in(
    serve: Serve, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, server={"public_url": "https://crates.example/"})
    for host in ("crates.example", f"127.0.0.1:{proxy.port}", "elsewhere.example"):
        assert await api_of(proxy, {"Host": host}) == "https://crates.example/crates-io"


async def test_of_several_public_urls_the_one_that_the_client_used_counts(
    serve: Serve, upstream: RegistryServer
) -> None:
    urls = ["https://crates.example", "http://build.example:8080/cargo"]
    proxy = await serve(upstream, server={"public_url": urls})
    expected = {
        "crates.example": urls[0],
        "build.example:8080": urls[1],
        "build.example": urls[1],
        "unheard.of": urls[0],
    }
    for host, url in expected.items():
        assert await api_of(proxy, {"Host": host}) == f"{url}/crates-io"


async def test_the_path_of_a_public_url_may_be_left_on_or_taken_off_on_the_way(
    serve: Serve, stocked: object, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, server={"public_url": "https://example.com/a/cargo"})
    expected = "https://example.com/a/cargo/crates-io"
    for prefix in ("", "/a/cargo"):
        assert await api_of(proxy, target=prefix + CONFIG) == expected
        for url in (
            index_url("small"),
            "/crates-io/crates/small/1.0.0/download",
            "/crates-io/api/v1/crates?q=small",
            "/-/healthz",
            "/metrics",
            "/",
        ):
            answer = await proxy.ask(prefix + url)
            assert answer.status == 200, prefix + url
    assert (await proxy.ask("/a/cargo")).headers["content-type"].startswith("text/html")
    for target in ("/a" + CONFIG, "/a/cargox" + CONFIG, "/cargo" + CONFIG, "/a/cargo/a/cargo"):
        assert (await proxy.ask(target)).status == 400, target


async def test_a_registry_is_not_taken_for_the_prefix_of_its_own_name(
    serve: Serve, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, server={"public_url": "https://example.com/crates-io"})
    expected = "https://example.com/crates-io/crates-io"
    assert await api_of(proxy) == expected
    assert await api_of(proxy, target="/crates-io" + CONFIG) == expected


async def test_what_a_trusted_proxy_forwards_is_believed(
    serve: Serve, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, server=TRUSTING)
    here = f"127.0.0.1:{proxy.port}"
    expected = {
        ("X-Forwarded-Proto", "https"): f"https://{here}",
        ("X-Forwarded-Proto", "HTTPS"): f"https://{here}",
        ("X-Forwarded-Proto", "gopher"): f"{proxy.scheme}://{here}",
        ("X-Forwarded-Host", "crates.example"): f"{proxy.scheme}://crates.example",
        ("X-Forwarded-Host", "crates.example:8443"): f"{proxy.scheme}://crates.example:8443",
        ("X-Forwarded-Host", "forged.example, crates.example"): f"{proxy.scheme}://crates.example",
        ("X-Forwarded-Prefix", "/cargo"): f"{proxy.scheme}://{here}/cargo",
        ("X-Forwarded-Prefix", "/team/cargo/"): f"{proxy.scheme}://{here}/team/cargo",
        ("X-Forwarded-Prefix", '/"><script>'): f"{proxy.scheme}://{here}",
        ("X-Forwarded-For", "192.0.2.9"): f"{proxy.scheme}://{here}",
    }
    for (name, value), base in expected.items():
        assert await api_of(proxy, {name: value}) == f"{base}/crates-io", (name, value)
    everything = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "crates.example",
        "X-Forwarded-Prefix": "/cargo",
        "X-Forwarded-For": "192.0.2.9",
    }
    assert await api_of(proxy, everything) == "https://crates.example/cargo/crates-io"
    bad = await proxy.ask(CONFIG, {"X-Forwarded-Host": "user@crates.example"})
    assert bad.status == 400


async def test_a_header_that_the_trusted_proxy_added_counts_and_not_the_clients_own_before_it(
    serve: Serve, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, server=TRUSTING)
    headers = [
        ("X-Forwarded-Host", "forged.example"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Prefix", "/forged"),
        ("X-Forwarded-Host", "crates.example"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Prefix", "/cargo"),
    ]
    answer = await http11.ask(proxy.port, CONFIG, headers=headers, tls=proxy.tls)
    assert json.loads(answer.body)["api"] == "https://crates.example/cargo/crates-io"


async def test_what_a_stranger_forwards_is_ignored_and_said_once(
    serve: Serve, upstream: RegistryServer, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = await serve(upstream, server={"trusted_proxies": ["192.0.2.0/24"]})
    forged = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "forged.example",
        "X-Forwarded-Prefix": "/forged",
        "X-Forwarded-For": "192.0.2.1",
    }
    for name, value in forged.items():
        assert await api_of(proxy, {name: value}) == f"{proxy.url}/crates-io"
    assert await api_of(proxy, forged) == f"{proxy.url}/crates-io"
    warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "127.0.0.1" in warnings[0].getMessage()
    assert "server.trusted_proxies" in warnings[0].getMessage()


async def test_without_forwarded_headers_there_is_nothing_to_warn_of(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    await api_of(proxy)
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        (["127.0.0.0/8"], "192.0.2.9", "192.0.2.9"),
        (["127.0.0.0/8"], "203.0.113.1, 192.0.2.9", "192.0.2.9"),
        (["127.0.0.0/8", "10.0.0.0/8"], "192.0.2.9, 10.1.2.3", "192.0.2.9"),
        (["127.0.0.0/8"], "not an address", "127.0.0.1"),
        (["192.0.2.0/24"], "192.0.2.9", "127.0.0.1"),
    ],
)
async def test_the_log_names_the_client_itself(
    serve: Serve,
    upstream: RegistryServer,
    caplog: pytest.LogCaptureFixture,
    trusted: list[str],
    forwarded: str,
    client: str,
) -> None:
    proxy = await serve(upstream, server={"trusted_proxies": trusted})
    with caplog.at_level(logging.DEBUG, "proxy"):
        await proxy.ask(CONFIG, {"X-Forwarded-For": forwarded})
    clients = [getattr(each, "fields", {}).get("client") for each in caplog.records]
    assert [each for each in clients if each is not None] == [client]


async def test_only_allowed_hosts_are_served_and_probes_may_come_by_any(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    allowed = ["crates.example", "[2001:db8::7]", "build.example:8080"]
    proxy = await serve(upstream, server={"allowed_hosts": allowed})
    for host in ("crates.example", "CRATES.example:99", "[2001:db8::7]:1", "build.example:8080"):
        assert await api_of(proxy, {"Host": host}) == f"{proxy.scheme}://{host}/crates-io"
        assert (await proxy.ask(index_url("small"), {"Host": host})).status == 200
    upstream.clear()
    for host in (f"127.0.0.1:{proxy.port}", "evil.example", "crates.example.evil", "build.example"):
        for target in (
            CONFIG,
            index_url("small"),
            crate_url(stocked, "small"),
            "/crates-io/api/v1/crates?q=small",
            "/",
        ):
            answer = await proxy.ask(target, {"Host": host})
            assert (answer.status, answer.how) == (400, "refused"), (host, target)
            assert b"server.allowed_hosts" in answer.body
            assert host.encode() not in answer.body
        for target in ("/-/healthz", "/readyz", "/metrics"):
            assert (await proxy.ask(target, {"Host": host})).status == 200
    assert upstream.requests() == ()


async def test_allowed_hosts_judge_the_host_that_a_trusted_proxy_forwards(
    serve: Serve, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, server={**TRUSTING, "allowed_hosts": ["crates.example"]})
    inner = {"Host": "inner.example"}
    forwarded = {**inner, "X-Forwarded-Host": "crates.example"}
    assert await api_of(proxy, forwarded) == f"{proxy.scheme}://crates.example/crates-io"
    assert (await proxy.ask(CONFIG, inner)).status == 400
    forged = {"Host": "crates.example", "X-Forwarded-Host": "forged.example"}
    assert (await proxy.ask(CONFIG, forged)).status == 400


async def test_a_client_that_asks_for_ours_lets_us_ask_for_the_upstreams(
    proxy: Proxy, stocked: Registry, upstream: RegistryServer
) -> None:
    gate = upstream.hold(CONFIG_OF_UPSTREAM)
    assert (await proxy.ask(CONFIG)).status == 200
    await upstream.arrived(CONFIG_OF_UPSTREAM, 1)
    assert (await proxy.ask(CONFIG)).status == 200
    gate.release()
    assert (await proxy.ask(crate_url(stocked, "small"))).status == 200
    assert upstream.count(CONFIG_OF_UPSTREAM) == 1


async def test_a_proxy_closes_with_the_upstreams_still_on_its_way(
    proxy: Proxy, upstream: RegistryServer, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.hold(CONFIG_OF_UPSTREAM)
    assert (await proxy.ask(CONFIG)).status == 200
    await upstream.arrived(CONFIG_OF_UPSTREAM, 1)
    await proxy.rooms.journeys.configs.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
