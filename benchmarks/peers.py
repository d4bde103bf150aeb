"""The servers under test: how each is configured, started, looked at and stopped.

All stand in front of the same static registry and are told the same: an index file is fresh for an
hour (so that a warm run asks the upstream for nothing), simultaneous misses are one request, and
everything fits in memory. Apart from that each is set up as its documentation says, with one
worker. nginx is the usual Cargo recipe: `proxy_cache`, and a `config.json` that names the address
under which it is reached.

Each server is a tree of processes in a directory of its own. Only what was started here is stopped,
and all of it is: the tree is asked to end, and killed if it does not.
"""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import trustme

from benchmarks.registry import Laid, crate_path, index_path

HOST: Final = "127.0.0.1"
_START_PATIENCE_S: Final = 20.0
_STOP_PATIENCE_S: Final = 5.0
_SYSTEM_PATH: Final = f"{os.defpath}:/usr/local/sbin:/usr/sbin:/sbin"
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

Protocol = Literal["http1", "h2c", "tls"]
PROTOCOLS: Final[dict[Protocol, str]] = {
    "http1": "HTTP/1.1",
    "h2c": "h2c",
    "tls": "TLS, HTTP/2",
}


class StartFailed(Exception):
    """A server did not come up; the message ends with what it said."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core the servers run on, and which everything that makes them work; None: not said."""

    servers: int | None
    load: int | None

    @classmethod
    def of_this_machine(cls) -> Self:
        """Take the first two cores there are; with one, nothing is pinned."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[1]) if len(usable) > 1 else cls(None, None)


def pinned(core: int | None, command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` on one core."""
    if core is None or find("taskset") is None:
        return list(command)
    return ["taskset", "-c", str(core), *command]


def find(program: str) -> str | None:
    """Return where a program is, wherever Debian puts it."""
    return shutil.which(program) or shutil.which(program, path=_SYSTEM_PATH)


def free_port() -> int:
    """Return a port that the kernel says is free."""
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        assert isinstance(port, int)
        return port


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files of a certificate for the loopback address, and the authority that a client trusts."""

    chain: Path
    key: Path
    authority: Path

    @classmethod
    def make(cls, place: Path) -> Self:
        """Issue one for this run."""
        authority = trustme.CA()
        issued = authority.issue_cert(HOST, "localhost")
        files = cls(place / "cert.pem", place / "key.pem", place / "ca.pem")
        for blob in issued.cert_chain_pems:
            blob.write_to_path(files.chain, append=True)
        issued.private_key_pem.write_to_path(files.key)
        authority.cert_pem.write_to_path(files.authority)
        return files


@dataclass(frozen=True, slots=True)
class Site:
    """What every server is told: the registry, its own place, the upstream's port, the cores."""

    laid: Laid
    place: Path
    certificate: Certificate
    cores: Cores


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tree of processes has used so far, and holds now."""

    cpu_s: float
    resident_bytes: int


class Server:
    """A running tree of processes, and where it answers.

    `ports` has one port for each protocol that it speaks; `index` and `crate` give the paths under
    which it serves.
    """

    def __init__(
        self,
        name: str,
        ports: dict[Protocol, int],
        place: Path,
        *,
        under: str = "",
        digests: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.ports = ports
        self.place = place
        self._under = under
        self._digests = digests
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def prefix(self) -> str:
        """What the path of the index begins with, without a slash at its end."""
        return self._under and f"/{self._under}/index"

    def index(self, crate: str) -> str:
        """Return the path of a crate's index file."""
        return f"{self.prefix}/{index_path(crate)}"

    def crate(self, crate: str, version: str = "1.0.0") -> str:
        """Return the path of a crate file, as the server's own config.json would have it."""
        if self._digests is None:
            return f"/{crate_path(crate, version)}"
        return f"/{self._under}/crates/{crate}/{version}/{self._digests[crate]}"

    def spawn(self, core: int | None, command: Sequence[str]) -> None:
        """Start one process of the tree; what it says goes to a file in its place."""
        with (self.place / "output").open("ab") as output:
            process = subprocess.Popen(
                pinned(core, command),
                cwd=self.place,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._processes.append(process)

    def await_answers(self) -> None:
        """Wait until every port accepts connections, or raise StartFailed."""
        deadline = time.monotonic() + _START_PATIENCE_S
        for port in self.ports.values():
            while not _accepts(port):
                ended = any(process.poll() is not None for process in self._processes)
                if ended or time.monotonic() > deadline:
                    said = (self.place / "output").read_text(errors="replace")[-400:].strip()
                    self.stop()
                    raise StartFailed(f"{self.name} did not start: {said}")
                time.sleep(0.02)

    def usage(self) -> Usage:
        """Add up what the tree's processes used, the ended ones included."""
        cpu_ticks = resident = 0
        for pid in self._tree():
            with contextlib.suppress(OSError):
                fields = _stat(pid)
                cpu_ticks += sum(int(field) for field in fields[11:15])
                resident += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return Usage(cpu_ticks / _TICKS, resident * _PAGE)

    def stop(self) -> None:
        """End the tree."""
        for process in reversed(self._processes):
            tree = _descendants([process.pid])
            process.terminate()
            try:
                process.wait(_STOP_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pid in tree[1:]:
                _kill_what_was_left(pid, process.pid)
        self._processes.clear()

    def _tree(self) -> list[int]:
        return _descendants([process.pid for process in self._processes])


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat that follow the name; the first is the state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _descendants(roots: Sequence[int]) -> list[int]:
    """Return the roots and all that descends from them, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found = list(roots)
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def _kill_what_was_left(pid: int, session: int) -> None:
    """Kill a process that outlived its parent, if it still is of the session that we began."""
    with contextlib.suppress(OSError, IndexError):
        if int(_stat(pid)[3]) == session:
            os.kill(pid, signal.SIGKILL)


Start = Callable[[Site, int], Server]


@dataclass(frozen=True, slots=True)
class Peer:
    """A kind of server: what it needs, how it is started before which upstream, what it speaks.

    `versions` are the commands that say which version it is.
    """

    name: str
    programs: tuple[str, ...]
    package: str
    protocols: tuple[Protocol, ...]
    start: Start
    version: tuple[str, ...]

    @property
    def is_installed(self) -> bool:
        """Whether the machine has everything it takes."""
        return all(find(program) is not None for program in self.programs)


def _place(site: Site, name: str) -> Path:
    """Make a directory for one server, which servers that give up their privileges can use."""
    place = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=site.place))
    place.chmod(0o777)
    return place


def start_registry(site: Site) -> Server:
    """Start the static registry, which logs what it is asked; `Asked` reads that log."""
    place = _place(site, "registry")
    ports: dict[Protocol, int] = {"http1": free_port(), "tls": free_port()}
    root = site.laid.root
    server = f"""
    log_format asked '$request_uri $status $bytes_sent';
    access_log {place}/asked.log asked;
    server {{
      listen {HOST}:{ports["http1"]};
      listen {HOST}:{ports["tls"]} ssl http2;
      {_nginx_config_json()}
      location /crates/ {{ root {root}; }}
      location / {{ root {root}/index; }}
    }}"""
    return _nginx(site, "registry", ports, place, server, core=site.cores.load)


def start_holdfast(site: Site, upstream: int) -> Server:
    """Start the proxy of this checkout, in cleartext; it speaks both protocols on one port."""
    return _holdfast(site, upstream, {"http1": free_port()}, tls=False)


def start_holdfast_tls(site: Site, upstream: int) -> Server:
    """Start the proxy of this checkout with a certificate."""
    return _holdfast(site, upstream, {"tls": free_port()}, tls=True)


def _holdfast(site: Site, upstream: int, ports: dict[Protocol, int], *, tls: bool) -> Server:
    place = _place(site, "holdfast")
    port = next(iter(ports.values()))
    files = site.certificate
    certificate = f'tls = {{ certificate = "{files.chain}", key = "{files.key}" }}' if tls else ""
    (place / "holdfast.toml").write_text(f"""
[server]
listen = ["{HOST}:{port}"]
{certificate}
[cache]
dir = "{place}/cache"
[state]
dir = "{place}/state"
[upstreams.crates-io]
index = "sparse+http://{HOST}:{upstream}/"
fresh_for = "1h"
""")
    name = "holdfast"
    spoken: dict[Protocol, int] = ports if tls else {"http1": port, "h2c": port}
    server = Server(name, spoken, place, under="crates-io", digests=site.laid.digests)
    checkout = str(Path(__file__).resolve().parent.parent)
    command = ["env", f"PYTHONPATH={checkout}", sys.executable, "-m", "proxy", "serve"]
    server.spawn(site.cores.servers, [*command, "--config", str(place / "holdfast.toml")])
    server.await_answers()
    return server


def start_nginx(site: Site, upstream: int) -> Server:
    """Start nginx with `proxy_cache`: HTTP/1.1, HTTP/2 by prior knowledge, HTTP/2 over TLS."""
    place = _place(site, "nginx")
    ports: dict[Protocol, int] = {"http1": free_port(), "h2c": free_port(), "tls": free_port()}
    return _nginx(site, "nginx", ports, place, _nginx_cache(place, upstream, ports))


def start_nghttpx(site: Site, upstream: int) -> Server:
    """Start nginx with nghttpx in front of it, which accepts cargo's Upgrade."""
    server = start_nginx(site, upstream)
    return _behind_nghttpx(site, server, "nginx+nghttpx", site.cores.servers)


def start_registry_h2c(site: Site, registry: Server) -> Server:
    """Start nghttpx before the static registry, so that cargo may reach that by h2c directly."""
    server = Server("registry+nghttpx", dict(registry.ports), _place(site, "nghttpx"))
    return _behind_nghttpx(site, server, "direct", site.cores.load)


def _behind_nghttpx(site: Site, server: Server, name: str, core: int | None) -> Server:
    del site
    port = free_port()
    command = [find("nghttpx") or "nghttpx", "--conf=/dev/null", "--workers=1"]
    command += [f"--frontend={HOST},{port};no-tls", f"--backend={HOST},{server.ports['http1']}"]
    command += ["--accesslog-file=/dev/null", "--errorlog-file=/dev/stderr"]
    command += [
        "--backend-connections-per-frontend=64",
        "--frontend-http2-max-concurrent-streams=256",
    ]
    server.spawn(core, command)
    server.name = name
    server.ports = {"h2c": port}
    server.await_answers()
    return server


def _nginx(
    site: Site,
    name: str,
    ports: dict[Protocol, int],
    place: Path,
    body: str,
    *,
    core: int | None = None,
) -> Server:
    who = "user root root;" if os.geteuid() == 0 else ""
    temporary = "\n".join(
        f"    {kind}_temp_path {place}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (place / "nginx.conf").write_text(f"""{who}
daemon off; worker_processes 1; pid {place}/pid; error_log {place}/error.log warn;
events {{ worker_connections 4096; }}
http {{
{temporary}
    sendfile on; tcp_nopush on; keepalive_timeout 600s; keepalive_requests 1000000000;
    http2_max_concurrent_streams 256; default_type text/plain; open_file_cache max=4096;
    ssl_certificate {site.certificate.chain}; ssl_certificate_key {site.certificate.key};
{body}
}}
""")
    server = Server(name, ports, place)
    command = [find("nginx") or "nginx", "-p", str(place), "-e", f"{place}/error.log"]
    server.spawn(
        site.cores.servers if core is None else core, [*command, "-c", f"{place}/nginx.conf"]
    )
    server.await_answers()
    return server


def _nginx_config_json() -> str:
    template = '{"dl":"$scheme://$http_host/crates/{crate}/{crate}-{version}.crate"}'
    return f"location = /config.json {{ default_type application/json; return 200 '{template}'; }}"


def _nginx_cache(place: Path, upstream: int, ports: dict[Protocol, int]) -> str:
    return f"""
    access_log off;
    proxy_cache_path {place}/cache levels=1:2 keys_zone=cargo:16m max_size=4g inactive=7d
                     use_temp_path=off;
    upstream registry {{ server {HOST}:{upstream}; keepalive 64; }}
    server {{
      listen {HOST}:{ports["http1"]};
      listen {HOST}:{ports["h2c"]} http2;
      listen {HOST}:{ports["tls"]} ssl http2;
      {_nginx_config_json()}
      location / {{
        proxy_pass http://registry; proxy_http_version 1.1;
        proxy_set_header Connection ""; proxy_set_header Host {HOST}:{upstream};
        proxy_cache cargo; proxy_cache_key $uri; proxy_cache_valid 200 1h; proxy_cache_valid 404 1m;
        proxy_cache_lock on; proxy_cache_lock_timeout 60s; proxy_cache_lock_age 60s;
        proxy_cache_revalidate on; proxy_cache_background_update on;
        proxy_cache_use_stale error timeout updating http_500 http_502 http_503 http_504;
      }}
    }}"""


def start_varnish(site: Site, upstream: int) -> Server:
    """Start Varnish as it comes, without HTTP/2."""
    return _varnish(site, upstream, "http1", ())


def start_varnish_h2c(site: Site, upstream: int) -> Server:
    """Start Varnish with HTTP/2 switched on, which it speaks in cleartext alone."""
    settings = ("-p", "feature=+http2", "-p", "h2_max_concurrent_streams=256")
    return _varnish(site, upstream, "h2c", settings)


def _varnish(site: Site, upstream: int, protocol: Protocol, settings: Sequence[str]) -> Server:
    place = _place(site, "varnish")
    port = free_port()
    quotes, template = '"' * 3, '/crates/{crate}/{crate}-{version}.crate"}'
    (place / "default.vcl").write_text(f"""vcl 4.1;
backend registry {{ .host = "{HOST}"; .port = "{upstream}"; }}
sub vcl_recv {{ if (req.url == "/config.json") {{ return (synth(200)); }} return (hash); }}
sub vcl_hash {{ hash_data(req.url); return (lookup); }}
sub vcl_backend_fetch {{ set bereq.http.Host = "{HOST}:{upstream}"; }}
sub vcl_backend_response {{ set beresp.ttl = 1h; set beresp.grace = 1h; return (deliver); }}
sub vcl_synth {{
  set resp.http.Content-Type = "application/json";
  set resp.body = {{"{{"dl":"http://"}} + req.http.host + {quotes}{template}{quotes};
  return (deliver);
}}
""")
    command = [find("varnishd") or "varnishd", "-F", "-j", "none", "-n", f"{place}/work"]
    command += ["-a", f"{HOST}:{port}", "-f", f"{place}/default.vcl", "-s", "malloc,1g"]
    command += ["-T", "none", *settings]
    server = Server("varnish", {protocol: port}, place)
    server.spawn(site.cores.servers, command)
    server.await_answers()
    return server


def start_squid(site: Site, upstream: int) -> Server:
    """Start Squid as an accelerator; the registry's own config.json names the address asked."""
    place = _place(site, "squid")
    port = free_port()
    (place / "squid.conf").write_text(f"""
http_port {HOST}:{port} accel vhost allow-direct
cache_peer {HOST} parent {upstream} 0 no-query originserver name=registry
cache_peer_access registry allow all
never_direct allow all
http_access allow all
cache_mem 1 GB
maximum_object_size_in_memory 64 MB
maximum_object_size 64 MB
memory_cache_mode always
collapsed_forwarding on
refresh_pattern . 60 100% 60 override-lastmod
access_log none
cache_log {place}/cache.log
cache_store_log none
netdb_filename none
pid_filename none
coredump_dir {place}
shutdown_lifetime 0 seconds
pinger_enable off
workers 1
visible_hostname localhost
max_filedescriptors 4096
""")
    command = [find("squid") or "squid", "-N", "-f", f"{place}/squid.conf"]
    server = Server("squid", {"http1": port}, place)
    server.spawn(site.cores.servers, command)
    server.await_answers()
    return server


PEERS: Final = (
    Peer(
        "holdfast",
        (),
        "",
        ("http1", "h2c"),
        start_holdfast,
        (sys.executable, "-m", "proxy", "--version"),
    ),
    Peer("holdfast", (), "", ("tls",), start_holdfast_tls, ()),
    Peer("nginx", ("nginx",), "nginx", ("http1", "h2c", "tls"), start_nginx, ("nginx", "-v")),
    Peer(
        "nginx+nghttpx",
        ("nginx", "nghttpx"),
        "nghttp2-proxy",
        ("h2c",),
        start_nghttpx,
        ("nghttpx", "--version"),
    ),
    Peer("varnish", ("varnishd",), "varnish", ("http1",), start_varnish, ("varnishd", "-V")),
    Peer("varnish", ("varnishd",), "varnish", ("h2c",), start_varnish_h2c, ()),
    Peer("squid", ("squid",), "squid", ("http1",), start_squid, ("squid", "--version")),
)


class Asked:
    """What the static registry was asked since the last look, read from its log."""

    def __init__(self, registry: Server) -> None:
        self._log = registry.place / "asked.log"
        self._seen_bytes = self._log.stat().st_size

    def since(self) -> "Tally":
        """Return what was asked since the last call, or since the beginning."""
        with self._log.open("rb") as log:
            log.seek(self._seen_bytes)
            text = log.read()
        self._seen_bytes += len(text)
        return tally(text.decode())


@dataclass(frozen=True, slots=True)
class Tally:
    """Requests that reached the registry, and the bytes of its answers with their headers."""

    requests: int
    sent_bytes: int
    by_path: dict[str, int]


def tally(log: str) -> Tally:
    """Count the lines of the registry's log."""
    by_path: dict[str, int] = {}
    sent = 0
    for line in log.splitlines():
        path, _, size = line.split()
        by_path[path] = by_path.get(path, 0) + 1
        sent += int(size)
    return Tally(sum(by_path.values()), sent, by_path)


def ask(server: Server, path: str, certificate: Certificate) -> tuple[int, str, int]:
    """Ask once over HTTP/1.1; return the status, the ETag and the size of the body."""
    connection: http.client.HTTPConnection
    if "http1" in server.ports:
        connection = http.client.HTTPConnection(HOST, server.ports["http1"], timeout=30)
    elif "h2c" in server.ports:
        connection = http.client.HTTPConnection(HOST, server.ports["h2c"], timeout=30)
    else:
        trust = ssl.create_default_context(cafile=str(certificate.authority))
        connection = http.client.HTTPSConnection(
            HOST, server.ports["tls"], timeout=30, context=trust
        )
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, answer.getheader("ETag", ""), len(body)
    finally:
        connection.close()
