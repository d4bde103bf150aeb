"""Starting, stopping, and being told what to do while serving: what operators and scripts rely on.

A stop is a drain: what is under way may end, nothing new begins, and the process is gone within its
time. Commands act through the running process, or hold the cache themselves where none runs.
"""

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Launch
from tests.faults.killing import blob_path
from tests.web.http11 import PATIENCE_SECONDS, BrokenOff, ask
from tests.world import holdfast
from tests.world.cargo import Run
from tests.world.crates import Package
from tests.world.holdfast import Answer, Holdfast
from tests.world.registry import Registry, index_path
from tests.world.server import RegistryServer

SMALL = f"/crates-io/index/{index_path('small')}"
LARGE_BYTES = 2_000_000

Report = dict[str, Any]


@pytest.fixture
def stocked(registry: Registry) -> Registry:
    registry.publish(Package("small"), Package("large", padding_bytes=LARGE_BYTES))
    return registry


def crate_url(name: str) -> str:
    """Return the path of a crate on the proxy."""
    return f"/crates-io/crates/{name}/1.0.0/download"


def bring_in(proxy: Holdfast, *names: str) -> None:
    """Return once crates and their index files are held."""
    for name in names:
        for _ in range(1000):
            if proxy.get(crate_url(name)).how == "hit":
                break
        else:
            raise AssertionError(f"{name} is never stored")


async def refused(proxy: Holdfast) -> None:
    """Return once nobody can connect any more."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.02)


def test_a_stop_lets_a_slow_download_end_and_takes_nothing_new(
    stocked: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream}, server={"drain": "15s"})
    data = stocked.crate("large", "1.0.0")
    tap = upstream.tap("/crates/*", slice_bytes=len(data) // 4)

    async def download() -> Answer:
        running = asyncio.create_task(ask(proxy.port, crate_url("large")))
        tap.let(2)
        await asyncio.to_thread(tap.wait_for, 2)
        os.kill(proxy.pid, signal.SIGTERM)
        await refused(proxy)
        assert not running.done()
        tap.open()
        return await running

    answer = asyncio.run(download())
    assert (answer.status, answer.body) == (200, data)
    # Not asked to stop a second time.
    assert proxy._running.wait(PATIENCE_SECONDS) == 0
    proxy.stop()
    assert (proxy.cache_dir / "clean").exists()
    upstream.stop()
    proxy.start()
    assert proxy.get(crate_url("large")).body == data


def test_what_does_not_end_within_the_drain_is_broken_off_and_the_stop_is_clean(
    stocked: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream}, server={"drain": "1s"})
    data = stocked.crate("large", "1.0.0")
    tap = upstream.tap("/crates/*", slice_bytes=len(data) // 4)

    async def download() -> Answer:
        running = asyncio.create_task(ask(proxy.port, crate_url("large")))
        tap.let(2)
        await asyncio.to_thread(tap.wait_for, 2)
        await asyncio.to_thread(proxy.stop)
        return await running

    with pytest.raises(BrokenOff) as broken:
        asyncio.run(download())
    assert data.startswith(broken.value.answer.body)
    assert (proxy.cache_dir / "clean").exists()
    proxy.start()
    tap.open()
    assert proxy.get(crate_url("large")).body == data


def test_being_told_twice_is_no_failure_however_late(
    upstream: RegistryServer, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last moment there is: the interpreter's end, when it has given up its own handlers."""
    late = tmp_path / "told-twice"
    late.write_text(
        f"#!{sys.executable}\n"
        "import os\n"
        "from proxy.cli import main\n"
        "class Last:\n"
        "    def __del__(self, kill=os.kill, pid=os.getpid(), numbers=(2, 15)):\n"
        "        for number in numbers:\n"
        "            kill(pid, number)\n"
        "last = Last()\n"
        "main()\n"
    )
    late.chmod(0o755)
    monkeypatch.setattr(holdfast, "COMMAND", str(late))
    launch({"crates-io": upstream}).stop()


def test_connections_that_say_nothing_do_not_hold_up_a_stop(
    stocked: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    # Far longer than the test may take: whoever waits for these waits in vain.
    proxy = launch({"crates-io": upstream}, server={"drain": "300s"})
    with proxy.connect() as idle, proxy.connect() as fresh, proxy.connect() as half:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(65_536).startswith(b"HTTP/1.1 200")
        half.sendall(b"GET /healthz HTTP/1.1\r\nHo")
        assert fresh.fileno() > 0
        proxy.stop()


def test_hanging_up_on_the_terminal_does_not_end_it(
    stocked: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    os.kill(proxy.pid, signal.SIGHUP)
    assert proxy.get(SMALL).status == 200
    assert any("SIGHUP" in str(line["message"]) for line in proxy.log())


def test_a_second_serve_on_the_same_cache_is_refused_and_the_first_goes_on(
    stocked: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    second = proxy.command("serve", "--listen", "127.0.0.1:0")
    assert second.code == 3
    assert f"is in use by process {proxy.pid}" in one_line(second)
    assert str(proxy.cache_dir) in second.stderr
    assert proxy.get(SMALL).status == 200
    assert stats(proxy)["used"] is not None


def one_line(run: Run) -> str:
    """Return what a failing command said: one line for people, no traceback."""
    assert run.stderr.startswith("holdfast: "), run.stderr
    assert run.stderr.count("\n") == 1, run.stderr
    return run.stderr


def stats(proxy: Holdfast) -> Report:
    """Return what `stats` reports."""
    report: Report = json.loads(proxy.command("stats", "--json").succeeded().stdout)
    return report


def test_a_port_in_use_is_said_in_one_line_and_the_cache_is_let_go(
    stocked: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    first = launch({"crates-io": upstream})
    second = launch({"crates-io": upstream}, name="second")
    second.stop()
    refusal = second.command("serve", "--listen", f"127.0.0.1:{first.port}")
    assert refusal.code == 3
    expected = f"holdfast: cannot listen on 127.0.0.1:{first.port}: Address already in use\n"
    assert one_line(refusal) == expected
    assert not (second.cache_dir / "control.sock").exists()
    assert (second.cache_dir / "clean").exists()
    second.start()
    assert second.get(SMALL).status == 200


def test_a_bad_configuration_is_refused_by_its_key_before_anything_is_touched(
    tmp_path: Path, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    proxy.stop()
    elsewhere = {"cache": {"dir": str(tmp_path / "cache")}, "state": {"dir": str(tmp_path / "st")}}
    for config, key in (
        ({"server": {"listen": ["127.0.0.1:99999"]}}, "server.listen"),
        ({"upstreams": {"company": {"index": "ftp://x/"}}}, "upstreams.company.index"),
        ({"cash": {"size": "1GiB"}}, "cash"),
    ):
        proxy.configure({**elsewhere, **config})
        for command in (("serve",), ("stats",)):
            refusal = proxy.command(*command)
            assert refusal.code == 2, (command, config)
            assert key in one_line(refusal)
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "st").exists()


def test_every_metric_of_the_cache_is_there_at_the_first_look(
    upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    tiers = {
        (sample.name, sample.labels["tier"])
        for sample in proxy.metrics()
        if sample.name.startswith("holdfast_cache_")
    }
    both = {("holdfast_cache_bytes", tier) for tier in ("blobs", "index")}
    both |= {("holdfast_cache_bytes", tier) for tier in ("memory-blobs", "memory-index")}
    both |= {("holdfast_cache_entries", tier) for tier in ("blobs", "index", "memory-index")}
    both |= {
        ("holdfast_cache_limit_bytes", tier) for tier in ("blobs", "memory-blobs", "memory-index")
    }
    assert tiers == both


def test_the_control_socket_is_its_owners_alone_and_goes_with_the_process(
    stocked: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    control = proxy.cache_dir / "control.sock"
    mode = control.lstat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    proxy.kill()
    # Left behind by a process that could not take it along: nobody listens, nobody minds.
    assert control.exists()
    assert stats(proxy)["used"] is None
    proxy.start()
    assert stats(proxy)["used"] is not None
    proxy.stop()
    assert not control.exists()


def test_a_cache_in_a_very_long_path_is_a_cache_like_any_other(
    stocked: Registry, upstream: RegistryServer, launch: Launch, tmp_path: Path
) -> None:
    deep = tmp_path.joinpath(*["a-folder-with-a-rather-long-name"] * 8)
    proxy = launch({"crates-io": upstream}, cache={"dir": str(deep)})
    bring_in(proxy, "small")
    assert stats(proxy)["used"] is not None
    assert stat.S_IMODE((deep / "control.sock").lstat().st_mode) == 0o600
    proxy.stop()
    assert stats(proxy)["stored"]["blobs"]["blobs"] == 1


def test_the_limit_of_open_files_is_raised_as_far_as_it_goes(
    tmp_path: Path, upstream: RegistryServer, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = tmp_path / "with-few-files"
    wrapper.write_text(f'#!/bin/sh\nexec prlimit --nofile=128:1024 {holdfast.COMMAND} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr(holdfast, "COMMAND", str(wrapper))
    proxy = launch({"crates-io": upstream})
    limits = Path(f"/proc/{proxy.pid}/limits").read_text().splitlines()
    (line,) = [line for line in limits if line.startswith("Max open files")]
    assert line.split()[3:5] == ["1024", "1024"]


@pytest.fixture(params=["serving", "not serving"])
def state(request: pytest.FixtureRequest) -> Callable[[Holdfast], None]:
    """Bring a proxy into the state in which a command meets it."""

    def bring(proxy: Holdfast) -> None:
        if request.param == "not serving":
            proxy.stop()

    return bring


def serve_again(proxy: Holdfast) -> None:
    """Let the proxy serve again if it does not."""
    if not (proxy.cache_dir / "control.sock").exists():
        proxy.start()


def test_stats_tell_what_is_stored_and_how_it_was_used(
    stocked: Registry,
    upstream: RegistryServer,
    launch: Launch,
    state: Callable[[Holdfast], None],
) -> None:
    proxy = launch({"crates-io": upstream})
    bring_in(proxy, "small", "large")
    state(proxy)
    report = stats(proxy)
    stored = report["stored"]
    assert stored["blobs"]["blobs"] == 2
    assert stored["blobs"]["stored_bytes"] >= LARGE_BYTES
    # Two crates, and the upstream's own config.json.
    assert stored["index_entries"] == 3
    text = proxy.command("stats").succeeded().stdout
    used = report["used"]
    if used is None:
        assert "nothing is serving" in text
    else:
        assert used["upstream_requests"]["crates-io"] == 5
        assert "crates-io: " in text


def test_a_soft_purge_makes_it_ask_again_and_forgets_nothing(
    stocked: Registry,
    upstream: RegistryServer,
    launch: Launch,
    state: Callable[[Holdfast], None],
) -> None:
    proxy = launch({"crates-io": upstream})
    bring_in(proxy, "small", "large")
    state(proxy)
    upstream.clear()
    run = proxy.command("purge", "--registry", "crates-io", "--soft", "small").succeeded()
    assert "1 index files" in run.stdout
    serve_again(proxy)
    answer = proxy.get(SMALL)
    assert (answer.how, answer.body) == ("revalidated", stocked.index("small"))
    (asked,) = upstream.requests("/index/sm/*")
    assert "if-none-match" in asked.headers
    assert proxy.get(f"/crates-io/index/{index_path('large')}").how == "hit"
    assert proxy.get(crate_url("small")).how == "hit"


def test_a_hard_purge_forgets_index_file_and_crate_and_nothing_else(
    stocked: Registry,
    upstream: RegistryServer,
    launch: Launch,
    state: Callable[[Holdfast], None],
) -> None:
    proxy = launch({"crates-io": upstream})
    bring_in(proxy, "small", "large")
    state(proxy)
    upstream.clear()
    run = proxy.command("purge", "--registry", "crates-io", "--json", "small", "never-held")
    result = json.loads(run.succeeded().stdout)
    assert (result["index_files"], result["blobs"]) == (1, 1)
    assert result["unknown"] == ["never-held"]
    serve_again(proxy)
    assert proxy.get(SMALL).how == "miss"
    assert "if-none-match" not in upstream.requests("/index/sm/*")[0].headers
    assert proxy.get(crate_url("small")).how == "miss"
    assert proxy.get(f"/crates-io/index/{index_path('large')}").how == "hit"
    assert proxy.get(crate_url("large")).how == "hit"


def test_a_purge_of_all_leaves_nothing(
    stocked: Registry,
    upstream: RegistryServer,
    launch: Launch,
    state: Callable[[Holdfast], None],
) -> None:
    proxy = launch({"crates-io": upstream})
    bring_in(proxy, "small", "large")
    state(proxy)
    proxy.command("purge", "--registry", "crates-io", "--all").succeeded()
    assert stats(proxy)["stored"]["blobs"]["blobs"] == 0
    upstream.stop()
    serve_again(proxy)
    for url in (SMALL, crate_url("small"), crate_url("large")):
        assert proxy.get(url).status == 503, url


def test_verify_finds_what_is_bad_sets_it_aside_and_fetches_it_anew(
    stocked: Registry,
    upstream: RegistryServer,
    launch: Launch,
    state: Callable[[Holdfast], None],
) -> None:
    proxy = launch({"crates-io": upstream})
    bring_in(proxy, "small", "large")
    proxy.command("verify").succeeded()
    digest = stocked.release("large", "1.0.0").cksum
    path = blob_path(proxy.cache_dir, digest)
    path.write_bytes(bytes(path.stat().st_size))
    state(proxy)
    found = proxy.command("verify")
    assert found.code == 1
    assert digest in found.stdout
    assert "fetched again as large 1.0.0" in found.stdout
    assert path.read_bytes() == stocked.crate("large", "1.0.0")
    assert (proxy.cache_dir / "quarantine" / digest).exists()
    report = json.loads(proxy.command("verify", "--json").succeeded().stdout)
    assert (report["blobs_checked"], report["faults"]) == (2, [])
    serve_again(proxy)
    answer = proxy.get(crate_url("large"))
    assert (answer.how, answer.body) == ("hit", stocked.crate("large", "1.0.0"))
    assert upstream.count("/crates/large/*") == 2


def test_verify_with_the_upstream_away_sets_aside_what_is_bad_and_says_so(
    stocked: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    bring_in(proxy, "small")
    digest = stocked.release("small", "1.0.0").cksum
    path = blob_path(proxy.cache_dir, digest)
    path.write_bytes(bytes(path.stat().st_size))
    upstream.stop()
    found = proxy.command("verify", "--json")
    assert found.code == 1
    (fault,) = json.loads(found.stdout)["faults"]
    assert fault["subject"] == digest
    assert "not fetched again" in fault["outcome"]
    assert not path.exists()
    # What is bad on disk is no longer in memory either.
    assert proxy.get(crate_url("small")).status == 503
    upstream.start()
    assert proxy.get(crate_url("small")).body == stocked.crate("small", "1.0.0")


def test_gc_makes_room_down_to_a_limit_that_was_lowered(
    stocked: Registry,
    upstream: RegistryServer,
    launch: Launch,
    state: Callable[[Holdfast], None],
) -> None:
    upstreams = {"crates-io": {"index": upstream.index_url}}
    proxy = launch({"crates-io": upstream}, cache={"max_size": "100MiB", "min_free": "0B"})
    bring_in(proxy, "large", "small")
    assert json.loads(proxy.command("gc", "--json").succeeded().stdout) == {"freed_bytes": 0}
    proxy.stop()
    lowered = {"dir": str(proxy.cache_dir), "max_size": "1MiB", "min_free": "0B"}
    proxy.configure({"upstreams": upstreams, "cache": lowered})
    proxy.start()
    state(proxy)
    freed = json.loads(proxy.command("gc", "--json").succeeded().stdout)["freed_bytes"]
    assert freed >= LARGE_BYTES
    assert stats(proxy)["stored"]["blobs"]["blobs"] == 1
    serve_again(proxy)
    assert proxy.get(crate_url("small")).how == "hit"


def test_a_command_that_is_wrong_is_2_and_says_what_is_right(
    stocked: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    for arguments, hint in (
        (("purge", "--registry", "crates-io"), "--all"),
        (("purge", "--registry", "crates-io", "--all", "small"), "--all"),
        (("purge", "--registry", "nowhere", "small"), "crates-io"),
        (("purge", "small"), "--registry"),
        (("stats", "--no-such-option"), "--no-such-option"),
    ):
        run = proxy.command(*arguments)
        assert run.code == 2, arguments
        assert hint in run.stderr
        assert "Traceback" not in run.stderr
