"""HTTP/1.1 past aiohttp: in order, once each, and only while aiohttp stands between two requests.

What smuggling needs is a GET that one reader takes for a request and another for something else.
Here the second reader is aiohttp's parser, and whatever the first segments of a connection leave in
it, what follows must be its own to read.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from proxy.web import entrance
from proxy.web.http1 import Http1Connection
from tests.web import http11
from tests.web.doorstep import Door
from tests.web.warm import CONFIG, MANY, SMALL, WIDE, warm
from tests.world.holdfast import Answer
from tests.world.registry import Registry
from tests.world.server import RegistryServer

PUBLISH = "/crates-io/api/v1/crates/new"


def get(target: str, *lines: str, host: str = "Host: a") -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", host, *lines, "", ""]).encode("latin-1")


@pytest_asyncio.fixture
async def door(tmp_path: Path, stocked: Registry, upstream: RegistryServer) -> AsyncIterator[Door]:
    async with warm(tmp_path, stocked, upstream) as opened:
        yield opened


@dataclass(slots=True)
class Talk:
    """One connection, on which one ordinary answer has been given; `end` is the server's of it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    end: Http1Connection

    async def send(self, data: bytes, *, until: Callable[[], bool] | None = None) -> None:
        """Send, and wait until the server is seen to have read it."""
        self.writer.write(data)
        async with asyncio.timeout(http11.PATIENCE_SECONDS):
            await self.writer.drain()
            while until is not None and not until():
                await asyncio.sleep(0)

    async def answer(self) -> Answer:
        async with asyncio.timeout(http11.PATIENCE_SECONDS):
            return await http11.read_answer(self.reader, until_close=False)

    async def ask(self, data: bytes) -> Answer:
        await self.send(data)
        return await self.answer()

    async def rest(self) -> bytes:
        """Read until the server closes."""
        async with asyncio.timeout(http11.PATIENCE_SECONDS):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


@asynccontextmanager
async def talk(door: Door) -> AsyncIterator[Talk]:
    before = set(door.entrance._server.connections)
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1 << 20)
    try:
        writer.write(get("/-/healthz"))
        await http11.read_answer(reader, until_close=False)
        (end,) = set(door.entrance._server.connections) - before
        assert isinstance(end, Http1Connection)
        async with asyncio.timeout(http11.PATIENCE_SECONDS):
            while not end._is_idle():
                await asyncio.sleep(0)
        door.handled.clear()
        yield Talk(reader, writer, end)
    finally:
        writer.transport.abort()


async def test_hot_and_ordinary_answers_alternate(door: Door, stocked: Registry) -> None:
    async with talk(door) as client:
        for turn in range(3):
            assert (await client.ask(get(SMALL))).body == stocked.index("small")
            assert (await client.ask(get(MANY))).body == stocked.index("many")
            assert (await client.ask(get(CONFIG))).status == 200
            assert door.handled == [CONFIG] * (turn + 1)


@pytest.mark.parametrize("at", [1, 3, 4, 20, 40, 43, 44, 50, 51, 52, 53])
async def test_a_head_in_two_pieces_is_one_request(door: Door, stocked: Registry, at: int) -> None:
    whole = get(SMALL)
    assert len(whole) == 54
    async with talk(door) as client:
        await client.send(whole[:at], until=lambda: not client.end._in_step)
        assert (await client.ask(whole[at:])).body == stocked.index("small")
        assert (await client.ask(get(CONFIG))).status == 200
        assert door.handled == [SMALL, CONFIG]


@pytest.mark.parametrize(
    "first",
    [
        f"GET {CONFIG} HTTP/1.1\r\n".encode(),
        f"GET {CONFIG} HTTP/1.1\r\nHost: a\r\n".encode(),
        f"GET {CONFIG} HTTP/1.1\r\nHost: a\r\nX: ".encode(),
        f"GET {CONFIG}?".encode(),
        b"G",
        b"\r",
        b"PUT ",
    ],
    ids=repr,
)
async def test_what_looks_like_a_get_and_is_the_rest_of_a_head_is_not_answered(
    door: Door, first: bytes
) -> None:
    async with talk(door) as client:
        await client.send(first, until=lambda: not client.end._in_step)
        await client.send(get(SMALL, "Connection: close"))
        await client.send(get(SMALL))
        assert b'"name":"small"' not in await client.rest()
        assert SMALL not in door.handled


@pytest.mark.parametrize("method", ["PUT", "POST", "GET"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_a_body_that_looks_like_a_get_is_a_body(
    door: Door, *, method: str, chunked: bool
) -> None:
    smuggled = get(SMALL)
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(smuggled)}"
    head = get(PUBLISH, framing).replace(b"GET", method.encode(), 1)
    async with talk(door) as client:
        if chunked:
            head += f"{len(smuggled):x}\r\n".encode()
        await client.send(head, until=lambda: door.handled == [PUBLISH])
        await client.send(smuggled)
        if chunked:
            await client.send(b"\r\n0\r\n\r\n")
        assert (await client.answer()).status in (404, 501)
        assert (await client.ask(get(CONFIG))).body.startswith(b'{"dl"')
        assert door.handled == [PUBLISH, CONFIG]


async def test_requests_in_one_segment_are_answered_in_order(door: Door, stocked: Registry) -> None:
    async with talk(door) as client:
        await client.send(get(SMALL) + get(MANY) + get(CONFIG) + get(SMALL))
        answers = [await client.answer() for _ in range(4)]
        assert [answer.status for answer in answers] == [200] * 4
        assert answers[0].body == answers[3].body == stocked.index("small")
        assert answers[1].body == stocked.index("many")
        # From here on aiohttp has all of it, and knows where it stands.
        assert (await client.ask(get(MANY))).body == stocked.index("many")
        assert door.handled == [SMALL, MANY, CONFIG, SMALL, MANY]


async def test_a_get_behind_one_that_is_being_answered_waits_its_turn(
    door: Door, stocked: Registry
) -> None:
    async with talk(door) as client:
        door.gate.clear()
        await client.send(get(CONFIG), until=lambda: door.handled == [CONFIG])
        read = client.end._request_count
        await client.send(get(SMALL), until=lambda: client.end._request_count > read)
        await client.send(get(MANY), until=lambda: client.end._request_count > read + 1)
        door.gate.set()
        assert (await client.answer()).body.startswith(b'{"dl"')
        assert (await client.answer()).body == stocked.index("small")
        assert (await client.answer()).body == stocked.index("many")
        assert door.handled == [CONFIG, SMALL, MANY]
        # None of that was more than plain GETs: what comes next is hot again.
        assert (await client.ask(get(SMALL))).body == stocked.index("small")
        assert door.handled == [CONFIG, SMALL, MANY]


async def test_a_client_that_does_not_read_makes_nothing_pile_up(
    door: Door, stocked: Registry
) -> None:
    body = stocked.index("wide")
    async with talk(door) as client:
        transport = client.end.transport
        assert transport is not None
        asked = 0
        # Hot as long as the socket takes it; each is read alone, so that it can be.
        while not client.end._paused:
            assert asked < 500
            before = client.end._next_keepalive_close_time
            await client.send(
                get(WIDE),
                until=lambda was=before: client.end._next_keepalive_close_time > was,  # type: ignore[misc]
            )
            asked += 1
        assert door.handled == []
        held = transport.get_write_buffer_size()
        # The socket is full: the next one waits in a handler, and those behind it unread.
        await client.send(get(WIDE), until=lambda: door.handled == [WIDE])
        asked += 1
        for _ in range(300):
            await client.send(get(WIDE))
            asked += 1
        assert door.handled == [WIDE]
        assert transport.get_write_buffer_size() <= held + len(body) + 1_000
        assert len(client.end._messages) < 100
        for _ in range(asked):
            assert (await client.answer()).body == body


async def test_who_keeps_asking_hot_things_is_not_taken_for_idle(
    tmp_path: Path,
    stocked: Registry,
    upstream: RegistryServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(entrance, "_KEEP_ALIVE_S", 1.0)
    loop = asyncio.get_running_loop()
    async with warm(tmp_path, stocked, upstream) as door, talk(door) as client:
        until = loop.time() + 1.6
        while loop.time() < until:
            assert (await client.ask(get(SMALL))).status == 200
        assert door.handled == []
        # Who has stopped is.
        assert await client.rest() == b""


@pytest.mark.parametrize(
    "last",
    [
        get(SMALL, "Connection: close"),
        get(SMALL, "Connection: keep-alive, close"),
        get(SMALL).replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
    ids=["close", "close in a list", "HTTP/1.0"],
)
async def test_who_wants_the_connection_closed_gets_that(
    door: Door, stocked: Registry, last: bytes
) -> None:
    async with talk(door) as client:
        assert (await client.ask(get(SMALL))).status == 200
        await client.send(last)
        received = await client.rest()
        assert received.count(b"HTTP/1.") == 1
        assert received.count(stocked.index("small")) == 1


@pytest.mark.parametrize(
    "bad",
    [
        get(SMALL, "Host: b"),
        get(SMALL, "Host: a"),
        get(SMALL, "host: b"),
        get(SMALL, host="X: a"),
        get(SMALL, host="Host : a"),
        get(SMALL, "Content-Length: 5", "Content-Length: 6"),
        get(SMALL, "Content-Length: 5", "Transfer-Encoding: chunked"),
        get(SMALL, " folded: a"),
        get(SMALL).replace(b"\r\n", b"\n"),
    ],
    ids=lambda bad: repr(bad[43:]),
)
async def test_what_is_ambiguous_is_refused_behind_a_hot_answer(door: Door, bad: bytes) -> None:
    async with talk(door) as client:
        assert (await client.ask(get(SMALL))).status == 200
        await client.send(bad)
        assert b" 400 " in (await client.rest()).partition(b"\r\n")[0]
        assert door.handled == []


async def test_a_drain_closes_what_was_only_ever_hot(door: Door) -> None:
    async with talk(door) as one, talk(door) as other:
        for client in (one, other):
            assert (await client.ask(get(SMALL))).status == 200
        async with asyncio.timeout(http11.PATIENCE_SECONDS):
            await door.entrance.close(5.0)
        for client in (one, other):
            assert await client.rest() == b""


async def test_nothing_is_answered_hot_once_a_drain_has_begun(door: Door) -> None:
    async with talk(door) as busy, talk(door) as idle:
        door.gate.clear()
        await busy.send(get(CONFIG), until=lambda: door.handled == [CONFIG])
        closing = asyncio.create_task(door.entrance.close(5.0))
        async with asyncio.timeout(http11.PATIENCE_SECONDS):
            while not busy.end._force_close:
                await asyncio.sleep(0)
        busy.end.data_received(get(SMALL))
        idle.end.data_received(get(SMALL))
        door.gate.set()
        assert (await busy.rest()).count(b"HTTP/1.1 ") == 1
        assert await idle.rest() == b""
        await closing


async def test_a_connection_that_is_being_shut_down_answers_nothing(door: Door) -> None:
    async with talk(door) as client:
        closing = asyncio.create_task(client.end.shutdown(0.2))
        async with asyncio.timeout(http11.PATIENCE_SECONDS):
            while not client.end._force_close:
                await asyncio.sleep(0)
        assert client.end._is_idle()
        client.end.data_received(get(SMALL))
        assert await client.rest() == b""
        await closing
