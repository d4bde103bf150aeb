"""Hot answers and the windows of HTTP/2: nobody gets more than he allows, everybody all of it.

What there is room for at once goes past the library; what there is not waits in a handler. The
client cannot tell, but for the time. The same goes for a socket that is full.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from proxy.web.http2.limits import Http2Limits
from tests.web.doorstep import Door
from tests.web.warm import CARGO, MANY, SMALL, WIDE, warm
from tests.world import http2
from tests.world.http2 import Code, Kind, Peer, Setting, asking, connected
from tests.world.registry import Registry
from tests.world.server import RegistryServer


@pytest_asyncio.fixture
async def door(tmp_path: Path, stocked: Registry, upstream: RegistryServer) -> AsyncIterator[Door]:
    async with warm(tmp_path, stocked, upstream) as opened:
        yield opened


@pytest.fixture(autouse=True)
def silent(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a client does is no error of ours."""
    yield
    assert [each.getMessage() for each in caplog.records if each.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    "values",
    [
        {},
        {Setting.INITIAL_WINDOW_SIZE: 0},
        {Setting.INITIAL_WINDOW_SIZE: 1},
        {Setting.INITIAL_WINDOW_SIZE: 70_000},
        {Setting.INITIAL_WINDOW_SIZE: 2**31 - 1},
    ],
    ids=str,
)
async def test_no_client_gets_more_than_its_windows_and_each_gets_it_whole(
    door: Door, stocked: Registry, values: dict[Setting, int]
) -> None:
    """What does not fit at once comes by the ordinary way, which waits."""
    body = stocked.index("wide")
    window = values.get(Setting.INITIAL_WINDOW_SIZE, 65_535)
    async with connected(door.port, values) as peer:
        peer.gives_window = False
        peer.send(http2.window_update(len(body) + 1_000 - 65_535))
        peer.send(http2.get(1, WIDE))
        allowed = min(window, len(body))
        await peer.until(lambda peer: 1 in peer.replies and len(peer.replies[1].body) >= allowed)
        await peer.pong()
        reply = peer.replies[1]
        assert (len(reply.body), reply.ended) == (allowed, allowed == len(body))
        # What fits is sent at once, and past the library; what does not waits in a handler.
        assert door.handled == ([] if reply.ended else [WIDE])
        if not reply.ended:
            peer.send(http2.window_update(len(body), 1))
        assert bytes((await peer.reply(1)).body) == body
        # Of the window of all, a thousand bytes are left.
        peer.send(http2.get(3, WIDE))
        allowed = min(window, 1_000)
        await peer.until(lambda peer: 3 in peer.replies and len(peer.replies[3].body) >= allowed)
        await peer.pong()
        assert len(peer.replies[3].body) == allowed
        peer.send(http2.window_update(len(body)))
        if window < len(body):
            peer.send(http2.window_update(len(body), 3))
        assert bytes((await peer.reply(3)).body) == body
        assert peer.goaway is None


@pytest.mark.parametrize("frame_bytes", [16_384, 20_000, 2**24 - 1])
async def test_no_frame_is_larger_than_the_client_takes(
    door: Door, stocked: Registry, frame_bytes: int
) -> None:
    values = {Setting.INITIAL_WINDOW_SIZE: 2**31 - 1, Setting.MAX_FRAME_SIZE: frame_bytes}
    async with connected(door.port, values) as peer:
        peer.send(http2.window_update(1_000_000))
        await peer.pong()
        peer.send(http2.get(1, WIDE))
        sizes = []
        while 1 not in peer.replies or not peer.replies[1].ended:
            if (got := await peer.read()).kind == Kind.DATA:
                sizes.append(len(got.payload))
        assert door.handled == []
        assert bytes(peer.replies[1].body) == stocked.index("wide")
        assert max(sizes) == min(frame_bytes, len(peer.replies[1].body))


async def test_the_window_of_the_connection_counts_what_went_hot(
    door: Door, stocked: Registry
) -> None:
    many = stocked.index("many")
    fit = 65_535 // len(many)
    async with connected(door.port) as peer:
        peer.gives_window = False
        peer.send(*(http2.get(2 * at + 1, MANY) for at in range(fit + 1)))
        for at in range(fit):
            assert bytes((await peer.reply(2 * at + 1)).body) == many
        assert door.handled == [MANY]
        last = 2 * fit + 1
        await peer.until(lambda peer: last in peer.replies)
        await peer.pong()
        left = 65_535 - fit * len(many)
        assert len(peer.replies[last].body) == left
        # A hot answer without a body needs no window; it does not wait for the other.
        peer.send(http2.headers(last + 2, [*asking(SMALL), *CARGO, ("if-none-match", "*")]))
        assert (await peer.reply(last + 2)).status == 304
        peer.send(http2.window_update(len(many)))
        assert bytes((await peer.reply(last)).body) == many
        assert door.handled == [MANY]


@pytest.mark.parametrize("missing", [0, 1])
async def test_a_body_that_just_fits_goes_hot_and_one_byte_more_does_not(
    door: Door, stocked: Registry, missing: int
) -> None:
    body = stocked.index("small")
    window = len(body) - missing
    async with connected(door.port, {Setting.INITIAL_WINDOW_SIZE: window}) as peer:
        peer.gives_window = False
        peer.send(http2.get(1, SMALL))
        await peer.until(lambda peer: 1 in peer.replies and len(peer.replies[1].body) >= window)
        await peer.pong()
        assert bytes(peer.replies[1].body) == body[:window]
        assert door.handled == [SMALL] * missing


async def test_a_window_that_shrinks_counts_for_the_next_request(door: Door) -> None:
    async with connected(door.port) as peer:
        peer.gives_window = False
        peer.send(http2.get(1, SMALL))
        assert (await peer.reply(1)).status == 200
        assert door.handled == []
        peer.send(http2.settings({Setting.INITIAL_WINDOW_SIZE: 5}) + http2.get(3, SMALL))
        await peer.until(lambda peer: 3 in peer.replies and len(peer.replies[3].body) >= 5)
        await peer.pong()
        assert len(peer.replies[3].body) == 5


@pytest.mark.parametrize("first", [http2.get(1, SMALL), http2.settings()[:0]], ids=["GET", ""])
async def test_nothing_is_answered_hot_before_the_client_has_said_its_settings(
    door: Door, first: bytes
) -> None:
    """Its windows are not known yet; a preface without SETTINGS is none (section 3.4)."""
    peer = await Peer.connect(door.port)
    try:
        peer.gives_window = False
        values = {Setting.INITIAL_WINDOW_SIZE: 5}
        peer.send(http2.PREFACE + first + http2.settings(values) + http2.get(3, SMALL))
        await peer.until(lambda peer: 3 in peer.replies and len(peer.replies[3].body) >= 5)
        await peer.pong()
        assert len(peer.replies[3].body) == 5
        assert door.handled == [SMALL] * (2 if first else 1)
    finally:
        peer.leave()


async def test_a_client_that_does_not_read_is_not_written_to_without_end(
    door: Door, stocked: Registry
) -> None:
    """Once the socket is full no more is answered hot: streams wait, and they are bounded."""
    body = stocked.index("wide")
    wide = {Setting.INITIAL_WINDOW_SIZE: 2**31 - 1}
    async with connected(door.port, wide) as peer:
        peer.send(http2.window_update(2**31 - 1 - 65_535))
        peer.gives_window = False
        (connection,) = door.entrance._crowd
        asked = 250
        peer.send(*(http2.get(2 * at + 1, WIDE) for at in range(asked)))
        async with asyncio.timeout(http2.PATIENCE_SECONDS):
            while len(door.handled) < asked // 4:
                await asyncio.sleep(0)
        assert connection._transport.get_write_buffer_size() < 4 * 1024 * 1024
        assert not connection._sender.is_writable
        for at in range(asked):
            assert bytes((await peer.reply(2 * at + 1)).body) == body
        peer.send(http2.get(2 * asked + 1, SMALL))
        assert (await peer.reply(2 * asked + 1)).status == 200


async def test_who_keeps_asking_hot_things_is_not_taken_for_idle(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    loop = asyncio.get_running_loop()
    limits = Http2Limits(idle_timeout_s=1.0)
    async with warm(tmp_path, stocked, upstream, limits) as door, connected(door.port) as peer:
        until, stream = loop.time() + 2.0, 1
        while loop.time() < until:
            peer.send(http2.get(stream, SMALL))
            assert (await peer.reply(stream)).status == 200
            stream += 2
        assert door.handled == []
        # Who has stopped is.
        assert await peer.end() == Code.NO_ERROR
