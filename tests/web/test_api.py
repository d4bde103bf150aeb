"""The web API: reading is passed on, writing is declined in the form that cargo shows."""

import asyncio
import json

import pytest

from tests.web import http11
from tests.web.conftest import Proxy, Serve
from tests.world import faults
from tests.world.registry import Registry
from tests.world.server import RegistryServer
from tests.world.wire import Reply

SEARCH = "/crates-io/api/v1/crates?q=small&per_page=10"


def details(body: bytes) -> list[str]:
    """Return the messages of an error in the web API's form."""
    return [error["detail"] for error in json.loads(body)["errors"]]


async def test_a_search_is_passed_on_with_its_query(
    proxy: Proxy, stocked: Registry, upstream: RegistryServer
) -> None:
    answer = await proxy.ask(SEARCH + "&sort=a%20b%2Fc+d")
    assert (answer.status, answer.how) == (200, "bypass")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert [each["name"] for each in json.loads(answer.body)["crates"]] == ["small"]
    (asked,) = upstream.requests("/api/*")
    assert asked.target == "/api/v1/crates?q=small&per_page=10&sort=a%20b%2Fc+d"


async def test_what_crates_io_has_answered_is_kept_for_a_minute(
    proxy: Proxy, upstream: RegistryServer
) -> None:
    answers = [await proxy.ask(SEARCH) for _ in range(3)]
    assert [answer.how for answer in answers] == ["bypass", "hit", "hit"]
    assert len({answer.body for answer in answers}) == 1
    assert upstream.count("/api/*") == 1


async def test_who_comes_behind_too_many_is_told_to_come_again(
    proxy: Proxy, upstream: RegistryServer
) -> None:
    gate = upstream.hold("/api/*")
    asking = [
        asyncio.ensure_future(proxy.ask(f"/crates-io/api/v1/crates?q={number}"))
        for number in range(24)
    ]
    done, waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    told = next(iter(done)).result()
    assert (told.status, told.how, told.headers["retry-after"]) == (429, "error", "5")
    assert details(told.body) == ["too many wait for the web API of crates-io already; try again"]
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    gate.release()


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500, 503])
async def test_whatever_status_the_api_gives_is_its_answer(
    proxy: Proxy, upstream: RegistryServer, status: int
) -> None:
    said = json.dumps({"errors": [{"detail": f"said with {status}"}]}).encode()
    reply = Reply(status, said, (("Content-Type", "application/json"),))
    upstream.fail("/api/*", faults.instead("api", reply))
    answer = await proxy.ask("/crates-io/api/v1/crates/small/owners")
    assert (answer.status, answer.how, answer.body) == (status, "bypass", said)
    assert upstream.count("/api/*") == 1


async def test_the_clients_own_credentials_and_cookies_stay_here(
    proxy: Proxy, upstream: RegistryServer
) -> None:
    secrets = {"Authorization": "Bearer secret", "Cookie": "session=secret", "X-Api-Key": "secret"}
    await proxy.ask(SEARCH, secrets)
    (asked,) = upstream.requests("/api/*")
    assert not any("secret" in value for value in asked.headers.values())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/crates/new"),
        ("DELETE", "/crates/small/1.0.0/yank"),
        ("PUT", "/crates/small/1.0.0/unyank"),
        ("PUT", "/crates/small/owners"),
        ("POST", "/trusted_publishing/tokens"),
        ("PATCH", "/crates/small"),
    ],
)
async def test_writing_is_declined_in_words_that_cargo_shows(
    proxy: Proxy, upstream: RegistryServer, method: str, path: str
) -> None:
    answer = await proxy.ask(f"/crates-io/api/v1{path}", method=method, body=b"{}")
    assert (answer.status, answer.how) == (501, "refused")
    assert answer.headers["content-type"].startswith("application/json")
    (detail,) = details(answer.body)
    assert "crates-io" in detail
    assert "only reads" in detail
    assert upstream.requests() == ()


async def test_a_large_publication_is_declined_though_nobody_reads_it(proxy: Proxy) -> None:
    answer = await proxy.ask("/crates-io/api/v1/crates/new", method="PUT", body=bytes(3_000_000))
    assert answer.status == 501
    assert details(answer.body)


async def test_an_outage_of_the_api_is_503_in_the_apis_own_form(
    proxy: Proxy, upstream: RegistryServer
) -> None:
    await proxy.ask(SEARCH)
    upstream.stop()
    answer = await proxy.ask(SEARCH + "&page=2")
    assert (answer.status, answer.how) == (503, "error")
    assert answer.headers["retry-after"] == "5"
    assert "crates-io cannot be reached" in details(answer.body)[0]


async def test_a_registry_without_an_api_says_so(
    serve: Serve, registry: Registry, upstream: RegistryServer
) -> None:
    registry.api = None
    proxy = await serve(upstream)
    answer = await proxy.ask(SEARCH)
    assert (answer.status, answer.how) == (404, "refused")
    assert "has no web API" in details(answer.body)[0]


async def test_no_path_leads_out_of_the_api(proxy: Proxy, upstream: RegistryServer) -> None:
    for path in ("../x", "%2e%2e/x", "a/%2E%2E/b", "a%2fb", "a%00b", "./x", "%c3%a9"):
        answer = await proxy.ask(f"/crates-io/api/v1/{path}")
        assert answer.status == 400, path
    assert upstream.requests() == ()


async def test_an_api_answer_over_its_ceiling_is_502(
    proxy: Proxy, upstream: RegistryServer
) -> None:
    upstream.fail("/api/*", faults.instead("large", Reply(200, bytes(5 * 1024 * 1024))))
    answer = await proxy.ask(SEARCH)
    assert (answer.status, answer.how) == (502, "error")
    assert "more than" in details(answer.body)[0]


async def test_html_of_an_api_is_never_believed_by_a_browser(
    proxy: Proxy, upstream: RegistryServer
) -> None:
    upstream.fail("/api/*", faults.login_page())
    answer = await http11.ask(proxy.port, SEARCH, tls=proxy.tls)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in answer.headers
