"""The marker of a clean stop: the file `clean`, there from a graceful stop to the next start.

It says that all that was ever written is on the disk, and so is written after everything else is,
and is gone for good before anything else is written: a marker that a crash of the machine brought
back would have torn files believed. All functions block, and raise OSError.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path


class CleanStop:
    """The marker in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._marker = directory / "clean"

    def was_clean(self) -> bool:
        """Tell whether the marker is there."""
        return self._marker.is_file()

    def unmark(self) -> None:
        """Remove the marker, and wait until that is on the disk."""
        self._marker.unlink(missing_ok=True)
        self._sync(os.fsync)

    def mark(self, *, has_written: bool) -> None:
        """Bring the whole file system to the disk if need be, and then the marker.

        There is no need where nothing was written, nor believed anew, since the last marker.
        """
        if has_written:
            self._sync(_sync_file_system)
        with self._marker.open("wb") as marker:
            os.fsync(marker.fileno())
        self._sync(os.fsync)

    def _sync(self, sync: Callable[[int], None]) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)


def _sync_file_system(descriptor: int) -> None:
    """Write out the file system that a descriptor is on; all of them where that is not offered."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "syncfs"):
        os.sync()
    elif library.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
