"""SIGHUP and a real process: when it comes, what goes on meanwhile, and what the metrics say."""

import http.client
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from tests.reload.conftest import COMPANY_LEAF, LEAF, TOKEN, Pipe, Run, crate_url, write
from tests.world.crates import Package
from tests.world.holdfast import Answer, Sample
from tests.world.registry import Registry
from tests.world.server import RegistryServer


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


def test_a_reload_that_is_under_way_is_given_up_for_a_stop(
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
