"""Index files on the wire: two forms of the same bytes, their validators, and honest 304s.

How fresh a copy must be is tested with the journeys; here every copy is fresh unless said.
"""

import gzip
import hashlib
from dataclasses import replace
from email.utils import format_datetime

import pytest

from tests.web import http11
from tests.web.conftest import Proxy, Serve, index_url
from tests.world.holdfast import Answer
from tests.world.registry import Registry
from tests.world.server import RegistryServer
from tests.world.wire import Reply, Request

MANY = index_url("many")
ALWAYS_ASK = {"fresh_for": "0s", "stale_while_revalidate": "0s"}
GZIP = {"Accept-Encoding": "gzip"}


def etags(stocked: Registry, name: str) -> tuple[str, str]:
    """Return the tags that the identity and the gzip form must have."""
    digest = hashlib.sha256(stocked.index(name)).hexdigest()
    return f'"{digest}"', f'"{digest}-gzip"'


def assert_not_modified(answer: Answer, etag: str) -> None:
    """A 304 has no body (the client saw to that) and all that a cache needs to go on."""
    assert answer.status == 304
    assert answer.headers["etag"] == etag
    assert answer.headers["vary"] == "Accept-Encoding"
    assert answer.headers["cache-control"] == "no-cache"
    assert "last-modified" in answer.headers
    assert "content-encoding" not in answer.headers
    assert "transfer-encoding" not in answer.headers


async def test_the_identity_form_is_the_upstreams_bytes(proxy: Proxy, stocked: Registry) -> None:
    for how in ("miss", "hit"):
        answer = await proxy.ask(MANY)
        assert (answer.status, answer.how) == (200, how)
        assert answer.body == stocked.index("many")
        assert answer.headers["content-type"] == "text/plain"
        assert answer.headers["etag"] == etags(stocked, "many")[0]
        assert answer.headers["vary"] == "Accept-Encoding"
        assert answer.headers["cache-control"] == "no-cache"
        modified = stocked.history("many")[-1].last_modified
        assert answer.headers["last-modified"] == format_datetime(modified, usegmt=True)
        assert "content-encoding" not in answer.headers


async def test_the_gzip_form_unpacks_to_the_same_bytes(proxy: Proxy, stocked: Registry) -> None:
    for how in ("miss", "hit"):
        answer = await proxy.ask(MANY, GZIP)
        assert (answer.status, answer.how) == (200, how)
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["etag"] == etags(stocked, "many")[1]
        assert answer.headers["vary"] == "Accept-Encoding"
        assert gzip.decompress(answer.body) == stocked.index("many")
        assert len(answer.body) < len(stocked.index("many")) / 2


async def test_only_what_is_accepted_is_sent(proxy: Proxy, stocked: Registry) -> None:
    for accepted, coding in (
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.5", "gzip"),
        ("x-gzip", "gzip"),
        ("*", "gzip"),
        ("br, *;q=0.1", "gzip"),
        ("gzip;q=0", None),
        ("gzip; q=0.000", None),
        ("*;q=0", None),
        ("gzip;q=0, *", None),
        ("identity", None),
        ("br, zstd, deflate", None),
        ("", None),
        ("gzip;q=wrong", None),
    ):
        answer = await proxy.ask(MANY, {"Accept-Encoding": accepted})
        assert answer.headers.get("content-encoding") == coding, accepted
        body = gzip.decompress(answer.body) if coding else answer.body
        assert body == stocked.index("many")


async def test_a_file_that_gzip_would_not_shrink_has_one_form(
    proxy: Proxy, stocked: Registry
) -> None:
    answer = await proxy.ask(index_url("small"), GZIP)
    assert "content-encoding" not in answer.headers
    assert answer.body == stocked.index("small")
    assert answer.headers["etag"] == etags(stocked, "small")[0]
    assert answer.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize("restart", [False, True])
async def test_any_tag_of_a_list_confirms_either_form(
    proxy: Proxy, stocked: Registry, serve: Serve, upstream: RegistryServer, *, restart: bool
) -> None:
    await proxy.ask(MANY)
    if restart:
        # Tags come from the bytes alone: another proxy gives the same ones.
        proxy = await serve(upstream)
        await proxy.ask(MANY)
    plain, packed = etags(stocked, "many")
    for header in (
        plain,
        packed,
        f"W/{plain}",
        f"W/{packed}",
        f'"other", {plain}',
        f'W/"other",W/{packed} , "third"',
        "*",
        f", ,{plain},",
        plain.strip('"'),
    ):
        assert_not_modified(await proxy.ask(MANY, {"If-None-Match": header}), plain)
        assert_not_modified(await proxy.ask(MANY, {"If-None-Match": header, **GZIP}), packed)
        head = await proxy.ask(MANY, {"If-None-Match": header}, method="HEAD")
        assert_not_modified(head, plain)


async def test_tags_on_several_lines_are_one_list(proxy: Proxy, stocked: Registry) -> None:
    await proxy.ask(MANY)
    plain, _ = etags(stocked, "many")
    lines = [("If-None-Match", '"other"'), ("If-None-Match", plain)]
    assert (await http11.ask(proxy.port, MANY, headers=lines, tls=proxy.tls)).status == 304


async def test_any_other_tag_gets_the_file(proxy: Proxy, stocked: Registry) -> None:
    plain, _ = etags(stocked, "many")
    upstreams = stocked.history("many")[-1].etag
    for header in ('"other"', 'W/"other", "third"', "", '""', upstreams, plain[:-2] + '"', "**"):
        answer = await proxy.ask(MANY, {"If-None-Match": header})
        assert (answer.status, answer.body) == (200, stocked.index("many")), header


async def test_the_very_date_that_was_given_confirms_and_no_other(
    proxy: Proxy, stocked: Registry
) -> None:
    given = (await proxy.ask(MANY)).headers["last-modified"]
    plain, packed = etags(stocked, "many")
    assert_not_modified(await proxy.ask(MANY, {"If-Modified-Since": given}), plain)
    assert_not_modified(await proxy.ask(MANY, {"If-Modified-Since": given, **GZIP}), packed)
    for other in (
        "Thu, 01 Jan 2099 00:00:00 GMT",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "yesterday",
        "",
        "99999999999999999999",
    ):
        answer = await proxy.ask(MANY, {"If-Modified-Since": other})
        assert (answer.status, answer.body) == (200, stocked.index("many")), other


async def test_a_tag_outweighs_a_date(proxy: Proxy, stocked: Registry) -> None:
    given = (await proxy.ask(MANY)).headers["last-modified"]
    plain, _ = etags(stocked, "many")
    other = {"If-None-Match": '"other"', "If-Modified-Since": given}
    assert (await proxy.ask(MANY, other)).status == 200
    right = {"If-None-Match": plain, "If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}
    assert (await proxy.ask(MANY, right)).status == 304


async def test_a_tag_of_yesterday_gets_todays_file(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, crates_io=ALWAYS_ASK)
    held = (await proxy.ask(MANY)).headers["etag"]
    stocked.yank("many", "1.7.0")
    answer = await proxy.ask(MANY, {"If-None-Match": held})
    assert (answer.status, answer.how) == (200, "miss")
    assert answer.body == stocked.index("many")
    assert answer.headers["etag"] == etags(stocked, "many")[0] != held


async def test_ranges_of_index_files_are_not_served(proxy: Proxy, stocked: Registry) -> None:
    answer = await proxy.ask(MANY, {"Range": "bytes=0-9"})
    assert (answer.status, answer.body) == (200, stocked.index("many"))
    assert "content-range" not in answer.headers


async def test_an_upstream_without_validators_still_gets_its_clients_theirs(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    proxy = await serve(upstream, crates_io=ALWAYS_ASK)
    plain, _ = etags(stocked, "many")
    upstream.site = _Bare(stocked)
    first = await proxy.ask(MANY)
    assert first.headers["etag"] == plain
    assert_not_modified(await proxy.ask(MANY, {"If-None-Match": plain}), plain)
    dated = {"If-Modified-Since": first.headers["last-modified"]}
    assert (await proxy.ask(MANY, dated)).status == 304
    asked = upstream.requests("/index/ma/*")
    assert len(asked) == 3
    assert not any("if-none-match" in request.headers for request in asked)


class _Bare:
    """A registry whose server gives neither ETag nor Last-Modified."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def answer(self, request: Request) -> Reply:
        reply = self._registry.answer(request)
        kept = [each for each in reply.headers if each[0] not in ("ETag", "Last-Modified")]
        return replace(reply, headers=tuple(kept))
