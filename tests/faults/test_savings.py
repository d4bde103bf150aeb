"""What `stats` says was saved is what the upstream did not have to send."""

import json

import pytest

from tests.conftest import Launch
from tests.world.crates import Package
from tests.world.holdfast import Holdfast
from tests.world.registry import Registry, index_path
from tests.world.server import RegistryServer

INDEX = f"/crates-io/index/{index_path('wanted')}"


@pytest.fixture
def proxy(registry: Registry, upstream: RegistryServer, launch: Launch) -> Holdfast:
    registry.publish(Package("wanted", padding_bytes=5000))
    return launch({"crates-io": upstream})


def saved(proxy: Holdfast, *spans: str) -> list[tuple[int, int] | None]:
    told = json.loads(proxy.command("stats", "--json").succeeded().stdout)["saved"]
    counts = [told["registries"]["crates-io"][span] for span in spans]
    return [count and (count["saved_requests"], count["saved_bytes"]) for count in counts]


def test_what_was_saved_is_told_for_today_the_run_and_all_time(
    proxy: Holdfast, registry: Registry, upstream: RegistryServer
) -> None:
    release = registry.release("wanted", "1.0.0")
    crate = f"/crates-io/crates/wanted/1.0.0/{release.cksum}"
    for url in (INDEX, crate):
        assert proxy.get(url).how == "miss"
    assert saved(proxy, "today", "since_start", "ever") == [(0, 0)] * 3
    asked = upstream.count()
    sent = 0
    for url in (INDEX, crate, crate):
        answer = proxy.get(url)
        # A crate's last byte is sent a moment before it is stored.
        assert answer.how in ("hit", "coalesced")
        sent += len(answer.body)
    assert upstream.count() == asked
    assert saved(proxy, "today", "since_start", "ever") == [(3, sent)] * 3
    assert proxy.metric("saved_requests_total", registry="crates-io") == 3
    assert proxy.metric("saved_bytes_total", registry="crates-io") == sent
    proxy.stop()
    # With nobody serving, and then with somebody new.
    assert saved(proxy, "since_start", "ever") == [None, (3, sent)]
    proxy.start()
    assert saved(proxy, "since_start", "ever") == [(0, 0), (3, sent)]
    said = proxy.command("stats").succeeded().stdout
    assert "saved by crates-io: " in said
