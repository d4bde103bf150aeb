"""More that a server can do wrong, for the table of faults: what only a whole proxy cares about."""

import asyncio
from dataclasses import replace
from typing import Final

from tests.world.faults import Fault, bent, instead
from tests.world.wire import Exchange, Reply

PRIVATE_URL: Final = "http://127.0.0.2:9/"


def moved_nowhere() -> Fault:
    """Redirect without saying where to."""
    return instead("redirect without a location", Reply(302))


def not_http() -> Fault:
    """Answer in another protocol."""

    async def play(exchange: Exchange) -> bool:
        await exchange.send(b"220 mail.example ESMTP\r\n\r\n")
        return False

    return Fault("another protocol", play)


def hung_up() -> Fault:
    """Take the request and end the connection in good order."""

    async def play(exchange: Exchange) -> bool:
        return False

    return Fault("hung up", play)


def half_until_close() -> Fault:
    """Send half of the body, its end being the connection's: well framed, by the letter."""

    async def play(exchange: Exchange) -> bool:
        body = exchange.reply.body
        head = exchange.reply.head(("Connection", "close"))
        await exchange.send(head + body[: len(body) // 2])
        return False

    return Fault("half a body until close", play)


def another_crates_file() -> Fault:
    """Answer with what could be the index file of another crate."""
    return bent(
        "another crate's index file",
        lambda reply: replace(reply, body=reply.body.replace(b'"name":"', b'"name":"not-')),
    )


def repeated(times: int, *, chunked: bool) -> Fault:
    """Answer with the right body, `times` over."""

    async def play(exchange: Exchange) -> bool:
        body = exchange.reply.body * times
        if not chunked:
            return await exchange.send_reply(replace(exchange.reply, body=body))
        await exchange.send(exchange.reply.head(("Transfer-Encoding", "chunked")))
        await exchange.send(f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")
        return True

    return Fault(f"{times} times the body", play)


def coded(coding: str) -> Fault:
    """Answer with the right body, and the claim that it is in some content coding."""
    return bent(
        f"wrongly called {coding}",
        lambda reply: replace(reply, headers=(*reply.headers, ("Content-Encoding", coding))),
    )


def drip_body(pause_seconds: float) -> Fault:
    """Send the head at once, then the body byte by byte, never pausing for long."""

    async def play(exchange: Exchange) -> bool:
        await exchange.send(exchange.reply.framed_head())
        for byte in exchange.reply.body:
            await exchange.send(bytes([byte]))
            await asyncio.sleep(pause_seconds)
        return True

    return Fault("dripping body", play)
