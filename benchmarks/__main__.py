"""The command line of the benchmarks: `python -m benchmarks`, or `make bench`.

Everything runs on the loopback interface, in a directory of its own that is removed at the end, and
ends by itself. Where there are two cores, the servers share one and the rest has the other.
"""

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Final

from benchmarks.load import Cargo, Relay
from benchmarks.measures import FULL, QUICK, SECTIONS, Bench, Plan, Results, installed
from benchmarks.peers import Certificate, Cores, Peer, Site, find, start_registry
from benchmarks.registry import Laid, lay_out
from benchmarks.registry import find as find_sources
from benchmarks.report import Run, as_text, write_all

_OUTPUT: Final = Path("docs/benchmarks")
_ROOMY_BYTES: Final = 8 * 1024**3
_TOOLS: Final = {"wrk": "wrk", "h2load": "nghttp2-client", "nginx": "nginx"}


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.splitlines()[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="few rounds, 3 minutes; the default")
    length.add_argument("--full", action="store_true", help="more rounds and distances, 12 minutes")
    parser.add_argument(
        "--only",
        action="append",
        choices=sorted(SECTIONS),
        metavar="NAME",
        help=f"one section: {', '.join(SECTIONS)}; may be repeated",
    )
    parser.add_argument("--corpus", type=Path, help="a directory with index/ and crates/")
    parser.add_argument("--workload", type=Path, help="a package that resolves in the corpus")
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="where the results go")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    chosen = _arguments(arguments)
    missing = [package for tool, package in _TOOLS.items() if find(tool) is None]
    if missing:
        print(f"needed, and not installed: {', '.join(missing)}", file=sys.stderr)
        return 3
    signal.signal(signal.SIGTERM, _end)
    plan = FULL if chosen.full else QUICK
    sources = find_sources(chosen.corpus, chosen.workload)
    peers, left_out = installed()
    cargo = Cargo.find()
    if cargo is None:
        left_out = (*left_out, "cargo")
    results = Results()
    began, load_before = time.perf_counter(), os.getloadavg()[0]
    memory = _roomy_memory()
    with ExitStack() as stack:
        place = stack.enter_context(_directory(None))
        clients = stack.enter_context(_directory(memory))
        laid = lay_out(place, sources)
        site = Site(laid, place, Certificate.make(place), Cores.of_this_machine())
        relay = stack.enter_context(Relay(site.cores.load))
        registry = start_registry(site)
        stack.callback(registry.stop)
        bench = Bench(site, clients, registry, relay, cargo, plan, peers, results, _say)
        for section, measure in SECTIONS.items():
            if not chosen.only or section in chosen.only:
                measure(bench)
    run = Run(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=" ".join(["python -m benchmarks", *_without_paths(chosen, plan)]),
        mode=plan.name,
        took_s=time.perf_counter() - began,
        machine=_machine(site.cores) | {"CARGO_HOME": "in memory" if memory else "on disk"},
        versions=_versions(peers, cargo),
        registry=_described(laid),
        left_out=left_out,
        load_average=(load_before, os.getloadavg()[0]),
    )
    rows = results.rows()
    print(as_text(rows))
    write_all(chosen.output, run, rows)
    print(f"\n{run.took_s:.0f} s; written to {chosen.output}")
    return 0


@contextmanager
def _directory(parent: Path | None) -> Iterator[Path]:
    """Make a directory that servers which give up their privileges can read, for a while."""
    with tempfile.TemporaryDirectory(
        prefix="holdfast-bench-", dir=parent, ignore_cleanup_errors=True
    ) as name:
        place = Path(name)
        place.chmod(0o755)
        yield place


def _roomy_memory() -> Path | None:
    """Return a file system in memory with room for many a CARGO_HOME, if there is one.

    On a disk most of a `cargo fetch` is the writing of thousands of small files, which is the
    client's own affair and varies more than what is measured.
    """
    memory = Path("/dev/shm")
    if not memory.is_dir() or not os.access(memory, os.W_OK):
        return None
    return memory if shutil.disk_usage(memory).free >= _ROOMY_BYTES else None


def _say(line: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {line}", file=sys.stderr, flush=True)


def _end(_number: int, _frame: FrameType | None) -> None:
    """Leave by way of every `finally`, so that nothing that was started stays behind."""
    raise SystemExit(143)


def _without_paths(chosen: argparse.Namespace, plan: Plan) -> list[str]:
    """Return the options as anybody could give them: where things lie on a machine is its own."""
    options = [f"--{plan.name}"]
    options += [f"--only {name}" for name in chosen.only or ()]
    if chosen.corpus is not None:
        options.append("--corpus DIR --workload DIR")
    return options


def _machine(cores: Cores) -> dict[str, str]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    memory = Path("/proc/meminfo").read_text().split()[1]
    pinned = "not pinned"
    if cores.servers is not None:
        pinned = f"servers on core {cores.servers}, load on core {cores.load}"
    return {
        "processor": f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores",
        "pinning": pinned,
        "memory": f"{int(memory) / 1024 / 1024:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }


def _versions(peers: Sequence[Peer], cargo: Cargo | None) -> dict[str, str]:
    versions = {peer.name: _first_line(peer.version) for peer in peers if peer.version}
    versions["h2load"] = _first_line(("h2load", "--version"))
    versions["wrk"] = _first_line(("wrk", "-v"))
    if cargo is not None:
        versions["cargo"] = cargo.version
    return versions


def _first_line(command: Sequence[str]) -> str:
    program = find(command[0]) or command[0]
    said = subprocess.run(
        [program, *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=20,
        text=True,
        check=False,
    )
    return said.stdout.strip().partition("\n")[0].partition("Copyright")[0].strip()


def _described(laid: Laid) -> dict[str, str]:
    return {"registry": f"{laid.crates} crates, {laid.source}"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
