"""HTTP/1.1 as the test servers speak it: one request in, any bytes out.

`Request` and `Reply` are values. An `Exchange` is one request together with the means to answer it
well or badly: send a whole reply, send loose bytes, hang up in the rudest way, or wait for the
client to lose patience. There is no HTTP library below it, so that nothing repairs a broken answer
on its way out.
"""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came.

    `headers` have lower-cased names, `connection` numbers the connections of a server from 1, and
    `arrived_at` is `time.monotonic()` when the whole request was there.
    """

    connection: int
    arrived_at: float
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    scheme: str = "http"

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """What follows the question mark, if anything does."""
        return self.target.partition("?")[2]

    @property
    def base_url(self) -> str:
        """The address by which the client reached this server."""
        return f"{self.scheme}://{self.headers.get('host', 'localhost')}"


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; its framing headers are added when it is sent."""

    status: int
    body: bytes = b""
    headers: Headers = ()

    def head(self, *framing: tuple[str, str]) -> bytes:
        """Write the status line and the headers, `framing` last."""
        reason = HTTPStatus(self.status).phrase
        lines = [f"HTTP/1.1 {self.status} {reason}"]
        lines += [f"{name}: {value}" for name, value in (*self.headers, *framing)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def framed_head(self) -> bytes:
        """Write the head that belongs before the whole body."""
        if self.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            return self.head()
        return self.head(("Content-Length", str(len(self.body))))


Slices = Callable[[bytes], AsyncIterator[bytes]]


async def whole(body: bytes) -> AsyncIterator[bytes]:
    """Yield `body` in one piece: the way of a healthy server."""
    yield body


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and the connection it came on.

    `reply` is what a healthy server would say; `slices` cuts a body to the pace that a test asked
    for.
    """

    request: Request
    reply: Reply
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    slices: Slices = whole

    async def send(self, data: bytes) -> None:
        """Send loose bytes and wait until the kernel has taken them."""
        self.writer.write(data)
        await self.writer.drain()

    async def send_reply(self, reply: Reply | None = None) -> bool:
        """Send a whole answer (the healthy one by default); the connection lives on."""
        answer = self.reply if reply is None else reply
        bodiless = self.request.method == "HEAD" or not answer.body
        if bodiless or answer.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            await self.send(answer.framed_head())
            return True
        if self.slices is whole:
            await self.send(answer.framed_head() + answer.body)
            return True
        await self.send(answer.framed_head())
        async for piece in self.slices(answer.body):
            await self.send(piece)
        return True

    def reset(self) -> None:
        """Drop the connection with a RST instead of an orderly end."""
        self.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.writer.transport.abort()

    async def until_client_leaves(self) -> None:
        """Say nothing more until the client hangs up."""
        while await self.reader.read(65536):
            pass


async def read_request(
    reader: asyncio.StreamReader, *, connection: int, scheme: str = "http"
) -> Request | None:
    """Read the next request of a connection; None when the client is done with it."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *lines = head[:-4].split("\r\n")
        method, target, _ = request_line.split(" ")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    except asyncio.IncompleteReadError:
        return None
    return Request(
        connection=connection,
        arrived_at=time.monotonic(),
        method=method,
        target=target,
        headers=headers,
        body=body,
        scheme=scheme,
    )
