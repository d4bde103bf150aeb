"""Health, the start page, and who may see them on which listener."""

import asyncio
import hashlib
import re
import tomllib
from base64 import b64encode
from collections.abc import Mapping
from html import unescape
from typing import Any

import pytest

from tests.web.conftest import Proxy, Serve, index_url
from tests.world.registry import Registry
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


BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def pasted(page: str) -> dict[str, Any]:
    """Return what a reader of the HTML page would have in the end, all lines in one file."""
    blocks = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    return tomllib.loads("\n".join(unescape(block) for block in blocks))


@pytest.mark.parametrize(
    ("server", "headers", "base"),
    [
        ({}, {"Host": "crates.example:8080"}, "SCHEME://crates.example:8080"),
        ({}, {"Host": "[2001:db8::7]:8080"}, "SCHEME://[2001:db8::7]:8080"),
        (
            {"trusted_proxies": ["127.0.0.0/8"]},
            {
                "X-Forwarded-Host": "crates.example",
                "X-Forwarded-Proto": "https",
                "X-Forwarded-Prefix": "/cargo",
            },
            "https://crates.example/cargo",
        ),
        ({}, {"X-Forwarded-Host": "evil.example", "Host": "here.example"}, "SCHEME://here.example"),
        (
            {"public_url": "https://crates.example/cargo"},
            {"Host": "inside.example"},
            "https://crates.example/cargo",
        ),
    ],
)
async def test_the_start_page_shows_what_to_paste_for_the_address_it_was_opened_at(
    serve: Serve,
    upstream: RegistryServer,
    server: Mapping[str, object],
    headers: Mapping[str, str],
    base: str,
) -> None:
    company = {"index": "sparse+https://packages.example/index/"}
    proxy = await serve(upstream, server=server, upstreams={"company": company})
    base = base.replace("SCHEME", proxy.scheme)
    page = (await proxy.ask("/", {**BROWSER, **headers})).body.decode()
    text = (await proxy.ask("/", headers)).body.decode()
    for config in (pasted(page), tomllib.loads(text)):
        assert config["source"]["company"]["replace-with"] == "holdfast-company"
        indexes = {name: table["index"] for name, table in config["registries"].items()}
        assert indexes["holdfast-company"] == f"sparse+{base}/company/index/"
        assert f"sparse+{base}/crates-io/index/" in indexes.values()
        assert indexes["company"] == company["index"]


async def test_browsers_get_html_and_tools_get_text(proxy: Proxy) -> None:
    for headers, kind in (
        (BROWSER, "text/html"),
        ({"Accept": "*/*"}, "text/plain"),
        ({}, "text/plain"),
        ({"Accept": "text/plain"}, "text/plain"),
    ):
        answer = await proxy.ask("/", headers)
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        assert answer.headers["vary"] == "Accept"
        assert answer.headers["cache-control"] == "no-store"
        head = await proxy.ask("/", headers, method="HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-type"] == answer.headers["content-type"]
        assert int(head.headers["content-length"]) > 500


async def test_the_start_page_runs_no_script_and_takes_nothing_from_anywhere(proxy: Proxy) -> None:
    answer = await proxy.ask("/", BROWSER)
    page = answer.body.decode()
    style = page.partition("<style>")[2].partition("</style>")[0]
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = [part.strip() for part in answer.headers["content-security-policy"].split(";")]
    assert policy[:2] == ["default-src 'none'", f"style-src 'sha256-{digest}'"]
    assert {"base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} <= set(policy)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<(script|img|link|iframe|object|embed|form|svg)|\son\w+=|url\(", page)


@pytest.mark.parametrize(
    "host",
    [
        '"><script>alert(1)</script>',
        "x' onload='alert(1)",
        "a&b",
        "a/../b",
        "user@evil.example",
        "<svg>",
        "a\tb",
    ],
)
async def test_a_hostile_host_is_400_and_is_not_repeated(proxy: Proxy, host: str) -> None:
    for headers in ({"Host": host}, {**BROWSER, "Host": host}):
        answer = await proxy.ask("/", headers)
        assert answer.status == 400
        assert host.encode() not in answer.body


async def test_the_start_page_tells_of_an_upstream_that_fails_and_of_what_was_saved(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, crates_io={"fresh_for": "0s", "stale_while_revalidate": "0s"})

    async def page() -> str:
        html = (await proxy.ask("/", BROWSER)).body.decode()
        text = (await proxy.ask("/")).body.decode()
        told = re.findall(r"<tr><th>(.*?)</th><td(?: class=bad)?>(.*?)</td>", html)
        for name, what in told:
            assert f"#   {name}: {unescape(what)}" in text
        return html

    assert "<th>crates-io</th><td>not asked since the start<" in await page()
    for _ in range(2):
        assert (await proxy.ask(index_url("small"))).status == 200
    assert re.search(
        r"<th>crates-io</th><td>last answer (a moment|\d+ seconds?) ago<", await page()
    )
    upstream.stop()
    assert (await proxy.ask(index_url("small"))).how == "stale"
    assert re.search(r"<th>crates-io</th><td class=bad>failing for .*?; last answer", await page())
    # The stale one, of three; the second was confirmed.
    assert re.search(r"<th>crates-io</th><td>today 1 of 3 requests, ", await page())
    proxy.readiness.ready, proxy.readiness.reason = False, "draining"
    assert "<th>proxy</th><td class=bad>draining<" in await page()


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
