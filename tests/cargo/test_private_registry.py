"""A private registry beside crates.io, each behind a registry of its own.

The proxy holds the private registry's token; clients have none. Manifests and lock files keep the
private registry's canonical address, which source replacement leads to the proxy, so that a lock
file is the same with the proxy and without it.
"""

from collections.abc import Iterator

import pytest

from tests.cargo.conftest import Desk
from tests.conftest import Launch
from tests.world.cargo import CargoHome, registry, replacing, replacing_crates_io
from tests.world.crates import CRATES_IO_GIT_INDEX, Dependency, Package
from tests.world.holdfast import Holdfast
from tests.world.registry import Registry
from tests.world.server import RegistryServer

TOKEN = "Bearer of-the-company"
DEPENDENCIES = 'inner = { version = "1", registry = "company" }\npublic = "1"\n'
MAIN = """\
fn main() {
    // One crate, one type: what `inner` returns is what `public` defines.
    let thing: public::Thing = inner::thing();
    println!("{}", thing.0);
}
"""


@pytest.fixture
def company(registry: Registry) -> Iterator[RegistryServer]:
    """A private registry whose crates depend on crates.io's and on one another."""
    public = Package("public", files={"src/lib.rs": "pub struct Thing(pub u32);\n"})
    registry.publish(public)
    private = Registry(token=TOKEN)
    with RegistryServer(private) as server:
        private.publish(
            Package("base"),
            Package("support"),
            Package(
                "inner",
                deps=(
                    Dependency("public", registry=CRATES_IO_GIT_INDEX),
                    Dependency("base"),
                    Dependency("support", registry=server.index_url),
                ),
                files={"src/lib.rs": "pub fn thing() -> public::Thing { public::Thing(7) }\n"},
            ),
        )
        yield server


def direct_home(desk: Desk, upstream: RegistryServer, company: RegistryServer) -> CargoHome:
    return desk.configured_home(
        replacing_crates_io(upstream.index_url) + registry("company", company.index_url),
        env={
            "CARGO_REGISTRIES_COMPANY_TOKEN": TOKEN,
            "CARGO_REGISTRY_GLOBAL_CREDENTIAL_PROVIDERS": "cargo:token",
        },
    )


def home_through(
    desk: Desk, proxy: Holdfast, company: RegistryServer, *, retries: int = 3
) -> CargoHome:
    return desk.configured_home(
        replacing_crates_io(proxy.index_url("crates-io"))
        + registry("company", company.index_url)
        + replacing("company", proxy.index_url("company"), canonical_url=company.index_url),
        retries=retries,
    )


def test_private_and_public_crates_build_together_with_canonical_addresses_in_the_lock_file(
    desk: Desk, upstream: RegistryServer, company: RegistryServer, launch: Launch
) -> None:
    direct = desk.project(DEPENDENCIES, main=MAIN)
    direct_home(desk, upstream, company).run(direct, "generate-lockfile").succeeded()
    assert company.index_url.encode() in direct.lock
    for server in (upstream, company):
        server.clear()
    proxy = launch(
        {"crates-io": upstream, "company": company},
        upstreams={"company": {"token": {"env": "COMPANY_TOKEN"}}},
        env={"COMPANY_TOKEN": TOKEN},
    )
    project = desk.project(DEPENDENCIES, main=MAIN)
    home = home_through(desk, proxy, company)
    assert home.run(project, "run", "--quiet").succeeded().stdout == "7\n"
    assert project.lock == direct.lock
    wanted = [request.headers.get("authorization") for request in company.requests()]
    assert set(wanted) == {TOKEN}
    assert not [seen for seen in upstream.requests() if "authorization" in seen.headers]
    assert TOKEN not in proxy.stderr + proxy.stdout


def test_with_both_upstreams_down_a_fresh_home_builds_from_the_lock_file(
    desk: Desk, upstream: RegistryServer, company: RegistryServer, launch: Launch
) -> None:
    proxy = launch(
        {"crates-io": upstream, "company": company},
        upstreams={"company": {"token": {"env": "COMPANY_TOKEN"}, "fresh_for": "0s"}},
        env={"COMPANY_TOKEN": TOKEN},
    )
    project = desk.project(DEPENDENCIES, main=MAIN)
    home_through(desk, proxy, company).run(project, "fetch").succeeded()
    upstream.stop()
    company.stop()
    proxy.restart()
    again = desk.project(DEPENDENCIES, main=MAIN)
    again.write_lock(project.lock)
    run = home_through(desk, proxy, company).run(again, "run", "--quiet", "--locked")
    assert run.succeeded().stdout == "7\n"


def test_a_token_that_the_upstream_refuses_is_an_outage_that_says_so(
    desk: Desk, upstream: RegistryServer, company: RegistryServer, launch: Launch
) -> None:
    proxy = launch(
        {"crates-io": upstream, "company": company},
        upstreams={"company": {"token": {"env": "COMPANY_TOKEN"}}},
        env={"COMPANY_TOKEN": "Bearer of-last-year"},
    )
    home = home_through(desk, proxy, company, retries=0)
    said = home.run(desk.project(DEPENDENCIES, main=MAIN), "fetch").failed()
    assert " 503" in said
    assert "401" in said
    assert "no matching package" not in said
    assert "of-last-year" not in said + proxy.stderr


def test_a_token_in_a_file_is_read_again_when_the_upstream_refuses_the_old_one(
    desk: Desk, upstream: RegistryServer, company: RegistryServer, launch: Launch
) -> None:
    token_file = desk.root / "token"
    desk.root.mkdir()
    token_file.write_text("Bearer of-last-year\n")
    proxy = launch(
        {"crates-io": upstream, "company": company},
        upstreams={"company": {"token": {"file": str(token_file)}}},
    )
    token_file.write_text(f"{TOKEN}\n")
    home = home_through(desk, proxy, company, retries=0)
    home.run(desk.project(DEPENDENCIES, main=MAIN), "fetch").succeeded()


def test_a_token_of_another_variable_takes_effect_on_sighup_and_cargo_fetches(
    desk: Desk, upstream: RegistryServer, company: RegistryServer, launch: Launch
) -> None:
    old, new = ({"token": {"env": name}} for name in ("OLD_TOKEN", "NEW_TOKEN"))
    proxy = launch(
        {"crates-io": upstream, "company": company},
        upstreams={"company": old},
        env={"OLD_TOKEN": "Bearer of-last-year", "NEW_TOKEN": TOKEN},
    )
    home = home_through(desk, proxy, company, retries=0)
    project = desk.project(DEPENDENCIES, main=MAIN)
    assert "401" in home.run(project, "fetch").failed()
    upstreams = {
        "crates-io": {"index": upstream.index_url},
        "company": {"index": company.index_url, **new},
    }
    proxy.configure({"upstreams": upstreams})
    proxy.hang_up('"reloaded: upstreams.company.token"')
    home.run(project, "fetch").succeeded()
