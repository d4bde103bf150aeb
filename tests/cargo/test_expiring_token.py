"""A token that ends while the proxy runs: whoever renews it writes a file; no client notices."""

from pathlib import Path
from typing import Final

from tests.cargo.conftest import Desk
from tests.conftest import Launch
from tests.world.crates import Dependency, Package
from tests.world.registry import Registry, index_path
from tests.world.server import RegistryServer

OLD, NEW, NEWEST = "Bearer of-the-morning", "Bearer of-noon", "Bearer of-the-evening"
LEAVES: Final = tuple(f"leaf-{number}" for number in range(8))


def test_a_renewed_token_costs_one_more_request_and_a_wrong_one_is_told_by_its_key(
    desk: Desk, registry: Registry, upstream: RegistryServer, launch: Launch, tmp_path: Path
) -> None:
    registry.publish(*(Package(leaf) for leaf in LEAVES))
    registry.publish(
        Package("before"),
        Package("after", deps=[Dependency(leaf) for leaf in LEAVES]),
        Package("alone"),
        Package("never"),
    )
    registry.token = OLD
    file = tmp_path / "token"
    file.write_text(f"{OLD}\n")
    terms = {"token": {"file": str(file)}, "fresh_for": "0s"}
    proxy = launch({"company": upstream}, upstreams={"company": terms})
    home = desk.home(proxy.index_url("company"), retries=0)
    home.run(desk.project('before = "1"\n'), "fetch").succeeded()

    registry.token = NEW
    file.write_text(f"{NEW}\n")
    home.run(desk.project('before = "1"\nafter = "1"\n'), "fetch").succeeded()
    assert len(home.crate_files()) == 2 + len(LEAVES)

    registry.token = NEWEST
    file.write_text(f"{NEWEST}\n")
    upstream.clear()
    path = index_path("alone")
    assert proxy.get(f"/company/index/{path}").status == 200
    tokens = [each.headers["authorization"] for each in upstream.requests(f"/index/{path}")]
    assert tokens == [NEW, NEWEST]

    registry.token = "Bearer of-tomorrow"
    upstream.clear()
    answer = proxy.get(f"/company/index/{index_path('never')}")
    assert answer.status == 503
    assert b"company answered 401 (is upstreams.company.token right?)" in answer.body
    assert upstream.count() == 1
    said = home.run(desk.project('never = "1"\n'), "fetch").failed()
    assert "upstreams.company.token" in said
    assert "no matching package" not in said
    for token in (OLD, NEW, NEWEST):
        assert token not in said + proxy.stderr
    home.run(desk.project('before = "1"\n'), "fetch").succeeded()
