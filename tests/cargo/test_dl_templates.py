"""Upstreams keep their crates where they like: every form of `dl`, asked for as cargo would ask."""

import pytest

from tests.cargo.conftest import Desk
from tests.conftest import Launch
from tests.world import faults
from tests.world.crates import Package
from tests.world.registry import Registry
from tests.world.server import RegistryServer

PLAIN, BUILD = "1.0.0", "1.1.0+b.1"


@pytest.mark.parametrize(
    "dl",
    [
        "{base}/dl",
        "{base}/dl/",
        "{base}/crates/{crate}/{version}.tgz",
        "{base}/{prefix}/{crate}-{version}.crate",
        "{base}/{lowerprefix}/{crate}-{version}.crate",
        "{base}/by-hash/{sha256-checksum}",
        "{base}/get?name={crate}&version={version}",
        "{base}/odd%20folder/{crate}/{version}",
    ],
)
def test_a_crate_is_asked_for_as_cargo_asks_for_it(
    newest_desk: Desk, launch: Launch, *, dl: str
) -> None:
    registry = Registry(dl=dl)
    registry.publish(Package("Cased-Name", PLAIN), Package("Cased-Name", BUILD), Package("ab"))
    dependencies = 'Cased-Name = "1"\nab = "1"\n'
    with RegistryServer(registry) as upstream:
        newest_desk.home(upstream.index_url).run(
            newest_desk.project(dependencies), "fetch"
        ).succeeded()
        asked_by_cargo = {seen.target for seen in upstream.requests()}
        upstream.clear()
        proxy = launch({"crates-io": upstream})
        home = newest_desk.home(proxy.index_url())
        home.run(newest_desk.project(dependencies), "fetch").succeeded()
        assert {seen.target for seen in upstream.requests()} == asked_by_cargo
    assert home.crate_files() == {
        f"Cased-Name-{BUILD}.crate": registry.crate("Cased-Name", BUILD),
        "ab-1.0.0.crate": registry.crate("ab", "1.0.0"),
    }


def test_crates_may_come_from_another_origin_and_the_token_stays_at_home(
    newest_desk: Desk, launch: Launch
) -> None:
    store = Registry(dl="{base}/store/{crate}/{version}")
    store.publish(Package("wanted"))
    with RegistryServer(store) as store_server:
        listing = Registry(dl=f"{store_server.url}/store/{{crate}}/{{version}}", token="secret")
        listing.publish(Package("wanted"))
        with RegistryServer(listing) as index_server:
            proxy = launch(
                {"crates-io": index_server},
                upstreams={"crates-io": {"token": {"env": "TOKEN"}}},
                env={"TOKEN": "secret"},
            )
            home = newest_desk.home(proxy.index_url())
            home.run(newest_desk.project('wanted = "1"'), "fetch").succeeded()
        (asked,) = store_server.requests()
    assert asked.path == "/store/wanted/1.0.0"
    assert "authorization" not in asked.headers
    assert home.crate_files() == {"wanted-1.0.0.crate": store.crate("wanted", "1.0.0")}


def test_a_redirected_download_is_followed_without_the_token(
    newest_desk: Desk, launch: Launch
) -> None:
    store = Registry()
    store.publish(Package("wanted"))
    listing = Registry(token="secret")
    listing.publish(Package("wanted"))
    with RegistryServer(store) as store_server, RegistryServer(listing) as index_server:
        index_server.fail("/crates/*", faults.redirect_to_origin(store_server.url))
        proxy = launch(
            {"crates-io": index_server},
            upstreams={"crates-io": {"token": {"env": "TOKEN"}}},
            env={"TOKEN": "secret"},
        )
        home = newest_desk.home(proxy.index_url())
        home.run(newest_desk.project('wanted = "1"'), "fetch").succeeded()
        (asked,) = store_server.requests()
        (redirected,) = index_server.requests("/crates/*")
    assert redirected.headers["authorization"] == "secret"
    assert "authorization" not in asked.headers
