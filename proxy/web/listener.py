"""Accepting connections: one listening socket, read by ourselves.

The event loop's own servers accept too, but one of them closes its listener for good when it has
run out of files, none tells of a connection before its TLS handshake is over, and a connection that
is to be refused would be made first. Here a newcomer is handed on as a bare socket.

Where no socket can be had, accepting rests for a moment, and what waits in the kernel's queue waits
there. A client that vanishes without a word is noticed by the kernel, with what is set here on the
listener, which every connection that is accepted from it inherits.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final

from proxy.web.guests import Seldom

BACKLOG: Final = 1024
# How long a peer may leave what we send, or a probe, unacknowledged; and silence before a probe.
VANISHED_AFTER_S: Final = 60
PROBED_AFTER_S: Final = 60
# How much the kernel takes for a client beyond what is on its way to it; otherwise megabytes, which
# a thousand clients that do not read would make gigabytes.
UNSENT_BYTES: Final = 256 * 1024
_PROBED_EVERY_S: Final = 10
_PROBES: Final = 6
# What others wait for while we accept, and how long we rest when it fails.
_ACCEPTED_AT_ONCE: Final = 64
_REST_S: Final = 0.25
# Trouble of the connection that was to be accepted, and of no other (accept(2)).
_OF_THE_CONNECTION: Final = frozenset(
    {
        *(errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH),
    }
)


class Listener:
    """Accepts on `host` and `port` and hands each connection to `receive`, which owns it then.

    `make_room` closes a connection that is missed least, for when files have run out.
    """

    def __init__(
        self,
        host: str,
        port: int,
        receive: Callable[[socket.socket], None],
        make_room: Callable[[], bool],
        *,
        both_families: bool = False,
    ) -> None:
        """Listen. Raises OSError, with the address in its text.

        `both_families` makes an IPv6 socket take IPv4 clients too.
        """
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._make_room = make_room
        self._rest: asyncio.TimerHandle | None = None
        self._failing = Seldom("accepting connections failed: %s (%s times since this was said)")
        self._socket = _listening(host, port, both_families=both_families)
        self._loop.add_reader(self._socket, self._accept)

    @property
    def port(self) -> int:
        """The port, the kernel's choice for 0."""
        chosen = self._socket.getsockname()[1]
        assert isinstance(chosen, int), "an inet socket has a port"
        return chosen

    def close(self) -> None:
        """Accept nothing new; what the kernel has accepted for us is refused."""
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _accept(self) -> None:
        for accepted in range(_ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OF_THE_CONNECTION:
                    continue
                if accepted:
                    # Linux says so of an empty queue too; if somebody waits, we are called again.
                    return
                self._failing.tell(self._loop.time(), error.strerror)
                self._make_room()
                self._loop.remove_reader(self._socket)
                self._rest = self._loop.call_later(_REST_S, self._go_on)
                return
            connection.setblocking(False)
            self._receive(connection)

    def _go_on(self) -> None:
        self._loop.add_reader(self._socket, self._accept)


def _listening(host: str, port: int, *, both_families: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both_families
        )
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while ")[0]
        shown = f"[{host}]" if ":" in host else host
        raise OSError(f"cannot listen on {shown}:{port}: {reason}") from error
    listening.setblocking(False)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Not every system has all of these.
    for name, value in (
        ("TCP_KEEPIDLE", PROBED_AFTER_S),
        ("TCP_KEEPINTVL", _PROBED_EVERY_S),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", VANISHED_AFTER_S * 1000),
        ("TCP_NOTSENT_LOWAT", UNSENT_BYTES),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            listening.setsockopt(socket.IPPROTO_TCP, option, value)
    return listening
