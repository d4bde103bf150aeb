"""Programs of other makers: where they are, and a server running for as long as it is needed.

They come from the machine, or from what `make test` has unpacked beside the virtual environment,
with the libraries that the machine lacks. A test that needs one fails without it: nothing is
skipped because of a machine.
"""

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

_UNPACKED: Final = Path(sys.prefix) / "servers"
_SYSTEM_PATH: Final = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
_PATIENCE_SECONDS: Final = 10.0
_CLIENT_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Program:
    """A command, and the environment that it needs to run."""

    command: str
    env: Mapping[str, str]


def program(name: str) -> Program:
    """Find a program: the machine's own, or the one that was unpacked."""
    found = shutil.which(name, path=_SYSTEM_PATH)
    if found is not None:
        return Program(found, {})
    unpacked = shutil.which(name, path=f"{_UNPACKED}/usr/sbin:{_UNPACKED}/usr/bin")
    if unpacked is None:
        pytest.fail(f"{name} is needed: `make test` fetches it, or install its package")
    folders = sorted({str(each.parent) for each in _UNPACKED.glob("**/lib*.so*")})
    return Program(unpacked, {"LD_LIBRARY_PATH": ":".join(folders)})


def output_of(client: Program, *arguments: str) -> str:
    """Run a client to its end; returns what it wrote, errors included. It must end well."""
    run = subprocess.run(
        [client.command, *arguments],
        env={"PATH": _SYSTEM_PATH, **client.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_CLIENT_SECONDS,
        check=False,
    )
    written = run.stdout.decode("latin-1")
    assert run.returncode == 0, f"{client.command}: {run.returncode}\n{written}"
    return written


@contextmanager
def running(
    server: Program,
    arguments: Sequence[str],
    *,
    port: int,
    log: Path,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[None]:
    """Run a server that does not detach, from when it listens on a port of 127.0.0.1."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [server.command, *arguments],
            env={"PATH": _SYSTEM_PATH, **server.env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            until = time.monotonic() + _PATIENCE_SECONDS
            while not _is_listening(port):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, f"it never listened:\n{log.read_text()}"
                threading.Event().wait(0.01)
            yield
        finally:
            process.send_signal(stop)
            try:
                process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_PATIENCE_SECONDS)


def _is_listening(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0
