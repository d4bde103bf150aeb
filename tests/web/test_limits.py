"""What one address and one registry may ask for, and how a refusal is told.

Limits are off unless they are set; what is held is never refused by a limit on misses.
"""

import asyncio
import json

import pytest

from tests.web.conftest import Proxy, Serve, bring_in, crate_url, index_url
from tests.world.registry import Registry
from tests.world.server import RegistryServer

ALWAYS_ASK = {"fresh_for": "0s", "stale_while_revalidate": "0s"}
ONE_AN_HOUR = "1/h"
SEARCH = "/crates-io/api/v1/crates?q=a"


async def test_a_miss_beyond_the_rate_is_429_and_says_when_to_come_again(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, limits={"client_misses": ONE_AN_HOUR})
    assert (await proxy.ask(index_url("small"))).how == "miss"
    answer = await proxy.ask(index_url("large"))
    assert (answer.status, answer.how) == (429, "refused")
    assert 3590 <= int(answer.headers["retry-after"]) <= 3600
    assert answer.body.count(b"\n") == 1
    assert answer.body.startswith(b"limits.client_misses: ")
    assert upstream.count("/index/la/*") == 0
    assert (
        proxy.metric(
            "requests_total", registry="crates-io", kind="index", how="refused", status="4xx"
        )
        == 1
    )


async def test_what_is_held_is_served_and_confirmed_whatever_was_missed(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, crates_io=ALWAYS_ASK, limits={"registry_misses": "2/h"})
    crate = crate_url(stocked, "small")
    assert (await proxy.ask(index_url("small"))).how == "miss"
    await proxy.ask(crate)
    assert (await proxy.ask(index_url("large"))).status == 429
    assert (await proxy.ask(index_url("small"))).how == "revalidated"
    await bring_in(proxy, crate)
    upstream.stop()
    assert (await proxy.ask(index_url("small"))).how == "stale"


async def test_a_download_that_needs_its_index_file_too_is_one_miss(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, limits={"client_misses": ONE_AN_HOUR})
    assert (await proxy.ask(crate_url(stocked, "small"))).status == 200
    assert (await proxy.ask(crate_url(stocked, "large"))).status == 429


async def test_a_download_beyond_the_rate_is_refused_though_its_index_file_is_held(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, limits={"client_misses": ONE_AN_HOUR})
    assert (await proxy.ask(index_url("small"))).how == "miss"
    answer = await proxy.ask(crate_url(stocked, "small"))
    assert (answer.status, answer.how) == (429, "refused")
    assert upstream.count("/crates/*") == 0


async def test_who_joins_a_flight_is_not_refused(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, limits={"client_misses": ONE_AN_HOUR})
    with upstream.hold("/index/sm/*") as gate:
        first = asyncio.create_task(proxy.ask(index_url("small")))
        await gate.arrived(1)
        second = asyncio.create_task(proxy.ask(index_url("small")))
        await two_are_under_way(proxy)
    answers = [await first, await second]
    assert {(answer.status, answer.how) for answer in answers} == {
        (200, "miss"),
        (200, "coalesced"),
    }


async def two_are_under_way(proxy: Proxy) -> None:
    async with asyncio.timeout(10):
        while proxy.metric("connections") < 2:
            await asyncio.sleep(0)
    for _ in range(10):
        await proxy.rooms.housekeeping.stats()


async def test_each_address_has_its_own_rate_and_a_registry_one_for_all(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(
        upstream,
        server={"trusted_proxies": ["127.0.0.1"]},
        limits={"client_misses": ONE_AN_HOUR, "registry_misses": "3/h"},
    )

    async def asked_by(client: str, name: str) -> tuple[int, bytes]:
        answer = await proxy.ask(index_url(name), {"X-Forwarded-For": client})
        return answer.status, answer.body.partition(b":")[0]

    assert (await asked_by("192.0.2.1", "small"))[0] == 200
    assert await asked_by("192.0.2.1", "large") == (429, b"limits.client_misses")
    assert (await asked_by("192.0.2.2", "large"))[0] == 200
    assert (await asked_by("2001:db8:1:2::1", "plus"))[0] == 200
    assert await asked_by("2001:db8:1:2:3::4", "many") == (429, b"limits.client_misses")
    assert await asked_by("2001:db8:1:3::1", "many") == (429, b"limits.registry_misses")


async def test_the_web_api_is_refused_in_its_own_form(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, limits={"client_misses": ONE_AN_HOUR})
    assert (await proxy.ask(SEARCH)).status == 200
    answer = await proxy.ask(SEARCH + "-and-more")
    assert (answer.status, answer.how) == (429, "refused")
    assert int(answer.headers["retry-after"]) > 0
    (error,) = json.loads(answer.body)["errors"]
    assert error["detail"].startswith("limits.client_misses: ")


@pytest.mark.parametrize("key", ["client_requests", "registry_requests"])
async def test_a_request_beyond_those_under_way_is_429_until_one_is_over(
    serve: Serve, stocked: Registry, upstream: RegistryServer, key: str
) -> None:
    proxy = await serve(upstream, limits={key: 1})
    held = index_url("many")
    assert (await proxy.ask(held)).status == 200
    with upstream.hold("/index/sm/*") as gate:
        first = asyncio.create_task(proxy.ask(index_url("small")))
        await gate.arrived(1)
        answer = await proxy.ask(index_url("large"))
        assert (answer.status, answer.how, answer.headers["retry-after"]) == (429, "refused", "1")
        assert answer.body.startswith(b"limits.%s: " % key.encode())
        # What is in memory needs no place.
        assert (await proxy.ask(held)).how == "hit"
        assert (await proxy.ask("/crates-io/index/config.json")).status == 200
    assert (await first).status == 200
    assert (await proxy.ask(index_url("large"))).status == 200


async def test_a_client_that_leaves_gives_its_place_back(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, limits={"client_requests": 1})
    with upstream.hold("/index/sm/*") as gate:
        leaving = asyncio.create_task(proxy.ask(index_url("small")))
        await gate.arrived(1)
        leaving.cancel()
        await asyncio.wait({leaving})
    async with asyncio.timeout(10):
        while (await proxy.ask(index_url("large"))).status == 429:
            await asyncio.sleep(0)


async def test_without_limits_nothing_is_refused(proxy: Proxy) -> None:
    answers = await asyncio.gather(
        *(proxy.ask(f"/crates-io/index/3/a/a{letter}z") for letter in "abcdefghijklmnop")
    )
    assert {answer.status for answer in answers} == {404}
