"""Disks with little room, and the means to take away what room there is.

A `TinyDisk` is a file system in memory that only the processes of one mount namespace see: whoever
may `unshare` (root; elsewhere a user with namespaces of their own) can fill it, empty it and turn
it read-only as an operator's disk fills and fails. A `ShortFiles` is for everybody else: a limit on
the length of every file that a process writes, which fails as a full disk does.

Both are wrappers around the command: a script to be called in its place.
"""

import errno
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_WAYS: Final = (("unshare", "-m"), ("unshare", "-r", "-m"))
_BLOCK_BYTES: Final = 4096
_FILL_ATTEMPTS: Final = 1000
_WAIT_SECONDS: Final = 10


@cache
def way_into_a_namespace() -> Sequence[str]:
    """Return the command that may make a mount namespace here; none if nobody lets us."""
    for way in _WAYS:
        try:
            done = subprocess.run(
                [*way, "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
                capture_output=True,
                check=False,
                timeout=_WAIT_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return way
    return ()


def _script(path: Path, line: str) -> str:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return str(path)


class TinyDisk:
    """A file system of `size_bytes` at `place`, which is made; `wrapper` runs `command` on it."""

    def __init__(self, place: Path, scratch: Path, command: str, *, size_bytes: int) -> None:
        place.mkdir(parents=True)
        self._place = place
        mount = f'mount -t tmpfs -o size={size_bytes},mode=700 tmpfs "{place}"'
        self._holder = subprocess.Popen(
            [*way_into_a_namespace(), "sh", "-c", f"{mount} && echo mounted && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"mounted\n"
        self._enter = ["nsenter", *self._namespaces(), "--"]
        entering = " ".join([*self._enter, command])
        self.wrapper = _script(scratch / "on-a-tiny-disk", f'exec {entering} "$@"')

    def _namespaces(self) -> list[str]:
        pid = self._holder.pid
        flags = [f"--mount=/proc/{pid}/ns/mnt"]
        if "-r" in way_into_a_namespace():
            flags = [f"--user=/proc/{pid}/ns/user", "--preserve-credentials", *flags]
        return flags

    @property
    def view(self) -> Path:
        """The disk as it can be seen from here."""
        return Path(f"/proc/{self._holder.pid}/root{self._place}")

    def fill(self, *, but_for_bytes: int = 0) -> None:
        """Leave so much room and no more, though somebody else may be writing meanwhile."""
        with (self.view / "ballast").open("ab") as ballast:
            for _ in range(_FILL_ATTEMPTS):
                wanted = max(_BLOCK_BYTES, self.free_bytes() - but_for_bytes)
                try:
                    os.posix_fallocate(ballast.fileno(), ballast.tell(), wanted)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    if self.free_bytes() <= but_for_bytes:
                        return
                else:
                    return
        raise AssertionError("the disk does not come to rest")

    def make_room(self) -> None:
        """Take away what `fill` put there."""
        (self.view / "ballast").unlink()

    def free_bytes(self) -> int:
        """Return how much room there is."""
        return shutil.disk_usage(self.view).free

    def make_read_only(self) -> None:
        """Refuse every file that is opened for writing from now on.

        The kernel turns no file system read-only while files on it are being written, so the disk
        is mounted over itself, read-only. What is open stays as it is.
        """
        self._run("mount", "--bind", str(self._place), str(self._place))
        self._run("mount", "-o", "remount,bind,ro", str(self._place))

    def make_writable(self) -> None:
        """Take that back."""
        self._run("umount", "--lazy", str(self._place))

    def _run(self, *command: str) -> None:
        subprocess.run([*self._enter, *command], check=True, timeout=_WAIT_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._holder.communicate(timeout=_WAIT_SECONDS)


def short_files(scratch: Path, command: str, *, longest_bytes: int) -> str:
    """Return a wrapper under which no file can be made longer than that."""
    return _script(
        scratch / "with-short-files", f'exec prlimit --fsize={longest_bytes} {command} "$@"'
    )
