"""The real `holdfast serve`, as a process of its own, in front of test registries.

`Holdfast` writes a configuration, starts the command, waits for the line that says where it serves,
and speaks HTTP to it. It can be stopped as an orchestrator would, killed as the kernel would, and
started again on the same port with the same cache. Its port is bound from the beginning by a socket
that never listens, so that nobody takes it in between.

Nothing of the machine's environment reaches the process.
"""

import contextlib
import http.client
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from prometheus_client.parser import text_string_to_metric_families

from tests.world.cargo import Run
from tests.world.server import bound_socket

Table = Mapping[str, object]

COMMAND: Final = str(Path(sys.executable).with_name("holdfast"))
SERVING: Final = " is serving on http"
_START_TIMEOUT_SECONDS: Final = 30
_STOP_TIMEOUT_SECONDS: Final = 20
_HTTP_TIMEOUT_SECONDS: Final = 40
# Somebody else writes the log: nobody tells us of a new line.
_BETWEEN_LOOKS_SECONDS: Final = 0.01
_LOOKS: Final = 1500


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; `headers` have lower-cased names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def how(self) -> str | None:
        """How it was served, in the proxy's own word."""
        return self.headers.get("x-cache")


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of `/metrics`."""

    name: str
    labels: Mapping[str, str]
    value: float


def toml(config: Table) -> str:
    """Write nested tables as TOML; values are strings, numbers, booleans and lists of them."""
    return "\n".join(_toml_table((), config)) + "\n"


def _toml_table(path: tuple[str, ...], table: Table) -> Iterable[str]:
    if path:
        yield f"[{'.'.join(path)}]"
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{key} = {json.dumps(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _toml_table((*path, key), value)


class Holdfast:
    """One proxy: its configuration, its directories below `root`, and the process while it runs.

    `config` has the sections of the configuration file; `cache.dir`, `state.dir` and
    `server.listen` are filled in. A context manager that starts it, and stops it in good order.
    """

    def __init__(self, root: Path, config: Table, *, env: Mapping[str, str] | None = None) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.cache_dir = root / "cache"
        self.state_dir = root / "state"
        self.config_file = root / "holdfast.toml"
        self._reservation = bound_socket(0)
        self.port: int = self._reservation.getsockname()[1]
        self._env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(root), **(env or {})}
        self._process: subprocess.Popen[str] | None = None
        self._printed: _Printed | None = None
        self.configure(config)

    def configure(self, config: Table) -> None:
        """Write the configuration file; a running process does not notice."""
        defaults: dict[str, Table] = {
            "server": {"listen": [f"127.0.0.1:{self.port}"], "drain": "5s"},
            "cache": {"dir": str(self.cache_dir)},
            "state": {"dir": str(self.state_dir)},
        }
        sections: dict[str, object] = dict(config)
        for name, section in defaults.items():
            given = sections.get(name, {})
            assert isinstance(given, Mapping)
            sections[name] = {**section, **given}
        self.config_file.write_text(toml(sections))

    @property
    def url(self) -> str:
        """The proxy's address, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    def index_url(self, registry: str = "crates-io") -> str:
        """The address of a registry's index as Cargo spells it."""
        return f"sparse+{self.url}/{registry}/index/"

    def start(self, *, stderr: int | None = None, terminal: bool = False) -> Self:
        """Start serving and wait until the process says so.

        `stderr` is a descriptor to have the log instead of the file that `stderr` and `log` read.
        With `terminal`, standard output is one.
        """
        assert self._process is None, "already running"
        ours, theirs = pty.openpty() if terminal else os.pipe()
        with self._stderr_file.open("ab") as file, os.fdopen(theirs, "wb") as stdout:
            self._process = subprocess.Popen(
                [COMMAND, "serve", "--config", str(self.config_file)],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=file if stderr is None else stderr,
                text=True,
            )
        self._printed = _Printed(os.fdopen(ours, encoding="utf-8"))
        self._printed.start()
        if SERVING not in self._printed.until(SERVING):
            self.kill()
            raise AssertionError(f"holdfast serve did not start:\n{self.stderr}")
        return self

    def stop(self) -> None:
        """Ask the process to stop, as an orchestrator does; it must exit with 0."""
        process = self._running
        process.send_signal(signal.SIGTERM)
        code = process.wait(_STOP_TIMEOUT_SECONDS)
        self._process = None
        assert code == 0, f"holdfast serve exited with {code}:\n{self.stderr}"

    def hang_up(self, expected: str) -> None:
        """Send SIGHUP, and wait until the log has one more line with `expected` in it."""
        before = self.stderr.count(expected)
        self._running.send_signal(signal.SIGHUP)
        self.has_logged(expected, before + 1)

    def has_logged(self, expected: str, times: int = 1) -> None:
        """Wait until `expected` is in the log so many times."""
        for _ in range(_LOOKS):
            if self.stderr.count(expected) >= times:
                return
            threading.Event().wait(_BETWEEN_LOOKS_SECONDS)
        raise AssertionError(f"waited for {expected!r}, saw:\n{self.stderr}")

    def kill(self) -> None:
        """End the process as the kernel does: no word, no last write."""
        process, self._process = self._running, None
        process.kill()
        process.wait(_STOP_TIMEOUT_SECONDS)

    def restart(self) -> Self:
        """Stop in good order and start on the same port with the same directories."""
        self.stop()
        return self.start()

    @property
    def pid(self) -> int:
        """The process id of the running proxy."""
        return self._running.pid

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, "not running"
        return self._process

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            if self._process is not None:
                self.stop()
        finally:
            if self._process is not None:
                self.kill()
            self.close()

    def close(self) -> None:
        """Give the port back, of a proxy that does not run."""
        self._reservation.close()

    @property
    def _stderr_file(self) -> Path:
        return self.root / "stderr.log"

    @property
    def stdout(self) -> str:
        """What the last process has printed so far."""
        return "" if self._printed is None else self._printed.text

    def printed_until(self, wanted: str) -> str:
        """Wait until the process has printed `wanted`; return everything printed so far."""
        assert self._printed is not None, "never started"
        text = self._printed.until(wanted)
        assert wanted in text, f"waited for {wanted!r}, saw:\n{text}"
        return text

    @property
    def stderr(self) -> str:
        """Everything the process (and those before it) wrote to its standard error."""
        return self._stderr_file.read_text()

    def log(self) -> list[dict[str, object]]:
        """Return the log's lines, each of which must be JSON; after a stop they are all there."""
        return [json.loads(line) for line in self.stderr.splitlines()]

    def get(
        self, path: str, headers: Mapping[str, str] | None = None, *, method: str = "GET"
    ) -> Answer:
        """Ask the proxy over a connection of its own; a body cut short raises IncompleteRead."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=_HTTP_TIMEOUT_SECONDS
        )
        try:
            connection.request(method, path, headers=dict(headers or {}))
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, fields, response.read())
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        """Open a bare connection, for a client that behaves oddly."""
        return socket.create_connection(("127.0.0.1", self.port), _HTTP_TIMEOUT_SECONDS)

    def metrics(self) -> list[Sample]:
        """Return every sample of `/metrics`."""
        families = text_string_to_metric_families(self.get("/metrics").body.decode())
        return [
            Sample(sample.name, sample.labels, sample.value)
            for family in families
            for sample in family.samples
        ]

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of `name` (without the prefix) that have these labels."""
        values = [
            sample.value
            for sample in self.metrics()
            if sample.name == f"holdfast_{name}" and labels.items() <= sample.labels.items()
        ]
        assert values, f"no sample of holdfast_{name} with {labels}"
        return sum(values)

    def command(self, *arguments: str) -> Run:
        """Run `holdfast <arguments>` with the proxy's configuration."""
        command = [COMMAND, *arguments, "--config", str(self.config_file)]
        done = subprocess.run(
            command,
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_HTTP_TIMEOUT_SECONDS,
        )
        return Run(" ".join(command), done.returncode, done.stdout, done.stderr, 0.0)


class _Printed(threading.Thread):
    """Reads a process's standard output to its end, so that it never waits for a reader."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._changed = threading.Condition()
        self._text = ""
        self._ended = False

    @property
    def text(self) -> str:
        """What has been printed so far."""
        with self._changed:
            return self._text

    def run(self) -> None:
        # A terminal ends with an error, once nobody else has it open.
        with self._stream, contextlib.suppress(OSError):
            for line in self._stream:
                with self._changed:
                    self._text += line
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def until(self, wanted: str) -> str:
        """Wait for a line with `wanted`, or the end; return everything up to now."""
        with self._changed:
            self._changed.wait_for(
                lambda: wanted in self._text or self._ended, _START_TIMEOUT_SECONDS
            )
            return self._text
