"""One crate on its way in: a draft that grows at the upstream's speed, and readers behind it.

The download belongs to the application. Every client is an independent reader at its own offset, so
that a slow one delays nobody and one that leaves stops nothing. The last `HOLD_BACK_BYTES` are
withheld until the digest is proven: a bad body always arrives *short*, which cargo retries; a
complete one with a wrong digest would fail the build for good. A body that fits into what is held
back is proven before the first byte, and becomes an honest status.

When the upstream breaks off, the transfer is asked for again and its beginning skipped: the draft
keeps the bytes that readers may have seen, and the digest is over those. Another endpoint of the
upstream is asked only while nobody has seen anything, and then from the beginning; so is the next
one after a digest that does not match. When our disk breaks off,
readers who have seen nothing go their own way (`passthrough`); the others are cut, and come again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from proxy.core.answers import Absent
from proxy.core.events import Kind, StoreFailed
from proxy.core.failures import (
    ChecksumMismatch,
    Misbehaved,
    StoreFailure,
    Unreachable,
    UpstreamFailure,
)
from proxy.ports import BlobStore, Draft, Named, Observer
from proxy.service.endpoint import Endpoint
from proxy.service.proof import accuse, disproven
from proxy.service.source import ASKING_DEADLINE_S, Source

HOLD_BACK_BYTES: Final = 64 * 1024
# Once bytes flow, a break is worth another try for longer than a client waits for its first.
_FLOWING_DEADLINE_S: Final = 300.0


Address = Callable[[Endpoint], Awaitable[str]]


class Body(Protocol):
    """A crate file that can be sent: what a blob, a download and a passage have in common."""

    @property
    def size_bytes(self) -> int | None:
        """Its length, where it is known already."""
        ...

    async def read(self, offset: int) -> bytes:
        """Return some bytes at `offset`, none at the end; offsets are asked for in order.

        Raises UpstreamFailure or StoreFailure when there will be no more: the transfer must then
        be broken, never ended.
        """
        ...

    def close(self) -> None:
        """Stop reading. Safe to call twice."""
        ...


class Download:
    """One transfer. `run` is the flight; `attach` gives a reader."""

    def __init__(
        self,
        source: Source,
        blobs: BlobStore,
        observer: Observer,
        *,
        address: Address,
        digest: str,
        named: Named,
        vouched_by: str,
    ) -> None:
        self._source = source
        self._blobs = blobs
        self._observer = observer
        self._address = address
        self._digest = digest
        self._vouched_by = vouched_by
        self._endpoint = source.first
        # Who has sent wrong bytes, and what was said of that.
        self._disproven: dict[Endpoint, UpstreamFailure] = {}
        self._named = named
        self._subject = f"{named.crate} {named.version}"
        self._draft: Draft | None = None
        self._content_type = ""
        self._written = 0
        self._readers = 0
        self._progress = asyncio.Event()
        self._finished = False
        self._proven = False
        self.length_bytes: int | None = None
        self.absent: Absent | None = None
        self.failure: UpstreamFailure | None = None
        self.store_failed = False
        # Whether a mismatch is one endpoint's, and another may have the right bytes.
        self.elsewhere = False
        self.landed = asyncio.Event()

    @property
    def flows(self) -> bool:
        """Whether there is something that a client may have."""
        return self._proven or self._released() > 0

    async def settled_or_flowing(self) -> None:
        """Wait until there is something to send, or the outcome is known."""
        while not self.flows and not self._finished:
            await self._progress.wait()

    async def run(self) -> None:
        """Fetch, prove, commit. Raises nothing but cancellation: the outcome is in the fields."""
        try:
            await self._run()
        except UpstreamFailure as failure:
            self.failure = failure
        except StoreFailure as failure:
            self.store_failed = True
            self._observer.observe(StoreFailed(f"storing {self._subject}", str(failure)))
        except asyncio.CancelledError:
            self.failure = Unreachable(f"the transfer of {self._subject} was given up")
            raise
        finally:
            self._finished = True
            self._wake()

    async def land(self) -> None:
        """Give up what is not proven. Nobody new finds this download: the last reader ends it."""
        try:
            if not self._proven and self._draft is not None:
                # Shielded: a cancelled flight must still give back its space.
                await asyncio.shield(self._draft.discard())
        finally:
            self.landed.set()
            self._let_go()

    async def _run(self) -> None:
        draft = await self._proven_draft()
        if draft is None:
            return
        if self.length_bytes not in (None, self._written):
            # The right bytes; but clients were told another length, and would take a part for all.
            raise self._misannounced()
        self._proven = True
        self.length_bytes = self._written
        self._wake()
        try:
            await draft.commit(self._named)
        except StoreFailure as failure:
            self._observer.observe(StoreFailed(f"storing {self._subject}", str(failure)))

    async def _proven_draft(self) -> Draft | None:
        """Transfer until the bytes are those that the index names; None if they are absent."""
        while True:
            answer = await self._ask()
            if isinstance(answer, Absent):
                self.absent = answer
                return None
            draft = self._draft if self._draft is not None else await self._blobs.draft(0)
            self._draft = draft
            actual = draft.digest()
            if actual == self._digest:
                return draft
            self.elsewhere = accuse(self._source, self._endpoint, self._vouched_by)
            failure = disproven(
                self._source,
                self._observer,
                sender=self._endpoint,
                subject=self._subject,
                expected=self._digest,
                actual=actual,
                content_type=self._content_type,
            )
            if not self.elsewhere or self.flows:
                raise failure
            self._disproven[self._endpoint] = failure
            await self._begin_anew()

    async def _ask(self) -> int | Absent:
        try:
            return await self._source.ask(
                Kind.CRATE,
                self._subject,
                self._transfer,
                has_copy=False,
                received_bytes=_received_bytes,
                deadline_s=lambda: _FLOWING_DEADLINE_S if self._written else ASKING_DEADLINE_S,
                endpoints=self._endpoints,
            )
        except UpstreamFailure:
            wrong = list(self._disproven.values())
            if not wrong or self.flows:
                raise
            # Wrong bytes are all that there is, and worth remembering.
            self.elsewhere = False
            mismatch = (one for one in wrong if isinstance(one, ChecksumMismatch))
            raise next(mismatch, wrong[0]) from None

    def _endpoints(self) -> tuple[Endpoint, ...]:
        """Whom to ask: whoever began, once somebody has seen what it sent."""
        if self.flows:
            return (self._endpoint,)
        return tuple(one for one in self._source.endpoints if one not in self._disproven)

    async def _begin_anew(self) -> None:
        draft, self._draft, self._written = self._draft, None, 0
        self.length_bytes = None
        if draft is not None:
            try:
                await asyncio.shield(draft.discard())
            finally:
                draft.close()

    def _misannounced(self) -> Misbehaved:
        failure = Misbehaved(
            f"{self._endpoint.upstream.name} announced {self.length_bytes} bytes of "
            f"{self._subject} and sent {self._written}"
        )
        self._source.note_failure(Kind.CRATE, self._subject, failure, endpoint=self._endpoint)
        return failure

    async def _transfer(self, endpoint: Endpoint) -> int | Absent:
        """Ask once, and append what the draft does not have yet."""
        if endpoint is not self._endpoint and self._draft is not None:
            await self._begin_anew()
        self._endpoint = endpoint
        received = 0
        skip = self._written
        url = await self._address(endpoint)
        try:
            async with endpoint.upstream.crate(url) as body:
                if isinstance(body, Absent):
                    return body
                self._content_type = body.content_type
                if self._draft is None:
                    self.length_bytes = body.length_bytes
                    self._draft = await self._blobs.draft(body.length_bytes)
                async for chunk in body.chunks():
                    if not received:
                        # Nobody should wait to its end for the word that it answers.
                        self._source.answered(endpoint, Kind.CRATE)
                    fresh = chunk[max(0, skip - received) :] if received < skip else chunk
                    received += len(chunk)
                    if fresh:
                        await self._draft.write(fresh)
                        self._written += len(fresh)
                        self._wake()
        except UpstreamFailure as failure:
            failure.received_bytes = received
            raise
        return received

    def attach(self) -> "DownloadReader":
        """Begin to read. Must be closed, also when nothing was read."""
        self._readers += 1
        return DownloadReader(self)

    def detach(self) -> None:
        """End one reader."""
        self._readers -= 1
        self._let_go()

    def _let_go(self) -> None:
        if self.landed.is_set() and self._readers == 0 and self._draft is not None:
            self._draft.close()

    def _wake(self) -> None:
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()

    def _released(self) -> int:
        """How far readers may go."""
        if self._proven:
            return self._written
        if self.length_bytes is not None:
            return min(self._written, max(0, self.length_bytes - HOLD_BACK_BYTES))
        return max(0, self._written - HOLD_BACK_BYTES)

    async def wait_for(self, offset: int) -> int:
        """Wait until there is something to read at `offset`, or never will be.

        Returns up to where it may be read: `offset` itself at the end of a proven body. Raises
        UpstreamFailure or StoreFailure when the transfer failed before that.
        """
        while True:
            released = self._released()
            if released > offset or self._proven:
                return released
            if self._finished:
                raise self._reason()
            await self._progress.wait()

    def _reason(self) -> UpstreamFailure | StoreFailure:
        if self.failure is not None:
            return self.failure
        return StoreFailure("the transfer ended before the crate was complete")

    async def read_draft(self, offset: int, stop: int) -> bytes:
        """Read from the draft, within what `wait_for` allowed."""
        assert self._draft is not None, "something was released"
        return await self._draft.read(offset, stop)


class DownloadReader:
    """One client's view of a download: a `Body`."""

    def __init__(self, download: Download) -> None:
        self._download = download
        self._open = True

    @property
    def size_bytes(self) -> int | None:
        """Its length, where the upstream announced it or the transfer is over."""
        return self._download.length_bytes

    async def read(self, offset: int) -> bytes:
        """Return some released bytes at `offset`, waiting for them; none at the end."""
        stop = await self._download.wait_for(offset)
        return await self._download.read_draft(offset, stop) if stop > offset else b""

    def close(self) -> None:
        """Stop reading; the download goes on."""
        if self._open:
            self._open = False
            self._download.detach()


def _received_bytes(answer: int | Absent) -> int:
    return answer if isinstance(answer, int) else 0
