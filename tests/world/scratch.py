"""A directory whose file system is memory, where there is one.

For tests that stop stores in good order, which waits until the file system is on the disk: on a
disk that others are busy with, that takes as long as they please.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_MEMORY = Path("/dev/shm")


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Make a directory, and remove it with all that is in it."""
    place = _IN_MEMORY if _IN_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="holdfast-test-", dir=place) as directory:
        yield Path(directory)
