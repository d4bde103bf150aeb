"""Everybody who is connected: how many there may be, who goes first, and who goes for being slow.

A connection is a guest from the moment that it is accepted, its TLS handshake included, until it is
gone, whatever it speaks. At the ceiling a newcomer takes the place of who has said nothing yet, the
oldest first, else of somebody who asks for nothing at present; where all are busy, the newcomer is
turned away. So a crowd that only holds connections open keeps nobody out who has a question.

What a guest may take its time over is looked at in rounds, not by a timer each: whether it takes
what is written for it, also after we have closed; what it owes us of a request (`Inside`) is the
word of the protocol that speaks to it. Where the kernel tells what the client has acknowledged,
that is the measure, since the kernel's own buffers take and give in strides; elsewhere any change
of what waits to be written counts.

What is not here: how connections are accepted (`proxy.web.listener`), and how long the head of a
first request may take (`proxy.web.doors`).
"""

import asyncio
import contextlib
import logging
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final, Protocol

from proxy.core.pace import LeastPace, Pace

logger = logging.getLogger(__name__)

HEAD_TIMEOUT_S: Final = 20.0
LEAST_PACE: Final = LeastPace(16 * 1024, 60.0)
TELL_EVERY_S: Final = 60.0
# How many are asked whether they are idle before a newcomer is turned away.
_ASKED_TO_LEAVE: Final = 64
_LOOKED_AT_ONCE: Final = 256
# From <linux/tcp.h>: where tcpi_bytes_acked is, since Linux 4.1.
_BYTES_ACKED: Final = struct.Struct("=120xQ")
_TCP_INFO: Final = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class Patience:
    """What guests are waited for, in seconds.

    Who is slower than `least`, taking what is written or sending a body, is cut. `head_s` is for
    the head of a request.
    """

    head_s: float = HEAD_TIMEOUT_S
    least: LeastPace = LEAST_PACE
    look_every_s: float = 5.0


class Inside(Protocol):
    """What speaks to a guest that has said what it speaks."""

    def is_idle(self) -> bool:
        """Whether the guest asks for nothing at present, and nothing waits to be written."""
        ...

    def dismiss(self) -> None:
        """Close an idle connection, as politely as the protocol can."""
        ...

    def look(self, now: float) -> None:
        """Cut what the guest owes for too long. `now` is the loop's time."""
        ...


class Guest:
    """One connection, from accept to its end."""

    __slots__ = (
        "_guests",
        "_socket",
        "_taken",
        "_taking",
        "_waiting_bytes",
        "inside",
        "transport",
        "welcome",
    )

    def __init__(self, guests: "Guests", connection: socket.socket) -> None:
        self._guests = guests
        self._socket = connection
        self._taking = Pace()
        self._taken = self._waiting_bytes = 0
        self.transport: asyncio.Transport | None = None
        self.welcome: asyncio.Task[None] | None = None
        self.inside: Inside | None = None

    @property
    def patience(self) -> Patience:
        """What it is waited for."""
        return self._guests.patience

    def sit(self, inside: Inside) -> None:
        """The guest has said what it speaks; from now on `inside` is its protocol."""
        self.inside = inside
        self._guests.seat(self)

    def leave(self) -> None:
        """The connection is gone. Safe to call twice."""
        self.transport = self.welcome = self.inside = None
        self._guests.forget(self)

    def end(self) -> None:
        """End the connection, now."""
        if self.transport is not None:
            self.transport.abort()
        elif self.welcome is not None:
            self.welcome.cancel()

    def look(self, now: float) -> None:
        """Cut the guest if it takes too long over something."""
        transport = self.transport
        if transport is None:
            return
        waiting_bytes = transport.get_write_buffer_size()
        if not waiting_bytes:
            self._taking.rest()
        elif self._taking.is_too_slow(now, self._has_taken(waiting_bytes), self.patience.least):
            logger.debug("a client does not read: %s bytes wait for it", waiting_bytes)
            transport.abort()
            return
        if self.inside is not None and not transport.is_closing():
            self.inside.look(now)

    def _has_taken(self, waiting_bytes: int) -> int:
        """Return how many bytes the client has taken in all, as far as can be told."""
        info = b""
        if _TCP_INFO is not None:
            with contextlib.suppress(OSError):
                info = self._socket.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _BYTES_ACKED.size)
        if len(info) == _BYTES_ACKED.size:
            (taken,) = _BYTES_ACKED.unpack(info)
            return int(taken)
        if waiting_bytes != self._waiting_bytes:
            self._waiting_bytes = waiting_bytes
            self._taken += self.patience.least.count
        return self._taken


class Guests:
    """All guests of one entrance. For one event loop; made in it."""

    def __init__(self, ceiling: int, patience: Patience) -> None:
        self._ceiling = ceiling
        self.patience = patience
        self._loop = asyncio.get_running_loop()
        # In the order in which they came; of the seated, last those who were found busy.
        self._silent: dict[Guest, None] = {}
        self._seated: dict[Guest, None] = {}
        self._leaving: dict[Guest, None] = {}
        self._rounds: asyncio.Task[None] | None = None
        self._full = Seldom(
            "limits.connections: all %s are taken; since this was last said, %s were closed for"
            " others or turned away"
        )

    def set_ceiling(self, ceiling: int) -> None:
        """Let in so many from now on. Nobody who is in has to go for that."""
        self._ceiling = ceiling

    def __len__(self) -> int:
        return len(self._silent) + len(self._seated)

    def enter(self, connection: socket.socket) -> Guest | None:
        """Let a connection in, at the price of another one if need be; None: it is turned away."""
        if len(self) >= self._ceiling:
            has_room = self.make_room()
            self._full.tell(self._loop.time(), self._ceiling)
            if not has_room:
                return None
        guest = Guest(self, connection)
        self._silent[guest] = None
        return guest

    def seat(self, guest: Guest) -> None:
        """Count a guest among those who talk."""
        if guest in self._silent:
            del self._silent[guest]
            self._seated[guest] = None

    def forget(self, guest: Guest) -> None:
        """The guest is gone. Safe to call twice."""
        for those in (self._silent, self._seated, self._leaving):
            those.pop(guest, None)

    def make_room(self) -> bool:
        """End the connection that is missed least; tells whether there was one."""
        if self._silent:
            guest = next(iter(self._silent))
            del self._silent[guest]
            self._leaving[guest] = None
            guest.end()
            return True
        for _ in range(min(_ASKED_TO_LEAVE, len(self._seated))):
            guest = next(iter(self._seated))
            del self._seated[guest]
            inside = guest.inside
            if inside is not None and inside.is_idle():
                self._leaving[guest] = None
                inside.dismiss()
                return True
            self._seated[guest] = None
        return False

    def open(self) -> None:
        """Begin to look at how guests get on."""
        self._rounds = self._loop.create_task(self._go_round())

    def close(self) -> None:
        """End who has said nothing, and look no more: the protocols drain their own."""
        if self._rounds is not None:
            self._rounds.cancel()
        for guest in tuple(self._silent):
            guest.end()

    async def _go_round(self) -> None:
        while True:
            await asyncio.sleep(self.patience.look_every_s)
            everybody = [*self._silent, *self._seated, *self._leaving]
            for at in range(0, len(everybody), _LOOKED_AT_ONCE):
                now = self._loop.time()
                for guest in everybody[at : at + _LOOKED_AT_ONCE]:
                    guest.look(now)
                await asyncio.sleep(0)


class Seldom:
    """A warning that is given at most once in a while, with how often it was meant since."""

    __slots__ = ("_count", "_message", "_next")

    def __init__(self, message: str) -> None:
        self._message = message
        self._count = 0
        self._next = 0.0

    def tell(self, now: float, subject: object) -> None:
        """Warn of one more case, or count it for later. The message takes subject and count."""
        self._count += 1
        if now >= self._next:
            logger.warning(self._message, subject, self._count)
            self._count, self._next = 0, now + TELL_EVERY_S
