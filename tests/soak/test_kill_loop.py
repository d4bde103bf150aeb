"""Fifty times killed under load: what `tests/faults/test_kill.py` does three times."""

import pytest

from tests.conftest import Launch
from tests.faults.killing import Killing
from tests.world.registry import Registry
from tests.world.server import RegistryServer

ROUNDS = 50


@pytest.mark.timeout(900)
def test_killed_under_load_fifty_times_it_serves_nothing_wrong(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    killing = Killing(proxy, upstream, registry)
    for number in range(ROUNDS):
        assert killing.round(number).right, f"nothing outlived kill {number}"
    killing.finish()
    assert proxy.metric("integrity_failures_total", where="disk") == 0
    assert proxy.metric("integrity_failures_total", where="index") == 0
