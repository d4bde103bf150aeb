"""What makes the servers work: wrk over HTTP/1.1, h2load over HTTP/2, and cargo itself.

Each run is bounded in time, and its own use of the CPU is measured, since a generator that has none
left measures itself. An answer that was not asked for (an error page is served fast) fails the run.
"""

import json
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from benchmarks.peers import HOST, Certificate, Protocol, find, pinned

_GRACE_S: Final = 30.0
_CARGO_PATIENCE_S: Final = 120.0
_NO_PROXIES: Final = tuple(
    part
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    for part in ("-u", name)
)
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


class LoadFailed(Exception):
    """A run that measured nothing: what went wrong is the message."""


@dataclass(frozen=True, slots=True)
class Load:
    """How hard to ask, and for what: over HTTP/1.1 `streams` is 1."""

    path: str
    connections: int
    streams: int
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a generator said, and the share of its core that it used."""

    requests: int
    per_second: float
    took_s: float
    generator: float


@dataclass(frozen=True, slots=True)
class Told:
    """What a generator's own report says."""

    requests: int
    per_second: float
    took_s: float
    failed: int


def parse_wrk(text: str) -> Told:
    r"""Read wrk's report.

    >>> parse_wrk("  3000 requests in 1.50s, 9MB read\nRequests/sec:   2000.00\n")
    Told(requests=3000, per_second=2000.0, took_s=1.5, failed=0)
    """
    total = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m),", text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    if total is None or rate is None:
        raise LoadFailed(f"wrk said nothing to go by: {text[-300:].strip()}")
    failed = sum(int(count) for count in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    for line in re.findall(r"Socket errors: (.*)", text):
        failed += sum(int(count) for count in re.findall(r"\d+", line))
    took_s = float(total[2]) * _UNITS[total[3]]
    return Told(int(total[1]), float(rate[1]), took_s, failed)


def parse_h2load(text: str) -> Told:
    """Read h2load's report.

    Over a fixed time h2load drops what is still under way at the end, which is no failure.
    """
    finished = re.search(r"finished in ([\d.]+)(us|ms|s|m), ([\d.]+) req/s", text)
    counts = re.search(r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", text)
    codes = re.search(r"(\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text)
    if finished is None or counts is None or codes is None:
        raise LoadFailed(f"h2load said nothing to go by: {text[-300:].strip()}")
    bad = int(codes[3]) + int(codes[4]) + int(counts[3])
    took_s = float(finished[1]) * _UNITS[finished[2]]
    return Told(int(counts[2]), float(finished[3]), took_s, bad)


def run_wrk(core: int | None, port: int, load: Load, seconds: int) -> Outcome:
    """Ask over HTTP/1.1 for a number of seconds."""
    command = [find("wrk") or "wrk", "-t1", f"-c{load.connections}", f"-d{seconds}s"]
    command += [part for header in load.headers for part in ("-H", header)]
    command.append(f"http://{HOST}:{port}{load.path}")
    said, generator = _run(pinned(core, command), seconds + _GRACE_S)
    return _outcome(parse_wrk(said), generator)


def run_h2load(
    core: int | None, port: int, load: Load, duration_ms: int, protocol: Protocol
) -> Outcome:
    """Ask over HTTP/2 for a number of milliseconds."""
    command = _h2load(port, load, protocol)
    command[1:1] = ["-D", f"{duration_ms}ms", "--warm-up-time", "100ms"]
    said, generator = _run(pinned(core, command), duration_ms / 1000 + _GRACE_S)
    return _outcome(parse_h2load(said), generator)


def run_stampede(
    core: int | None, port: int, load: Load, clients: int, protocol: Protocol
) -> Outcome:
    """Have so many clients, each with a connection, ask once, all at the same time."""
    command = _h2load(port, load, protocol)
    command[1:1] = ["-n", str(clients)]
    said, generator = _run(pinned(core, command), _GRACE_S)
    told = parse_h2load(said)
    if told.requests != clients:
        raise LoadFailed(f"{told.requests} of {clients} clients were served")
    return _outcome(told, generator)


def _h2load(port: int, load: Load, protocol: Protocol) -> list[str]:
    command = [find("h2load") or "h2load", "-t1"]
    command += [f"-c{load.connections}", f"-m{load.streams}"]
    command += [f"-H{header}" for header in load.headers]
    if protocol == "http1":
        command.append("--h1")
    scheme = "https" if protocol == "tls" else "http"
    return [*command, f"{scheme}://{HOST}:{port}{load.path}"]


def _outcome(told: Told, generator: float) -> Outcome:
    if told.failed or not told.requests:
        raise LoadFailed(f"{told.failed} of {told.requests + told.failed} requests went wrong")
    return Outcome(told.requests, told.per_second, told.took_s, generator)


def _run(command: Sequence[str], patience_s: float) -> tuple[str, float]:
    """Run a generator; return what it said and the share of a core that it used."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=patience_s,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        raise LoadFailed(f"no end after {expired.timeout:.0f} s") from None
    took_s = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = done.stdout.decode(errors="replace")
    if done.returncode:
        raise LoadFailed(f"{Path(command[0]).name} ended with {done.returncode}: {said[-300:]}")
    return said, used_s / took_s


@dataclass(frozen=True, slots=True)
class Cargo:
    """One cargo: the real binary, since rustup's stand-in takes its time to find it."""

    program: Path
    version: str

    @classmethod
    def find(cls) -> Self | None:
        """Return the machine's cargo, if it has one."""
        found = shutil.which("cargo")
        if found is None:
            return None
        rustup = shutil.which("rustup")
        if rustup is not None:
            said = subprocess.run(
                [rustup, "which", "cargo"], capture_output=True, text=True, check=False
            )
            found = said.stdout.strip() or found
        version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
        return cls(Path(found), version.stdout.strip())


class Client:
    """A package and a CARGO_HOME that reach the registry at one address."""

    def __init__(self, cargo: Cargo, place: Path, workload: Path, core: int | None) -> None:
        self._cargo = cargo
        self._core = core
        self.home = place / "cargo-home"
        self.package = place / "package"
        self.home.mkdir(parents=True)
        shutil.copytree(workload, self.package)

    def point_at(
        self, port: int, prefix: str, protocol: Protocol, certificate: Certificate
    ) -> None:
        """Write the configuration that leads cargo to a port, and forget what it led to before."""
        shutil.rmtree(self.home)
        self.home.mkdir()
        scheme = "https" if protocol == "tls" else "http"
        (self.home / "config.toml").write_text(f"""
[source.crates-io]
replace-with = "bench"
[registries.bench]
index = "sparse+{scheme}://{HOST}:{port}{prefix}/"
[http]
cainfo = "{certificate.authority}"
[net]
retry = 0
""")

    def forget(self) -> None:
        """Empty the CARGO_HOME except for its configuration."""
        shutil.rmtree(self.home / "registry", ignore_errors=True)
        (self.home / ".package-cache").unlink(missing_ok=True)

    def drop_lock(self) -> None:
        """Have cargo resolve again."""
        (self.package / "Cargo.lock").unlink(missing_ok=True)

    def run(self, command: str) -> float:
        """Run `cargo COMMAND` and return the seconds that it took."""
        line = ["env", *_NO_PROXIES, f"CARGO_HOME={self.home}", str(self._cargo.program), command]
        began = time.perf_counter()
        try:
            done = subprocess.run(
                pinned(self._core, line),
                cwd=self.package,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_CARGO_PATIENCE_S,
                check=False,
            )
        except subprocess.TimeoutExpired as expired:
            raise LoadFailed(f"cargo: no end after {expired.timeout:.0f} s") from None
        took_s = time.perf_counter() - began
        if done.returncode:
            raise LoadFailed(f"cargo {command}: {done.stderr[-400:].strip()}")
        return took_s


class Relay:
    """The process that holds every byte for half a round trip; see `relay.py`."""

    def __init__(self, core: int | None) -> None:
        checkout = str(Path(__file__).resolve().parent.parent)
        command = ["env", f"PYTHONPATH={checkout}", sys.executable, "-m", "benchmarks.relay"]
        self._process = subprocess.Popen(
            pinned(core, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the relay by ending its input."""
        try:
            self._process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def route(self, target: int, rtt_ms: float) -> int:
        """Return a port that leads to `target`, so far away."""
        return self._order({"target": target, "rtt_ms": rtt_ms})["port"]

    def sent_to_client(self, port: int) -> int:
        """Return how many bytes went through a route towards the client so far."""
        return self._order({"count": port})["to_client"]

    def _order(self, order: dict[str, float]) -> dict[str, int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, int] = json.loads(self._process.stdout.readline())
        return answer
