"""The index store: snapshots in a hardened diskcache, on a thread of their own.

Everything happens on one thread, in the order in which it was asked for: SQLite, hashing,
compressing, inflating. That keeps the event loop free, and it is all the locking there is: of two
calls for one key, the later one finds what the earlier one did.

Each snapshot is two rows (`proxy.adapters.index_rows`), `m:<upstream>/<name>` and
`b:<upstream>/<name>`, written in one transaction. A row that is not ours is a miss. One of ours
that is broken is a miss, is reported, and is thrown away.

All that is here can be fetched again, so a database that cannot be used is moved aside, to
`index.corrupt-<n>`, and a new one begun: at opening, and later when a write meets the damage. The
last one is kept for whoever wants to know why, unless it is large.

A disk that is full, read-only or failing is another matter: the database stays, reads are misses
where they must be, writes are StoreFailure, and the next write tries to open it anew. A database
that such a disk does not let us open is read all the same (`proxy.adapters.index_reading`) until
then.

What a snapshot means, and whether it may be served, is `proxy.core.freshness`.
"""

import asyncio
import contextlib
import re
import shutil
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

from proxy.adapters.index_disk import (
    DISK_ERRORS,
    RowCache,
    Unusable,
    cause_of,
    is_damage,
    is_lack_of_room,
    open_rows,
)
from proxy.adapters.index_reading import ReadOnlyRows
from proxy.adapters.index_rows import (
    Damaged,
    Metadata,
    Unknown,
    read_body,
    read_metadata,
    write_body,
    write_metadata,
)
from proxy.core.answers import Snapshot
from proxy.core.events import Event, IntegrityFailed, StoreFailed
from proxy.core.failures import StoreFailure
from proxy.core.names import is_crate_name
from proxy.ports import IndexStore, Observer

MAX_BODY_BYTES: Final = 64 * 2**20

CORRUPT_MAX_BYTES: Final = 256 * 2**20

_PAGE_NAMES: Final = 1000
_OPENING: Final = "open the index store"

T = TypeVar("T")


class DiskIndexStore(IndexStore):
    """Snapshots in the folder `directory`, which belongs to one process at a time.

    Bodies above `max_body_bytes` are neither stored nor, should one be recorded, inflated. A broken
    database above `corrupt_max_bytes` is not kept beside the new one.
    """

    def __init__(
        self,
        directory: Path,
        observer: Observer,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        corrupt_max_bytes: int = CORRUPT_MAX_BYTES,
    ) -> None:
        self._directory = directory
        self._observer = observer
        self._max_body_bytes = max_body_bytes
        self._corrupt_max_bytes = corrupt_max_bytes
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="index")
        self._closed = False
        # Put here by the thread, handed to the observer on the event loop.
        self._events: deque[Event] = deque()
        # The rest is the thread's alone.
        self._cache: RowCache | None = None
        self._read_only: ReadOnlyRows | None = None
        self._suspect = False

    async def open(self) -> Self:
        """Open the database now and not at the first call. A failure is reported, not raised."""
        await self._run(self._readable)
        return self

    async def close(self) -> None:
        """Finish what was asked for, and close the database. Calls from now on find nothing."""
        if self._closed:
            return
        closing = self._run(self._close)
        self._closed = True
        await closing
        self._executor.shutdown(wait=False)

    async def get(self, upstream: str, name: str) -> Snapshot | None:
        """See the port."""
        if self._closed:
            return None
        return await self._run(partial(self._get, f"{upstream}/{name}"))

    async def put(self, upstream: str, name: str, snapshot: Snapshot) -> None:
        """See the port."""
        self._refuse_if_closed()
        await self._run(partial(self._put, f"{upstream}/{name}", snapshot))

    async def confirm(self, upstream: str, name: str, snapshot: Snapshot) -> None:
        """See the port. A body that has been replaced meanwhile is no longer there."""
        self._refuse_if_closed()
        await self._run(partial(self._confirm, f"{upstream}/{name}", snapshot))

    async def remove(self, upstream: str, name: str) -> bool:
        """See the port."""
        self._refuse_if_closed()
        return await self._run(partial(self._remove, f"{upstream}/{name}"))

    async def names(self, upstream: str) -> AsyncIterator[str]:
        """See the port."""
        prefix = f"m:{upstream}/"
        keys = [prefix]
        while not self._closed and (keys := await self._run(partial(self._page, prefix, keys[-1]))):
            for key in keys:
                name = key.removeprefix(prefix)
                if name == "config.json" or is_crate_name(name):
                    yield name

    async def usage(self) -> tuple[int, int]:
        """See the port."""
        if self._closed:
            return 0, 0
        return await self._run(self._usage)

    async def _run(self, job: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, job)
        finally:
            while self._events:
                self._observer.observe(self._events.popleft())

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreFailure("the index store is closed")

    # From here on, everything runs on the thread.

    def _get(self, key: str) -> Snapshot | None:
        cache = self._readable()
        if cache is None:
            return None
        try:
            return self._read(cache, key)
        except Unknown:
            return None
        except Damaged as damage:
            self._events.append(IntegrityFailed("index", key, damage.expected, damage.actual))
            with contextlib.suppress(*DISK_ERRORS):
                cache.drop(f"m:{key}", f"b:{key}")
            return None
        except DISK_ERRORS:
            return None

    def _read(self, cache: RowCache | ReadOnlyRows, key: str) -> Snapshot | None:
        row = cache.get(f"m:{key}")
        if row is None:
            return None
        metadata = read_metadata(row, key)
        if metadata.body is None:
            return metadata.with_body(None)
        if metadata.body.length > self._max_body_bytes:
            raise Unknown
        row = cache.get(f"b:{key}")
        if row is None:
            raise Damaged(metadata.body.sha256, "nothing")
        return metadata.with_body(read_body(row, metadata.body))

    def _put(self, key: str, snapshot: Snapshot) -> None:
        doing = f"store the index file {key}"
        if snapshot.body is not None and len(snapshot.body) > self._max_body_bytes:
            raise StoreFailure(f"cannot {doing}: it has more than {self._max_body_bytes} bytes")
        metadata = Metadata.of(snapshot)
        rows = {f"m:{key}": write_metadata(key, metadata)}
        if snapshot.body is not None and metadata.body is not None:
            rows[f"b:{key}"] = write_body(snapshot.body, metadata.body)
        self._write(doing, partial(_replace, key=key, rows=rows))

    def _confirm(self, key: str, snapshot: Snapshot) -> None:
        metadata = Metadata.of(snapshot)
        self._write(f"confirm the index file {key}", partial(_confirm, key=key, metadata=metadata))

    def _remove(self, key: str) -> bool:
        return self._write(f"remove the index file {key}", partial(_remove, key=key))

    def _page(self, prefix: str, after: str) -> list[str]:
        cache = self._readable()
        if cache is None:
            return []
        try:
            return cache.keys_between(after, _past(prefix), _PAGE_NAMES)
        except DISK_ERRORS as error:
            self._events.append(StoreFailed("list the index files", _one_line(error)))
            return []

    def _usage(self) -> tuple[int, int]:
        cache = self._readable()
        entries = 0
        stored_bytes = _size_bytes(self._directory)
        if cache is not None:
            with contextlib.suppress(*DISK_ERRORS):
                entries = cache.count_between("m:", _past("m:"))
        return entries, stored_bytes

    def _close(self) -> None:
        if self._cache is not None:
            self._cache.close()
            self._cache = None
        self._end_reading()

    def _readable(self) -> RowCache | ReadOnlyRows | None:
        if self._cache is None and self._read_only is None:
            try:
                self._cache = self._open()
            except StoreFailure as failure:
                self._events.append(StoreFailed(_OPENING, str(failure)))
                self._begin_reading()
        return self._read_only if self._cache is None else self._cache

    def _begin_reading(self) -> None:
        with contextlib.suppress(*DISK_ERRORS):
            self._read_only = ReadOnlyRows(self._directory)

    def _end_reading(self) -> None:
        if self._read_only is not None:
            self._read_only.close()
            self._read_only = None

    def _writable(self) -> RowCache:
        if self._cache is None or self._suspect or not self._cache.is_in_place():
            # The one that reads may hold the lock that the other needs.
            self._end_reading()
            try:
                cache = self._open()
            except StoreFailure:
                if self._cache is None:
                    self._begin_reading()
                raise
            # Only once there is another does a connection that can still read go.
            self._close()
            self._cache = cache
            self._suspect = False
        return self._cache

    def _write(self, doing: str, change: Callable[[RowCache], T]) -> T:
        cache = self._writable()
        try:
            return _changed(cache, change)
        except DISK_ERRORS as error:
            if not is_damage(error):
                self._suspect = not is_lack_of_room(error)
                raise StoreFailure(f"cannot {doing}: {_one_line(error)}") from error
            reason = _one_line(error)
        self._close()
        self._move_aside(reason)
        try:
            return _changed(self._writable(), change)
        except DISK_ERRORS as error:
            self._suspect = True
            raise StoreFailure(f"cannot {doing}: {_one_line(error)}") from error

    def _open(self) -> RowCache:
        try:
            return open_rows(self._directory)
        except Unusable as error:
            reason = _one_line(error)
        except DISK_ERRORS as error:
            raise StoreFailure(f"cannot {_OPENING}: {_one_line(error)}") from error
        self._move_aside(reason)
        try:
            return open_rows(self._directory)
        except DISK_ERRORS as error:
            raise StoreFailure(f"cannot {_OPENING}: {_one_line(error)}") from error

    def _move_aside(self, reason: str) -> None:
        earlier = _set_aside(self._directory)
        target = self._directory.with_name(
            f"{self._directory.name}.corrupt-{max(earlier, default=0) + 1}"
        )
        try:
            self._directory.rename(target)
        except OSError as error:
            raise StoreFailure(
                f"cannot move the broken index store aside: {_one_line(error)}"
            ) from error
        self._events.append(StoreFailed(_OPENING, f"{reason}; moved aside to {target.name}"))
        doomed = [*earlier.values()]
        if _size_bytes(target) > self._corrupt_max_bytes:
            doomed.append(target)
        for path in doomed:
            shutil.rmtree(path, ignore_errors=True)


def _size_bytes(directory: Path) -> int:
    """Return the sizes of its files together; 0 where they cannot be looked at."""
    try:
        return sum(path.lstat().st_size for path in directory.iterdir())
    except OSError:
        return 0


def _set_aside(directory: Path) -> dict[int, Path]:
    pattern = re.compile(re.escape(directory.name) + r"\.corrupt-([0-9]{1,9})", re.ASCII)
    found: dict[int, Path] = {}
    with contextlib.suppress(OSError):
        for path in directory.parent.iterdir():
            if match := pattern.fullmatch(path.name):
                found[int(match[1])] = path
    return found


def _changed(cache: RowCache, change: Callable[[RowCache], T]) -> T:
    try:
        with cache.transact():
            return change(cache)
    except BaseException:
        cache.abandon()
        raise


def _replace(cache: RowCache, *, key: str, rows: dict[str, bytes]) -> None:
    # Dropped first: then it does not matter what the old rows held.
    cache.drop(f"m:{key}", f"b:{key}")
    for row_key, row in rows.items():
        cache.set(row_key, row)


def _confirm(cache: RowCache, *, key: str, metadata: Metadata) -> None:
    row = cache.get(f"m:{key}")
    if row is None:
        return
    try:
        held = read_metadata(row, key)
    except (Unknown, Damaged):
        return
    if held.body != metadata.body or (held.body is not None and f"b:{key}" not in cache):
        return
    cache.set(f"m:{key}", write_metadata(key, metadata))


def _remove(cache: RowCache, *, key: str) -> bool:
    cache.drop(f"b:{key}")
    return cache.drop(f"m:{key}") > 0


def _past(prefix: str) -> str:
    """Return the first text after every one that begins with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _one_line(error: BaseException) -> str:
    cause = cause_of(error)
    return " ".join(str(cause).split()) or type(cause).__name__
