"""Cargo's commands give through the proxy what they give without it, cold and warm.

"Without it" is the same cargo with the test registry itself in the place of crates.io. What is
compared is bytes: Cargo.lock, Cargo.toml, the vendored tree, the downloaded `.crate` files.
"""

import subprocess
from pathlib import Path

from tests.cargo.conftest import Desk
from tests.conftest import Launch
from tests.world.crates import Package
from tests.world.ecosystem import DEPENDENCIES, EXPECTED_OUTPUT, MAIN
from tests.world.registry import Registry
from tests.world.server import RegistryServer

# Each request for an index file is checked with the upstream; so a change is seen at once.
EAGER = {"crates-io": {"fresh_for": "0s", "stale_while_revalidate": "0s"}}


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_generate_lockfile_writes_the_lock_file_of_a_world_without_the_proxy(
    desk: Desk, ecosystem: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    direct, cold, warm = (desk.project(DEPENDENCIES) for _ in range(3))
    desk.home(upstream.index_url).run(direct, "generate-lockfile").succeeded()
    proxy = launch({"crates-io": upstream})
    for project in (cold, warm):
        desk.home(proxy.index_url()).run(project, "generate-lockfile").succeeded()
        assert project.lock == direct.lock
    assert b"registry+https://github.com/rust-lang/crates.io-index" in direct.lock


def test_fetch_brings_the_published_bytes_and_asks_the_upstream_once(
    desk: Desk, ecosystem: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    direct = desk.project(DEPENDENCIES)
    reference = desk.home(upstream.index_url)
    reference.run(direct, "fetch").succeeded()
    assert len(reference.crate_files()) == 12
    upstream.clear()
    proxy = launch({"crates-io": upstream})
    for _ in range(3):
        home = desk.home(proxy.index_url())
        home.run(desk.locked_project(DEPENDENCIES, direct.lock), "fetch", "--locked").succeeded()
        assert home.crate_files() == reference.crate_files()
    assert set(upstream.counts().values()) == {1}


def test_build_compiles_what_was_locked_with_a_fresh_home_and_again_with_a_warm_one(
    desk: Desk, ecosystem: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    home = desk.home(proxy.index_url())
    project = desk.project(DEPENDENCIES, main=MAIN)
    home.run(project, "build").succeeded()
    assert home.run(project, "run", "--quiet").succeeded().stdout == EXPECTED_OUTPUT
    again = desk.locked_project(DEPENDENCIES, project.lock)
    home.run(again, "check", "--locked").succeeded()


def test_update_moves_to_what_has_been_published_and_away_from_what_was_yanked(
    desk: Desk, ecosystem: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream}, upstreams=EAGER)
    home = desk.home(proxy.index_url())
    project = desk.project(DEPENDENCIES)
    home.run(project, "generate-lockfile").succeeded()
    before = project.lock
    ecosystem.publish(Package("plumbing", "2.2.0"), Package("bc", "1.0.7"))
    ecosystem.yank("yanking", "1.2.0")
    ecosystem.unyank("yanking", "1.3.0")
    direct = desk.locked_project(DEPENDENCIES, before)
    desk.home(upstream.index_url).run(direct, "update").succeeded()
    home.run(project, "update").succeeded()
    assert project.lock == direct.lock != before
    assert b'name = "yanking"\nversion = "1.3.0"' in project.lock


def test_update_precise_and_a_lock_on_a_yanked_version_still_work(
    desk: Desk, ecosystem: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream}, upstreams=EAGER)
    home = desk.home(proxy.index_url())
    project = desk.project(DEPENDENCIES)
    home.run(project, "generate-lockfile").succeeded()
    home.run(project, "update", "yanking", "--precise", "1.0.0").succeeded()
    assert b'name = "yanking"\nversion = "1.0.0"' in project.lock
    ecosystem.yank("yanking", "1.0.0")
    locked = desk.locked_project(DEPENDENCIES, project.lock)
    fresh = desk.home(proxy.index_url())
    fresh.run(locked, "fetch", "--locked").succeeded()
    assert fresh.crate_files()["yanking-1.0.0.crate"] == ecosystem.crate("yanking", "1.0.0")


def test_add_writes_the_manifest_of_a_world_without_the_proxy(
    desk: Desk, ecosystem: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    manifests = []
    for index_url in (upstream.index_url, proxy.index_url(), proxy.index_url()):
        home, project = desk.home(index_url), desk.project("")
        home.run(project, "add", "facade", "--features", "full").succeeded()
        # Cargo finds the name by its other spelling: one request for a file that is not there.
        home.run(project, "add", "extras_long_name").succeeded()
        home.run(project, "add", "Mixed_Case@1").succeeded()
        manifests.append(project.manifest)
    assert 'facade = { version = "1.4.0", features = ["full"] }' in manifests[0]
    assert 'extras-long-name = "1.0.0"' in manifests[0]
    assert manifests[1:] == manifests[:1] * 2


def test_install_builds_a_binary_that_runs(
    desk: Desk, ecosystem: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    home, somewhere = desk.home(proxy.index_url()), desk.project("")
    home.run(somewhere, "install", "tool").succeeded()
    ran = subprocess.run(
        [home.root / "bin/tool"], capture_output=True, text=True, check=True, timeout=10
    )
    assert ran.stdout == "tool 0.3.2\n"
    home.run(somewhere, "install", "tool@0.3.1", "--force").succeeded()


def test_vendor_writes_the_tree_of_a_world_without_the_proxy(
    desk: Desk, ecosystem: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    trees = []
    for index_url in (upstream.index_url, proxy.index_url(), proxy.index_url()):
        project = desk.project(DEPENDENCIES)
        command = ("vendor", "--respect-source-config", "--versioned-dirs", "vendored")
        desk.home(index_url).run(project, *command).succeeded()
        trees.append({**tree(project.root / "vendored"), "Cargo.lock": project.lock})
    assert "facade-1.4.0/src/lib.rs" in trees[0]
    assert trees[1:] == trees[:1] * 2
