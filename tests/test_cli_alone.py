"""Commands where nothing serves: on whose cache they work, and what they do without."""

import os
from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner

from proxy import cli
from tests.conftest import Launch
from tests.world.holdfast import Holdfast
from tests.world.server import RegistryServer

COMMANDS: Final = (
    ("stats",),
    ("gc",),
    ("verify",),
    ("purge", "--registry", "crates-io", "--all"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_command_makes_no_cache_where_there_is_none(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    proxy = Holdfast(tmp_path / "holdfast", {})
    proxy.close()
    done = proxy.command(*command)
    assert done.code == cli.COULD_NOT
    assert f"there is no cache at {proxy.cache_dir}" in done.stderr
    assert "--config" in done.stderr
    assert not proxy.cache_dir.exists()
    assert not proxy.state_dir.exists()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_command_leaves_the_cache_of_another_user_alone(
    command: tuple[str, ...],
    upstream: RegistryServer,
    launch: Launch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = launch({"crates-io": upstream})
    proxy.stop()
    before = sorted(proxy.root.rglob("*"))
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    done = CliRunner().invoke(cli.app, [*command, "--config", str(proxy.config_file)])
    assert done.exit_code == cli.COULD_NOT
    assert f"the cache directory {proxy.cache_dir} belongs to" in done.output
    assert sorted(proxy.root.rglob("*")) == before


def test_whose_a_cache_is_says_who_serves_from_it_and_not_who_made_the_volume(
    upstream: RegistryServer, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = launch({"crates-io": upstream})
    proxy.stop()
    real = Path.stat

    def made_by_another(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        found = list(real(path, follow_symlinks=follow_symlinks))
        if path == proxy.cache_dir:
            found[4] += 1
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", made_by_another)
    done = CliRunner().invoke(cli.app, ["stats", "--config", str(proxy.config_file)])
    assert done.exit_code == cli.DONE


def test_what_asks_no_upstream_needs_no_secret(
    upstream: RegistryServer, launch: Launch, tmp_path: Path
) -> None:
    secrets = {"company": {"token": {"env": "COMPANY_TOKEN"}}}
    file = {"company": {"token": {"file": str(tmp_path / "gone")}}}
    proxy = launch(
        {"crates-io": upstream, "company": upstream},
        env={"COMPANY_TOKEN": "a token"},
        upstreams=secrets,
    )
    for config in (secrets, file):
        with_index = {"company": {"index": upstream.index_url, **config["company"]}}
        elsewhere = Holdfast(proxy.root, {"upstreams": with_index})
        elsewhere.close()
        for command in (("stats",), ("gc",), ("config", "cargo"), ("config", "show")):
            elsewhere.command(*command).succeeded()
        refused = elsewhere.command("config", "check")
        assert refused.code == cli.USAGE
        assert "upstreams.company.token" in refused.stderr


def test_without_a_terminal_a_start_is_a_line_and_the_log_is_json_alone(
    upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    proxy.stop()
    (line,) = proxy.printed_until("serving").splitlines()
    assert proxy.url in line
    proxy.log()
