"""Hot answers and ordinary ones on one HTTP/2 connection: nobody can tell them apart.

A hot answer is written past the library, with the library's tables and windows. So here the two
kinds are mixed in every way that a client can mix them, and what comes back is read by a decoder
that is none of ours: one field of one answer too many or too few, and all that follows is garbage.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from tests.web import http11
from tests.web.conftest import crate_url
from tests.web.doorstep import Door
from tests.web.warm import CARGO, CONFIG, MANY, SMALL, warm
from tests.world import http2
from tests.world.http2 import (
    END_HEADERS,
    END_STREAM,
    PADDED,
    PRIORITY_FLAG,
    Code,
    Kind,
    Peer,
    Setting,
    asking,
    connected,
    frame,
)
from tests.world.registry import Registry
from tests.world.server import RegistryServer

WHOLE = END_STREAM | END_HEADERS


@pytest_asyncio.fixture
async def door(tmp_path: Path, stocked: Registry, upstream: RegistryServer) -> AsyncIterator[Door]:
    async with warm(tmp_path, stocked, upstream) as opened:
        yield opened


@pytest.fixture(autouse=True)
def silent(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a client does is no error of ours."""
    yield
    assert [each.getMessage() for each in caplog.records if each.levelname == "ERROR"] == []


async def is_alive(peer: Peer, stream: int = 999_999) -> bool:
    """Tell whether hot and ordinary answers still come, in step with the peer's tables."""
    peer.send(
        peer.compressed(stream, [*asking(SMALL), *CARGO]),
        peer.compressed(stream + 2, [*asking(CONFIG), *CARGO]),
    )
    hot, ordinary = await peer.reply(stream), await peer.reply(stream + 2)
    return (hot.status, ordinary.status, peer.goaway) == (200, 200, None)


@dataclass(slots=True)
class Mix:
    """A client that does what clients do, in no order; `expected` has what must come of it."""

    peer: Peer
    bodies: dict[str, bytes]
    dice: random.Random
    stream: int = 1
    hot: list[int] = field(default_factory=list)
    expected: dict[int, tuple[int | None, bytes]] = field(default_factory=dict)

    def encoded(self, path: str, *fields: tuple[str, str]) -> bytes:
        """Return a block of the peer's own encoder, which indexes all that it can."""
        pairs = [*asking(path), *CARGO, *fields]
        return self.peer.compressed(1, pairs)[9:]

    def ask(self, path: str, *frames: Callable[[int, bytes], bytes]) -> bytes:
        """Ask for something on the next stream, in frames of this kind."""
        self.expected[self.stream] = (200, self.bodies[path])
        if path != CONFIG:
            self.hot.append(self.stream)
        block = self.encoded(path)
        sent = b"".join(each(self.stream, block) for each in frames)
        self.stream += 2
        return sent

    def path(self) -> str:
        return self.dice.choice(list(self.bodies))

    def plain(self) -> bytes:
        return self.ask(self.path(), lambda s, block: frame(Kind.HEADERS, WHOLE, s, block))

    def padded(self) -> bytes:
        return self.ask(
            self.path(),
            lambda s, block: frame(Kind.HEADERS, WHOLE | PADDED, s, b"\x04" + block + bytes(4)),
        )

    def preferred(self) -> bytes:
        before = self.dice.choice([0, *self.hot]).to_bytes(4, "big") + b"\x0f"
        return self.ask(
            self.path(),
            lambda s, block: frame(Kind.HEADERS, WHOLE | PRIORITY_FLAG, s, before + block),
        )

    def continued(self) -> bytes:
        return self.ask(
            self.path(),
            lambda s, block: frame(Kind.HEADERS, END_STREAM, s, block[:3]),
            lambda s, block: frame(Kind.CONTINUATION, 0, s, block[3:5]),
            lambda s, block: frame(Kind.CONTINUATION, END_HEADERS, s, block[5:]),
        )

    def indexed(self) -> bytes:
        """A name and a value that nobody has sent before go into the tables."""
        word = f"x{self.dice.randrange(10**6)}"
        self.expected[self.stream] = (200, self.bodies[MANY])
        block = self.encoded(MANY, ("x-word", word * 9))
        self.stream += 2
        return frame(Kind.HEADERS, WHOLE, self.stream - 2, block)

    def refused(self) -> bytes:
        """What is refused goes into the tables as well."""
        self.expected[self.stream] = (None, b"")
        bad = self.dice.choice([("x-bad", "a\0b"), ("x-bad", "c\rd"), ("content-length", "7")])
        block = self.encoded(SMALL, bad, ("x-good", "e"))
        self.stream += 2
        return frame(Kind.HEADERS, WHOLE, self.stream - 2, block)

    def unchanged(self) -> bytes:
        self.expected[self.stream] = (304, b"")
        block = self.encoded(SMALL, ("if-none-match", "*"))
        self.stream += 2
        return frame(Kind.HEADERS, WHOLE, self.stream - 2, block)

    def resized(self) -> bytes:
        """The peer's own table becomes another size, which its next block says."""
        self.peer._encoder.header_table_size = self.dice.choice([0, 60, 300, 4096])
        return self.plain()

    def settled(self) -> bytes:
        """The proxy's table may become another size; frames of another size are taken."""
        size = self.dice.choice([0, 100, 4096, 65_536])
        self.peer._decoder.max_allowed_table_size = 65_536
        return http2.settings(
            [(Setting.HEADER_TABLE_SIZE, 0), (Setting.HEADER_TABLE_SIZE, size)]
            if self.dice.randrange(2)
            else [(Setting.HEADER_TABLE_SIZE, size), (Setting.MAX_FRAME_SIZE, 20_000)]
        )

    def afterwards(self) -> bytes:
        """What may still come for a stream that has been answered."""
        if not self.hot:
            return b""
        stream = self.dice.choice(self.hot)
        return self.dice.choice(
            [
                http2.window_update(self.dice.choice([1, 1000]), stream),
                http2.priority(stream, 0),
                http2.priority(self.stream + 100, stream),
            ]
        )

    def pinged(self) -> bytes:
        return http2.ping()


@pytest.mark.parametrize("seed", range(12))
async def test_a_mixed_conversation_is_read_to_its_end(
    door: Door, stocked: Registry, seed: int
) -> None:
    config = (await http11.ask(door.port, CONFIG, headers={"Host": "127.0.0.1"})).body
    bodies = {SMALL: stocked.index("small"), MANY: stocked.index("many"), CONFIG: config}
    bodies[crate_url(stocked, "small")] = stocked.crate("small", "1.0.0")
    async with connected(door.port) as peer:
        mix = Mix(peer, bodies, random.Random(seed))
        deeds = [
            *[mix.plain] * 6,
            *(mix.padded, mix.preferred, mix.continued, mix.indexed, mix.refused, mix.unchanged),
            *(mix.resized, mix.settled, mix.afterwards, mix.pinged),
        ]
        for _ in range(12):
            talk = b"".join(mix.dice.choice(deeds)() for _ in range(12))
            # In one piece, in two, or in many small ones.
            step = mix.dice.choice([len(talk) or 1, len(talk) // 2 + 1, 7])
            for at in range(0, len(talk), step):
                peer.send(talk[at : at + step])
                await peer.flush()
            await peer.pong()
        for stream, (status, body) in mix.expected.items():
            reply = await peer.reply(stream)
            if status is None:
                assert reply.reset == Code.PROTOCOL_ERROR, stream
                continue
            assert (reply.status, reply.reset, bytes(reply.body)) == (status, None, body), stream
            names = [name for name, _ in reply.fields]
            assert len(names) == len(set(names))
            assert reply.headers["x-cache"] == "hit"
            if status == 200:
                assert reply.headers["content-length"] == str(len(body))
        assert peer.goaway is None
        assert len(door.handled) < len(mix.expected) - 30


async def hot_stream(peer: Peer, door: Door, stream: int = 1) -> None:
    """Have one stream answered past the library, and over."""
    before = len(door.handled)
    peer.send(http2.get(stream, SMALL))
    reply = await peer.reply(stream)
    assert (reply.status, reply.reset, len(door.handled)) == (200, None, before)


AFTER = {
    "WINDOW_UPDATE": (http2.window_update(10, 1), None),
    "the largest WINDOW_UPDATE": (http2.window_update(2**31 - 1, 1), None),
    "RST_STREAM": (http2.rst_stream(1), None),
    "RST_STREAM twice": (http2.rst_stream(1) * 2, None),
    "PRIORITY": (http2.priority(1), None),
    "HEADERS": (http2.get(1, SMALL), {Code.STREAM_CLOSED}),
    "HEADERS for something else": (http2.get(1, CONFIG), {Code.STREAM_CLOSED}),
    "trailers": (http2.headers(1, [("a", "b")]), {Code.STREAM_CLOSED}),
    "CONTINUATION": (
        frame(Kind.CONTINUATION, END_HEADERS, 1),
        {Code.STREAM_CLOSED, Code.PROTOCOL_ERROR},
    ),
    "a stream below": (http2.get(3, SMALL) + http2.get(1, SMALL), {Code.STREAM_CLOSED}),
    "a stream that was left out": (
        http2.get(7, SMALL) + http2.get(5, SMALL),
        {Code.PROTOCOL_ERROR},
    ),
    "an even stream": (http2.get(2, SMALL), {Code.PROTOCOL_ERROR}),
    "DATA for one that was left out": (
        http2.get(7, SMALL) + http2.data(9, b"x"),
        {Code.PROTOCOL_ERROR},
    ),
}


@pytest.mark.parametrize(("sent", "codes"), AFTER.values(), ids=AFTER.keys())
async def test_what_comes_for_a_stream_that_was_answered_hot(
    door: Door, sent: bytes, codes: set[Code] | None
) -> None:
    """RFC 9113 section 5.1, "closed": late frames are let be, new requests are errors."""
    async with connected(door.port) as peer:
        await hot_stream(peer, door)
        peer.send(sent)
        if codes is None:
            assert await is_alive(peer)
            return
        assert await peer.end() in codes


@pytest.mark.parametrize("stream", [1, 3])
async def test_nothing_is_answered_in_the_middle_of_a_head(door: Door, stream: int) -> None:
    """RFC 9113 section 6.10: only CONTINUATION of the same stream may follow."""
    async with connected(door.port) as peer:
        await hot_stream(peer, door)
        peer.send(
            http2.headers(stream, asking(SMALL), end_headers=False), http2.get(stream + 2, SMALL)
        )
        assert await peer.end() == Code.PROTOCOL_ERROR
        assert set(peer.replies) == {1}


async def test_data_for_a_stream_that_was_answered_hot_hurts_nobody_else(
    door: Door,
) -> None:
    async with connected(door.port) as peer:
        await hot_stream(peer, door)
        for _ in range(20):
            peer.send(http2.data(1, bytes(16_000)))
        # All of it counts for the connection's window, and that is given back.
        assert await is_alive(peer)
        assert peer.replies[1].reset in (None, Code.STREAM_CLOSED)


async def test_a_goaway_names_the_last_stream_that_was_answered_hot(door: Door) -> None:
    async with connected(door.port) as peer:
        peer.send(http2.get(1, CONFIG))
        await peer.reply(1)
        await hot_stream(peer, door, 7)
        closing = asyncio.create_task(door.entrance.close(5.0))
        assert await peer.end() == Code.NO_ERROR
        assert peer.goaway == (7, Code.NO_ERROR)
        await closing


async def test_behind_a_goaway_nothing_is_answered_hot(door: Door) -> None:
    async with connected(door.port) as peer:
        await hot_stream(peer, door)
        door.gate.clear()
        peer.send(http2.get(3, CONFIG))
        async with asyncio.timeout(http2.PATIENCE_SECONDS):
            while door.handled != [CONFIG]:
                await asyncio.sleep(0)
        closing = asyncio.create_task(door.entrance.close(5.0))
        await peer.until(lambda peer: peer.goaway is not None)
        assert peer.goaway == (3, Code.NO_ERROR)
        peer.send(http2.get(5, SMALL))
        assert (await peer.reply(5)).reset == Code.REFUSED_STREAM
        door.gate.set()
        assert (await peer.reply(3)).status == 200
        assert await peer.end() == Code.NO_ERROR
        await closing


async def test_what_cannot_be_decoded_ends_the_connection_wherever_it_comes(door: Door) -> None:
    for encoded in (b"\xc6", b"\x80", b"\x82\x84\x00\x01a\x05b", b"\x3f\xe1\xff\x3f"):
        async with connected(door.port) as peer:
            await hot_stream(peer, door)
            peer.send(frame(Kind.HEADERS, WHOLE, 3, encoded))
            assert await peer.end() in (Code.PROTOCOL_ERROR, Code.COMPRESSION_ERROR)


@pytest.mark.parametrize("padding", [None, b"\0"], ids=["hot", "ordinary"])
async def test_an_oversized_head_behind_a_hot_answer_ends_the_connection(
    door: Door, padding: bytes | None
) -> None:
    async with connected(door.port) as peer:
        await hot_stream(peer, door)
        # One long field goes into the table; a few bytes name it again and again.
        long = b"\x40" + http2.literal(b"a", b"b" * 4000)[1:] + b"\xbe" * 20
        encoded = http2.block(asking(SMALL)) + long
        if padding is None:
            peer.send(frame(Kind.HEADERS, WHOLE, 3, encoded))
        else:
            peer.send(frame(Kind.HEADERS, WHOLE | PADDED, 3, padding + encoded))
        assert await peer.end() == Code.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "before",
    [b"", http2.headers(1, [*asking(SMALL), ("x-bad", "a\0b")]), http2.get(1, CONFIG)],
    ids=["first", "after a refused one", "after an ordinary one"],
)
@pytest.mark.parametrize("flags", [WHOLE, WHOLE | PADDED, END_STREAM], ids=["hot", "padded", "two"])
async def test_a_request_that_is_split_anywhere_gets_the_same_answer(
    door: Door, stocked: Registry, before: bytes, flags: int
) -> None:
    async with connected(door.port) as peer:
        if before:
            peer.send(before)
            await peer.reply(1)
        for at in range(60):
            stream = 2 * at + 3
            whole = peer.compressed(stream, [*asking(SMALL), *CARGO])
            if flags == WHOLE | PADDED:
                whole = frame(Kind.HEADERS, flags, stream, b"\x02" + whole[9:] + b"\0\0")
            elif flags == END_STREAM:
                whole = frame(Kind.HEADERS, flags, stream, whole[9:12]) + frame(
                    Kind.CONTINUATION, END_HEADERS, stream, whole[12:]
                )
            peer.send(whole[:at])
            await peer.flush()
            await asyncio.sleep(0)
            peer.send(whole[at:])
            reply = await peer.reply(stream)
            assert (reply.status, bytes(reply.body)) == (200, stocked.index("small"))
        assert peer.goaway is None


async def test_what_is_sent_comes_in_the_order_of_what_was_asked(door: Door) -> None:
    """An acknowledgement says what holds for the heads behind it, and not for those before."""
    async with connected(door.port) as peer:
        smaller = http2.settings({Setting.HEADER_TABLE_SIZE: 0})
        peer.send(http2.get(1, SMALL) + smaller + http2.get(3, SMALL) + http2.ping())
        came = []
        while not peer.pongs:
            got = await peer.read()
            came.append((got.kind, got.stream))
            if got.kind == Kind.HEADERS and got.stream == 3:
                assert got.payload[0] == 0x20, "the table becomes empty first (RFC 7541, 4.2)"
        answers = [[(Kind.HEADERS, stream), (Kind.DATA, stream)] for stream in (1, 3)]
        assert came == [*answers[0], (Kind.SETTINGS, 0), *answers[1], (Kind.PING, 0)]
        assert door.handled == []
