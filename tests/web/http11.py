"""A client of HTTP/1.1 that repairs nothing: what was sent is what the test wrote, byte for byte.

Targets go out as they are, headers in the order given. Of an answer everything is checked that its
framing promises: a body is as long as it says, a head without a body has none after it, no header
that must be single comes twice. `raw` is a conversation for those who want to break the rules.
"""

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from typing import Final

from tests.world.holdfast import Answer

Pairs = Sequence[tuple[str, str]]

PATIENCE_SECONDS: Final = 25.0
_LIMIT_BYTES: Final = 1 << 20
_NO_BODY: Final = (204, 304)


class BrokenOff(Exception):
    """A body ended before its end. `answer` has what came until then."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.status}, broken off after {len(answer.body)} bytes")
        self.answer = answer


def request_head(target: str, method: str, headers: Pairs) -> bytes:
    """Write a request's head."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def ask(
    port: int,
    target: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | Pairs = (),
    body: bytes = b"",
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """Make one request on a connection of its own. Raises BrokenOff."""
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    if not any(name.lower() == "host" for name, _ in pairs):
        pairs.insert(0, ("Host", f"127.0.0.1:{port}"))
    if body:
        pairs.append(("Content-Length", str(len(body))))
    pairs.append(("Connection", "close"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, limit=_LIMIT_BYTES, ssl=tls
        )
        try:
            writer.write(request_head(target, method, pairs) + body)
            await writer.drain()
            return await read_answer(reader, method=method)
        finally:
            writer.close()


async def raw(
    port: int, data: bytes, *, hang_up: bool = False, tls: ssl.SSLContext | None = None
) -> bytes:
    """Send bytes and return all that comes back before the server closes the connection.

    With `hang_up` the server is told at once that no more will come; over TLS, which cannot be
    closed on one side, the connection ends with that and nothing comes back.
    """
    async with asyncio.timeout(PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        received = b""
        try:
            writer.write(data)
            await writer.drain()
            if hang_up:
                if writer.can_write_eof():
                    writer.write_eof()
                else:
                    writer.close()
            while piece := await reader.read(65536):
                received += piece
        except ConnectionError:
            # A server that has seen enough may hang up while we are still talking.
            pass
        finally:
            writer.close()
        return received


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Read the next head: the status and the headers, in lower case."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status_line, *lines = head[:-4].split("\r\n")
    version, status, _ = status_line.split(" ", 2)
    assert version == "HTTP/1.1", status_line
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        assert name.lower() not in headers, f"{name} comes twice"
        headers[name.lower()] = value.strip()
    return int(status), headers


async def read_answer(
    reader: asyncio.StreamReader, *, method: str = "GET", until_close: bool = True
) -> Answer:
    """Read an answer; with `until_close` nothing may follow it. Raises BrokenOff."""
    status, headers = await read_head(reader)
    bodiless = method == "HEAD" or status in _NO_BODY
    body, whole = (b"", True) if bodiless else await _read_body(reader, headers)
    answer = Answer(status, headers, body)
    if not whole:
        raise BrokenOff(answer)
    if until_close:
        rest = await reader.read(1)
        assert rest == b"", f"{rest!r} comes after the end of the answer"
    return answer


async def _read_body(
    reader: asyncio.StreamReader, headers: Mapping[str, str]
) -> tuple[bytes, bool]:
    """Read a body to its end, or to where it breaks off; returns which of the two it was."""
    chunked = headers.get("transfer-encoding") == "chunked"
    assert chunked != ("content-length" in headers), f"neither or both framings: {headers}"
    if not chunked:
        return await _read_exactly(reader, int(headers["content-length"]))
    body = b""
    while True:
        try:
            size = int((await reader.readuntil(b"\r\n")).strip(), 16)
        except (asyncio.IncompleteReadError, ConnectionError):
            return body, False
        chunk, whole = await _read_exactly(reader, size + 2)
        body += chunk[:size]
        if not whole or size == 0:
            return body, whole


async def _read_exactly(reader: asyncio.StreamReader, size: int) -> tuple[bytes, bool]:
    body = b""
    try:
        while len(body) < size:
            piece = await reader.read(min(size - len(body), 1 << 16))
            if not piece:
                break
            body += piece
    except ConnectionError:
        pass
    return body, len(body) == size
