"""Where there is no IPv4, or both: cargo by either family, and addresses written in brackets."""

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Final
from urllib.parse import urlsplit

import pytest

from tests.cargo.conftest import Desk
from tests.conftest import Launch
from tests.web import http11
from tests.world.crates import Package
from tests.world.holdfast import SERVING, Holdfast
from tests.world.registry import Registry
from tests.world.server import RegistryServer, bound_socket

CONFIG: Final = "/crates-io/index/config.json"
DEPENDENCIES: Final = 'wanted = "1"\n'


@pytest.fixture
def stocked(registry: Registry) -> Registry:
    registry.publish(Package("wanted"))
    return registry


@pytest.fixture
def upstream6(stocked: Registry) -> Iterator[RegistryServer]:
    with RegistryServer(stocked, host="::1") as server:
        yield server


def port_of(proxy: Holdfast) -> int:
    """Return the port that the proxy says it serves on."""
    line = proxy.printed_until(SERVING).splitlines()[0]
    port = urlsplit(line.rpartition(" ")[2]).port
    assert port is not None, line
    return port


def fetch(desk: Desk, base: str, upstream: RegistryServer) -> None:
    home = desk.home(f"sparse+{base}/crates-io/index/", retries=0)
    home.run(desk.project(DEPENDENCIES), "fetch").succeeded()
    assert len(home.crate_files()) == 1
    assert upstream.count("/crates/*") == 1


def test_with_nothing_but_ipv6_on_both_sides_cargo_fetches(
    desk: Desk, upstream6: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream6}, server={"listen": ["[::1]:0"]})
    fetch(desk, f"http://[::1]:{port_of(proxy)}", upstream6)


def test_a_listener_for_both_families_leads_each_client_back_by_its_own(
    newest_desk: Desk, upstream6: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream6}, server={"listen": ["[::]:0"]})
    port = port_of(proxy)
    for host in ("127.0.0.1", "[::1]", "localhost"):
        fetch(newest_desk, f"http://{host}:{port}", upstream6)


async def test_config_json_has_the_address_by_which_the_client_came_and_not_its_mapped_form(
    upstream6: RegistryServer, launch: Launch
) -> None:
    port = port_of(launch({"crates-io": upstream6}, server={"listen": ["[::]:0"]}))
    for host in (f"127.0.0.1:{port}", f"[::1]:{port}"):
        answer = await http11.ask(port, CONFIG, headers={"Host": host})
        assert json.loads(answer.body)["api"] == f"http://{host}/crates-io"
    answer = await http11.ask(port, CONFIG, headers={"Host": f"[::]:{port}"})
    assert json.loads(answer.body)["api"] == f"http://127.0.0.1:{port}/crates-io"


def test_ipv6_and_ipv4_listeners_may_share_a_port(
    newest_desk: Desk, upstream6: RegistryServer, launch: Launch
) -> None:
    with closing(bound_socket(0)) as reserved:
        port = reserved.getsockname()[1]
        listen = [f"0.0.0.0:{port}", f"[::]:{port}"]
        launch({"crates-io": upstream6}, server={"listen": listen})
        for host in ("127.0.0.1", "[::1]"):
            fetch(newest_desk, f"http://{host}:{port}", upstream6)


def test_addresses_in_brackets_are_understood_wherever_an_address_may_stand(
    newest_desk: Desk, upstream6: RegistryServer, launch: Launch
) -> None:
    """The port is one that another socket holds: nobody gets in between."""
    with (
        closing(bound_socket(0, "::1")) as reserved,
        closing(bound_socket(0)) as dead,
    ):
        base = f"http://[::1]:{reserved.getsockname()[1]}"
        proxy = launch(
            {"crates-io": upstream6},
            server={
                "listen": [base.removeprefix("http://")],
                "public_url": base,
                "allowed_hosts": ["[::1]"],
                "trusted_proxies": ["::1"],
            },
            env={"HTTP_PROXY": f"http://127.0.0.1:{dead.getsockname()[1]}", "NO_PROXY": "[::1]"},
        )
        assert port_of(proxy) == reserved.getsockname()[1]
        fetch(newest_desk, base, upstream6)


@pytest.mark.parametrize(("allowed", "status"), [(["::1"], 200), (["fd00::/8"], 502)])
def test_a_dl_on_a_literal_address_is_followed_where_allow_hosts_has_it(
    stocked: Registry,
    upstream: RegistryServer,
    upstream6: RegistryServer,
    launch: Launch,
    allowed: list[str],
    status: int,
) -> None:
    stocked.dl = f"{upstream6.url}/crates/{{crate}}/{{crate}}-{{version}}.crate"
    proxy = launch({"crates-io": upstream}, upstreams={"crates-io": {"allow_hosts": allowed}})
    assert proxy.get("/crates-io/crates/wanted/1.0.0/download").status == status
