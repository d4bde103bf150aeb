"""Health, the start page, and who may see them on which listener."""

import asyncio
import tomllib
from html import unescape

import pytest

from tests.web.conftest import Proxy, Serve, index_url
from tests.world.server import RegistryServer, bound_socket


async def test_health_and_readiness_do_not_depend_on_an_upstream(
    proxy: Proxy, upstream: RegistryServer
) -> None:
    upstream.stop()
    assert (await proxy.ask(index_url("small"))).status == 503
    for url in ("/-/healthz", "/healthz", "/-/readyz", "/readyz"):
        answer = await proxy.ask(url)
        assert answer.status == 200, url
        assert answer.headers["cache-control"] == "no-store"


async def test_who_is_not_ready_is_healthy_all_the_same_and_says_why(proxy: Proxy) -> None:
    proxy.readiness.ready, proxy.readiness.reason = False, "draining"
    for url in ("/-/readyz", "/readyz"):
        answer = await proxy.ask(url)
        assert (answer.status, answer.body) == (503, b"draining\n")
    assert (await proxy.ask("/healthz")).status == 200


async def test_health_answers_while_every_connection_to_the_upstream_is_busy(
    serve: Serve, stocked: object, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, crates_io={"connections": 2})
    with upstream.hold("/index/*"):
        waiting = [
            asyncio.create_task(proxy.ask(index_url(name)))
            for name in ("small", "large", "many", "plus")
        ]
        await upstream.arrived("/index/*", 2)
        assert (await proxy.ask("/readyz")).status == 200
    for answer in await asyncio.gather(*waiting):
        assert answer.status == 200


async def test_the_start_page_shows_what_to_paste_for_the_address_used(
    serve: Serve, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, upstreams={"company": {"index": upstream.index_url}})
    page = (await proxy.ask("/", {"Host": "crates.example:8080"})).body.decode()
    paste = unescape(page.partition("<pre>")[2].partition("</pre>")[0])
    config = tomllib.loads(paste)
    index = f"sparse+{proxy.scheme}://crates.example:8080/crates-io/index/"
    assert config["registries"]["holdfast"]["index"] == index
    assert config["source"]["crates-io"]["replace-with"] == "holdfast"
    assert f"sparse+{proxy.scheme}://crates.example:8080/company/index/" in page


async def test_the_start_page_runs_no_script_of_anybodys(proxy: Proxy) -> None:
    answer = await proxy.ask("/")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert (await proxy.ask("/", {"Host": '"><script>'})).status == 400


async def test_a_page_that_is_not_there_is_404(proxy: Proxy) -> None:
    for url in ("/-/", "/-/nothing", "/-/metrics/x", "/-/healthz/../metrics", "/-/%2e%2e/x"):
        assert (await proxy.ask(url)).status == 404, url


@pytest.mark.parametrize("url", ["/-/metrics", "/metrics", "/-/healthz", "/readyz"])
async def test_with_an_admin_address_its_pages_are_only_there(
    serve: Serve, stocked: object, upstream: RegistryServer, url: str
) -> None:
    with bound_socket(0) as reserved:
        admin_port: int = reserved.getsockname()[1]
        proxy = await serve(upstream, server={"admin_listen": f"127.0.0.1:{admin_port}"})
        elsewhere = await proxy.ask(url)
        assert elsewhere.status == 404
        assert b"server.admin_listen" in elsewhere.body
        there = await proxy.way.ask(admin_port, url, method="GET", headers={}, body=b"", tls=None)
        assert there.status == 200
        # Registries and the start page are where clients are.
        for public in (index_url("small"), "/"):
            assert (await proxy.ask(public)).status == 200
