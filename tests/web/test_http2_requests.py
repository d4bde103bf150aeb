"""Requests over HTTP/2, frame by frame: answers, windows, many at once, ends and failures."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from proxy.web.http2.limits import Http2Limits
from tests.web import http11
from tests.web.conftest import LARGE_BYTES, crate_url, index_url
from tests.web.doorstep import Door, doorstep
from tests.world import faults, http2
from tests.world.http2 import Code, Peer, Setting, connected, upgraded
from tests.world.registry import Registry
from tests.world.server import RegistryServer

CONFIG = "/crates-io/index/config.json"
PUBLISH = "/crates-io/api/v1/crates/new"


@pytest_asyncio.fixture
async def door(tmp_path: Path, stocked: Registry, upstream: RegistryServer) -> AsyncIterator[Door]:
    async with doorstep(tmp_path, upstream) as opened:
        yield opened


@pytest.fixture(autouse=True)
def silent(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a client does is no error of ours."""
    yield
    assert [each.getMessage() for each in caplog.records if each.levelname == "ERROR"] == []


async def bring_in(door: Door, url: str) -> bytes:
    """Return an object's bytes, once it is held in memory or on disk."""
    async with asyncio.timeout(http2.PATIENCE_SECONDS):
        while True:
            answer = await http11.ask(door.port, url)
            if answer.how == "hit":
                return answer.body


async def test_a_request_is_answered_and_the_connection_lives_on(
    door: Door, stocked: Registry
) -> None:
    async with connected(door.port) as peer:
        for stream in (1, 3, 5):
            peer.send(http2.get(stream, index_url("small")))
            reply = await peer.reply(stream)
            assert reply.status == 200
            assert bytes(reply.body) == stocked.index("small")
        peer.send(http2.get(7, crate_url(stocked, "small")))
        assert bytes((await peer.reply(7)).body) == stocked.crate("small", "1.0.0")
        assert peer.goaway is None


@pytest.mark.parametrize("name", ["small", "large"])
async def test_head_has_the_heads_fields_and_no_body(
    door: Door, stocked: Registry, name: str
) -> None:
    body = await bring_in(door, crate_url(stocked, name))
    async with connected(door.port) as peer:
        peer.send(
            http2.headers(1, http2.asking(crate_url(stocked, name), "HEAD")),
            http2.get(3, crate_url(stocked, name)),
        )
        head, whole = await peer.reply(1), await peer.reply(3)
        assert (head.status, bytes(head.body), head.reset) == (200, b"", None)
        assert _comparable(head.headers, {"date"}) == _comparable(whole.headers, {"date"})
        assert head.headers["content-length"] == str(len(body))


async def test_not_modified_and_not_found_end_their_streams(door: Door) -> None:
    async with connected(door.port) as peer:
        peer.send(http2.get(1, index_url("small")))
        etag = (await peer.reply(1)).headers["etag"]
        peer.send(
            http2.get(3, index_url("small"), {"if-none-match": etag}),
            http2.get(5, index_url("absent")),
            http2.get(7, "/nowhere"),
        )
        unchanged, absent, nowhere = [await peer.reply(each) for each in (3, 5, 7)]
        assert (unchanged.status, bytes(unchanged.body), unchanged.reset) == (304, b"", None)
        assert (absent.status, absent.reset) == (404, None)
        assert (nowhere.status, nowhere.reset) == (400, None)


@pytest.mark.parametrize("window", [1_000, 16_384, 70_000])
async def test_a_body_arrives_whole_over_many_windows(
    door: Door, stocked: Registry, window: int
) -> None:
    async with connected(door.port, {Setting.INITIAL_WINDOW_SIZE: window}) as peer:
        peer.send(http2.get(1, crate_url(stocked, "large")))
        reply = await peer.reply(1)
        assert reply.ended
        assert bytes(reply.body) == stocked.crate("large", "1.0.0")


async def test_no_byte_is_sent_beyond_the_window_of_a_stream(door: Door, stocked: Registry) -> None:
    body = await bring_in(door, crate_url(stocked, "large"))
    async with connected(door.port, {Setting.INITIAL_WINDOW_SIZE: 0}) as peer:
        peer.gives_window = False
        peer.send(http2.get(1, crate_url(stocked, "large")))
        await peer.until(lambda peer: 1 in peer.replies)
        received = 0
        for step in (1, 2, 3, 500, 5_000):
            peer.send(http2.window_update(step, 1))
            received += step
            await peer.until(lambda peer, n=received: len(peer.replies[1].body) >= n)  # type: ignore[misc]
            await peer.pong()
            assert len(peer.replies[1].body) == received
        assert bytes(peer.replies[1].body) == body[:received]


async def test_no_byte_is_sent_beyond_the_window_of_the_connection(
    door: Door, stocked: Registry
) -> None:
    await bring_in(door, crate_url(stocked, "large"))
    async with connected(door.port, {Setting.INITIAL_WINDOW_SIZE: 2**31 - 1}) as peer:
        peer.gives_window = False
        streams = (1, 3, 5)
        peer.send(*(http2.get(each, crate_url(stocked, "large")) for each in streams))

        def received(peer: Peer) -> int:
            return sum(len(reply.body) for reply in peer.replies.values())

        await peer.until(lambda peer: received(peer) >= 65_535)
        await peer.pong()
        assert received(peer) == 65_535
        peer.gives_window = True
        peer.send(http2.window_update(65_535))
        for each in streams:
            assert bytes((await peer.reply(each)).body) == stocked.crate("large", "1.0.0")


async def test_a_window_made_smaller_by_settings_is_kept_to(door: Door, stocked: Registry) -> None:
    body = await bring_in(door, crate_url(stocked, "large"))
    async with connected(door.port, {Setting.INITIAL_WINDOW_SIZE: 100}) as peer:
        peer.gives_window = False
        peer.send(http2.get(1, crate_url(stocked, "large")))
        await peer.until(lambda peer: 1 in peer.replies and len(peer.replies[1].body) == 100)
        peer.send(http2.settings({Setting.INITIAL_WINDOW_SIZE: 40}), http2.window_update(60, 1))
        await peer.pong()
        assert len(peer.replies[1].body) == 100, "the window is 0 again, not more"
        peer.send(http2.settings({Setting.INITIAL_WINDOW_SIZE: 1_000}))
        await peer.until(lambda peer: len(peer.replies[1].body) >= 1_060)
        await peer.pong()
        assert bytes(peer.replies[1].body) == body[:1_060]


async def test_a_stream_whose_window_never_opens_is_reset_and_no_other(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    limits = Http2Limits(stall_timeout_s=0.3)
    async with (
        doorstep(tmp_path, upstream, limits=limits) as door,
        connected(door.port, {Setting.INITIAL_WINDOW_SIZE: 0}) as peer,
    ):
        peer.send(http2.get(1, crate_url(stocked, "large")))
        assert (await peer.reply(1)).reset == Code.INTERNAL_ERROR
        peer.send(http2.get(3, CONFIG), http2.window_update(10_000, 3))
        assert (await peer.reply(3)).status == 200


async def test_two_hundred_and_fifty_streams_are_served_at_once(
    door: Door, stocked: Registry
) -> None:
    await bring_in(door, crate_url(stocked, "small"))
    url, streams = crate_url(stocked, "small"), range(1, 501, 2)
    async with connected(door.port, {Setting.INITIAL_WINDOW_SIZE: 0}) as peer:
        assert peer.settings[Setting.MAX_CONCURRENT_STREAMS] >= len(streams)
        peer.send(*(http2.get(each, url) for each in streams))
        # All have begun before the first can end.
        await peer.pong()
        assert not any(reply.is_over for reply in peer.replies.values())
        peer.send(http2.settings({Setting.INITIAL_WINDOW_SIZE: 1 << 20}))
        for each in streams:
            reply = await peer.reply(each)
            assert bytes(reply.body) == stocked.crate("small", "1.0.0")
        assert peer.goaway is None


@pytest.mark.parametrize("at_once", [False, True], ids=["in turn", "in one segment"])
async def test_a_crate_with_a_wrong_digest_resets_its_stream_alone(
    door: Door, stocked: Registry, upstream: RegistryServer, *, at_once: bool
) -> None:
    upstream.fail("/crates/large*", faults.wrong_tail())
    async with connected(door.port) as peer:
        first = [http2.get(1, crate_url(stocked, "large")), http2.get(3, index_url("small"))]
        if at_once:
            peer.send(*first)
        else:
            for each in first:
                peer.send(each)
                await peer.flush()
        broken, fine = await peer.reply(1), await peer.reply(3)
        assert broken.status == 200
        assert broken.reset == Code.INTERNAL_ERROR
        assert len(broken.body) < LARGE_BYTES + 10_000
        assert (fine.status, fine.reset) == (200, None)
        peer.send(http2.get(5, crate_url(stocked, "small")))
        assert bytes((await peer.reply(5)).body) == stocked.crate("small", "1.0.0")
        assert peer.goaway is None


async def test_a_publish_is_refused_without_its_body_and_the_window_does_not_shrink(
    door: Door,
) -> None:
    async with connected(door.port) as peer:
        room = 65_535 + peer.windows[0]
        # More than the connection's window in all: what nobody reads must be given back.
        for stream in range(1, 2 * room // 30_000 * 2 + 3, 2):
            peer.send(http2.headers(stream, http2.asking(PUBLISH, "PUT"), end=False))
            peer.send(http2.data(stream, bytes(15_000)), http2.data(stream, bytes(15_000)))
            reply = await peer.reply(stream)
            assert reply.status == 501
            assert reply.headers["content-type"].startswith("application/json")
            peer.send(http2.rst_stream(stream))
        await peer.pong()
        assert peer.goaway is None


async def test_the_whole_body_of_a_publish_is_taken(door: Door) -> None:
    async with connected(door.port) as peer:
        peer.send(http2.headers(1, http2.asking(PUBLISH, "PUT"), end=False))
        peer.send(*(http2.data(1, bytes(10_000)) for _ in range(5)), http2.data(1, b"x", end=True))
        assert (await peer.reply(1)).status == 501
        await peer.pong()
        assert peer.goaway is None


async def test_trailers_priorities_padding_and_unknown_frames_are_tolerated(door: Door) -> None:
    async with connected(door.port) as peer:
        block = http2.block(http2.asking(CONFIG))
        prioritized = b"\x80\x00\x00\x00\xff" + block
        padded = b"\x05" + block + bytes(5)
        flags = http2.END_STREAM | http2.END_HEADERS
        peer.send(
            http2.priority(9, 7),
            http2.frame(http2.Kind.HEADERS, flags | http2.PRIORITY_FLAG, 1, prioritized),
            http2.frame(http2.Kind.HEADERS, flags | http2.PADDED, 3, padded),
            http2.frame(0x42, 0xFF, 0, b"what is this"),
            http2.frame(0x42, 0xFF, 3, b"what is this"),
            http2.priority(1, 3),
            http2.headers(5, http2.asking(CONFIG), end=False),
            http2.frame(http2.Kind.DATA, http2.PADDED, 5, b"\x03abc\x00\x00\x00"),
            http2.headers(5, [("x-checksum", "1")]),
        )
        for stream in (1, 3, 5):
            assert (await peer.reply(stream)).status == 200
        assert peer.goaway is None


async def test_an_upgraded_request_is_stream_one_and_others_follow_beside_it(
    door: Door, stocked: Registry
) -> None:
    async with upgraded(door.port, crate_url(stocked, "large")) as peer:
        peer.send(*(http2.get(each, index_url("small")) for each in (3, 5, 7)))
        first = await peer.reply(1)
        assert bytes(first.body) == stocked.crate("large", "1.0.0")
        for each in (3, 5, 7):
            assert bytes((await peer.reply(each)).body) == stocked.index("small")


async def test_an_upgraded_head_request_has_no_body(door: Door) -> None:
    async with upgraded(door.port, CONFIG, method="HEAD") as peer:
        reply = await peer.reply(1)
        assert (reply.status, bytes(reply.body), reply.reset) == (200, b"", None)


async def test_the_preface_may_arrive_byte_by_byte(door: Door) -> None:
    peer = await Peer.connect(door.port)
    try:
        for byte in http2.PREFACE + http2.settings() + http2.get(1, CONFIG):
            peer.send(bytes([byte]))
            await peer.flush()
        assert (await peer.reply(1)).status == 200
    finally:
        peer.leave()


async def test_settings_of_the_upgrade_count_from_the_first_byte(
    door: Door, stocked: Registry
) -> None:
    peer = await Peer.connect(door.port)
    peer.gives_window = False
    try:
        values = {Setting.INITIAL_WINDOW_SIZE: 7}
        peer.send(http2.upgrade_head(crate_url(stocked, "small"), values=values))
        assert b" 101 " in await peer._reader.readuntil(b"\r\n\r\n")
        peer.send(http2.PREFACE, http2.settings(values))
        await peer.until(lambda peer: 1 in peer.replies and len(peer.replies[1].body) >= 7)
        await peer.pong()
        assert len(peer.replies[1].body) == 7
    finally:
        peer.leave()


async def statuses(door: Door, first: bytes) -> list[int]:
    """Make a request, and an ordinary one on the same connection; both must be HTTP/1.1."""
    got = []
    async with asyncio.timeout(http2.PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        for request in (first, f"GET {CONFIG} HTTP/1.1\r\nHost: a\r\n\r\n".encode()):
            writer.write(request)
            got.append((await http11.read_answer(reader, until_close=False)).status)
        writer.close()
    return got


async def test_without_h2c_an_upgrade_is_ignored_and_prior_knowledge_is_400(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    async with doorstep(tmp_path, upstream, h2c=False) as door:
        assert await statuses(door, http2.upgrade_head(CONFIG)) == [200, 200]
        refused = await http11.raw(door.port, http2.PREFACE + http2.settings())
        assert b" 400 " in refused.partition(b"\r\n")[0]


async def test_a_publish_that_asks_for_an_upgrade_stays_what_it_is(door: Door) -> None:
    length = [("Content-Length", "3")]
    asked = http2.upgrade_head(PUBLISH, method="PUT", fields=length) + b"abc"
    assert await statuses(door, asked) == [501, 200]


async def test_a_drain_says_goaway_ends_what_it_accepted_and_takes_nothing_new(
    door: Door, stocked: Registry
) -> None:
    async with connected(door.port, {Setting.INITIAL_WINDOW_SIZE: 0}) as peer:
        peer.send(
            http2.get(1, crate_url(stocked, "large")), http2.get(3, crate_url(stocked, "small"))
        )
        await peer.until(lambda peer: len(peer.replies) == 2)
        closing = asyncio.create_task(door.entrance.close(10.0))
        await peer.until(lambda peer: peer.goaway is not None)
        assert peer.goaway == (3, Code.NO_ERROR)
        peer.send(http2.get(5, CONFIG))
        assert (await peer.reply(5)).reset == Code.REFUSED_STREAM
        peer.send(http2.settings({Setting.INITIAL_WINDOW_SIZE: 1 << 20}))
        assert bytes((await peer.reply(1)).body) == stocked.crate("large", "1.0.0")
        assert bytes((await peer.reply(3)).body) == stocked.crate("small", "1.0.0")
        assert await peer.end() == Code.NO_ERROR
        await closing


async def test_a_client_that_says_goaway_gets_what_it_waits_for(
    door: Door, stocked: Registry
) -> None:
    async with connected(door.port) as peer:
        peer.send(http2.get(1, crate_url(stocked, "large")), http2.goaway())
        assert bytes((await peer.reply(1)).body) == stocked.crate("large", "1.0.0")
        assert await peer.end() is None


@pytest.mark.parametrize("hot", [True, False], ids=["hot", "cold"])
async def test_a_goaway_in_one_breath_with_a_request_does_not_lose_the_answer(
    door: Door, *, hot: bool
) -> None:
    if hot:
        await bring_in(door, index_url("small"))
    async with connected(door.port) as peer:
        peer.send(http2.get(1, index_url("small")) + http2.goaway())
        assert (await peer.reply(1)).status == 200
        await peer.end()


@pytest.mark.parametrize("url", [index_url("small"), CONFIG], ids=["hot", "ordinary"])
async def test_a_request_reset_in_the_same_breath_is_forgotten(door: Door, url: str) -> None:
    await bring_in(door, index_url("small"))
    async with connected(door.port) as peer:
        peer.send(http2.get(1, url) + http2.rst_stream(1) + http2.get(3, url))
        assert (await peer.reply(3)).status == 200
        assert peer.goaway is None


@pytest.mark.parametrize("name", ["small", "many"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"accept-encoding": "gzip"},
        {"if-none-match": "*"},
        {"if-modified-since": "Fri, 31 Dec 2199 23:59:59 GMT"},
    ],
    ids=str,
)
async def test_the_hot_way_says_what_the_ordinary_way_says(
    door: Door, name: str, fields: dict[str, str]
) -> None:
    """A field that the hot way does not look past sends the same request the ordinary way."""
    await bring_in(door, index_url(name))
    async with connected(door.port) as peer:
        peer.send(
            http2.get(1, index_url(name), fields),
            http2.get(3, index_url(name), {**fields, "via": "1.1 nobody"}),
        )
        hot, ordinary = await peer.reply(1), await peer.reply(3)
    over_http11 = await http11.ask(door.port, index_url(name), headers=fields)
    assert hot.status == ordinary.status == over_http11.status
    assert hot.body == ordinary.body == over_http11.body
    ignored = {"date", "server", "connection", "transfer-encoding"}
    assert _comparable(hot.headers, ignored) == _comparable(ordinary.headers, ignored)
    assert _comparable(hot.headers, ignored) == _comparable(dict(over_http11.headers), ignored)


async def test_the_hot_way_to_a_crate_says_what_the_ordinary_way_says(
    door: Door, stocked: Registry
) -> None:
    await bring_in(door, crate_url(stocked, "small"))
    async with connected(door.port) as peer:
        url = crate_url(stocked, "small")
        peer.send(http2.get(1, url), http2.get(3, url, {"via": "1.1 nobody"}))
        hot, ordinary = await peer.reply(1), await peer.reply(3)
    assert (hot.status, hot.body) == (ordinary.status, ordinary.body)
    ignored = {"date", "server"}
    assert _comparable(hot.headers, ignored) == _comparable(ordinary.headers, ignored)


def _comparable(headers: dict[str, str], ignored: set[str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in ignored}
