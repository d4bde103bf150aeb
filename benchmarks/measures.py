"""What is measured, and in which order.

There are four sections. `cargo` is real cargo at a distance from servers that have everything.
`cold` is real cargo through servers that have nothing and whose registry is at a distance, beside
the same registry reached directly. `hot` asks for one object over and over. `stampede` is many
clients who ask at the same moment for what nobody has.

A section runs in rounds. In each round every row is taken, in each row every contender, beginning
with another one each time. The first round is always finished; another is begun if one like the
last still fits into the section's time, so that a run has an end on a slow machine too. What takes
long and is of less interest is taken in the first round alone: `cargo fetch` at other distances
than 5 ms, and the registry at other distances than the farthest.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.figures import Better, Cell, Row, Sample
from benchmarks.load import (
    Cargo,
    Client,
    Load,
    LoadFailed,
    Outcome,
    Relay,
    run_h2load,
    run_stampede,
    run_wrk,
)
from benchmarks.peers import (
    PEERS,
    PROTOCOLS,
    Asked,
    Peer,
    Protocol,
    Server,
    Site,
    StartFailed,
    ask,
    start_registry_h2c,
)
from benchmarks.registry import CRATES, INDEXES, crate_path, index_path

STAMPEDE_CLIENTS: Final = 64
_STAMPEDE_RTT_MS: Final = 20
_FETCH_RTT_MS: Final = 5
_MEBIBYTE: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything: rounds at most, seconds for each section, distances, durations."""

    name: str
    rounds: int
    section_s: dict[str, float]
    rtts_ms: tuple[int, ...]
    cold_rtts_ms: tuple[int, ...]
    fetch_rtts_ms: tuple[int, ...]
    hot_s: int
    hot_h2_ms: int


QUICK: Final = Plan(
    "quick",
    rounds=3,
    section_s={"cargo": 30, "cold": 32, "hot": 70, "stampede": 20},
    rtts_ms=(5, 20),
    cold_rtts_ms=(20,),
    fetch_rtts_ms=(5,),
    hot_s=1,
    hot_h2_ms=500,
)
FULL: Final = Plan(
    "full",
    rounds=7,
    section_s={"cargo": 170, "cold": 200, "hot": 220, "stampede": 40},
    rtts_ms=(0, 1, 5, 20),
    cold_rtts_ms=(0, 1, 5, 20),
    fetch_rtts_ms=(0, 1, 5, 20),
    hot_s=2,
    hot_h2_ms=2000,
)


@dataclass(frozen=True, slots=True)
class Contender:
    """One server in one protocol. `server` starts it; None is the registry itself."""

    peer: Peer | None
    protocol: Protocol

    @property
    def label(self) -> str:
        """How it is called in rows and targets."""
        return label("direct" if self.peer is None else self.peer.name, self.protocol)


@dataclass(frozen=True, slots=True)
class Head:
    """What is said about a row."""

    name: str
    section: str
    title: str
    unit: str
    better: Better


class Results:
    """The rows so far."""

    def __init__(self) -> None:
        self._heads: dict[str, Head] = {}
        self._samples: dict[str, dict[str, list[Sample | None]]] = {}
        self._failures: dict[str, dict[str, list[str]]] = {}

    def add(self, head: Head, contender: str, sample: Sample | LoadFailed) -> None:
        """Add one measurement, or the reason why there is none."""
        self._heads.setdefault(head.name, head)
        samples = self._samples.setdefault(head.name, {}).setdefault(contender, [])
        if isinstance(sample, Sample):
            samples.append(sample)
            return
        samples.append(None)
        failures = self._failures.setdefault(head.name, {}).setdefault(contender, [])
        failures.append(str(sample))

    def rows(self) -> tuple[Row, ...]:
        """Return the rows in the order in which they were begun."""
        return tuple(
            Row(
                head.name,
                head.section,
                head.title,
                head.unit,
                head.better,
                tuple(
                    Cell(who, tuple(samples), tuple(self._failures.get(name, {}).get(who, ())))
                    for who, samples in self._samples[name].items()
                ),
            )
            for name, head in self._heads.items()
        )


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that a section needs; `clients` is where cargo keeps what it is given."""

    site: Site
    clients: Path
    registry: Server
    relay: Relay
    cargo: Cargo | None
    plan: Plan
    peers: tuple[Peer, ...]
    results: Results
    say: Callable[[str], None]


Section = Callable[[Bench], None]


def label(name: str, protocol: Protocol) -> str:
    """Return what a server in a protocol is called."""
    return f"{name} {PROTOCOLS[protocol]}"


def installed() -> tuple[tuple[Peer, ...], tuple[str, ...]]:
    """Return the peers that can be measured here, and the packages that the others need."""
    here = tuple(peer for peer in PEERS if peer.is_installed)
    return here, tuple(dict.fromkeys(peer.package for peer in PEERS if not peer.is_installed))


def _rounds(bench: Bench, section: str) -> Iterator[int]:
    until = time.perf_counter() + bench.plan.section_s[section]
    last_s = 0.0
    for number in range(bench.plan.rounds):
        began = time.perf_counter()
        if number and began + last_s > until:
            return
        bench.say(f"{section}: round {number + 1}")
        yield number
        last_s = time.perf_counter() - began


def _turned(items: Sequence[Contender], by: int) -> list[Contender]:
    by %= max(len(items), 1)
    return [*items[by:], *items[:by]]


def _for_cargo(bench: Bench) -> list[Contender]:
    """Return each server in the best protocol that cargo gets to speak with it, and over TLS."""
    chosen = []
    for peer in bench.peers:
        # Cargo comes to h2c by Upgrade alone, which nginx does not do.
        cleartext: Protocol = "h2c" if "h2c" in peer.protocols and peer.name != "nginx" else "http1"
        if cleartext in peer.protocols:
            chosen.append(Contender(peer, cleartext))
        if "tls" in peer.protocols:
            chosen.append(Contender(peer, "tls"))
    return chosen


def measure_cargo(bench: Bench) -> None:
    """Run cargo at each distance from servers that have everything."""
    if bench.cargo is None:
        return
    with ExitStack() as stack:
        servers = _warm_servers(bench, bench.cargo, stack)
        clients = {
            (contender, rtt_ms): placed
            for rtt_ms in bench.plan.rtts_ms
            for contender, server in servers.items()
            if (placed := _warm_client(bench, bench.cargo, contender, server, rtt_ms))
        }
        for number in _rounds(bench, "cargo"):
            for rtt_ms in bench.plan.rtts_ms:
                for contender in _turned(list(servers), number):
                    reached = clients.get((contender, rtt_ms))
                    if reached is not None:
                        fetches = rtt_ms == _FETCH_RTT_MS or (
                            number == 0 and rtt_ms in bench.plan.fetch_rtts_ms
                        )
                        _cargo_rows(bench, contender.label, reached, rtt_ms, fetches=fetches)


def _warm_servers(bench: Bench, cargo: Cargo, stack: ExitStack) -> dict[Contender, Server]:
    """Start every server, once however many protocols it speaks, and let it fetch everything."""
    started: dict[Peer, Server] = {}
    servers = {}
    for contender in _for_cargo(bench):
        assert contender.peer is not None
        try:
            if contender.peer not in started:
                server = contender.peer.start(bench.site, bench.registry.ports["http1"])
                stack.callback(server.stop)
                _place_client(bench, cargo, server, contender.protocol, 0).client.run("fetch")
                started[contender.peer] = server
            servers[contender] = started[contender.peer]
        except (StartFailed, LoadFailed) as failure:
            bench.say(f"left out: {contender.label}: {failure}")
    return servers


def _warm_client(
    bench: Bench, cargo: Cargo, contender: Contender, server: Server, rtt_ms: int
) -> "_Placed | None":
    """Return a client that has the index, or None and a failure in the row if it cannot get it."""
    placed = _place_client(bench, cargo, server, contender.protocol, rtt_ms)
    try:
        placed.client.run("update")
    except LoadFailed as failure:
        bench.results.add(_update(rtt_ms), contender.label, failure)
        return None
    return placed


@dataclass(frozen=True, slots=True)
class _Placed:
    """A cargo client, the server that it uses, and the port by which it gets there."""

    client: Client
    server: Server
    port: int
    is_relayed: bool


def _place_client(
    bench: Bench, cargo: Cargo, server: Server, protocol: Protocol, rtt_ms: int
) -> _Placed:
    """Lead a client of its own, which has nothing yet, to a server."""
    port = server.ports[protocol]
    if rtt_ms:
        port = bench.relay.route(port, rtt_ms)
    client = _new_client(bench, cargo)
    client.point_at(port, server.prefix, protocol, bench.site.certificate)
    return _Placed(client, server, port, rtt_ms > 0)


def _new_client(bench: Bench, cargo: Cargo) -> Client:
    place = Path(tempfile.mkdtemp(prefix="client-", dir=bench.clients))
    return Client(cargo, place, bench.site.laid.workload, bench.site.cores.load)


def _cargo_head(name: str, title: str, rtt_ms: int) -> Head:
    title = f"{title}, {rtt_ms} ms from the proxy"
    return Head(f"{name}-{rtt_ms}ms", "cargo", title, "s", "lower")


def _update(rtt_ms: int) -> Head:
    return _cargo_head("update", "`cargo update`, everything warm", rtt_ms)


def _cargo_rows(bench: Bench, who: str, placed: _Placed, rtt_ms: int, *, fetches: bool) -> None:
    def take(head: Head, command: str) -> None:
        try:
            bench.results.add(head, who, _timed(bench, placed, command))
        except LoadFailed as failure:
            bench.results.add(head, who, failure)

    take(_update(rtt_ms), "update")
    if not fetches:
        return
    placed.client.forget()
    title = "`cargo fetch` with an empty CARGO_HOME, the proxy warm"
    take(_cargo_head("fetch-cold-home", title, rtt_ms), "fetch")
    placed.client.drop_lock()
    title = "`cargo fetch` without a lock file, everything warm"
    take(_cargo_head("fetch-warm", title, rtt_ms), "fetch")


def _timed(bench: Bench, placed: _Placed, command: str) -> Sample:
    sent = bench.relay.sent_to_client(placed.port) if placed.is_relayed else 0
    used_s = placed.server.usage().cpu_s
    took_s = placed.client.run(command)
    notes = [("server_cpu_s", placed.server.usage().cpu_s - used_s)]
    if placed.is_relayed:
        now = bench.relay.sent_to_client(placed.port)
        notes.append(("to_client_bytes", float(now - sent)))
    return Sample(took_s, notes=tuple(notes))


def measure_cold(bench: Bench) -> None:
    """Run a cargo that has nothing through proxies that have nothing, and without a proxy."""
    if bench.cargo is None:
        return
    asked = Asked(bench.registry)
    client = _new_client(bench, bench.cargo)
    direct: list[Contender] = [Contender(None, "http1"), Contender(None, "tls")]
    with ExitStack() as stack:
        ports = dict(bench.registry.ports)
        if any(peer.name == "nginx+nghttpx" for peer in bench.peers):
            front = start_registry_h2c(bench.site, bench.registry)
            stack.callback(front.stop)
            ports["h2c"] = front.ports["h2c"]
            direct.append(Contender(None, "h2c"))
        for number in _rounds(bench, "cold"):
            for rtt_ms in bench.plan.cold_rtts_ms[-1 if number else 0 :]:
                head = Head(
                    f"fetch-cold-{rtt_ms}ms",
                    "cold",
                    f"`cargo fetch`, everything empty, the registry {rtt_ms} ms away",
                    "s",
                    "lower",
                )
                far = {
                    protocol: bench.relay.route(port, rtt_ms) if rtt_ms else port
                    for protocol, port in ports.items()
                }
                for contender in _turned([*_for_cargo(bench), *direct], number):
                    asked.since()
                    try:
                        sample = _cold_run(bench, client, contender, far, asked)
                        bench.results.add(head, contender.label, sample)
                    except LoadFailed as failure:
                        bench.results.add(head, contender.label, failure)
                    except StartFailed as failure:
                        bench.say(f"left out: {failure}")


def _cold_run(
    bench: Bench,
    client: Client,
    contender: Contender,
    far: dict[Protocol, int],
    asked: Asked,
) -> Sample:
    server = contender.peer.start(bench.site, far["http1"]) if contender.peer else None
    try:
        port = server.ports[contender.protocol] if server else far[contender.protocol]
        prefix = server.prefix if server else ""
        client.point_at(port, prefix, contender.protocol, bench.site.certificate)
        took_s = client.run("fetch")
        used_s = server.usage().cpu_s if server else 0.0
    finally:
        if server is not None:
            server.stop()
    tally = asked.since()
    notes = (
        ("upstream_requests", float(tally.requests)),
        ("from_upstream_bytes", float(tally.sent_bytes)),
        ("server_cpu_s_with_start", used_s),
    )
    return Sample(took_s, notes=notes)


@dataclass(frozen=True, slots=True)
class _HotRow:
    """One object to ask for, and how hard in each kind of protocol."""

    key: str
    title: str
    crate: str
    is_index: bool
    conditional: bool
    http1_connections: int
    h2_connections: int
    h2_streams: int
    over_tls: bool


def _hot_rows() -> list[_HotRow]:
    rows = []
    for index in INDEXES:
        title = f"hot index of {index.size_bytes // 1000} KB, 200"
        is_small = index is INDEXES[0]
        rows.append(
            _HotRow(index.key, title, index.crate, True, False, 32, 4, 25, over_tls=is_small)
        )
    small = INDEXES[0]
    title = f"hot index of {small.size_bytes // 1000} KB, 304"
    rows.append(_HotRow("index-304", title, small.crate, True, True, 32, 4, 25, over_tls=True))
    for crate in CRATES:
        title = f"hot crate of {crate.size_bytes // 1000} KB"
        rows.append(_HotRow(crate.key, title, crate.crate, False, False, 8, 4, 4, over_tls=False))
    return rows


def measure_hot(bench: Bench) -> None:
    """Ask for one object over and over, as fast as one core of clients can."""
    with ExitStack() as stack:
        servers: dict[int, Server] = {}
        for place, peer in enumerate(bench.peers):
            try:
                server = peer.start(bench.site, bench.registry.ports["http1"])
            except StartFailed as failure:
                bench.say(f"left out: {failure}")
                continue
            stack.callback(server.stop)
            servers[place] = server
            _note_memory(bench, "memory-start", "memory after the start", server, peer)
        contenders = [
            (Contender(bench.peers[place], protocol), server)
            for place, server in servers.items()
            for protocol in server.ports
        ]
        for number in _rounds(bench, "hot"):
            for row in _hot_rows():
                by = number % max(len(contenders), 1)
                for contender, server in [*contenders[by:], *contenders[:by]]:
                    if contender.protocol != "tls" or row.over_tls:
                        _take_hot(bench, row, contender, server)
        for place, server in servers.items():
            peer = bench.peers[place]
            _note_memory(bench, "memory-load", "memory after the load", server, peer)


def _note_memory(bench: Bench, name: str, title: str, server: Server, peer: Peer) -> None:
    who = f"{server.name} TLS" if peer.protocols == ("tls",) else server.name
    sample = Sample(server.usage().resident_bytes / _MEBIBYTE)
    bench.results.add(Head(name, "memory", title, "MiB", "lower"), who, sample)


def _take_hot(bench: Bench, row: _HotRow, contender: Contender, server: Server) -> None:
    protocol = contender.protocol
    said = PROTOCOLS[protocol]
    head = Head(f"{row.key}-{protocol}", "hot", f"{row.title}, {said}", "requests/s", "higher")
    path = server.index(row.crate) if row.is_index else server.crate(row.crate)
    try:
        headers = _warm(bench, server, path, conditional=row.conditional)
        used_s = server.usage().cpu_s
        outcome = _hot_load(bench, row, server, protocol, path, headers)
    except LoadFailed as failure:
        bench.results.add(head, contender.label, failure)
        return
    sample = Sample(
        outcome.per_second,
        generator=outcome.generator,
        server_s=server.usage().cpu_s - used_s,
        requests=outcome.requests,
    )
    bench.results.add(head, contender.label, sample)


def _warm(bench: Bench, server: Server, path: str, *, conditional: bool) -> tuple[str, ...]:
    """Have the server fetch an object; return the header for a conditional request if wanted."""
    try:
        ask(server, path, bench.site.certificate)
        status, etag, _ = ask(server, path, bench.site.certificate)
    except OSError as error:
        raise LoadFailed(f"{path}: {error}") from error
    if status != 200:
        raise LoadFailed(f"{path} is {status}")
    if not conditional:
        return ()
    if not etag:
        raise LoadFailed(f"{path} has no ETag")
    return (f"If-None-Match: {etag}",)


def _hot_load(
    bench: Bench,
    row: _HotRow,
    server: Server,
    protocol: Protocol,
    path: str,
    headers: tuple[str, ...],
) -> Outcome:
    core, port = bench.site.cores.load, server.ports[protocol]
    if protocol == "http1":
        load = Load(path, row.http1_connections, 1, headers)
        return run_wrk(core, port, load, bench.plan.hot_s)
    load = Load(path, row.h2_connections, row.h2_streams, headers)
    return run_h2load(core, port, load, bench.plan.hot_h2_ms, protocol)


def measure_stampede(bench: Bench) -> None:
    """Have many clients ask at once for what nobody has, the registry being at a distance."""
    asked = Asked(bench.registry)
    far = bench.relay.route(bench.registry.ports["http1"], _STAMPEDE_RTT_MS)
    contenders = [
        Contender(peer, protocol)
        for peer in bench.peers
        for protocol in peer.protocols
        if protocol == "http1" or (protocol == "h2c" and peer.name != "nginx")
    ]
    for number in _rounds(bench, "stampede"):
        for contender in _turned(contenders, number):
            assert contender.peer is not None
            try:
                server = contender.peer.start(bench.site, far)
            except StartFailed as failure:
                bench.say(f"left out: {failure}")
                continue
            try:
                _stampede_rows(bench, contender, server, asked)
            finally:
                server.stop()


def _stampede_rows(bench: Bench, contender: Contender, server: Server, asked: Asked) -> None:
    small = INDEXES[0]
    objects = [(small.key, "an index file", server.index(small.crate), index_path(small.crate))]
    objects += [
        (each.key, f"a crate of {each.size_bytes // 1000} KB", path, crate_path(each.crate))
        for each in CRATES[1:]
        for path in (server.crate(each.crate),)
    ]
    for key, what, path, upstream_path in objects:
        head = Head(
            f"stampede-{key}",
            "stampede",
            f"{STAMPEDE_CLIENTS} clients at once for {what}, the registry 20 ms away",
            "s",
            "lower",
        )
        counted = Head(
            f"stampede-{key}-upstream",
            "stampede",
            f"requests to the registry for {what} that {STAMPEDE_CLIENTS} clients want",
            "requests",
            "lower",
        )
        asked.since()
        core, port = bench.site.cores.load, server.ports[contender.protocol]
        load = Load(path, STAMPEDE_CLIENTS, 1)
        try:
            outcome = run_stampede(core, port, load, STAMPEDE_CLIENTS, contender.protocol)
        except LoadFailed as failure:
            bench.results.add(head, contender.label, failure)
            bench.results.add(counted, contender.label, failure)
            continue
        tally = asked.since()
        notes = (("from_upstream_bytes", float(tally.sent_bytes)),)
        bench.results.add(head, contender.label, Sample(outcome.took_s, notes=notes))
        for_it = tally.by_path.get(f"/{upstream_path}", 0)
        bench.results.add(counted, contender.label, Sample(float(for_it)))


SECTIONS: Final[dict[str, Section]] = {
    "cargo": measure_cargo,
    "cold": measure_cold,
    "hot": measure_hot,
    "stampede": measure_stampede,
}
