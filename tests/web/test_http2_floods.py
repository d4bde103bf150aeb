"""Clients that mean harm over HTTP/2: each is told to leave, or left; nobody else notices.

What a client may do for nothing is counted (`proxy.web.http2.limits`). Every flood here is far
beyond that, is sent as fast as the server takes it, and must end in a GOAWAY or in the end of the
connection; after it, an ordinary request is served and what was open is closed.
"""

import asyncio
import gc
import logging
import random
import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from proxy.web.guests import Patience
from proxy.web.http2.limits import Http2Limits
from tests.web import http11
from tests.web.conftest import crate_url, index_url
from tests.web.doorstep import Door, doorstep
from tests.world import http2
from tests.world.crates import Package
from tests.world.http2 import (
    END_HEADERS,
    END_STREAM,
    Closed,
    Code,
    Kind,
    Peer,
    Setting,
    connected,
    data,
    frame,
    get,
    headers,
)
from tests.world.registry import Registry
from tests.world.server import RegistryServer

CONFIG = "/crates-io/index/config.json"
PUBLISH = http2.asking("/crates-io/api/v1/crates/new", "PUT")
OPEN = headers(1, PUBLISH, end=False)
PIECES = 400
PATIENCE_SECONDS = 20.0


@pytest_asyncio.fixture
async def door(tmp_path: Path, stocked: Registry, upstream: RegistryServer) -> AsyncIterator[Door]:
    async with doorstep(tmp_path, upstream) as opened:
        yield opened


@pytest.fixture(autouse=True)
def silent(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a client does is no error of ours."""
    yield
    assert [e.getMessage() for e in caplog.records if e.levelno >= logging.ERROR] == []


async def everybody_is_gone(door: Door) -> None:
    """Wait until no connection is left, and see that the next client is served."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while door.entrance.http2_connections() or door.entrance.http1_connections():
            await asyncio.sleep(0)
    assert (await http11.ask(door.port, CONFIG)).status == 200


async def flooded(door: Door, piece: bytes, *, first: bytes = b"") -> int | None:
    """Send `piece` many times over, reading all the while; returns the GOAWAY's code if seen."""
    async with connected(door.port) as peer:
        ending = asyncio.create_task(peer.end())
        peer.send(first)
        try:
            for _ in range(PIECES):
                peer.send(piece)
                await peer.flush()
        except Closed:
            pass
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await ending


FLOODS = {
    "PING": http2.ping() * 100,
    "PING answered unasked": http2.ping(ack=True) * 100,
    "SETTINGS": http2.settings() * 20,
    "SETTINGS with a value": http2.settings({Setting.INITIAL_WINDOW_SIZE: 1}) * 20,
    "SETTINGS acknowledged": frame(Kind.SETTINGS, 1) * 20,
    "PRIORITY": http2.priority(3) * 100,
    "unknown frames": frame(0x16, 0, 0, b"x") * 100,
    "empty DATA": data(1) * 100,
    "WINDOW_UPDATE by one": http2.window_update(1) * 2_000,
    "WINDOW_UPDATE of a stream by one": http2.window_update(1, 1) * 2_000,
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_of_what_costs_nothing_ends_in_enhance_your_calm(
    door: Door, name: str
) -> None:
    # The last words may be lost to a client that is still sending: then the end is all it sees.
    assert await flooded(door, FLOODS[name], first=OPEN) in (Code.ENHANCE_YOUR_CALM, None)
    await everybody_is_gone(door)


@pytest.mark.parametrize("kind", ["by the client", "by the server"])
@pytest.mark.parametrize("url", [index_url("small"), CONFIG, "/crates-io/index/3/a/abc"])
async def test_rapid_resets_end_in_enhance_your_calm(
    door: Door, kind: str, url: str, upstream: RegistryServer
) -> None:
    """Streams opened and reset at once; or made such that the server must reset them."""
    ends = {
        "by the client": http2.rst_stream,
        "by the server": lambda stream: http2.window_update(2**31 - 1, stream),
    }
    async with connected(door.port) as peer:
        ending = asyncio.create_task(peer.end())
        try:
            for first in range(1, 40_000, 200):
                pieces = [
                    get(stream, url) + ends[kind](stream) for stream in range(first, first + 200, 2)
                ]
                peer.send(*pieces)
                await peer.flush()
        except Closed:
            pass
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await ending in (Code.ENHANCE_YOUR_CALM, Code.FLOW_CONTROL_ERROR, None)
    await everybody_is_gone(door)
    assert len(upstream.requests()) <= 3, "what was reset is not asked for again and again"


async def test_continuations_without_end_close_the_connection(door: Door) -> None:
    begun = frame(Kind.HEADERS, END_STREAM, 1)
    assert await flooded(door, frame(Kind.CONTINUATION, 0, 1) * 10, first=begun) in (
        Code.PROTOCOL_ERROR,
        Code.ENHANCE_YOUR_CALM,
        None,
    )
    await everybody_is_gone(door)


async def test_a_header_list_that_unpacks_to_a_multiple_is_refused(door: Door) -> None:
    """HPACK's bomb: one large field, and then a byte for each of its many returns."""
    large = b"\x40" + http2.literal(b"x", bytes(b"a" * 4000))[1:]
    bomb = http2.block(http2.asking(CONFIG)) + large + b"\xbe" * 12_000
    async with connected(door.port) as peer:
        peer.send(frame(Kind.HEADERS, END_STREAM | END_HEADERS, 1, bomb))
        assert await peer.end() in (Code.ENHANCE_YOUR_CALM, Code.PROTOCOL_ERROR)
    await everybody_is_gone(door)


async def test_header_lists_beyond_what_was_said_are_refused(door: Door) -> None:
    async with connected(door.port) as peer:
        allowed = peer.settings[Setting.MAX_HEADER_LIST_SIZE]
        many = [(f"x-{number}", "a" * 1_000) for number in range(allowed // 1_000 + 2)]
        encoded = http2.block([*http2.asking(CONFIG), *many])
        pieces = [encoded[at : at + 16_000] for at in range(0, len(encoded), 16_000)]
        peer.send(frame(Kind.HEADERS, END_STREAM, 1, pieces[0]))
        for piece in pieces[1:]:
            peer.send(frame(Kind.CONTINUATION, 0, 1, piece))
        peer.send(frame(Kind.CONTINUATION, END_HEADERS, 1))
        assert await peer.end() in (Code.ENHANCE_YOUR_CALM, Code.PROTOCOL_ERROR)
    await everybody_is_gone(door)


async def test_a_table_that_a_client_allows_us_is_not_filled(door: Door) -> None:
    async with connected(door.port, {Setting.HEADER_TABLE_SIZE: 2**32 - 1}) as peer:
        peer._decoder.max_allowed_table_size = 2**32 - 1
        for stream in range(1, 600, 2):
            peer.send(get(stream, f"/nothing-{stream}"))
            assert (await peer.reply(stream)).status == 400
        assert peer._decoder.header_table_size <= 4096


async def test_streams_without_a_window_are_reset_and_leave_nothing_behind(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    limits = Http2Limits(stall_timeout_s=0.5)
    async with doorstep(tmp_path, upstream, limits=limits) as door:
        async with connected(door.port, {Setting.INITIAL_WINDOW_SIZE: 0}) as peer:
            streams = range(1, 401, 2)
            peer.send(*(get(each, crate_url(stocked, "large")) for each in streams))
            for each in streams:
                assert (await peer.reply(each)).reset == Code.INTERNAL_ERROR
            assert not next(iter(door.entrance._crowd))._streams
        await everybody_is_gone(door)


async def test_a_client_that_reads_nothing_is_left_in_the_end(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    """Windows without bounds, and a socket that nobody empties: neither memory nor time is lost."""
    limits = Http2Limits(stall_timeout_s=0.5, idle_timeout_s=0.6)
    async with doorstep(tmp_path, upstream, limits=limits) as door:
        while (await http11.ask(door.port, crate_url(stocked, "large"))).how != "hit":
            pass
        peer = await Peer.connect(door.port)
        peer._writer.transport.pause_reading()  # type: ignore[attr-defined]
        peer.send(http2.PREFACE, http2.settings({Setting.INITIAL_WINDOW_SIZE: 2**31 - 1}))
        peer.send(http2.window_update(2**31 - 1 - 65_535))
        peer.send(*(get(each, crate_url(stocked, "large")) for each in range(1, 401, 2)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not door.entrance.http2_connections():
                await asyncio.sleep(0.01)
        # Still connected, as far as it goes, when the proxy has given up on it.
        async with asyncio.timeout(PATIENCE_SECONDS):
            while door.entrance.http2_connections():
                await asyncio.sleep(0.01)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert after - before < 64 * 1024, "kilobytes"
        peer.leave()
        await everybody_is_gone(door)


async def test_answers_at_hand_wait_for_a_socket_that_takes_them(
    door: Door, stocked: Registry
) -> None:
    """Asked for in one segment, they would be hundreds of times what a socket holds."""
    stocked.publish(Package("medium", padding_bytes=150_000))
    url = crate_url(stocked, "medium")
    while (await http11.ask(door.port, url)).how != "hit":
        pass
    peer = await Peer.connect(door.port)
    peer._writer.transport.pause_reading()  # type: ignore[attr-defined]
    window = {Setting.INITIAL_WINDOW_SIZE: 2**31 - 1}
    peer.send(
        http2.PREFACE + http2.settings(window) + http2.window_update(2**31 - 1 - 65_535),
        *(get(each, url) for each in range(1, 501, 2)),
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not door.entrance._crowd:
            await asyncio.sleep(0)
        connection = next(iter(door.entrance._crowd))
        while not connection._streams:
            await asyncio.sleep(0)
    assert 0 < connection._transport.get_write_buffer_size() < 2_000_000
    peer.leave()
    await everybody_is_gone(door)


async def test_a_connection_that_asks_for_nothing_is_closed(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    limits = Http2Limits(idle_timeout_s=0.2)
    async with (
        doorstep(tmp_path, upstream, limits=limits) as door,
        connected(door.port) as silent_one,
        connected(door.port) as half_said,
        connected(door.port) as pinging,
    ):
        half_said.send(headers(1, http2.asking(CONFIG), end_headers=False))
        pinging.send(http2.ping())
        for peer in (silent_one, half_said, pinging):
            assert await peer.end() == Code.NO_ERROR
        await everybody_is_gone(door)


@pytest.mark.parametrize(
    "beginning",
    [b"", b"G", b"GET / HTTP/1.1\r\nHost: a\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", b"HEAD /"],
    ids=["nothing", "a letter", "half a head", "half a preface", "half a line"],
)
async def test_a_head_that_does_not_come_is_not_waited_for(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer, beginning: bytes
) -> None:
    async with doorstep(tmp_path, upstream, patience=Patience(head_s=0.1)) as door:
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await http11.raw(door.port, beginning) == b""
        await everybody_is_gone(door)


@pytest.mark.parametrize("beginning", [b"", http2.PREFACE + http2.settings()])
async def test_many_connections_that_say_nothing_leave_nothing_behind(
    door: Door, beginning: bytes
) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(1_000, (soft - 200) // 2)
    assert (await http11.ask(door.port, CONFIG)).status == 200
    # What that makes us ask the upstream opens a connection, which stays.
    await door.rooms.journeys.configs.get(door.rooms.registries["crates-io"].source)
    gc.collect()
    files = _open_files()
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(beginning)
        writers.append(writer)
    assert (await http11.ask(door.port, CONFIG)).status == 200
    for writer in writers:
        writer.transport.abort()
    await everybody_is_gone(door)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while _open_files() > files:
            await asyncio.sleep(0)


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("seed", range(4))
async def test_frames_at_random_do_no_harm(
    door: Door, seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(seed)
    for _ in range(150):
        peer = await Peer.connect(door.port)
        peer.send(http2.PREFACE, http2.settings())
        peer.send(*(_nonsense(chance) for _ in range(chance.randrange(30))), http2.goaway())
        try:
            await peer.flush()
            if chance.random() < 0.5:
                await peer.read()
        except Closed:
            pass
        peer.leave()
    await everybody_is_gone(door)
    assert capfd.readouterr().err == ""


def _nonsense(chance: random.Random) -> bytes:
    """Return a frame that makes sense, or did before it was changed."""
    stream = chance.randrange(1, 60, 2)
    written = chance.choice(
        [
            get(stream, chance.choice([CONFIG, index_url("small"), "/metrics"])),
            headers(stream, PUBLISH, end=False),
            data(stream, bytes(chance.randrange(100)), end=chance.random() < 0.5),
            http2.window_update(chance.choice([1, 100, 2**31 - 1]), chance.choice([0, stream])),
            http2.rst_stream(stream),
            http2.settings([(chance.randrange(1, 9), chance.choice([0, 1, 2**14, 2**31 - 1]))]),
            http2.ping(),
            frame(chance.randrange(14), chance.randrange(256), stream, chance.randbytes(20)),
        ]
    )
    if chance.random() < 0.6:
        return written
    changed = bytearray(written)
    for _ in range(chance.randrange(1, 5)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)
