"""Everything a server can do wrong, each as a value with a name.

A `Fault` is played in place of the healthy answer to one request. It returns whether the connection
can carry another request, that is, whether what it sent was well framed. Faults know nothing of
registries: where one needs the healthy answer (to cut it, to bend it), it finds it in the exchange.

`RegistryServer.fail` says where and how often a fault is played. A server that refuses connections
is not a fault but a stopped server: `RegistryServer.stop`.
"""

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Final, Literal

from tests.world.wire import Exchange, Headers, Reply

LINK_LOCAL_URL: Final = "http://169.254.169.254/latest/meta-data/"
LOGIN_PAGE: Final = (
    b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head>"
    b'<body><form action="/login"><input name="user"><input name="password" type="password">'
    b"</form></body></html>\n"
)
_MEBIBYTE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to answer badly."""

    name: str
    play: Callable[[Exchange], Awaitable[bool]]

    def __str__(self) -> str:
        return self.name


def instead(name: str, reply: Reply) -> Fault:
    """Answer with `reply`, whatever was asked."""

    async def play(exchange: Exchange) -> bool:
        return await exchange.send_reply(reply)

    return Fault(name, play)


def bent(name: str, bend: Callable[[Reply], Reply]) -> Fault:
    """Answer with the healthy reply after `bend` has had its way with it."""

    async def play(exchange: Exchange) -> bool:
        return await exchange.send_reply(bend(exchange.reply))

    return Fault(name, play)


def status(code: int, *, retry_after: str | None = None, body: bytes = b"") -> Fault:
    """Answer with the status `code` and a short text."""
    headers: Headers = (("Content-Type", "text/plain"),)
    if retry_after is not None:
        headers += (("Retry-After", retry_after),)
    return instead(f"status {code}", Reply(code, body or f"made to say {code}\n".encode(), headers))


def hang() -> Fault:
    """Take the request and never say a word."""

    async def play(exchange: Exchange) -> bool:
        await exchange.until_client_leaves()
        return False

    return Fault("hang", play)


def stall(after_fraction: float = 0.5) -> Fault:
    """Send the head and part of the body, then never another word."""

    async def play(exchange: Exchange) -> bool:
        body = exchange.reply.body
        await exchange.send(exchange.reply.framed_head() + body[: int(len(body) * after_fraction)])
        await exchange.until_client_leaves()
        return False

    return Fault("stall in the body", play)


def reset(where: Literal["before the head", "in the head", "in the body"]) -> Fault:
    """Reset the connection (RST) before the head, in the middle of it, or of the body."""

    async def play(exchange: Exchange) -> bool:
        head, body = exchange.reply.framed_head(), exchange.reply.body
        if where == "in the head":
            await exchange.send(head[: len(head) // 2])
        if where == "in the body":
            await exchange.send(head + body[: len(body) // 2])
        exchange.reset()
        return False

    return Fault(f"reset {where}", play)


def cut(after_fraction: float = 0.5) -> Fault:
    """Promise the whole body by Content-Length, send part of it, and end the connection."""

    async def play(exchange: Exchange) -> bool:
        body = exchange.reply.body
        await exchange.send(exchange.reply.framed_head() + body[: int(len(body) * after_fraction)])
        return False

    return Fault("cut short", play)


def cut_chunked() -> Fault:
    """Send half of the body in a chunk, and end the connection without the last chunk."""

    async def play(exchange: Exchange) -> bool:
        half = exchange.reply.body[: len(exchange.reply.body) // 2]
        head = exchange.reply.head(("Transfer-Encoding", "chunked"))
        await exchange.send(head + f"{len(half):x}\r\n".encode() + half + b"\r\n")
        return False

    return Fault("cut short, chunked", play)


def unframed() -> Fault:
    """Send the whole body with no length and no chunks; its end is the connection's end.

    Legal, and not to be told from a truncated body.
    """

    async def play(exchange: Exchange) -> bool:
        head = exchange.reply.head(("Connection", "close"))
        await exchange.send(head + exchange.reply.body)
        return False

    return Fault("body until close", play)


def drip(pause_seconds: float = 0.05) -> Fault:
    """Send the healthy answer one byte at a time, until done or the client has left."""

    async def play(exchange: Exchange) -> bool:
        for byte in exchange.reply.framed_head() + exchange.reply.body:
            await exchange.send(bytes([byte]))
            await asyncio.sleep(pause_seconds)
        return True

    return Fault("drip", play)


def login_page(content_type: str = "text/html; charset=utf-8") -> Fault:
    """Answer 200 with a page for people, as captive portals and expired sessions do."""
    reply = Reply(200, LOGIN_PAGE, (("Content-Type", content_type), ("ETag", '"login"')))
    return instead(f"login page as {content_type.partition(';')[0]}", reply)


def empty() -> Fault:
    """Answer 200 with nothing."""
    return instead("empty body", Reply(200, b"", (("Content-Type", "text/plain"),)))


def garbage() -> Fault:
    """Answer 200 with bytes that are no text at all."""
    noise = bytes(range(256)) * 8
    return instead("garbage", Reply(200, noise, (("Content-Type", "text/plain"),)))


def redirect(location: str, code: int = 302) -> Fault:
    """Send the client to `location`."""
    return instead(f"redirect {code}", Reply(code, b"", (("Location", location),)))


def redirect_loop() -> Fault:
    """Send the client to where it is."""

    async def play(exchange: Exchange) -> bool:
        here = exchange.request.base_url + exchange.request.target
        return await exchange.send_reply(Reply(302, b"", (("Location", here),)))

    return Fault("redirect loop", play)


def redirect_to_origin(base_url: str, code: int = 302) -> Fault:
    """Send the client to the same path on another origin."""

    async def play(exchange: Exchange) -> bool:
        there = base_url.rstrip("/") + exchange.request.target
        return await exchange.send_reply(Reply(code, b"", (("Location", there),)))

    return Fault("redirect to another origin", play)


def gzip_bomb(inflated_bytes: int = 256 * _MEBIBYTE) -> Fault:
    """Answer with little on the wire that becomes `inflated_bytes` of zeros."""

    async def play(exchange: Exchange) -> bool:
        return await exchange.send_reply(_gzipped(exchange.reply, _bomb(inflated_bytes)))

    return Fault("gzip bomb", play)


@cache
def _bomb(inflated_bytes: int) -> bytes:
    # After a full flush deflate's window is empty, so one compressed mebibyte can be repeated.
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(_MEBIBYTE)
    block = deflater.compress(zeros) + deflater.flush(zlib.Z_FULL_FLUSH)
    count = inflated_bytes // _MEBIBYTE
    crc = 0
    for _ in range(count):
        crc = zlib.crc32(zeros, crc)
    trailer = crc.to_bytes(4, "little") + (count * _MEBIBYTE % (1 << 32)).to_bytes(4, "little")
    return gzip.compress(b"", mtime=0)[:10] + block * count + deflater.flush() + trailer


def gzip_truncated() -> Fault:
    """Answer with a gzip stream that ends too early inside a well-framed body."""
    return bent(
        "gzip truncated",
        lambda reply: _gzipped(reply, _half(gzip.compress(reply.body, mtime=0))),
    )


def _half(body: bytes) -> bytes:
    return body[: len(body) // 2]


def gzipped() -> Fault:
    """Answer correctly, in gzip, though nobody may have asked for it."""
    return bent("gzip", lambda reply: _gzipped(reply, gzip.compress(reply.body, mtime=0)))


def _gzipped(reply: Reply, body: bytes) -> Reply:
    return replace(reply, body=body, headers=(*reply.headers, ("Content-Encoding", "gzip")))


def oversized_head(head_bytes: int = 256 * 1024) -> Fault:
    """Answer correctly below a head that no client should swallow."""
    line = ("X-Padding", "x" * 4000)
    lines = (line,) * (head_bytes // 4000)
    return bent("oversized head", lambda reply: replace(reply, headers=(*reply.headers, *lines)))


def wrong_bytes(how: Literal["same length", "shorter", "longer"]) -> Fault:
    """Answer with a complete, well-framed body that is not the right one."""

    def bend(reply: Reply) -> Reply:
        flipped = bytes([reply.body[0] ^ 0xFF]) + reply.body[1:]
        bodies = {
            "same length": flipped,
            "shorter": reply.body[:-10],
            "longer": reply.body + b"more than was published",
        }
        return replace(reply, body=bodies[how])

    return bent(f"wrong bytes, {how}", bend)


def wrong_tail() -> Fault:
    """Answer with a body that is right but for its last byte."""
    return bent(
        "wrong last byte",
        lambda reply: replace(reply, body=reply.body[:-1] + bytes([reply.body[-1] ^ 0xFF])),
    )


def unasked_304() -> Fault:
    """Answer 304, whether or not the request was conditional."""
    return instead("304 unasked", Reply(304))


def partial_content() -> Fault:
    """Answer 206 with half of the body to a request that asked for all of it."""

    def bend(reply: Reply) -> Reply:
        half, size = len(reply.body) // 2, len(reply.body)
        content_range = ("Content-Range", f"bytes 0-{half - 1}/{size}")
        return Reply(206, reply.body[:half], (*reply.headers, content_range))

    return bent("206 unasked", bend)
