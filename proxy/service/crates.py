"""One crate download, from the address to a body that may be sent.

The index line's `cksum` is the address of the bytes; the line is looked up also when the URL brings
a digest, since authorisation comes before look-up: a digest that this upstream's index never named
for this version is nobody's here, though a blob of that name lie in the store. A version that our
snapshot lacks makes us ask for the index once more, not say no.

Then the blob, or the one running download, or the mismatch of a moment ago; and where our disk
fails, a passage of the client's own, for a while without trying the disk again: what was cut in the
middle by a failing disk must not be cut there a second time.
"""

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Final

from proxy.core.events import How
from proxy.core.failures import (
    ChecksumMismatch,
    NoSuchCrate,
    StoreFailure,
    Unreachable,
    UpstreamFailure,
)
from proxy.core.freshness import NEGATIVE_FRESH_S
from proxy.core.memory_tier import MemoryTier
from proxy.core.registry_config import download_url
from proxy.core.sparse import checksums_of
from proxy.ports import BlobStore, Clock, Named, Observer
from proxy.service.admission import Admit, freely
from proxy.service.download import Address, Body, Download
from proxy.service.endpoint import Endpoint
from proxy.service.indexes import Indexes
from proxy.service.passthrough import Passage
from proxy.service.rendered import Rendered
from proxy.service.source import Source, patience
from proxy.service.upstream_configs import UpstreamConfigs

MISMATCH_REMEMBERED_S: Final = 60.0
DISK_DISTRUSTED_S: Final = 30.0
_REMEMBERED_MAX: Final = 10_000

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class CrateServed:
    """A crate to send; must be closed. `seekable`: ranges of it can be read, in any order."""

    body: Body
    digest: str
    how: How
    seekable: bool
    passage: Passage | None = None

    async def aclose(self) -> None:
        """Let go of the body, sent or not."""
        self.body.close()
        if self.passage is not None:
            await self.passage.aclose()


class Crates:
    """The crate files of all upstreams. For one event loop."""

    def __init__(
        self,
        indexes: Indexes,
        configs: UpstreamConfigs,
        blobs: BlobStore,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._indexes = indexes
        self._configs = configs
        self._blobs = blobs
        self._clock = clock
        self._observer = observer
        self._downloads: dict[Key, Download] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._mismatches: MemoryTier[Key, tuple[float, ChecksumMismatch]] = MemoryTier(
            _REMEMBERED_MAX
        )
        self._lacking: MemoryTier[tuple[Named, str | None], float] = MemoryTier(_REMEMBERED_MAX)
        self._unstorable: MemoryTier[Key, float] = MemoryTier(_REMEMBERED_MAX)
        # The number of the last landing of each key: whoever finds another one looks again.
        self._landings: MemoryTier[Key, int] = MemoryTier(_REMEMBERED_MAX)
        self._landed = 0

    @property
    def flights(self) -> int:
        """How many downloads are running."""
        return len(self._downloads)

    async def open(
        self,
        source: Source,
        crate: str,
        version: str,
        sha256: str | None,
        admit: Admit = freely,
    ) -> CrateServed | NoSuchCrate:
        """Find the bytes of a version. Raises UpstreamFailure, never for absence."""
        named = Named(source.name, crate, version)
        async with patience(source):
            digest = await self._digest(source, named, sha256, admit)
            if isinstance(digest, NoSuchCrate):
                return digest
            return await self._bring(source, named, digest, admit)

    def hot(
        self, source: Source, crate: str, version: str, sha256: str | None
    ) -> tuple[str, bytes] | None:
        """Return digest and bytes of a small crate that is all in memory: the way without an await.

        None says nothing but "ask `open`".
        """
        rendered = self._indexes.in_memory(source, crate.lower())
        digest = _choose(rendered, Named(source.name, crate, version), sha256)
        if digest is None:
            return None
        body = self._blobs.at_hand(digest)
        return None if body is None else (digest, body)

    async def fetch(self, source: Source, named: Named, digest: str) -> NoSuchCrate | None:
        """Bring one blob in, for nobody in particular. Raises UpstreamFailure or StoreFailure."""
        async with patience(source):
            served = await self._bring(source, named, digest)
        if isinstance(served, NoSuchCrate):
            return served
        if served.how is How.HIT:
            await served.aclose()
            return None
        offset = 0
        try:
            while chunk := await served.body.read(offset):
                offset += len(chunk)
        finally:
            await served.aclose()
        await self._settled((source.name, digest))
        blob = await self._blobs.open(digest)
        if blob is None:
            raise StoreFailure("it came, and could not be stored")
        blob.close()
        return None

    async def _digest(
        self, source: Source, named: Named, sha256: str | None, admit: Admit
    ) -> str | NoSuchCrate:
        name = named.crate.lower()
        subject = f"{named.crate} {named.version}"
        if sha256 is not None:
            subject = f"{subject} with sha256 {sha256}"
        held = await self._indexes.held(source, name)
        digest = _choose(held, named, sha256)
        if digest is not None:
            return digest
        if sha256 is not None and await self._blobs.was_named(sha256, named):
            return sha256
        if not self._is_known_to_lack((named, sha256)):
            refreshed = await self._indexes.refreshed(source, name, held, admit)
            digest = _choose(refreshed, named, sha256)
            if digest is not None:
                return digest
            if refreshed is not None and refreshed.snapshot.validators.mirror:
                # It may be behind, and is no authority on what there is not.
                raise Unreachable(f"{source.name} cannot be asked, and its mirror lacks {subject}")
            until = self._clock.monotonic() + NEGATIVE_FRESH_S
            self._lacking.put((named, sha256), until, 1)
        return NoSuchCrate(f"the index of {source.name} has no {subject}")

    def _is_known_to_lack(self, wanted: tuple[Named, str | None]) -> bool:
        """Tell whether the upstream was asked for this very version a moment ago, in vain."""
        until = self._lacking.get(wanted)
        return until is not None and self._clock.monotonic() < until

    def _refuse_known_mismatch(self, key: Key) -> None:
        known = self._mismatches.get(key)
        if known is None:
            return
        until, failure = known
        if self._clock.monotonic() < until:
            raise failure.with_traceback(None)
        self._mismatches.discard(key)

    async def _bring(
        self, source: Source, named: Named, digest: str, admit: Admit = freely
    ) -> CrateServed | NoSuchCrate:
        key = (source.name, digest)
        while True:
            landing = self._landings.get(key)
            blob = await self._blobs.open(digest)
            if blob is not None:
                self._blobs.note_named(digest, named)
                return CrateServed(blob, digest, How.HIT, seekable=True)
            download = self._downloads.get(key)
            if download is not None:
                return await self._join(source, named, digest, download, How.COALESCED)
            self._refuse_known_mismatch(key)
            if self._landings.get(key) != landing:
                continue  # somebody else has begun and ended meanwhile
            admit()
            if self._is_unstorable(key):
                return await self._pass(source, named, digest)
            download = self._begin(source, named, digest)
            return await self._join(source, named, digest, download, How.MISS)

    def _address(self, source: Source, named: Named, digest: str) -> Address:
        """Return what tells where an endpoint has the file."""

        async def address(endpoint: Endpoint) -> str:
            config = await self._configs.get(source, endpoint)
            return download_url(config.dl, named.crate, named.version, digest)

        return address

    async def _join(
        self, source: Source, named: Named, digest: str, download: Download, how: How
    ) -> CrateServed | NoSuchCrate:
        reader = download.attach()
        try:
            await download.settled_or_flowing()
        except BaseException:
            reader.close()
            raise
        if download.absent is not None:
            reader.close()
            return NoSuchCrate(
                f"the index of {source.name} lists {named.crate} {named.version}, but the file is "
                f"not there ({download.absent.status})"
            )
        if download.failure is not None and not download.flows:
            reader.close()
            raise download.failure.with_traceback(None)
        if download.store_failed and not download.flows:
            reader.close()
            return await self._pass(source, named, digest)
        return CrateServed(reader, digest, how, seekable=False)

    def _begin(self, source: Source, named: Named, digest: str) -> Download:
        download = Download(
            source,
            self._blobs,
            self._observer,
            address=self._address(source, named, digest),
            digest=digest,
            named=named,
            vouched_by=self._vouched_by(source, named),
        )
        key = (source.name, digest)
        self._downloads[key] = download
        task = asyncio.create_task(self._fly(key, download))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return download

    def _vouched_by(self, source: Source, named: Named) -> str:
        """Return who gave the index file: a mirror's address, or empty for the upstream."""
        held = self._indexes.in_memory(source, named.crate.lower())
        return held.snapshot.validators.mirror if held is not None else ""

    async def _fly(self, key: Key, download: Download) -> None:
        try:
            await download.run()
        finally:
            del self._downloads[key]
            self._landed += 1
            self._landings.put(key, self._landed, 1)
            self._learn(key, download)
            await download.land()

    def _learn(self, key: Key, download: Download) -> None:
        if download.failure is not None and not download.elsewhere:
            self._remember_mismatch(key, download.failure)
        if download.store_failed:
            self._unstorable.put(key, self._clock.monotonic() + DISK_DISTRUSTED_S, 1)

    def _remember_mismatch(self, key: Key, failure: UpstreamFailure) -> None:
        if isinstance(failure, ChecksumMismatch):
            until = self._clock.monotonic() + MISMATCH_REMEMBERED_S
            self._mismatches.put(key, (until, failure), 1)

    def _is_unstorable(self, key: Key) -> bool:
        until = self._unstorable.get(key)
        return until is not None and self._clock.monotonic() < until

    async def _settled(self, key: Key) -> None:
        """Wait until a download has committed, not only been read."""
        while (download := self._downloads.get(key)) is not None:
            await download.landed.wait()

    async def _pass(self, source: Source, named: Named, digest: str) -> CrateServed | NoSuchCrate:
        passage = Passage(
            source,
            self._observer,
            address=self._address(source, named, digest),
            digest=digest,
            subject=f"{named.crate} {named.version}",
            vouched_by=self._vouched_by(source, named),
            disproved=partial(self._remember_mismatch, (source.name, digest)),
        )
        try:
            await passage.begin()
        except BaseException:
            await passage.aclose()
            raise
        if passage.absent is not None:
            await passage.aclose()
            return NoSuchCrate(f"{source.name} does not have the file of {named.crate}")
        return CrateServed(passage, digest, How.BYPASS, seekable=False, passage=passage)

    async def close(self, patience_s: float) -> None:
        """Let running downloads end, then end them."""
        tasks = list(self._tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=patience_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _choose(held: Rendered | None, named: Named, sha256: str | None) -> str | None:
    """Return the digest that a snapshot gives for a version, if the URL does not contradict."""
    if held is None:
        return None
    checksums = checksums_of(held.identity, named.crate, named.version)
    if sha256 is None:
        return checksums[0] if checksums else None
    return sha256 if sha256 in checksums else None
