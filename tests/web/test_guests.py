"""Clients that hold on to connections, or take for ever: bounded, and nobody else waits for them.

The house's patience is short here and its ceiling low; a test waits for what must happen, never for
time to pass. After each, nothing of the clients is left: no connection, no file, no task.
"""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from proxy.core.pace import LeastPace
from proxy.web import listener
from proxy.web.guests import Patience
from proxy.web.http2.limits import Http2Limits
from proxy.web.rim import Rim
from tests.web import http11
from tests.web.conftest import crate_url, index_url
from tests.web.doorstep import Door, doorstep
from tests.world import http2
from tests.world.crates import Package
from tests.world.http2 import Code, Peer, Setting, connected, data, get, headers
from tests.world.registry import Registry
from tests.world.server import RegistryServer

CONFIG = "/crates-io/index/config.json"
PATIENCE_SECONDS = 20.0
HASTY = Patience(head_s=0.2, least=LeastPace(1000, 0.3), look_every_s=0.05)
PUBLISH = "/crates-io/api/v1/crates/new"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


HUGE_BYTES = 12_000_000


@pytest.fixture(autouse=True)
def huge(stocked: Registry) -> None:
    """Publish a crate that no socket takes at once."""
    stocked.publish(Package("huge", padding_bytes=HUGE_BYTES))


async def until(holds: Callable[[], bool]) -> None:
    """Wait until `holds`; fail the test when it never does."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(0.005)


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@asynccontextmanager
async def nothing_left(door: Door) -> AsyncIterator[None]:
    """See that what happens inside leaves no connection, no task, no flight and no file behind."""
    # Libraries make their own on first use.
    assert (await http11.ask(door.port, index_url("many"))).status == 200
    assert (await http11.ask(door.port, CONFIG)).status == 200
    guests = door.entrance._guests
    await until(lambda: len(guests) == 0)
    gc.collect()
    tasks, files = len(asyncio.all_tasks()), _open_files()
    yield
    await until(lambda: len(guests) + len(guests._leaving) == 0)
    journeys = door.rooms.journeys
    await until(lambda: journeys.indexes.flights + journeys.crates.flights == 0)
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    await until(lambda: _open_files() <= files)
    await until(lambda: door.entrance.http1_connections() + door.entrance.http2_connections() == 0)
    await until(lambda: len(door.entrance._errands) == 0)
    assert (await http11.ask(door.port, CONFIG)).status == 200


async def arrive(door: Door, count: int, beginning: bytes = b"") -> list[Streams]:
    """Open connections, one after the other, and say the same on each."""
    before = len(door.entrance._guests)
    opened = []
    for number in range(count):
        opened.append(await asyncio.open_connection("127.0.0.1", door.port))
        await until(lambda n=number: len(door.entrance._guests) > before + n)  # type: ignore[misc]
        opened[-1][1].write(beginning)
    return opened


def leave(connections: list[Streams]) -> None:
    for _, writer in connections:
        writer.transport.abort()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Read until the server ends the connection."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


# The ceiling


async def test_at_the_ceiling_who_has_said_nothing_goes_first_and_the_oldest_of_them(
    tmp_path: Path,
    stocked: Registry,
    upstream: RegistryServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with doorstep(tmp_path, upstream, connections=4) as door, nothing_left(door):
        idle = await arrive(door, 2)
        for reader, writer in idle:
            writer.write(http11.request_head(CONFIG, "GET", [("Host", "x")]))
            assert (await http11.read_answer(reader, until_close=False)).status == 200
        silent = await arrive(door, 2, b"GET")
        assert (await http11.ask(door.port, CONFIG)).status == 200
        await ended(silent[0][0])
        assert not silent[1][0].at_eof()
        for reader, writer in idle:
            writer.write(http11.request_head(CONFIG, "GET", [("Host", "x")]))
            assert (await http11.read_answer(reader, until_close=False)).status == 200
        for _ in range(3):
            assert (await http11.ask(door.port, CONFIG)).status == 200
        leave(idle + silent)
    said = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len([line for line in said if line.startswith("limits.connections: all 4 ")]) == 1


async def test_with_nobody_silent_an_idle_connection_makes_room_of_either_protocol(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    async with (
        doorstep(tmp_path, upstream, connections=2) as door,
        nothing_left(door),
        connected(door.port) as idle,
    ):
        idle.send(get(1, CONFIG))
        assert (await idle.reply(1)).status == 200
        ((reader, writer),) = await arrive(door, 1)
        writer.write(http11.request_head(CONFIG, "GET", [("Host", "x")]))
        assert (await http11.read_answer(reader, until_close=False)).status == 200
        assert (await http11.ask(door.port, CONFIG)).status == 200
        assert await idle.end() == Code.NO_ERROR
        leave([(reader, writer)])


async def test_who_waits_for_an_answer_keeps_the_place_and_the_newcomer_is_turned_away(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    async with doorstep(tmp_path, upstream, connections=1) as door, nothing_left(door):
        with upstream.hold("/index/sm/*") as gate:
            busy = asyncio.create_task(http11.ask(door.port, index_url("small")))
            await gate.arrived(1)
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
            assert await ended(reader) == b""
            writer.close()
        assert (await busy).status == 200


async def test_connections_that_do_not_finish_their_handshake_are_counted_and_make_room(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    async with doorstep(tmp_path, upstream, connections=3, tls=server) as door:
        mute = await arrive(door, 3)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port, ssl=client)
        writer.write(http11.request_head(CONFIG, "GET", [("Host", "x")]))
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await http11.read_answer(reader, until_close=False)).status == 200
        assert await ended(mute[0][0]) == b""
        leave([*mute, (reader, writer)])
        await until(lambda: len(door.entrance._guests) + len(door.entrance._guests._leaving) == 0)


@contextlib.contextmanager
def no_files_left() -> Iterator[None]:
    """Let the process open no file, however many it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_open_files() + 20, soft), hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("rest_s", [0.01, 60.0])
async def test_a_listener_that_can_open_no_more_files_rests_and_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, rest_s: float
) -> None:
    monkeypatch.setattr(listener, "_REST_S", rest_s)
    received: list[socket.socket] = []
    asked_for_room: list[bool] = []

    def make_room() -> bool:
        asked_for_room.append(True)
        return False

    listening = listener.Listener("127.0.0.1", 0, received.append, make_room)
    waiting = socket.socket()
    waiting.setblocking(False)
    with no_files_left():
        await asyncio.get_running_loop().sock_connect(waiting, ("127.0.0.1", listening.port))
        await until(lambda: len(asked_for_room) >= 1)
        if rest_s > 1:
            for _ in range(200):
                await asyncio.sleep(0)
            assert len(asked_for_room) == 1, "it rests"
        else:
            await until(lambda: len(asked_for_room) >= 3)
        assert received == []
    if rest_s < 1:
        await until(lambda: len(received) == 1)
    assert caplog.text.count("accepting connections failed: Too many open files") == 1
    listening.close()
    for one in (waiting, *received):
        one.close()


async def test_accepted_connections_are_probed_and_dropped_by_the_kernel(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    async with doorstep(tmp_path, upstream) as door:
        connections = await arrive(door, 1)
        (guest,) = door.entrance._guests._silent
        accepted = guest._socket
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        unanswered_ms = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert unanswered_ms == 1000 * listener.VANISHED_AFTER_S
        idle_s = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        assert idle_s == listener.PROBED_AFTER_S
        unsent_bytes = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        assert unsent_bytes == listener.UNSENT_BYTES
        leave(connections)


# Time


BEGINNINGS = {
    "behind the door": b"GET / HTTP/1.1\r\nHost: a\r\n",
    "with the parser": b"POST / HTTP/1.1\r\nHost: a\r\n",
    "a second head": http11.request_head(CONFIG, "GET", [("Host", "x")]) + b"\r\n",
}


@pytest.mark.parametrize("name", BEGINNINGS)
async def test_a_head_that_trickles_in_is_not_waited_for(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer, name: str
) -> None:
    async with doorstep(tmp_path, upstream, patience=HASTY) as door, nothing_left(door):
        ((reader, writer),) = await arrive(door, 1, BEGINNINGS[name])
        if name == "a second head":
            assert (await http11.read_answer(reader, until_close=False)).status == 200
            writer.write(b"GET / HTTP/1.1\r\n")
        reading = asyncio.create_task(ended(reader))
        for letter in b"X-Slow: " + bytes(b"a" * 2000):
            writer.write(bytes([letter]))
            await asyncio.wait({reading}, timeout=0.01)
            if reading.done():
                break
        assert reading.done(), "closed while it was still being sent"
        assert reading.result() == b""
        writer.transport.abort()


@pytest.mark.parametrize("beginning", [b"", http2.PREFACE, http2.PREFACE + http2.ping()[:5]])
async def test_a_client_of_http2_that_does_not_begin_is_not_waited_for(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer, beginning: bytes
) -> None:
    async with doorstep(tmp_path, upstream, patience=HASTY) as door, nothing_left(door):
        ((reader, writer),) = await arrive(door, 1, beginning)
        await ended(reader)
        writer.transport.abort()


async def test_who_does_not_read_an_answer_over_http1_is_cut(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    async with doorstep(tmp_path, upstream, patience=HASTY) as door:
        await held(door, crate_url(stocked, "huge"))
        async with nothing_left(door):
            reading = await not_reading(door)
            reading.sendall(http11.request_head(crate_url(stocked, "huge"), "GET", [("Host", "x")]))
            await until(lambda: door.entrance.http1_connections() == 1)
            await until(lambda: len(door.entrance._guests) == 0)
            reading.close()


async def test_who_reads_slowly_and_enough_is_let_be(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    async with doorstep(tmp_path, upstream, patience=HASTY) as door:
        await held(door, crate_url(stocked, "huge"))
        loop = asyncio.get_running_loop()
        reading = await not_reading(door)
        reading.setblocking(False)
        await loop.sock_sendall(
            reading,
            http11.request_head(
                crate_url(stocked, "huge"), "GET", [("Host", "x"), ("Connection", "close")]
            ),
        )
        received, begun = 0, loop.time()
        while piece := await loop.sock_recv(reading, 40_000):
            received += len(piece)
            if loop.time() - begun < 3 * HASTY.least.period_s:
                await asyncio.sleep(HASTY.look_every_s)
        assert received > len(stocked.crate("huge", "1.0.0"))
        reading.close()


async def test_windows_opened_a_byte_at_a_time_hold_no_stream(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    limits = Http2Limits(stall_timeout_s=0.3)
    async with doorstep(tmp_path, upstream, limits=limits) as door:
        await held(door, crate_url(stocked, "large"))
        async with (
            nothing_left(door),
            connected(door.port, {Setting.INITIAL_WINDOW_SIZE: 0}) as peer,
        ):
            peer.gives_window = False
            peer.send(get(1, crate_url(stocked, "large")))
            async with asyncio.timeout(PATIENCE_SECONDS):
                while 1 not in peer.replies or not peer.replies[1].is_over:
                    peer.send(http2.window_update(1, 1))
                    await peer.read()
            assert peer.replies[1].reset == Code.INTERNAL_ERROR
            assert len(peer.replies[1].body) < limits.stall_least_bytes


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
async def test_a_body_that_trickles_in_is_not_waited_for(
    tmp_path: Path,
    stocked: Registry,
    upstream: RegistryServer,
    protocol: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def read_it_all(self: Rim, request: web.Request) -> web.StreamResponse:
        if request.method == "PUT":
            await request.read()
        return web.Response(text="read\n")

    monkeypatch.setattr(Rim, "handle", read_it_all)
    async with doorstep(tmp_path, upstream, patience=HASTY) as door:
        await (over_http1 if protocol == "http/1.1" else over_http2)(door)
        await until(lambda: len(door.entrance._guests) == 0)
        assert len(door.entrance._errands) == 0


async def over_http1(door: Door) -> None:
    head = http11.request_head(PUBLISH, "PUT", [("Host", "x"), ("Content-Length", "100000")])
    ((reader, writer),) = await arrive(door, 1, head)
    reading = asyncio.create_task(ended(reader))
    for _ in range(2000):
        writer.write(b"a")
        await asyncio.wait({reading}, timeout=0.01)
        if reading.done():
            break
    assert reading.result() == b""
    writer.transport.abort()


async def over_http2(door: Door) -> None:
    async with connected(door.port) as peer:
        peer.send(headers(1, http2.asking(PUBLISH, "PUT"), end=False))
        reading = asyncio.create_task(peer.reply(1))
        for _ in range(2000):
            peer.send(data(1, b"a"))
            await asyncio.wait({reading}, timeout=0.01)
            if reading.done():
                break
        assert reading.result().reset == Code.CANCEL
        peer.send(get(3, CONFIG))
        assert (await peer.reply(3)).status == 200


async def held(door: Door, url: str) -> None:
    while (await http11.ask(door.port, url)).how != "hit":
        pass


async def not_reading(door: Door) -> socket.socket:
    """Connect with a small buffer of the kernel's, which nobody empties."""
    waiting = socket.socket()
    waiting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    waiting.connect(("127.0.0.1", door.port))
    return waiting


# Heads


async def test_a_head_that_grows_without_end_is_431_and_little_of_it_is_kept(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    async with doorstep(tmp_path, upstream) as door, nothing_left(door):
        ((reader, writer),) = await arrive(door, 1, b"POST / HTTP/1.1\r\nHost: a\r\n")
        reading = asyncio.create_task(ended(reader))
        sent = 0
        while not reading.done() and sent < 1_000_000:
            line = b"X-%d: " % sent + b"a" * 4000 + b"\r\n"
            writer.write(line)
            sent += len(line)
            await asyncio.wait({reading}, timeout=0.005)
        answer = reading.result()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
        assert sent < 200_000
        writer.transport.abort()


# Crowds that go away at once


async def crowd(
    door: Door, count: int, beginning: bytes, waits: Callable[[], bool]
) -> list[Streams]:
    connections = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(count)]
    for _, writer in connections:
        writer.write(beginning)
    await until(waits)
    return connections


def _crowd_size() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(1_000, (soft - 200) // 2)


@pytest.mark.parametrize(
    "beginning",
    [b"", b"GET / HTTP/1.1\r\nHos", b"POST / HTTP/1.1\r\nHos", http2.PREFACE + http2.settings()],
    ids=["before a head", "in a head", "in a head at the parser", "before a stream"],
)
async def test_a_thousand_that_go_away_at_once_leave_nothing_behind(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer, beginning: bytes
) -> None:
    async with doorstep(tmp_path, upstream) as door, nothing_left(door):
        count = _crowd_size()
        connections = await crowd(
            door, count, beginning, lambda: len(door.entrance._guests) == count
        )
        assert (await http11.ask(door.port, CONFIG)).status == 200
        leave(connections)


async def test_a_thousand_that_go_away_while_they_wait_for_an_answer_leave_nothing_behind(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    async with doorstep(tmp_path, upstream) as door, nothing_left(door):
        with upstream.hold("/index/sm/*") as gate:
            asking = http11.request_head(index_url("small"), "GET", [("Host", "x")])
            count = _crowd_size()
            connections = await crowd(
                door, count, asking, lambda: door.entrance.http1_connections() == count
            )
            await gate.arrived(1)
            assert (await http11.ask(door.port, index_url("many"))).how == "hit"
            leave(connections)
            await until(lambda: len(door.entrance._guests) == 0)
    assert upstream.count("/index/sm/*") == 1


async def test_many_that_go_away_in_the_middle_of_a_body_leave_nothing_behind(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    async with doorstep(tmp_path, upstream) as door:
        await held(door, crate_url(stocked, "huge"))
        async with nothing_left(door):
            asking = http11.request_head(crate_url(stocked, "huge"), "GET", [("Host", "x")])
            connections = [
                await asyncio.open_connection("127.0.0.1", door.port, limit=1024)
                for _ in range(200)
            ]
            for reader, writer in connections:
                writer.write(asking)
                assert await reader.readexactly(100)
            leave(connections)


async def test_clients_with_a_hundred_streams_each_leave_nothing_behind(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    async with doorstep(tmp_path, upstream) as door, nothing_left(door):
        with upstream.hold("/index/sm/*") as gate:
            peers = []
            for _ in range(20):
                peer = await Peer.connect(door.port)
                peer.send(http2.PREFACE, http2.settings())
                peer.send(*(get(each, index_url("small")) for each in range(1, 201, 2)))
                peers.append(peer)
            await until(lambda: len(door.entrance._errands) == 2000)
            await gate.arrived(1)
            for peer in peers:
                peer.leave()
            await until(lambda: len(door.entrance._guests) == 0)
