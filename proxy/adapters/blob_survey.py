"""Walks over all blobs on disk, one of 256 folders at a time.

One walk lists digests, for whoever checks or counts them. The other brings ledger and files to
agreement after the ledger was lost or the last stop was unclean: blobs without a row are adopted as
unproven and last used when they were written, rows without a file go. It runs behind the serving
store; an adopted blob is no different from one that a client asked for first.

Files that are not blobs are strangers: left alone, counted by whichever walk was completed last.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Final, TypeVar

from proxy.adapters.blob_files import BlobFiles, Found
from proxy.adapters.blob_shelf import BlobShelf
from proxy.adapters.disk_threads import DiskThreads, told
from proxy.adapters.ledger import Row
from proxy.adapters.ledger_thread import LedgerThread
from proxy.core.failures import StoreFailure
from proxy.ports import Observer

T = TypeVar("T")
_LISTING: Final = "listing blobs"
_FOLDERS: Final = 256
_UNPROVEN: Final = -1
_AT_ONCE: Final = 200
_LONGEST_REST_S: Final = 0.1


class BlobSurvey:
    """What can be learned of the blobs by looking at all of them."""

    def __init__(
        self,
        files: BlobFiles,
        shelf: BlobShelf,
        ledger: LedgerThread,
        threads: DiskThreads,
        observer: Observer,
    ) -> None:
        self._files = files
        self._shelf = shelf
        self._ledger = ledger
        self._threads = threads
        self._observer = observer
        self.strangers = 0

    async def digests(self) -> AsyncIterator[str]:
        """Yield the digest of every blob on disk; a folder that cannot be read is left out."""
        try:
            folders, strangers = await self._listed(self._files.folders)
        except StoreFailure as failure:
            self._observer.observe(told(_LISTING, failure))
            return
        for folder in folders:
            try:
                digests, beside = await self._listed(partial(self._files.digests, folder))
            except StoreFailure as failure:
                self._observer.observe(told(_LISTING, failure))
                continue
            strangers += beside
            for digest in digests:
                yield digest
        self.strangers = strangers

    async def reconcile(self) -> None:
        """Make the ledger agree with the files. Raises StoreFailure, and may be begun again.

        Rests after each folder for as long as that took, so that clients are served meanwhile.
        """
        loop = asyncio.get_running_loop()
        _, strangers = await self._listed(self._files.folders)
        for number in range(_FOLDERS):
            begun = loop.time()
            found, beside = await self._listed(partial(self._files.survey, f"{number:02x}"))
            strangers += beside
            known = await self._ledger.digests_in(number)
            new = [self._row(blob) for blob in found if blob.digest not in known]
            for start in range(0, len(new), _AT_ONCE):
                await self._shelf.adopt(new[start : start + _AT_ONCE])
            gone = list(known.difference(blob.digest for blob in found))
            for start in range(0, len(gone), _AT_ONCE):
                await self._shelf.forget_missing(gone[start : start + _AT_ONCE])
            await asyncio.sleep(min(loop.time() - begun, _LONGEST_REST_S))
        await self._ledger.mark_surveyed()
        self.strangers = strangers

    async def _listed(self, work: Callable[[], tuple[list[T], int]]) -> tuple[list[T], int]:
        return await self._threads.run(_LISTING, work)

    def _row(self, blob: Found) -> Row:
        used_us = self._ledger.time_of_file(blob.modified_at)
        return Row(blob.digest, blob.size_bytes, used_us, _UNPROVEN)
