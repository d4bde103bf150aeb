"""One port, four ways in: which protocol a new connection speaks, from its first bytes.

- TLS with ALPN `h2`: HTTP/2.
- The HTTP/2 connection preface in cleartext: HTTP/2 by prior knowledge (RFC 9113 section 3.3).
- An HTTP/1.1 request that asks for `Upgrade: h2c` and is granted it (`proxy.core.upgrade`): 101
  and HTTP/2. Cargo asks so on every cleartext request.
- Anything else: HTTP/1.1, by aiohttp's own protocol, which gets every byte of the connection.

Only the first request of a connection is looked at. A connection that has not sent the head of it
after `Patience.head_s` is closed.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, cast

from proxy.core.forwarded import AddressRules, is_trusted
from proxy.core.upgrade import HEAD_MAX_BYTES, may_become_upgrade, upgrade_of
from proxy.web.guests import Guest
from proxy.web.http2.connection import Http2Connection

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SWITCHING: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Rooms:
    """What lies behind the door: how each protocol is made for a new connection."""

    http1: Callable[[Guest], asyncio.Protocol]
    http2: Callable[[Guest], Http2Connection]


class Doorman(asyncio.Protocol):
    """Receives a connection, and hands it on. `h2c`: whether cleartext HTTP/2 is spoken."""

    def __init__(self, rooms: Rooms, addresses: AddressRules, guest: Guest, *, h2c: bool) -> None:
        self._rooms = rooms
        self._guest = guest
        self._addresses = addresses
        self._h2c = h2c
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Look at what TLS has agreed on; without TLS, wait for the first bytes."""
        # uvloop's transports have the interface and not the base class.
        transport = cast("asyncio.Transport", transport)
        self._transport = self._guest.transport = transport
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() == "h2":
            self._rooms.http2(self._guest).begin(transport, None, b"")
            return
        loop = asyncio.get_running_loop()
        self._timeout = loop.call_later(self._guest.patience.head_s, transport.close)

    def data_received(self, data: bytes) -> None:
        """Gather the first head, and decide as soon as it can be decided."""
        received = self._received
        received += data
        transport = self._transport
        assert transport is not None, "connected"
        is_cleartext = transport.get_extra_info("ssl_object") is None
        if is_cleartext and self._h2c and received[:24] == PREFACE[: len(received)]:
            if len(received) >= len(PREFACE):
                self._leave()
                self._rooms.http2(self._guest).begin(transport, None, bytes(received))
            return
        end = received.find(b"\r\n\r\n")
        if end < 0 and len(received) < HEAD_MAX_BYTES and may_become_upgrade(bytes(received)):
            return
        self._leave()
        if is_cleartext and self._h2c and end >= 0:
            upgrade = upgrade_of(
                bytes(received[:end]), peer_is_trusted_proxy=self._is_trusted(transport)
            )
            if upgrade is not None:
                transport.write(_SWITCHING)
                http2 = self._rooms.http2(self._guest)
                http2.begin(transport, upgrade, bytes(received[end + 4 :]))
                return
        http1 = self._rooms.http1(self._guest)
        transport.set_protocol(http1)
        http1.connection_made(transport)
        http1.data_received(bytes(received))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left before it said anything."""
        del exc
        self._leave()
        self._guest.leave()

    def eof_received(self) -> bool | None:
        """Close: a head that is not complete will not be."""
        return None

    def _leave(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None

    def _is_trusted(self, transport: asyncio.Transport) -> bool:
        peername = transport.get_extra_info("peername")
        try:
            peer = ip_address(str(peername[0]).partition("%")[0])
        except (TypeError, IndexError, ValueError):
            return True  # who cannot be told is treated as the proxy that he may be
        return is_trusted(peer, self._addresses)
