"""The cache directory as a whole: who holds it, and whether its format is one that we know.

`<cache.dir>/format` holds the version of everything below it, MAJOR or MAJOR.MINOR. It is looked at
before anything is touched. A directory that a program of ours must not use, or whose version cannot
be read, is left exactly as it is. Then `<cache.dir>/lock` is locked, for as long as this process
lives: the kernel releases it with the last descriptor, however the process ends. The file itself
stays, and names the holder.

A minor step is one that the programs of the minor version before can live with: they read what they
know and pass over the rest. So a directory one minor step ahead of us is used, and its version is
left standing, for whatever is ahead in it is still there. An older directory gets our version
before anything else is written in it; what is in it is brought up to date by the stores, row by
row, or is a miss to them.

What is in the directory belongs to the stores. When which step is taken is in
docs/adr/0021-steps-of-the-format.md.
"""

import contextlib
import fcntl
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from proxy.core.failures import StoreFailure

_FORMAT: Final = re.compile(rb"([1-9][0-9]{0,8})(?:\.(0|[1-9][0-9]{0,8}))?\n?", re.ASCII)
_FORMAT_MAX_BYTES: Final = 64
_PID_MAX_BYTES: Final = 20


class Format(NamedTuple):
    """A version of what is in a cache directory. Ordered."""

    major: int
    minor: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}" if self.minor else f"{self.major}"

    def may_use(self, found: "Format") -> bool:
        """Tell whether a program that writes this format may use a directory of another."""
        return found <= (self.major, self.minor + 1)


OURS: Final = Format(1)


class CacheInUse(Exception):
    """Another process holds the cache directory."""

    def __init__(self, path: Path, pid: int | None) -> None:
        who = "another process" if pid is None else f"process {pid}"
        super().__init__(f"the cache directory {path} is in use by {who}")
        self.path = path
        self.pid = pid


class CacheTooNew(Exception):
    """The cache directory is in a format that we do not know; `found` is None if unreadable."""

    def __init__(self, path: Path, found: Format | None, ours: Format) -> None:
        what = (
            "a file 'format' that cannot be read as a version"
            if found is None
            else f"format {found}, and this Holdfast knows {ours}"
        )
        super().__init__(f"the cache directory {path} has {what}; nothing was touched")
        self.path = path
        self.found = found


class CacheDirectory:
    """A cache directory that this process holds, until `close`. Also a context manager."""

    def __init__(self, path: Path, ours: Format = OURS) -> None:
        """Take hold of `path`, creating it. Raises CacheTooNew, CacheInUse, StoreFailure."""
        self.path = path
        self._ours = ours
        self._lock: int | None = None
        try:
            self._read_format()
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _locked(path)
            # It may have been another's until now.
            found = self._read_format()
            if found is None or found < ours:
                _write_format(path, ours)
        except OSError as error:
            self.close()
            raise StoreFailure(f"cannot use the cache directory {path}: {error}") from error
        except BaseException:
            self.close()
            raise

    def _read_format(self) -> Format | None:
        try:
            with (self.path / "format").open("rb") as file:
                content = file.read(_FORMAT_MAX_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            raise CacheTooNew(self.path, None, self._ours) from None
        match = _FORMAT.fullmatch(content)
        found = None if match is None else Format(int(match[1]), int(match[2] or 0))
        if found is None or not self._ours.may_use(found):
            raise CacheTooNew(self.path, found, self._ours)
        return found

    def close(self) -> None:
        """Let go of it. Safe to call twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def owner_of(path: Path) -> int | None:
    """Return the number of the user who serves from a directory; None if there is no directory.

    That is who made the lock: a volume itself may be root's, and open to a group. Raises OSError.
    """
    with contextlib.suppress(OSError):
        return (path / "lock").lstat().st_uid
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return path.stat().st_uid
    return None


def _write_format(path: Path, ours: Format) -> None:
    # A name of its own until it is whole: a half-written version would never be read again.
    draft = path / "format.draft"
    try:
        with draft.open("wb") as file:
            file.write(f"{ours}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path / "format")
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _locked(path: Path) -> int:
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whose it is, is only for people to read: a full disk shall not prevent a start.
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)
            os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        written = os.pread(lock, _PID_MAX_BYTES, 0).strip()
        os.close(lock)
        raise CacheInUse(path, int(written) if written.isdigit() else None) from None
    except BaseException:
        os.close(lock)
        raise
    return lock
