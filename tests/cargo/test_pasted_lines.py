"""What the proxy prints for a `config.toml` works as it stands, with nothing added or changed."""

from tests.cargo.conftest import Desk
from tests.conftest import Launch
from tests.world.crates import Package
from tests.world.holdfast import SERVING
from tests.world.registry import Registry
from tests.world.server import RegistryServer


def test_the_lines_printed_on_a_terminal_lead_cargo_to_the_port_that_the_kernel_chose(
    desk: Desk, registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("wanted"))
    proxy = launch({"crates-io": upstream}, server={"listen": ["127.0.0.1:0"]})
    proxy.stop()
    proxy.start(terminal=True)
    where, _, lines = proxy.printed_until("index = ").partition("\n")
    assert f"127.0.0.1:{proxy.port}" not in where
    home = desk.configured_home(lines)
    home.run(desk.project('wanted = "1"'), "fetch").succeeded()
    assert upstream.count("/crates/*") == 1
    assert SERVING in where


def test_the_lines_of_config_cargo_lead_cargo_through_the_proxy(
    desk: Desk, registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("wanted"))
    proxy = launch({"crates-io": upstream})
    lines = proxy.command("config", "cargo", "--url", proxy.url).succeeded().stdout
    home = desk.configured_home(lines)
    home.run(desk.project('wanted = "1"'), "fetch").succeeded()
    assert upstream.count("/crates/*") == 1


def test_the_start_page_as_a_tool_gets_it_is_a_file_that_leads_cargo_through_the_proxy(
    desk: Desk, registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("wanted"))
    proxy = launch({"crates-io": upstream})
    home = desk.configured_home(proxy.get("/").body.decode())
    home.run(desk.project('wanted = "1"'), "fetch").succeeded()
    assert upstream.count("/crates/*") == 1
