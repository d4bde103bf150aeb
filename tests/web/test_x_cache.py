"""The words of `X-Cache`: one for each way in which an answer was come by, counted under the same.

Cargo prints this header in its error messages, so it is what people report.
"""

import asyncio

from tests.web.conftest import Proxy, Serve, bring_in, crate_url, index_url
from tests.world import faults
from tests.world.registry import Registry
from tests.world.server import RegistryServer

ALWAYS_ASK = {"fresh_for": "0s", "stale_while_revalidate": "0s"}
STALE_AT_ONCE = {"fresh_for": "0s", "stale_while_revalidate": "60s"}
SMALL = index_url("small")


async def counted(proxy: Proxy, kind: str, how: str, status: str = "2xx") -> float:
    """Return how many requests were counted under a word."""
    return proxy.metric("requests_total", registry="crates-io", kind=kind, how=how, status=status)


async def waiting_for_answers(proxy: Proxy, count: int) -> None:
    """Return once so many requests have come in and wait for what is not held.

    They look into the stores first; statistics go the same way, through the same threads, behind
    them.
    """
    while proxy.metric("connections") < count:
        await asyncio.sleep(0)
    for _ in range(10):
        await proxy.rooms.housekeeping.stats()


async def test_miss_then_hit(proxy: Proxy, stocked: Registry) -> None:
    for url, kind in ((SMALL, "index"), (crate_url(stocked, "small"), "crate")):
        assert (await proxy.ask(url)).how == "miss"
        await bring_in(proxy, url)
        before = await counted(proxy, kind, "hit")
        assert (await proxy.ask(url)).how == "hit"
        assert await counted(proxy, kind, "hit") == before + 1
        assert await counted(proxy, kind, "miss") == 1


async def test_revalidated_when_the_upstream_stands_by_what_is_held(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, crates_io=ALWAYS_ASK)
    await proxy.ask(SMALL)
    answer = await proxy.ask(SMALL)
    assert (answer.status, answer.how, answer.body) == (200, "revalidated", stocked.index("small"))
    assert upstream.requests("/index/sm/*")[-1].headers["if-none-match"]
    assert await counted(proxy, "index", "revalidated") == 1


async def test_stale_when_the_upstream_is_asked_behind_the_answer(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, crates_io=STALE_AT_ONCE)
    await proxy.ask(SMALL)
    with upstream.hold("/index/sm/*") as gate:
        answer = await proxy.ask(SMALL)
        await gate.arrived(1)
    assert (answer.status, answer.how, answer.body) == (200, "stale", stocked.index("small"))


async def test_stale_when_the_upstream_fails(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, crates_io=ALWAYS_ASK)
    tag = (await proxy.ask(SMALL)).headers["etag"]
    upstream.stop()
    answer = await proxy.ask(SMALL)
    assert (answer.status, answer.how, answer.body) == (200, "stale", stocked.index("small"))
    # Nobody knows better while the upstream is away, so this is a 304 as well.
    answer = await proxy.ask(SMALL, {"If-None-Match": tag})
    assert (answer.status, answer.how) == (304, "stale")
    assert await counted(proxy, "index", "stale", "3xx") == 1


async def test_a_conditional_request_waits_for_the_upstream_and_then_gets_a_body(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, crates_io=STALE_AT_ONCE)
    tag = (await proxy.ask(SMALL)).headers["etag"]
    with upstream.hold("/index/sm/*"):
        # It waits for two seconds at most; no 304 may rest on what it gets then.
        answer = await proxy.ask(SMALL, {"If-None-Match": tag})
    assert (answer.status, answer.how, answer.body) == (200, "stale", stocked.index("small"))


async def test_coalesced_when_somebody_else_is_asking_already(
    proxy: Proxy, stocked: Registry, upstream: RegistryServer
) -> None:
    await proxy.ask("/crates-io/crates/small/1.0.0/download")
    for url, pattern in (
        (index_url("many"), "/index/ma/*"),
        (crate_url(stocked, "large"), "/crates/large/*"),
    ):
        with upstream.hold(pattern) as gate:
            first = asyncio.create_task(proxy.ask(url))
            await gate.arrived(1)
            others = [asyncio.create_task(proxy.ask(url)) for _ in range(3)]
            await waiting_for_answers(proxy, 4)
        answers = await asyncio.gather(first, *others)
        assert [answer.how for answer in answers] == ["miss", *["coalesced"] * 3]
        assert len({answer.body for answer in answers}) == 1
        assert upstream.count(pattern) == 1
    assert await counted(proxy, "index", "coalesced") == 3
    assert await counted(proxy, "crate", "coalesced") == 3


async def test_negative_when_the_upstream_has_just_said_that_there_is_none(
    proxy: Proxy, stocked: Registry, upstream: RegistryServer
) -> None:
    url = index_url("missing")
    hows = [((answer := await proxy.ask(url)).status, answer.how) for _ in range(3)]
    assert hows == [(404, "miss"), (404, "negative"), (404, "negative")]
    assert upstream.count("/index/mi/*") == 1
    for crate in ("missing/1.0.0", "small/9.9.9"):
        answer = await proxy.ask(f"/crates-io/crates/{crate}/download")
        assert (answer.status, answer.how) == (404, "negative")
    assert await counted(proxy, "crate", "negative", "4xx") == 2


async def test_refused_when_it_is_nobodys_address(proxy: Proxy) -> None:
    for url, status in (
        ("/crates-io/index/not/a/path", 404),
        ("/crates-io/crates/not..a..name/1.0.0/download", 404),
        ("/crates-io/crates/small/1.0/download", 404),
        ("/nowhere/index/config.json", 400),
    ):
        answer = await proxy.ask(url)
        assert (answer.status, answer.how) == (status, "refused"), url
    assert await counted(proxy, "crate", "refused", "4xx") == 2


async def test_bypass_for_what_is_only_passed_on(proxy: Proxy) -> None:
    answer = await proxy.ask("/crates-io/api/v1/crates?q=small")
    assert (answer.status, answer.how) == (200, "bypass")
    assert await counted(proxy, "api", "bypass") == 1


async def test_error_for_an_outage_and_for_nonsense(
    proxy: Proxy, stocked: Registry, upstream: RegistryServer
) -> None:
    upstream.fail("/index/sm/*", faults.login_page())
    upstream.fail("/index/ma/*", faults.status(503, retry_after="600"))
    nonsense, outage = await proxy.ask(SMALL), await proxy.ask(index_url("many"))
    assert (nonsense.status, nonsense.how) == (502, "error")
    assert (outage.status, outage.how) == (503, "error")
    assert outage.headers["retry-after"] == "5"
    assert "retry-after" not in nonsense.headers
    for answer in (nonsense, outage):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"].startswith("text/plain")
        assert b"crates-io" in answer.body
        assert answer.body.count(b"\n") == 1
    assert await counted(proxy, "index", "error", "5xx") == 2
