r"""Requests that are none: refused in one line, by whoever notices first, and never a trouble.

Whatever comes over a socket, there is no answer of the 5xx kind, no trace of our own code, no file
opened by a path of the client's, nothing asked upstream, and the next client is served. This is
HTTP/1.1 by hand; other versions have their own ways to be wrong.
"""

import asyncio
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.web import http11
from tests.web.conftest import Proxy, crate_url, index_url
from tests.world.faults import unframed
from tests.world.registry import Registry
from tests.world.server import RegistryServer

CONFIG = "/crates-io/index/config.json"
HOST = b"Host: localhost\r\n"
CLOSE = HOST + b"Connection: close\r\n\r\n"


def get(target: bytes, rest: bytes = CLOSE, method: bytes = b"GET") -> bytes:
    """Write a request that is right but for what the test puts into it."""
    return method + b" " + target + b" HTTP/1.1\r\n" + rest


BAD_REQUESTS: Mapping[str, bytes] = {
    "no HTTP": b"\x00\x01\x02\r\n\r\n",
    "TLS": bytes.fromhex("160301020001000001fc0303") + bytes(512),
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "no method": b" / HTTP/1.1\r\n" + CLOSE,
    "unheard of method": get(b"/", method=b"BREW"),
    "method in small letters": get(b"/", method=b"get"),
    "no version": b"GET / \r\n" + CLOSE,
    "unheard of version": b"GET / HTTP/3.0\r\n" + CLOSE,
    "two targets": get(b"/ /"),
    "target without a slash": get(b"crates-io/index/config.json"),
    "asterisk": get(b"*"),
    "bytes in the target": get(b"/crates-io/index/\xc3\xa9"),
    "NUL in the target": get(b"/crates-io/index/\x00"),
    "long target": get(b"/" + b"a" * 60_000),
    "long header": get(b"/", HOST + b"X: " + b"a" * 100_000 + b"\r\n\r\n"),
    "many headers": get(b"/", HOST + b"".join(b"X-%d: a\r\n" % n for n in range(5000)) + b"\r\n"),
    "header without a colon": get(b"/", HOST + b"nonsense\r\n\r\n"),
    "space before the colon": get(b"/", b"Host : localhost\r\n\r\n"),
    "folded header": get(b"/", HOST + b"X: a\r\n b\r\n\r\n"),
    "NUL in a header": get(b"/", HOST + b"X: a\x00b\r\n\r\n"),
    "line feeds alone": b"GET / HTTP/1.1\nHost: localhost\n\n",
    "two hosts": get(CONFIG.encode(), b"Host: a\r\nHost: b\r\n\r\n"),
    "no host": get(CONFIG.encode(), b"Connection: close\r\n\r\n"),
    "empty host": get(CONFIG.encode(), b"Host:\r\nConnection: close\r\n\r\n"),
    "host of bytes": get(CONFIG.encode(), b"Host: \xff\xfe\r\nConnection: close\r\n\r\n"),
    "two lengths": get(b"/", HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
    "negative length": get(b"/", HOST + b"Content-Length: -3\r\n\r\n"),
    "absurd length": get(b"/", HOST + b"Content-Length: 99999999999999999999\r\n\r\n"),
    "length and chunks": get(
        b"/", HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "bad chunk": get(b"/", HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", method=b"PUT"),
    "bad address": get(b"http://[bad" + CONFIG.encode()),
    "bad port": get(b"http://localhost:99999" + CONFIG.encode()),
    "another host's path": get(b"//evil.example/x"),
}


@dataclass(slots=True)
class Opened:
    """The paths of files that were opened in this process."""

    paths: list[str] = field(default_factory=list)
    is_watching: bool = True

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.is_watching and event == "open":
            self.paths.append(str(arguments[0]))


@pytest.fixture
def opened() -> Iterator[Opened]:
    # An audit hook stays for as long as the process lives; it can only be told to look away.
    watch = Opened()
    sys.addaudithook(watch.hook)
    yield watch
    watch.is_watching = False


def errors_of_ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the proxy logged as errors; what the HTTP library says it keeps from the log."""
    return [
        each.getMessage()
        for each in caplog.records
        if each.levelno >= logging.ERROR and each.name.startswith("proxy")
    ]


async def test_what_is_no_request_is_400_and_says_so_in_few_words(
    proxy: Proxy, upstream: RegistryServer, caplog: pytest.LogCaptureFixture
) -> None:
    for name, data in BAD_REQUESTS.items():
        answer = await http11.raw(proxy.port, data, tls=proxy.tls)
        head, _, body = answer.partition(b"\r\n\r\n")
        version, status, *_ = head.split()
        assert version in (b"HTTP/1.0", b"HTTP/1.1"), (name, answer)
        assert status == b"400", (name, answer)
        assert len(body) < 512, name
        assert b"Traceback" not in answer
        assert b".py" not in answer
    assert upstream.requests() == ()
    assert errors_of_ours(caplog) == []
    assert (await proxy.ask(CONFIG)).status == 200


async def test_who_hangs_up_in_the_middle_of_a_request_is_forgotten(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    publish = b"PUT /crates-io/api/v1/crates/new HTTP/1.1\r\n" + HOST
    for data in (
        b"",
        b"G",
        b"GET " + CONFIG.encode(),
        b"GET " + CONFIG.encode() + b" HTTP/1.1\r\nHost: loc",
        publish + b"Content-Length: 9\r\n\r\nabc",
        publish + b"Transfer-Encoding: chunked\r\n\r\n5",
    ):
        await http11.raw(proxy.port, data, hang_up=True, tls=proxy.tls)
    assert (await proxy.ask(CONFIG)).status == 200
    # The one connection is that of the request for the page itself.
    async with asyncio.timeout(10):
        while proxy.metric("connections", protocol="http/1.1") > 0:
            await asyncio.sleep(0)
    assert errors_of_ours(caplog) == []


async def test_no_path_leads_to_a_file(
    proxy: Proxy, upstream: RegistryServer, tmp_path: Path, opened: Opened
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the treasure lies here")
    opened.paths.clear()
    up = "../" * 24
    here = str(secret).lstrip("/")
    ways = [
        f"/{up}{here}",
        f"/crates-io/index/{up}{here}",
        f"/crates-io/crates/{up}{here}",
        f"/crates-io/crates/small/1.0.0/{up}{here}",
        f"/crates-io/api/v1/{up}{here}",
        f"/-/{up}{here}",
        f"/-/{secret}",
        f"/{secret}",
        f"/crates-io/index/{secret}",
        f"/crates-io/index/{quote(f'{up}{here}', safe='')}",
        f"/crates-io/index/{quote(quote(f'{up}{here}', safe=''), safe='')}",
        f"/crates-io/crates/{quote(str(secret), safe='')}/1.0.0/download",
        f"/crates-io/crates/small/{quote(f'1.0.0/{up}{here}', safe='')}/download",
        f"/crates-io/crates/small/1.0.0/{quote(f'{up}{here}', safe='')}",
        f"/crates-io/index/..\\..\\{here}",
        f"/crates-io/index/{here}%00.txt",
        f"/file:/{secret}",
        "/crates-io/index/%c0%ae%c0%ae/%c0%af",
    ]
    for target in ways:
        answer = await http11.raw(proxy.port, get(target.encode()), tls=proxy.tls)
        assert int(answer.split()[1]) in (400, 404), (target, answer)
        assert b"treasure" not in answer
    assert [path for path in opened.paths if "secret" in path or ".." in path] == []
    assert upstream.requests() == ()


async def test_a_question_that_is_strange_and_legal_gets_its_answer(
    proxy: Proxy, stocked: Registry
) -> None:
    for rest in (
        HOST + b"Connection: close\r\nCookie: =;;;\xff\r\n\r\n",
        HOST + b"Connection: close\r\nUser-Agent: \xff\r\n\r\n",
        HOST + b"Connection: close\r\nUpgrade: websocket\r\n\r\n",
        HOST + b"Connection: close\r\nAuthorization: \x80\r\n\r\n",
        HOST + b"Connection: close\r\nAccept-Encoding: ,;q=,=;,gzip;q=2;q=\r\n\r\n",
        HOST + b"Connection: close\r\nIf-Modified-Since: \xff\r\n\r\n",
        HOST + b'Connection: close\r\nIf-None-Match: ",,"\xff\r\n\r\n',
        HOST + b"Connection: close\r\nRange: bytes=\xff\r\n\r\n",
        HOST + b"Connection: close\r\nContent-Length: 0\r\n\r\n",
    ):
        for target in (CONFIG, index_url("small"), crate_url(stocked, "small")):
            answer = await http11.raw(proxy.port, get(target.encode(), rest), tls=proxy.tls)
            assert answer.split()[1] == b"200", (rest, target, answer)
    leading = b"\r\n\r\n" + get(CONFIG.encode())
    assert (await http11.raw(proxy.port, leading, tls=proxy.tls)).split()[1] == b"200"


async def test_requests_on_one_connection_are_answered_in_their_order(
    proxy: Proxy, stocked: Registry
) -> None:
    targets = [
        index_url("small"),
        CONFIG,
        crate_url(stocked, "large"),
        index_url("missing"),
        "/nowhere",
        index_url("many"),
    ]
    requests = [http11.request_head(target, "GET", [("Host", "x")]) for target in targets]
    last = http11.request_head("/-/healthz", "GET", [("Host", "x"), ("Connection", "close")])
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=proxy.tls)
    async with asyncio.timeout(http11.PATIENCE_SECONDS):
        writer.write(b"".join([*requests, last]))
        answers = [await http11.read_answer(reader, until_close=False) for _ in requests]
        end = await http11.read_answer(reader)
    writer.close()
    assert [answer.status for answer in answers] == [200, 200, 200, 404, 400, 200]
    assert answers[0].body == stocked.index("small")
    assert answers[2].body == stocked.crate("large", "1.0.0")
    assert answers[5].body == stocked.index("many")
    assert end.body == b"ok\n"


async def test_a_connection_lives_on_after_304_head_and_errors(
    proxy: Proxy, stocked: Registry
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=proxy.tls)

    async def ask(target: str, method: str = "GET", *more: tuple[str, str]) -> int:
        writer.write(http11.request_head(target, method, [("Host", "x"), *more]))
        answer = await http11.read_answer(reader, method=method, until_close=False)
        return answer.status

    async with asyncio.timeout(http11.PATIENCE_SECONDS):
        url = crate_url(stocked, "large")
        assert await ask(index_url("small")) == 200
        assert await ask(index_url("small"), "GET", ("If-None-Match", "*")) == 304
        assert await ask(url, "HEAD") == 200
        assert await ask(url, "GET") == 200
        assert await ask(url, "GET", ("If-None-Match", "*")) == 304
        assert await ask(index_url("missing")) == 404
        assert await ask("/nowhere") == 400
        assert await ask(CONFIG, "DELETE") == 405
        assert await ask(CONFIG) == 200
    writer.close()


async def test_an_old_client_gets_a_crate_of_unknown_length_until_the_end_of_its_connection(
    proxy: Proxy, stocked: Registry, upstream: RegistryServer
) -> None:
    upstream.fail("/crates/*", unframed())
    target = crate_url(stocked, "large")
    answer = await http11.raw(proxy.port, f"GET {target} HTTP/1.0\r\n\r\n".encode(), tls=proxy.tls)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == b"200"
    assert b"chunked" not in head
    assert body == stocked.crate("large", "1.0.0")
