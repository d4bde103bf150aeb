"""Every URL of the contract, and what is none: where it leads, by which method, and what it says.

`config.json`, crates, the web API and the pages have files of their own; here is the map of all.
"""

import json

import pytest

from tests.web.conftest import Proxy, Serve, crate_url, index_url
from tests.world.registry import Registry
from tests.world.server import RegistryServer

READ_ONLY = [
    "/crates-io/index/config.json",
    "/crates-io/index/sm/al/small",
    "/crates-io/crates/small/1.0.0/download",
]
PAGES = ["/", "/-/healthz", "/-/readyz", "/-/metrics", "/healthz", "/readyz", "/metrics"]
NOWHERE = [
    "/nowhere/index/config.json",
    "/nowhere/index/sm/al/small",
    "/nowhere/crates/small/1.0.0/download",
    "/nowhere/api/v1/crates?q=small",
    "/crates-io/config.json",
    "/crates-io/sm/al/small",
    "/crates-io",
    "/crates-io/",
    "/crates-io/index",
    "/crates-io/index/",
    "/crates-io/api/v2/crates",
    "/crates-io/crates/small",
    "/config.json",
    "/sm/al/small",
    "/index/config.json",
    "/Crates-IO/index/config.json",
    "/crates_io/index/config.json",
    "/healthz/more",
    "/.well-known/security.txt",
    "/favicon.ico",
]
NO_NAMES_PATH = [
    "se/rd/small",
    "small",
    "SM/AL/SMALL",
    "sm/al/Small",
    "sm/al/small.gz",
    "sm/al/small/x",
    "3/s/small",
    "1/ab",
    "sm/al/sm%61ll%20",
    "%2e%2e/config.json",
    "..%2fconfig.json",
    "../index/config.json",
    "sm/al/sm%2fall",
    "sm/al/sm%00ll",
    "sm/al/" + "s" * 65,
    "%63onfig.json%00",
    "index.html",
]


async def test_every_url_of_the_contract_answers(proxy: Proxy, stocked: Registry) -> None:
    cksum = stocked.release("small", "1.0.0").cksum
    text = "text/plain; charset=utf-8"
    metrics = "text/plain; version=0.0.4; charset=utf-8"
    expected = {
        "/crates-io/index/config.json": "application/json",
        "/crates-io/index/sm/al/small": "text/plain",
        f"/crates-io/crates/small/1.0.0/{cksum}": "application/gzip",
        "/crates-io/crates/small/1.0.0/download": "application/gzip",
        "/crates-io/crates/small/1.0.0/{sha256-checksum}": "application/gzip",
        "/crates-io/api/v1/crates?q=small": "application/json",
        "/crates-io/api/v1/crates/small/1.0.0/download": "application/gzip",
        "/-/healthz": text,
        "/-/readyz": text,
        "/-/metrics": metrics,
        "/healthz": text,
        "/readyz": text,
        "/metrics": metrics,
        "/": text,
    }
    answers = {url: await proxy.ask(url) for url in expected}
    assert {url: answer.status for url, answer in answers.items()} == dict.fromkeys(expected, 200)
    assert {url: answer.headers["content-type"] for url, answer in answers.items()} == expected


async def test_every_answer_names_the_proxy_and_no_library(proxy: Proxy, stocked: Registry) -> None:
    for url in (
        *PAGES,
        *READ_ONLY,
        "/nowhere",
        "/-/nowhere",
        "/crates-io/api/v1/crates?q=x",
        "/crates-io/api/v1/nothing",
        index_url("missing"),
        crate_url(stocked, "large"),
    ):
        answer = await proxy.ask(url)
        assert answer.headers["server"].startswith("holdfast/"), url


async def test_what_is_no_url_here_is_400_with_one_line_that_names_the_registries(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, upstreams={"company": {"index": upstream.index_url}})
    for target in NOWHERE:
        answer = await proxy.ask(target)
        assert (answer.status, answer.how) == (400, "refused"), target
        line = answer.body.decode()
        assert line.endswith("\n")
        assert line.count("\n") == 1
        assert "company, crates-io" in line
        assert "/index/" in line
        assert len(line) < 512
        assert answer.headers["cache-control"] == "no-store"
    assert upstream.requests() == ()


async def test_a_path_that_is_no_names_own_is_404_and_nobody_is_asked(
    proxy: Proxy, upstream: RegistryServer
) -> None:
    for path in NO_NAMES_PATH:
        answer = await proxy.ask(f"/crates-io/index/{path}")
        assert (answer.status, answer.how) == (404, "refused"), path
        assert answer.headers["cache-control"] == "no-store"
    assert upstream.requests() == ()


async def test_double_slashes_lead_where_single_ones_do(proxy: Proxy, stocked: Registry) -> None:
    for target in ("//crates-io//index///sm//al//small", "/crates-io/index/sm/al/small/"):
        answer = await proxy.ask(target)
        assert (answer.status, answer.body) == (200, stocked.index("small")), target


async def test_a_query_on_an_index_file_changes_nothing(proxy: Proxy, stocked: Registry) -> None:
    answer = await proxy.ask(index_url("small") + "?x=../../etc/passwd&y=%00")
    assert (answer.status, answer.body) == (200, stocked.index("small"))


async def test_only_get_and_head_read(proxy: Proxy, upstream: RegistryServer) -> None:
    for target in (*READ_ONLY, *PAGES):
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            answer = await proxy.ask(target, method=method, body=b"x=1")
            assert (answer.status, answer.how) == (405, "refused"), (method, target)
            assert answer.headers["allow"] == "GET, HEAD"
    assert upstream.requests() == ()


async def test_head_says_what_get_says_and_sends_nothing(proxy: Proxy, stocked: Registry) -> None:
    gzip = {"Accept-Encoding": "gzip"}
    for target in (
        *READ_ONLY,
        crate_url(stocked, "small"),
        crate_url(stocked, "large"),
        index_url("many"),
        index_url("missing"),
        "/crates-io/api/v1/crates?q=small",
        "/nowhere/index/config.json",
        "/-/healthz",
        "/-/readyz",
        "/",
    ):
        # The first request may be a miss, and of what is still arriving less is known.
        await proxy.ask(target)
        got = await proxy.ask(target, gzip)
        head = await proxy.ask(target, gzip, method="HEAD")
        assert head.status == got.status, target
        assert _lasting(head.headers) == _lasting(got.headers), target
        assert head.body == b""


def _lasting(headers: object) -> dict[str, str]:
    assert isinstance(headers, dict)
    return {name: value for name, value in headers.items() if name not in ("date", "x-cache")}


@pytest.mark.parametrize("name", ["small", "large"])
async def test_head_of_a_crate_that_is_not_held_brings_it_in(
    proxy: Proxy, stocked: Registry, upstream: RegistryServer, name: str
) -> None:
    head = await proxy.ask(crate_url(stocked, name), method="HEAD")
    assert (head.status, head.how) == (200, "miss")
    assert head.headers["content-length"] == str(len(stocked.crate(name, "1.0.0")))
    assert head.headers["etag"] == f'"{stocked.release(name, "1.0.0").cksum}"'
    answer = await proxy.ask(crate_url(stocked, name))
    assert answer.body == stocked.crate(name, "1.0.0")
    assert upstream.count("/crates/*") == 1


async def test_head_of_an_index_file_that_is_not_held_brings_it_in(
    proxy: Proxy, stocked: Registry, upstream: RegistryServer
) -> None:
    head = await proxy.ask(index_url("small"), method="HEAD")
    assert (head.status, head.how) == (200, "miss")
    assert head.headers["content-length"] == str(len(stocked.index("small")))
    answer = await proxy.ask(index_url("small"))
    assert (answer.how, answer.body) == ("hit", stocked.index("small"))
    assert upstream.count("/index/sm/*") == 1


async def test_each_upstream_is_a_registry_of_its_own_name(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(
        upstream,
        upstreams={"company": {"index": upstream.index_url}},
        registries={"team": {"upstreams": ["company"]}},
    )
    for registry in ("crates-io", "company", "team"):
        config = json.loads((await proxy.ask(f"/{registry}/index/config.json")).body)
        assert config["api"] == f"{proxy.url}/{registry}"
        answer = await proxy.ask(index_url("small", registry))
        assert (answer.status, answer.body) == (200, stocked.index("small"))
    # `team` is another name for what `company` holds.
    assert upstream.count("/index/sm/al/small") == 2
