"""SIGHUP and a real process: what takes effect, what is refused, and what goes on meanwhile."""

import errno
import http.client
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import Launch
from tests.world import holdfast
from tests.world.certificates import Authority
from tests.world.crates import Package
from tests.world.holdfast import Answer, Holdfast, Sample, Table
from tests.world.registry import Registry
from tests.world.server import RegistryServer

LEAF: Final = "/crates-io/index/le/af/leaf"
COMPANY_LEAF: Final = "/company/index/le/af/leaf"
TOKEN: Final = "Bearer of-this-year"
LOOKS: Final = 1500


def crate_url(name: str) -> str:
    return f"/crates-io/crates/{name}/1.0.0/download"


@dataclass(slots=True)
class Run:
    """A proxy, and the configuration that it was given: `change` lays sections over it."""

    proxy: Holdfast
    config: dict[str, dict[str, object]] = field(default_factory=dict)

    def write(self, **sections: Mapping[str, object]) -> None:
        """Write a configuration with these sections, and nothing else than the upstreams'."""
        upstreams = dict(self.config["upstreams"])
        for name, table in sections.pop("upstreams", {}).items():
            assert isinstance(table, Mapping)
            upstreams[name] = {**upstreams[name], **table}  # type: ignore[dict-item]
        config: dict[str, Table] = {**sections, "upstreams": upstreams}
        self.proxy.configure(config)

    def reload(self, *keys: str) -> None:
        """Hang up, and wait until these keys, and no other, have taken effect."""
        self.proxy.hang_up(f'"reloaded: {", ".join(keys) or "nothing has changed"}"')

    def refuse(self, message: str) -> None:
        """Hang up, and wait until the log says that nothing has taken effect, and why."""
        self.proxy.hang_up(message)
        assert self.proxy.metric("config_last_reload_successful") == 0


@pytest.fixture
def run(registry: Registry, upstream: RegistryServer, launch: Launch) -> Callable[..., Run]:
    registry.publish(Package("leaf"))

    def start(
        env: Mapping[str, str] | None = None,
        company: RegistryServer | None = None,
        **sections: Mapping[str, object],
    ) -> Run:
        servers = {"crates-io": upstream}
        if company is not None:
            servers["company"] = company
        proxy = launch(servers, env=env, name="holdfast", **sections)
        upstreams = {name: {"index": one.index_url} for name, one in servers.items()}
        return Run(proxy, {"upstreams": dict(upstreams)})

    return start


@pytest.fixture
def company() -> Iterator[RegistryServer]:
    """A registry that wants a token."""
    private = Registry(token=TOKEN)
    private.publish(Package("leaf"))
    with RegistryServer(private) as server:
        yield server


# What takes effect


def test_freshness_changes_for_what_is_held_already(
    registry: Registry, run: Callable[..., Run]
) -> None:
    one = run(upstreams={"crates-io": {"fresh_for": "1h"}})
    assert one.proxy.get(LEAF).how == "miss"
    registry.publish(Package("leaf", "1.1.0"))
    assert b"1.1.0" not in one.proxy.get(LEAF).body
    one.write(upstreams={"crates-io": {"fresh_for": "0s", "stale_while_revalidate": "0s"}})
    one.reload("upstreams.crates-io.fresh_for", "upstreams.crates-io.stale_while_revalidate")
    assert b"1.1.0" in one.proxy.get(LEAF).body
    registry.publish(Package("leaf", "1.2.0"))
    one.write(upstreams={"crates-io": {"fresh_for": "0s", "stale_while_revalidate": "1h"}})
    one.reload("upstreams.crates-io.stale_while_revalidate")
    assert one.proxy.get(LEAF).how == "stale"


def test_how_long_an_outage_is_bridged_changes_in_the_middle_of_one(
    upstream: RegistryServer, run: Callable[..., Run]
) -> None:
    terms = {"fresh_for": "0s", "stale_while_revalidate": "0s"}
    one = run(upstreams={"crates-io": terms})
    assert one.proxy.get(LEAF).status == 200
    upstream.stop()
    assert one.proxy.get(LEAF).how == "stale"
    one.write(upstreams={"crates-io": {**terms, "stale_if_error": "0s"}})
    one.reload("upstreams.crates-io.stale_if_error")
    assert one.proxy.get(LEAF).status == 503
    one.write(upstreams={"crates-io": terms})
    one.reload("upstreams.crates-io.stale_if_error")
    assert one.proxy.get(LEAF).how == "stale"


def test_limits_on_what_an_upstream_may_send(registry: Registry, run: Callable[..., Run]) -> None:
    registry.publish(
        *(Package(name, padding_bytes=50_000) for name in ("first", "second", "third"))
    )
    one = run(limits={"index": "10B", "crate": "1MiB"})
    assert one.proxy.get("/crates-io/index/fi/rs/first").status == 502
    one.write(limits={"crate": "1KiB"})
    one.reload("limits.index", "limits.crate")
    assert one.proxy.get("/crates-io/index/fi/rs/first").status == 200
    assert one.proxy.get(crate_url("first")).status == 502
    one.write()
    one.reload("limits.crate")
    assert one.proxy.get(crate_url("second")).body == registry.crate("second", "1.0.0")
    # The store has been told too: a larger index file is kept, and there after a restart.
    one.proxy.restart()
    assert one.proxy.get("/crates-io/index/fi/rs/first").how == "hit"


@pytest.mark.parametrize(
    ("key", "tight", "wide"),
    [("max_size", "8KiB", "1GiB"), ("min_free", "99.99%", "0B")],
)
def test_limits_on_what_the_cache_may_hold(
    registry: Registry, run: Callable[..., Run], key: str, tight: str, wide: str
) -> None:
    names = ("first", "second", "third")
    registry.publish(*(Package(name, padding_bytes=50_000) for name in names))
    one = run(cache={key: tight})
    assert one.proxy.get(crate_url("first")).how == "bypass"
    one.write(cache={key: wide})
    one.reload(f"cache.{key}")
    assert one.proxy.get(crate_url("second")).how == "miss"
    one.write(cache={key: tight})
    one.reload(f"cache.{key}")
    assert one.proxy.get(crate_url("third")).how == "bypass"


def test_a_default_size_of_the_cache_is_worked_out_anew(run: Callable[..., Run]) -> None:
    one = run(cache={"max_size": "1MiB"})
    assert limit_of_the_cache(one.proxy) == 2**20
    one.write()
    one.reload("cache.max_size")
    assert limit_of_the_cache(one.proxy) > 2**20


def limit_of_the_cache(proxy: Holdfast) -> int:
    limit = json.loads(proxy.command("stats", "--json").succeeded().stdout)["stored"]["blobs"][
        "limit_bytes"
    ]
    assert isinstance(limit, int)
    return limit


def test_the_level_of_the_log_and_the_line_that_says_so(run: Callable[..., Run]) -> None:
    one = run()
    one.proxy.get(LEAF)
    assert '"level": "debug"' not in one.proxy.stderr
    one.write(log={"level": "debug"})
    one.reload("log.level")
    one.proxy.get(LEAF)
    one.proxy.has_logged("200 hit crates-io index leaf")
    one.write(log={"level": "error"})
    one.reload("log.level")
    one.proxy.get(LEAF)
    # Nothing is said at this level: what has taken effect shows in the metrics alone.
    one.write(log={"level": "error"}, limits={"crate": "1MiB"})
    before = one.proxy.metric("config_last_reload_success_timestamp_seconds")
    os.kill(one.proxy.pid, signal.SIGHUP)
    until(one.proxy, lambda now: now > before, "config_last_reload_success_timestamp_seconds")
    one.write(log={"level": "info"}, limits={"crate": "1MiB"})
    one.reload("log.level")
    assert one.proxy.stderr.count("200 hit crates-io index leaf") == 1


def until(proxy: Holdfast, holds: Callable[[float], bool], metric: str) -> None:
    for _ in range(LOOKS):
        if holds(proxy.metric(metric)):
            return
    raise AssertionError(f"holdfast_{metric} does not change")


def test_a_token_from_another_variable_is_sent_with_the_next_request(
    company: RegistryServer, run: Callable[..., Run]
) -> None:
    one = run(
        env={"OLD": "Bearer of-last-year", "NEW": TOKEN},
        company=company,
        upstreams={"company": {"token": {"env": "OLD"}}},
    )
    assert one.proxy.get(COMPANY_LEAF).status == 503
    one.write(upstreams={"company": {"token": {"env": "NEW"}}})
    one.reload("upstreams.company.token")
    assert one.proxy.get(COMPANY_LEAF).status == 200
    assert company.requests()[-1].headers["authorization"] == TOKEN
    one.write(upstreams={"company": {"fresh_for": "0s"}})
    one.reload("upstreams.company.token", "upstreams.company.fresh_for")
    one.proxy.get(COMPANY_LEAF)
    assert "authorization" not in company.requests()[-1].headers
    assert "-year" not in one.proxy.stderr


@pytest.mark.parametrize("content", ["", None, "two\nlines"])
def test_a_token_whose_file_is_empty_or_gone_stays(
    company: RegistryServer, run: Callable[..., Run], tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    token = {"token": {"file": str(file)}, "fresh_for": "0s"}
    one = run(company=company, upstreams={"company": token})
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    one.write(upstreams={"company": token}, limits={"crate": "1B"})
    one.refuse("not reloaded: upstreams.company.token: the file ")
    assert one.proxy.get(COMPANY_LEAF).status == 200
    file.write_text(f"{TOKEN}\n")
    one.reload("limits.crate")
    assert one.proxy.metric("config_last_reload_successful") == 1


def test_an_authority_is_trusted_once_its_file_says_so(
    registry: Registry, run: Callable[..., Run], tmp_path: Path, authority: Authority
) -> None:
    ca_file = tmp_path / "ca.pem"
    Authority().issuer.cert_pem.write_to_path(ca_file)
    terms = {"ca_file": str(ca_file), "fresh_for": "0s"}
    with RegistryServer(registry, tls=authority.serving(tmp_path)) as company:
        one = run(company=company, upstreams={"company": terms})
        assert one.proxy.get(COMPANY_LEAF).status == 503
        authority.issuer.cert_pem.write_to_path(ca_file)
        one.write(upstreams={"company": terms})
        one.reload("upstreams.company.ca_file")
        assert one.proxy.get(COMPANY_LEAF).status == 200
        ca_file.write_text("no certificate")
        one.refuse(f"not reloaded: upstreams.company.ca_file: {ca_file}: no certificates in PEM")
        assert one.proxy.get(COMPANY_LEAF).status == 200
        # What is not trusted any more is not reached over a connection that is still open.
        one.write(upstreams={"company": {"fresh_for": "0s", "stale_if_error": "0s"}})
        one.reload("upstreams.company.stale_if_error", "upstreams.company.ca_file")
        assert one.proxy.get(COMPANY_LEAF).status == 503


def test_another_certificate_of_ours_is_shown(
    registry: Registry, run: Callable[..., Run], tmp_path: Path, authority: Authority
) -> None:
    tls = authority.serving(tmp_path / "theirs")
    authority.demand(tls)
    authority.issuer.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger, ours = Authority().issue(tmp_path / "a"), authority.issue(tmp_path / "b")
    terms = {"ca_file": str(tmp_path / "ca.pem"), "fresh_for": "0s", "stale_if_error": "0s"}
    with RegistryServer(registry, tls=tls) as company:
        one = run(
            company=company,
            upstreams={
                "company": {
                    **terms,
                    "client_cert": stranger["certificate"],
                    "client_key": stranger["key"],
                }
            },
        )
        assert one.proxy.get(COMPANY_LEAF).status == 503
        mixed = {**terms, "client_cert": ours["certificate"], "client_key": stranger["key"]}
        one.write(upstreams={"company": mixed})
        one.refuse(f"not reloaded: upstreams.company.client_key: {stranger['key']}: not the key")
        Path(stranger["key"]).write_bytes(Path(ours["key"]).read_bytes())
        one.reload("upstreams.company.client_cert", "upstreams.company.client_key")
        assert one.proxy.get(COMPANY_LEAF).status == 200


# What is refused


def test_what_needs_a_restart_is_named_and_nothing_is_changed(
    registry: Registry, run: Callable[..., Run]
) -> None:
    one = run()
    assert one.proxy.get(LEAF).status == 200
    registry.publish(Package("leaf", "1.1.0"))
    one.write(
        server={"contact": "ops@example.com", "drain": "5s"},
        cache={"memory": "1MiB"},
        log={"level": "debug"},
        limits={"index": "1B"},
        upstreams={"crates-io": {"fresh_for": "0s", "connections": 3}},
    )
    one.refuse(
        '"not reloaded, a restart is needed:'
        ' server.contact, cache.memory, upstreams.crates-io.connections"'
    )
    # Were freshness, the limit or the level another, this would not be a hit.
    assert one.proxy.get(LEAF).how == "hit"
    assert "debug" not in one.proxy.stderr
    one.write()
    one.reload()


def test_upstreams_that_come_need_a_restart(
    company: RegistryServer, run: Callable[..., Run]
) -> None:
    one = run()
    one.config["upstreams"]["company"] = {"index": company.index_url}
    one.write()
    one.refuse('"not reloaded, a restart is needed: upstreams.company"')
    assert one.proxy.get(COMPANY_LEAF).status == 400


def test_an_invalid_configuration_changes_nothing_and_each_error_is_a_line_with_its_key(
    run: Callable[..., Run],
) -> None:
    one = run()
    one.write(limits={"index": "large", "crate": "1KiB"}, log={"levle": "debug"})
    one.refuse("not reloaded: log.levle: there is no such key; did you mean level?")
    said = [line for line in one.proxy.log() if "not reloaded" in str(line["message"])]
    assert {line["key"] for line in said} == {"limits.index", "log.levle"}
    assert {line["level"] for line in said} == {"error"}
    checked = one.proxy.command("config", "check").stderr.splitlines()
    assert checked == [str(line["message"]).replace("not reloaded", "holdfast") for line in said]
    one.write()
    one.reload()


def test_a_file_that_cannot_be_read_changes_nothing(run: Callable[..., Run]) -> None:
    one = run(limits={"crate": "1MiB"})
    one.proxy.config_file.unlink()
    one.refuse("holdfast.toml: the file cannot be read: No such file or directory")
    one.proxy.config_file.mkdir()
    one.refuse("holdfast.toml: the file cannot be read: Is a directory")
    one.proxy.config_file.rmdir()
    one.write(limits={"crate": "1MiB"})
    one.reload()


def test_the_environment_and_the_options_are_laid_over_the_file_again(
    upstream: RegistryServer,
    launch: Launch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Run],
) -> None:
    offline = tmp_path / "offline"
    offline.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "from proxy.cli import main\n"
        "sys.argv.append('--offline')\n"
        "main()\n"
    )
    offline.chmod(0o755)
    monkeypatch.setattr(holdfast, "COMMAND", str(offline))
    one = run(env={"HOLDFAST__LOG__LEVEL": "info"})
    one.write(log={"level": "debug"}, limits={"crate": "1MiB"})
    one.reload("limits.crate")
    assert one.proxy.get(LEAF).status == 503
    assert upstream.count() == 0


# What goes on meanwhile


def test_connections_downloads_and_memory_live_through_it(
    registry: Registry, upstream: RegistryServer, run: Callable[..., Run]
) -> None:
    registry.publish(Package("large", padding_bytes=400_000))
    one = run()
    assert one.proxy.get(LEAF).how == "miss"
    assert one.proxy.get("/crates-io/index/la/rg/large").how == "miss"
    data = registry.crate("large", "1.0.0")
    connection = http.client.HTTPConnection("127.0.0.1", one.proxy.port, timeout=15)
    connection.request("GET", LEAF)
    connection.getresponse().read()
    tap = upstream.tap("/crates/*", slice_bytes=len(data) // 4)
    got: list[Answer] = []
    download = threading.Thread(target=lambda: got.append(one.proxy.get(crate_url("large"))))
    download.start()
    tap.let(2)
    tap.wait_for(2)
    one.write(limits={"crate": "1KiB"}, upstreams={"crates-io": {"fresh_for": "1h"}})
    one.reload("limits.crate", "upstreams.crates-io.fresh_for")
    connection.request("GET", LEAF)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["X-Cache"]) == (200, "hit")
    connection.close()
    tap.open()
    download.join(15)
    assert [(each.status, each.body) for each in got] == [(200, data)]
    assert upstream.count(LEAF.removeprefix("/crates-io")) == 1
    assert upstream.count("/crates/*") == 1


def test_the_metrics_are_those_that_prometheus_has_of_itself(run: Callable[..., Run]) -> None:
    one = run()

    def samples() -> list[Sample]:
        names = ("holdfast_config_last_reload", "process_start_time")
        return [sample for sample in one.proxy.metrics() if sample.name.startswith(names)]

    values = {sample.name.removeprefix("holdfast_config_"): sample.value for sample in samples()}
    started = values["process_start_time_seconds"]
    assert values["last_reload_successful"] == 1
    assert started <= values["last_reload_success_timestamp_seconds"] <= started + 60
    one.write(server={"h2c": False})
    one.refuse("server.h2c")
    refused = {sample.name.removeprefix("holdfast_config_"): sample.value for sample in samples()}
    assert refused == {**values, "last_reload_successful": 0}
    one.write()
    one.reload()
    again = {sample.name.removeprefix("holdfast_config_"): sample.value for sample in samples()}
    assert again["last_reload_successful"] == 1
    name = "last_reload_success_timestamp_seconds"
    assert again[name] > values[name]


class Pipe:
    """A named pipe in the place of a file: whoever reads it waits for the test.

    For one reader. The next pipe is put in its place before this one is written to.
    """

    def __init__(self, path: Path) -> None:
        path.unlink()
        os.mkfifo(path)
        self.path = path

    def until_read(self) -> int:
        """Wait until somebody has opened it; returns the end to write to."""
        for _ in range(LOOKS):
            try:
                end = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                threading.Event().wait(0.01)
            else:
                os.set_blocking(end, True)
                return end
        raise AssertionError(f"nobody reads {self.path}")

    def feed(self, text: str) -> None:
        """Wait for a reader, and let it have `text`."""
        write(self.until_read(), text)


def write(end: int, text: str) -> None:
    with os.fdopen(end, "w") as file:
        file.write(text)


def test_signals_that_come_during_a_reload_are_one_more_and_requests_go_on(
    company: RegistryServer, run: Callable[..., Run], tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    token = {"token": {"file": str(file)}}
    one = run(company=company, upstreams={"company": token})
    one.write(upstreams={"company": token}, limits={"crate": "1MiB"})
    pipe = Pipe(file)
    os.kill(one.proxy.pid, signal.SIGHUP)
    first = pipe.until_read()
    for _ in range(3):
        os.kill(one.proxy.pid, signal.SIGHUP)
        assert one.proxy.get(COMPANY_LEAF).status == 200
    second = Pipe(file)
    write(first, TOKEN)
    second.feed(TOKEN)
    one.proxy.has_logged('"reloaded: limits.crate"')
    one.proxy.has_logged('"reloaded: nothing has changed"')
    file.unlink()
    file.write_text(TOKEN)
    one.reload()
    assert one.proxy.stderr.count("reloaded: ") == 3


def test_a_signal_that_comes_before_it_serves_is_answered_then(
    company: RegistryServer, run: Callable[..., Run], tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    one = run(company=company, upstreams={"company": {"token": {"file": str(file)}}})
    one.proxy.stop()
    pipe = Pipe(file)
    start = threading.Thread(target=one.proxy.start)
    start.start()
    reading = pipe.until_read()
    os.kill(one.proxy.pid, signal.SIGHUP)
    second = Pipe(file)
    write(reading, "Bearer of-last-year")
    second.feed(TOKEN)
    start.join(15)
    one.proxy.has_logged('"reloaded: upstreams.company.token"')
    assert one.proxy.get(COMPANY_LEAF).status == 200
    file.unlink()


def test_a_signal_during_the_drain_changes_nothing_and_the_stop_is_clean(
    registry: Registry, upstream: RegistryServer, run: Callable[..., Run]
) -> None:
    registry.publish(Package("large", padding_bytes=400_000))
    data = registry.crate("large", "1.0.0")
    one = run(server={"drain": "15s"})
    tap = upstream.tap("/crates/*", slice_bytes=len(data) // 4)
    got: list[Answer] = []
    download = threading.Thread(target=lambda: got.append(one.proxy.get(crate_url("large"))))
    download.start()
    tap.let(2)
    tap.wait_for(2)
    os.kill(one.proxy.pid, signal.SIGTERM)
    one.proxy.has_logged("draining: ")
    one.proxy.hang_up("not reloaded: the proxy is about to stop")
    tap.open()
    download.join(15)
    assert [each.body for each in got] == [data]
    one.proxy.stop()
    assert (one.proxy.cache_dir / "clean").exists()


def test_a_reload_that_is_under_way_does_not_hold_up_a_stop(
    company: RegistryServer, run: Callable[..., Run], tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    one = run(company=company, upstreams={"company": {"token": {"file": str(file)}}})
    pipe = Pipe(file)
    os.kill(one.proxy.pid, signal.SIGHUP)
    reading = pipe.until_read()
    os.kill(one.proxy.pid, signal.SIGTERM)
    one.proxy.has_logged("draining: ")
    write(reading, "Bearer of-next-year")
    one.proxy.stop()
    assert "reloaded" not in one.proxy.stderr
