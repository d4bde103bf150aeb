"""The log as an operator has it: every level in both forms, no secrets, and nobody who reads it."""

import fcntl
import json
import os
import re
from collections.abc import Iterator

import pytest

from tests.conftest import Launch
from tests.world.crates import Package
from tests.world.holdfast import Holdfast
from tests.world.registry import Registry, index_path
from tests.world.server import RegistryServer

LEVELS = ("debug", "info", "warning", "error")
SMALL = f"/crates-io/index/{index_path('small')}"
TOKEN = "Bearer not-for-the-log"
PIPE_BYTES = 4096


@pytest.fixture
def proxy(registry: Registry, upstream: RegistryServer, launch: Launch) -> Holdfast:
    """A proxy that has a token, in front of a registry that wants it."""
    registry.publish(Package("small"))
    registry.token = TOKEN
    return launch(
        {"crates-io": upstream},
        upstreams={"crates-io": {"token": {"env": "TOKEN"}, "fresh_for": "0s"}},
        registries={"crates-io": {"access": "open"}},
        env={"TOKEN": TOKEN},
    )


def events_at_all_levels(proxy: Holdfast, upstream: RegistryServer) -> None:
    assert proxy.get(SMALL, {"Authorization": "Bearer a-clients-own"}).status == 200
    assert proxy.get("/crates-io/api/v1/crates?q=private-thoughts").status == 200
    upstream.stop()
    assert proxy.get(SMALL).how == "stale"
    assert proxy.get("/crates-io/index/un/kn/unknown%0aforged").status in (400, 404)


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("level", LEVELS)
def test_each_level_has_its_lines_in_each_form_and_no_secret(
    proxy: Holdfast, upstream: RegistryServer, form: str, level: str
) -> None:
    proxy.stop()
    text = re.sub(r"\[log\][^\[]*", "", proxy.config_file.read_text())
    proxy.config_file.write_text(f'{text}\n[log]\nformat = "{form}"\nlevel = "{level}"\n')
    begun = len(proxy.stderr)
    proxy.start()
    events_at_all_levels(proxy, upstream)
    proxy.stop()
    said = proxy.stderr[begun:]
    for secret in ("not-for-the-log", "a-clients-own", "private-thoughts"):
        assert secret not in said
    found = list(levels(said, form))
    assert set(found) <= set(LEVELS[LEVELS.index(level) :])
    if level == "debug":
        assert said.count("stale crates-io index small") == 1
        assert said.count(" miss crates-io index small") == 1
    if level in ("debug", "info"):
        assert said.count("draining") == 1
    if level != "error":
        # The outage, once.
        assert found.count("warning") == 1
    else:
        assert said == ""


def levels(said: str, form: str) -> Iterator[str]:
    for line in said.splitlines():
        if form == "json":
            entry = json.loads(line)
            assert entry.keys() >= {"at", "level", "logger", "message"}
            yield entry["level"]
        else:
            match = re.fullmatch(r"\d\d:\d\d:\d\d (\w+) +\S.*", line)
            assert match is not None, line
            yield match[1]


def test_a_log_that_nobody_reads_stops_no_request_and_no_stop(
    proxy: Holdfast, upstream: RegistryServer
) -> None:
    proxy.stop()
    proxy.config_file.write_text(proxy.config_file.read_text() + '\n[log]\nlevel = "debug"\n')
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    try:
        proxy.start(stderr=write)
        # A line is longer than a hundred bytes: the pipe is full long before the last of them.
        for _ in range(PIPE_BYTES // 100):
            assert proxy.get(SMALL).status == 200
        assert proxy.metric("requests_total", kind="index") >= PIPE_BYTES // 100
        assert proxy.metric("log_lines_dropped_total") == 0
        os.set_blocking(write, False)
        with pytest.raises(BlockingIOError):
            os.write(write, bytes(PIPE_BYTES))
        proxy.stop()
    finally:
        os.close(read)
        os.close(write)
