"""A crate handed from the upstream to one client, for when our disk cannot take it.

A full disk makes us a slow proxy, not a dead one. Nothing is shared and nothing kept, but the law
is the same: hashed as it passes, the last `HOLD_BACK_BYTES` withheld until the digest is proven.
What is disproven is for whoever began the passage to remember: see `disproved`.
"""

import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

from proxy.core.answers import Absent
from proxy.core.events import Kind, UpstreamReceived
from proxy.core.failures import UpstreamFailure
from proxy.ports import CrateBody, Observer
from proxy.service.download import HOLD_BACK_BYTES, Address
from proxy.service.endpoint import Endpoint
from proxy.service.proof import accuse, disproven
from proxy.service.source import Source


class Passage:
    """One transfer for one client: a `Body` that is read in order, once.

    `disproved` is called with the failure when the bytes were not those of `digest` and nobody else
    could be asked. How many there were is told when the passage is closed.
    """

    def __init__(
        self,
        source: Source,
        observer: Observer,
        *,
        address: Address,
        digest: str,
        subject: str,
        vouched_by: str,
        disproved: Callable[[UpstreamFailure], None],
    ) -> None:
        self._source = source
        self._observer = observer
        self._address = address
        self._digest = digest
        self._subject = subject
        self._vouched_by = vouched_by
        self._disproved = disproved
        self._endpoint = source.first
        self._received_bytes = 0
        self._stack = AsyncExitStack()
        self._body: CrateBody | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._hash = hashlib.sha256()
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._complete = False
        self.absent: Absent | None = None

    @property
    def size_bytes(self) -> int | None:
        """Its length, where the upstream announced it."""
        return self._body.length_bytes if self._body is not None else None

    async def begin(self) -> None:
        """Ask the upstream, and wait until the first bytes may be sent. Raises UpstreamFailure."""
        self.absent = await self._source.ask(
            Kind.CRATE, self._subject, self._ask, has_copy=False, received_bytes=lambda _: 0
        )
        if self.absent is None:
            await self._fill()

    async def _ask(self, endpoint: Endpoint) -> Absent | None:
        url = await self._address(endpoint)
        body = await self._stack.enter_async_context(endpoint.upstream.crate(url))
        if isinstance(body, Absent):
            return body
        self._endpoint = endpoint
        self._body = body
        self._chunks = body.chunks()
        return None

    async def _fill(self) -> None:
        """Read on until something may be released, or all of it."""
        while not self._complete and not self._may_release():
            assert self._chunks is not None, "begun"
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                self._prove()
                self._complete = True
            except UpstreamFailure as failure:
                self._source.note_failure(
                    Kind.CRATE, self._subject, failure, endpoint=self._endpoint
                )
                raise
            else:
                self._received_bytes += len(chunk)
                self._hash.update(chunk)
                self._held.append(chunk)
                self._held_bytes += len(chunk)

    def _may_release(self) -> bool:
        return bool(self._held) and self._held_bytes - len(self._held[0]) >= HOLD_BACK_BYTES

    def _prove(self) -> None:
        actual = self._hash.hexdigest()
        if actual == self._digest:
            return
        elsewhere = accuse(self._source, self._endpoint, self._vouched_by)
        failure = disproven(
            self._source,
            self._observer,
            sender=self._endpoint,
            subject=self._subject,
            expected=self._digest,
            actual=actual,
            content_type=self._body.content_type if self._body is not None else "",
        )
        if not elsewhere:
            self._disproved(failure)
        raise failure

    async def read(self, offset: int) -> bytes:
        """Return the next bytes; `offset` is where the last ones ended. Raises UpstreamFailure."""
        del offset  # read in order, as the port asks
        await self._fill()
        if not self._held:
            return b""
        chunk = self._held.popleft()
        self._held_bytes -= len(chunk)
        return chunk

    async def aclose(self) -> None:
        """Give the connection back, or drop it where the body was not read to its end."""
        received, self._received_bytes = self._received_bytes, 0
        if received:
            self._observer.observe(UpstreamReceived(self._source.name, Kind.CRATE, received))
        await self._stack.aclose()

    def close(self) -> None:
        """Do nothing: leaving the connection needs an await, see `aclose`."""
