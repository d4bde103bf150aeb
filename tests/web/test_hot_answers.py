"""A hot answer is the ordinary answer, whatever was asked, by whom and under which address.

Each question is put twice on one kind of connection: so that it can be answered hot, and in a form
that is never read for that (a byte that is no ASCII, a padded frame). Which of the two it was is
told by the application, which is asked only for the second.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest

from tests.web import http11
from tests.web.conftest import crate_url, index_url
from tests.web.doorstep import Door, doorstep
from tests.world import http2
from tests.world.holdfast import Answer
from tests.world.http2 import END_HEADERS, END_STREAM, PADDED, Kind, connected, frame
from tests.world.registry import Registry
from tests.world.server import RegistryServer

SMALL, MANY = index_url("small"), index_url("many")
HOST = "crates.example:8080"


class Client(Protocol):
    """Asks on connections that stay open."""

    async def ask(
        self, url: str, fields: Mapping[str, str], host: str, *, ordinarily: bool
    ) -> Answer:
        """Make one request, so that it is answered in the ordinary way or may be answered hot."""
        ...


class Http1:
    """HTTP/1.1. A connection that was once asked out of the ordinary never goes hot again."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def ask(
        self, url: str, fields: Mapping[str, str], host: str, *, ordinarily: bool
    ) -> Answer:
        async with asyncio.timeout(http11.PATIENCE_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._door.port)
            try:
                # What comes first meets a connection that is not ready yet.
                writer.write(http11.request_head("/-/healthz", "GET", [("Host", "a")]))
                await http11.read_answer(reader, until_close=False)
                pairs = [("Host", host), *fields.items()]
                if ordinarily:
                    pairs.append(("X-Odd", "\xe9"))
                writer.write(http11.request_head(url, "GET", pairs))
                return await http11.read_answer(reader, until_close=False)
            finally:
                writer.close()

    @staticmethod
    @asynccontextmanager
    async def of(door: Door) -> AsyncIterator[Client]:
        yield Http1(door)


class Http2:
    """HTTP/2."""

    def __init__(self, peer: http2.Peer) -> None:
        self._peer = peer
        self._stream = -1

    async def ask(
        self, url: str, fields: Mapping[str, str], host: str, *, ordinarily: bool
    ) -> Answer:
        self._stream += 2
        pairs = [(name.lower(), value) for name, value in fields.items()]
        block = http2.block([*http2.asking(url)[:3], (":authority", host), *pairs])
        flags = END_STREAM | END_HEADERS
        if ordinarily:
            flags, block = flags | PADDED, b"\x01" + block + b"\0"
        self._peer.send(frame(Kind.HEADERS, flags, self._stream, block))
        reply = await self._peer.reply(self._stream)
        assert reply.reset is None
        return Answer(reply.status, reply.headers, bytes(reply.body))

    @staticmethod
    @asynccontextmanager
    async def of(door: Door) -> AsyncIterator[Client]:
        async with connected(door.port) as peer:
            yield Http2(peer)


PROTOCOLS = pytest.mark.parametrize("protocol", [Http1, Http2], ids=["http1", "http2"])


def shown(answer: Answer) -> tuple[int, list[tuple[str, str]], bytes]:
    """Return all that an answer says, but when."""
    fields = sorted((name.lower(), value) for name, value in answer.headers.items())
    return answer.status, [field for field in fields if field[0] != "date"], answer.body


async def both(
    door: Door,
    client: Client,
    url: str,
    fields: Mapping[str, str] | None = None,
    *,
    host: str = HOST,
    is_hot: bool = True,
) -> Answer:
    """Ask in both ways, and return what must be one answer."""
    asked = fields or {}
    ordinary = await client.ask(url, asked, host, ordinarily=True)
    door.handled.clear()
    hot = await client.ask(url, asked, host, ordinarily=False)
    handled = [target for target in door.handled if target != "/-/healthz"]
    assert handled == ([] if is_hot else [url])
    assert shown(hot) == shown(ordinary)
    assert "date" in {name.lower() for name in hot.headers}
    return hot


@asynccontextmanager
async def warm(
    root: Path, stocked: Registry, upstream: RegistryServer, **server: object
) -> AsyncIterator[Door]:
    """Open a door behind which what is asked for here is in memory."""
    async with doorstep(root, upstream, server=server) as door:
        for url in (SMALL, MANY, crate_url(stocked, "small"), crate_url(stocked, "large")):
            async with asyncio.timeout(http11.PATIENCE_SECONDS):
                while (await http11.ask(door.port, url, headers={"Host": HOST})).how != "hit":
                    pass
        yield door


def questions(stocked: Registry, name: str, modified: str) -> list[tuple[dict[str, str], int]]:
    digest = hashlib.sha256(stocked.index(name)).hexdigest()
    plain, packed = f'"{digest}"', f'"{digest}-gzip"'
    tags = [
        *((plain, 304), (packed, 304), ("*", 304), (f'"a", {plain}', 304), (f"W/{packed}", 304)),
        *(('"a"', 200), ('"a", "b"', 200), (f'"a{plain}', 200), ("", 200)),
    ]
    dates = [
        *((modified, 304), ("Fri, 31 Dec 2199 23:59:59 GMT", 200), ("nonsense", 200)),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 200),
    ]
    asked: list[tuple[dict[str, str], int]] = [({}, 200)]
    asked += [({"If-None-Match": tag}, status) for tag, status in tags if tag]
    asked += [({"If-Modified-Since": date}, status) for date, status in dates]
    asked += [
        ({"If-None-Match": '"a"', "If-Modified-Since": modified}, 200),
        ({"If-None-Match": plain, "If-Modified-Since": dates[-1][0]}, 304),
    ]
    return asked


@PROTOCOLS
async def test_an_index_file_is_the_same_hot(
    tmp_path: Path,
    stocked: Registry,
    upstream: RegistryServer,
    protocol: type[Http1 | Http2],
) -> None:
    async with warm(tmp_path, stocked, upstream) as door, protocol.of(door) as client:
        for name in ("small", "many"):
            modified = (await both(door, client, index_url(name))).headers["last-modified"]
            for fields, status in questions(stocked, name, modified):
                for accepted in (None, "gzip", "identity", "gzip;q=0, *"):
                    coding = {} if accepted is None else {"Accept-Encoding": accepted}
                    answer = await both(door, client, index_url(name), {**fields, **coding})
                    assert answer.status == status, fields
                    packed = name == "many" and accepted == "gzip" and status == 200
                    assert ("content-encoding" in answer.headers) == packed


@PROTOCOLS
async def test_a_crate_is_the_same_hot(
    tmp_path: Path,
    stocked: Registry,
    upstream: RegistryServer,
    protocol: type[Http1 | Http2],
) -> None:
    async with warm(tmp_path, stocked, upstream) as door, protocol.of(door) as client:
        address = crate_url(stocked, "small")
        forms = ["/crates-io/crates/small/1.0.0/download", address]
        forms.append("/crates-io/api/v1/crates/small/1.0.0/download")
        for url in forms:
            answer = await both(door, client, url)
            assert (answer.status, answer.body) == (200, stocked.crate("small", "1.0.0"))
            assert "immutable" in answer.headers["cache-control"] or url != address
            await both(door, client, url, {"If-Modified-Since": "Fri, 31 Dec 2199 23:59:59 GMT"})
            tag = answer.headers["etag"]
            assert (
                await both(door, client, url, {"If-None-Match": tag}, is_hot=False)
            ).status == 304
            part = await both(door, client, url, {"Range": "bytes=0-1"}, is_hot=False)
            assert (part.status, len(part.body)) == (206, 2)
        wrong = address[:-64] + "0" * 64
        assert (await both(door, client, wrong, is_hot=False)).status == 404


@PROTOCOLS
async def test_what_is_not_in_memory_or_nowhere_is_nothing_for_the_hot_path(
    tmp_path: Path,
    stocked: Registry,
    upstream: RegistryServer,
    protocol: type[Http1 | Http2],
) -> None:
    async with warm(tmp_path, stocked, upstream) as door, protocol.of(door) as client:
        for url, status in (
            ("/crates-io/index/config.json", 200),
            (index_url("absent"), 404),
            ("/crates-io/index/ma/small", 404),
            ("/crates-io/index/SM/AL/small", 404),
            (index_url("small", "elsewhere"), 400),
            ("/elsewhere/crates/small/1.0.0/download", 400),
            ("/crates-io/crates/small/1.0/download", 404),
            (SMALL.replace("/crates-io", ""), 400),
            (SMALL + "?a", 200),
            (SMALL + "#a", 200 if protocol is Http1 else 404),
        ):
            answer = await client.ask(url, {}, HOST, ordinarily=True)
            assert answer.status == status or "#" in url, url
            await both(door, client, url, is_hot=False)
        for url in ("/" + SMALL, SMALL.replace("small", "sm%61ll"), SMALL + "/"):
            answer = await client.ask(url, {}, HOST, ordinarily=True)
            assert shown(await client.ask(url, {}, HOST, ordinarily=False)) == shown(answer)


@PROTOCOLS
async def test_below_a_public_address_with_a_path_it_is_the_same_hot(
    tmp_path: Path,
    stocked: Registry,
    upstream: RegistryServer,
    protocol: type[Http1 | Http2],
) -> None:
    async with (
        warm(tmp_path, stocked, upstream, public_url="https://a.example/a/cargo/") as door,
        protocol.of(door) as client,
    ):
        for prefix in ("", "/a/cargo"):
            assert (await both(door, client, prefix + MANY)).body == stocked.index("many")
            crate = await both(door, client, prefix + crate_url(stocked, "small"))
            assert crate.body == stocked.crate("small", "1.0.0")
        for other in ("/a", "/a/cargo/a/cargo", "/a/cargoes", "/A/cargo"):
            assert (await both(door, client, other + MANY, is_hot=False)).status == 400


@PROTOCOLS
async def test_only_allowed_hosts_are_answered_hot(
    tmp_path: Path,
    stocked: Registry,
    upstream: RegistryServer,
    protocol: type[Http1 | Http2],
) -> None:
    async with (
        warm(tmp_path, stocked, upstream, allowed_hosts=["crates.example"]) as door,
        protocol.of(door) as client,
    ):
        for host in ("crates.example", HOST, "CRATES.example."):
            for url in (SMALL, crate_url(stocked, "small")):
                assert (await both(door, client, url, host=host)).status == 200
        for host in ("evil.example", "crates.example.evil.example", "a b", "a" * 600):
            for url in (SMALL, crate_url(stocked, "small")):
                refused = await both(door, client, url, host=host, is_hot=False)
                assert (refused.status, refused.how) == (400, "refused")
        # What a stranger forwards is no host.
        for fields, host, status in (
            ({"X-Forwarded-Host": "evil.example"}, HOST, 200),
            ({"X-Forwarded-Host": "crates.example"}, "evil.example", 400),
        ):
            answer = await both(door, client, SMALL, fields, host=host, is_hot=status == 200)
            assert answer.status == status
        # What a client makes longer than any name is not kept.
        kept = door.entrance._hot._may_ask_for.cache_info().currsize
        for fields, host in (({}, "b" * 600), ({"X-Forwarded-Host": "b" * 600}, HOST)):
            await client.ask(SMALL, fields, host, ordinarily=True)
            await client.ask(SMALL, fields, host, ordinarily=False)
        assert door.entrance._hot._may_ask_for.cache_info().currsize == kept


@PROTOCOLS
async def test_the_word_of_a_trusted_proxy_counts_hot(
    tmp_path: Path,
    stocked: Registry,
    upstream: RegistryServer,
    protocol: type[Http1 | Http2],
) -> None:
    async with (
        warm(
            tmp_path,
            stocked,
            upstream,
            allowed_hosts=["crates.example"],
            trusted_proxies=["127.0.0.0/8", "10.0.0.0/8"],
        ) as door,
        protocol.of(door) as client,
    ):
        for forwarded, host, status in (
            ("crates.example", "evil.example", 200),
            ("evil.example, crates.example", "evil.example", 200),
            ("crates.example, evil.example", "crates.example", 400),
            ("evil.example", "crates.example", 400),
        ):
            fields = {"X-Forwarded-Host": forwarded, "X-Forwarded-Proto": "https"}
            answer = await both(door, client, SMALL, fields, host=host, is_hot=status == 200)
            assert answer.status == status


@PROTOCOLS
async def test_who_insists_is_the_client_and_not_the_proxy_before_it(
    tmp_path: Path,
    stocked: Registry,
    upstream: RegistryServer,
    protocol: type[Http1 | Http2],
) -> None:
    networks = ["127.0.0.0/8", "10.0.0.0/8"]
    async with (
        warm(tmp_path, stocked, upstream, trusted_proxies=networks) as door,
        protocol.of(door) as client,
    ):
        insists = door.rooms.journeys.insistence.insists

        async def ask(behind: str, *, is_hot: bool = True, name: str = "small") -> None:
            fields = {"X-Forwarded-For": behind, "If-None-Match": '"a"'}
            url = index_url(name)
            await client.ask(url, {}, HOST, ordinarily=True)
            if protocol is Http2:
                # So that the proxy knows heads like this one, by another client.
                await client.ask(
                    url, {**fields, "X-Forwarded-For": "203.0.113.9"}, HOST, ordinarily=True
                )
            door.handled.clear()
            await client.ask(url, fields, HOST, ordinarily=False)
            assert (url not in door.handled) == is_hot

        await client.ask(SMALL, {"X-Forwarded-For": "192.0.2.6"}, HOST, ordinarily=False)
        await ask("192.0.2.7")
        await ask("192.0.2.66, 192.0.2.8, 10.1.2.3")
        await ask("::ffff:192.0.2.9")
        assert [insists(f"192.0.2.{n}") for n in (6, 7, 66, 8, 9)] == [
            False,
            True,
            False,
            True,
            True,
        ]
        assert not insists("127.0.0.1")
        assert not insists("10.1.2.3")
        # What a client makes longer than any list of addresses is not kept, nor does it go hot.
        kept = door.entrance._hot._client_behind.cache_info().currsize
        await ask("a" * 1000 + ", 192.0.2.10", is_hot=False)
        assert insists("192.0.2.10")
        assert door.entrance._hot._client_behind.cache_info().currsize == kept


@PROTOCOLS
async def test_without_trusted_proxies_the_peer_insists(
    tmp_path: Path,
    stocked: Registry,
    upstream: RegistryServer,
    protocol: type[Http1 | Http2],
) -> None:
    async with warm(tmp_path, stocked, upstream) as door, protocol.of(door) as client:
        insists = door.rooms.journeys.insistence.insists
        fields = {"X-Forwarded-For": "192.0.2.7", "If-Modified-Since": "nonsense"}
        # Heads like this are known by now, and nobody insists on what is no index file.
        await client.ask(crate_url(stocked, "small"), fields, HOST, ordinarily=True)
        await client.ask(index_url("small", "elsewhere"), fields, HOST, ordinarily=False)
        assert not insists("127.0.0.1")
        door.handled.clear()
        await client.ask(SMALL, fields, HOST, ordinarily=False)
        assert SMALL not in door.handled
        assert insists("127.0.0.1")
        assert not insists("192.0.2.7")


def count(door: Door, **labels: str) -> float:
    page, _ = door.rooms.telemetry.render()
    wanted = {f'{name}="{value}"' for name, value in labels.items()}
    lines = [line for line in page.decode().splitlines() if line.startswith("holdfast_")]
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("holdfast_requests_total{")
        and wanted <= set(line.partition("{")[2].partition("}")[0].split(","))
    )


@PROTOCOLS
async def test_a_hot_answer_counts_once_like_any_other(
    tmp_path: Path,
    stocked: Registry,
    upstream: RegistryServer,
    protocol: type[Http1 | Http2],
) -> None:
    async with warm(tmp_path, stocked, upstream) as door, protocol.of(door) as client:
        for kind, url, fields, status in (
            ("index", SMALL, {}, "2xx"),
            ("index", SMALL, {"If-None-Match": "*"}, "3xx"),
            ("crate", crate_url(stocked, "small"), {}, "2xx"),
        ):
            labels = {"registry": "crates-io", "kind": kind, "how": "hit", "status": status}
            before = count(door, **labels), count(door)
            await both(door, client, url, fields)
            assert (count(door, **labels), count(door)) == (before[0] + 2, before[1] + 2)
