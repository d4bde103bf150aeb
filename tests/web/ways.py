"""The ways in which a client can speak to the proxy.

What the rim promises, it promises on every one of them; the tests of this folder run once for each.
A way that cannot express something (a missing Host, a second one) is not asked to: those tests
speak `http11` on their own.
"""

from collections.abc import Mapping
from typing import Final, Protocol

from tests.web import http11
from tests.world.holdfast import Answer


class Way(Protocol):
    """One version of HTTP on one kind of connection."""

    async def ask(
        self, port: int, target: str, *, method: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """Make one request to 127.0.0.1 on a connection of its own.

        Header names come back in lower case. Raises `http11.BrokenOff` for a body cut short.
        """
        ...


class Http11(Way):
    """HTTP/1.1 in the clear."""

    async def ask(
        self, port: int, target: str, *, method: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """Make one request."""
        return await http11.ask(port, target, method=method, headers=headers, body=body)

    def __str__(self) -> str:
        return "http/1.1"


WAYS: Final[tuple[Way, ...]] = (Http11(),)
