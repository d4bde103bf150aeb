"""The blob store's directory: names, places, and every blocking call on them.

Laid out as the contract says: `blobs/sha256/ab/cd/<hex>`, `drafts/`, `quarantine/<hex>`. A path is
made of a digest and of nothing else. Files that are not ours are left where they are and counted,
except in `drafts`, which is emptied at every start. The quarantine is for whoever wants to know
what went wrong with the last few: what was put there first goes first.

All functions block and belong in a thread; they raise OSError. Nothing is mapped into memory: a
file cut short under a mapping kills the process. Links are not followed, and a pipe under a
digest's name does not hang the opener.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proxy.core.names import is_sha256
from proxy.core.room import on_disk

_PAIR: Final = re.compile(r"[0-9a-f]{2}")
# No such file, a link, a socket, something other than a folder on the way.
_NO_FILE: Final = frozenset({errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENOTDIR})
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_HASHED_AT_ONCE: Final = 1 << 20
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
QUARANTINE_MAX_BYTES: Final = 256 * 2**20
_NEW_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


Identity = tuple[int, int]
"""What tells a file from all others that exist at the same time."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A descriptor and what the file system says of it."""

    fd: int
    size_bytes: int
    modified_at: float
    identity: Identity


@dataclass(frozen=True, slots=True)
class Found:
    """A blob that a walk came across."""

    digest: str
    size_bytes: int
    modified_at: float


@dataclass(frozen=True, slots=True)
class Unlinked:
    """What came of removing files: bytes freed by digest (0: it was not there), and who stayed."""

    freed: dict[str, int]
    refused: dict[str, str]


def read_at(fd: int, offset: int, length: int) -> bytes:
    """Return up to `length` bytes; fewer only where the file ends."""
    data = os.pread(fd, length, offset)
    while 0 < len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def write_at(fd: int, offset: int, data: bytes) -> None:
    """Write all of `data`."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def digest_of(fd: int) -> str:
    """Return the SHA-256 of a whole file."""
    hashing, offset = hashlib.sha256(), 0
    while data := os.pread(fd, _HASHED_AT_ONCE, offset):
        hashing.update(data)
        offset += len(data)
    return hashing.hexdigest()


class BlobFiles:
    """The files under one cache directory."""

    def __init__(
        self, directory: Path, *, quarantine_max_bytes: int = QUARANTINE_MAX_BYTES
    ) -> None:
        self.directory = directory
        self._quarantine_max_bytes = quarantine_max_bytes
        self._blobs = directory / "blobs" / "sha256"
        self._drafts = directory / "drafts"
        self._quarantine = directory / "quarantine"

    def prepare(self) -> None:
        """Make the folders, empty `drafts`, and hold the quarantine to its limit.

        A full disk is no reason not to start: what is missing is made when it is needed. What
        cannot be removed from `drafts` is in nobody's way.
        """
        try:
            for folder in (self._blobs, self._drafts, self._quarantine):
                _make_folders(folder)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
        for left in _listed(self._drafts):
            if left.is_dir(follow_symlinks=False):
                shutil.rmtree(left.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    Path(left.path).unlink()
        self._trim_quarantine()

    def open(self, digest: str) -> Opened | None:
        """Open a blob for reading; None if no regular file is there."""
        try:
            fd = os.open(self._place(digest), _READ_FLAGS)
        except OSError as error:
            if error.errno in _NO_FILE:
                return None
            raise
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            return None
        return _described(fd, found)

    def begin(self) -> tuple[str, Opened]:
        """Make a new draft file; returns its name with it."""
        name = secrets.token_hex(16)
        try:
            fd = os.open(self._drafts / name, _NEW_FLAGS, 0o600)
        except FileNotFoundError:
            _make_folders(self._drafts)
            fd = os.open(self._drafts / name, _NEW_FLAGS, 0o600)
        return name, _described(fd, os.fstat(fd))

    def drop(self, name: str) -> None:
        """Remove a draft file."""
        (self._drafts / name).unlink(missing_ok=True)

    def place(self, name: str, digest: str) -> Identity:
        """Give a draft file its place as a blob, replacing whatever is there."""
        target = self._place(digest)
        found = (self._drafts / name).lstat()
        try:
            (self._drafts / name).rename(target)
        except FileNotFoundError:
            _make_folders(target.parent)
            (self._drafts / name).rename(target)
        return found.st_dev, found.st_ino

    def place_bytes(self, data: bytes, digest: str) -> Identity:
        """Make a blob of `data`; leaves nothing behind if that fails."""
        name, opened = self.begin()
        try:
            try:
                write_at(opened.fd, 0, data)
            finally:
                os.close(opened.fd)
            return self.place(name, digest)
        except OSError:
            with contextlib.suppress(OSError):
                self.drop(name)
            raise

    def unlink(self, digests: Iterable[str]) -> Unlinked:
        """Remove blobs, as many as can be."""
        freed: dict[str, int] = {}
        refused: dict[str, str] = {}
        for digest in digests:
            try:
                freed[digest] = _unlink_file(self._place(digest))
            except OSError as error:
                refused[digest] = error.strerror or type(error).__name__
        return Unlinked(freed, refused)

    def set_aside(self, digest: str, identity: Identity) -> None:
        """Move a bad blob to the quarantine, unless another file has taken its place already."""
        place = self._place(digest)
        try:
            found = place.lstat()
        except FileNotFoundError:
            return
        if (found.st_dev, found.st_ino) == identity:
            _make_folders(self._quarantine)
            place.rename(self._quarantine / digest)
            self._trim_quarantine()

    def _trim_quarantine(self) -> None:
        """Keep the newest, up to the limit; what cannot be removed is in nobody's way."""
        found = []
        for entry in _listed(self._quarantine):
            if is_sha256(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    # The time of the move: a file's own time is that of its download.
                    found.append((status.st_ctime_ns, on_disk(status.st_size), entry.path))
        kept_bytes = 0
        for _, size_bytes, path in sorted(found, reverse=True):
            kept_bytes += size_bytes
            if kept_bytes > self._quarantine_max_bytes:
                with contextlib.suppress(OSError):
                    Path(path).unlink()

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Return those digests at whose places nothing is."""
        return [digest for digest in digests if not os.path.lexists(self._place(digest))]

    def folders(self) -> tuple[list[str], int]:
        """List the 256 folders, as many as there are, and count the strangers beside them."""
        entries = _listed(self._blobs)
        folders = [entry.name for entry in entries if _is_folder(entry)]
        above = [entry for entry in _listed(self._blobs.parent) if entry.name != "sha256"]
        return folders, len(entries) - len(folders) + len(above)

    def digests(self, folder: str) -> tuple[list[str], int]:
        """List one of the 256 folders: the blobs in it, and how many strangers there are."""
        entries = list(self._entries(folder))
        return [entry.name for entry in entries if entry is not None], entries.count(None)

    def survey(self, folder: str) -> tuple[list[Found], int]:
        """List one of the 256 folders with what the file system knows of each blob."""
        found, strangers = [], 0
        for entry in self._entries(folder):
            if entry is None:
                strangers += 1
                continue
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                found.append(Found(entry.name, status.st_size, status.st_mtime))
        return found, strangers

    def quarantined(self) -> int:
        """Count what was set aside."""
        return sum(1 for _ in self._quarantine.iterdir())

    def free_bytes(self) -> int:
        """Return what the file system still has for us."""
        status = os.statvfs(self.directory)
        return status.f_bavail * status.f_frsize

    def _place(self, digest: str) -> Path:
        return self._blobs / digest[:2] / digest[2:4] / digest

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str] | None]:
        """Yield the blobs of a folder, and None for each stranger."""
        for second in _listed(self._blobs / folder):
            if not _is_folder(second):
                yield None
                continue
            for entry in _listed(Path(second.path)):
                ours = is_sha256(entry.name) and entry.name.startswith(folder + second.name)
                yield entry if ours and entry.is_file(follow_symlinks=False) else None


def _unlink_file(place: Path) -> int:
    """Remove a regular file, if there is one; returns what it took up."""
    try:
        found = place.lstat()
        if not stat.S_ISREG(found.st_mode):
            return 0
        place.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return on_disk(found.st_size)


def _described(fd: int, found: os.stat_result) -> Opened:
    return Opened(fd, found.st_size, found.st_mtime, (found.st_dev, found.st_ino))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return _PAIR.fullmatch(entry.name) is not None and entry.is_dir(follow_symlinks=False)


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _make_folders(folder: Path) -> None:
    """Make a folder and those above it for ourselves alone, as `Path.mkdir` does not."""
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
