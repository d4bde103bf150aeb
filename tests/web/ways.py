"""The ways in which a client can speak to the proxy.

What the rim promises, it promises on every one of them; the tests of this folder run once for each.
A way that cannot express something (a missing Host, a second one) is not asked to: those tests
speak `http11` on their own, in the clear or over TLS as their way does.
"""

import ssl
from collections.abc import Mapping
from typing import Final, Protocol

from tests.web import http11
from tests.world.holdfast import Answer
from tests.world.http2 import (
    PREFACE,
    NotGranted,
    Peer,
    Reply,
    Setting,
    data,
    settings,
    upgraded,
    window_update,
)
from tests.world.http2 import headers as request_headers

_FRAME_BYTES: Final = 16_384


class Way(Protocol):
    """One version of HTTP on one kind of connection."""

    alpn: str | None
    """What a client offers in its TLS handshake; None for a way in the clear."""

    async def ask(
        self,
        port: int,
        target: str,
        *,
        method: str,
        headers: Mapping[str, str],
        body: bytes,
        tls: ssl.SSLContext | None,
    ) -> Answer:
        """Make one request to 127.0.0.1 on a connection of its own, over `tls` if that is given.

        Header names come back in lower case. Raises `http11.BrokenOff` for a body cut short.
        """
        ...


class Http11(Way):
    """HTTP/1.1, in the clear or as what ALPN chose."""

    def __init__(self, *, alpn: str | None = None) -> None:
        self.alpn = alpn

    async def ask(
        self,
        port: int,
        target: str,
        *,
        method: str,
        headers: Mapping[str, str],
        body: bytes,
        tls: ssl.SSLContext | None,
    ) -> Answer:
        """Make one request."""
        return await http11.ask(port, target, method=method, headers=headers, body=body, tls=tls)

    def __str__(self) -> str:
        return "http/1.1" if self.alpn is None else "tls-http/1.1"


class Http2(Way):
    """HTTP/2 from the first byte: by a client that knows, or because ALPN chose it."""

    def __init__(self, *, alpn: str | None = None) -> None:
        self.alpn = alpn

    async def ask(
        self,
        port: int,
        target: str,
        *,
        method: str,
        headers: Mapping[str, str],
        body: bytes,
        tls: ssl.SSLContext | None,
    ) -> Answer:
        """Make one request."""
        peer = await Peer.connect(port, tls)
        try:
            peer.send(PREFACE, settings(_WIDE), window_update(_WINDOW_BYTES))
            scheme = "http" if tls is None else "https"
            return await _exchange(peer, _fields(port, scheme, target, method, headers), body)
        finally:
            peer.leave()

    def __str__(self) -> str:
        return "h2c" if self.alpn is None else "tls-h2"


class Upgraded(Way):
    """HTTP/2 in the clear, by the Upgrade that cargo asks for; HTTP/1.1 where it is not granted."""

    alpn = None

    async def ask(
        self,
        port: int,
        target: str,
        *,
        method: str,
        headers: Mapping[str, str],
        body: bytes,
        tls: ssl.SSLContext | None,
    ) -> Answer:
        """Make one request, as stream 1."""
        assert tls is None, "over TLS it is ALPN that chooses"
        names = {name.lower() for name in headers}
        relayed = any(name.startswith("x-forwarded") for name in names)
        if body or method not in ("GET", "HEAD") or relayed or not target.startswith("/"):
            return await http11.ask(port, target, method=method, headers=headers, body=body)
        try:
            async with upgraded(
                port,
                target,
                method=method,
                host=_host(port, headers),
                fields=[pair for pair in headers.items() if pair[0].lower() != "host"],
                values=_WIDE,
            ) as peer:
                peer.send(window_update(_WINDOW_BYTES))
                return _answer(await peer.reply(1))
        except NotGranted:
            # To a trusted proxy, for one: such a client goes on in HTTP/1.1.
            return await http11.ask(port, target, method=method, headers=headers, body=body)

    def __str__(self) -> str:
        return "h2c-upgrade"


WAYS: Final[tuple[Way, ...]] = (
    Http11(),
    Http2(),
    Upgraded(),
    Http2(alpn="h2"),
    Http11(alpn="http/1.1"),
)

_WINDOW_BYTES: Final = 8 * 1024 * 1024
_WIDE: Final = {Setting.INITIAL_WINDOW_SIZE: _WINDOW_BYTES}


def _host(port: int, headers: Mapping[str, str]) -> str:
    given = [value for name, value in headers.items() if name.lower() == "host"]
    return given[0] if given else f"127.0.0.1:{port}"


def _fields(
    port: int, scheme: str, target: str, method: str, headers: Mapping[str, str]
) -> list[tuple[str, str]]:
    return [
        (":method", method),
        (":scheme", scheme),
        (":path", target),
        (":authority", _host(port, headers)),
        *((name.lower(), value) for name, value in headers.items() if name.lower() != "host"),
    ]


async def _exchange(peer: Peer, fields: list[tuple[str, str]], body: bytes) -> Answer:
    if body:
        fields.append(("content-length", str(len(body))))
    peer.send(request_headers(1, fields, end=not body))
    for at in range(0, len(body), _FRAME_BYTES):
        piece = body[at : at + _FRAME_BYTES]
        peer.send(data(1, piece, end=at + len(piece) == len(body)))
    return _answer(await peer.reply(1))


def _answer(reply: Reply) -> Answer:
    answer = Answer(reply.status, reply.headers, bytes(reply.body))
    if reply.reset is not None:
        raise http11.BrokenOff(answer)
    return answer
