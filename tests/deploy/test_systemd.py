"""The unit against the program: its command, its places, its patience, and its confinement."""

import configparser
import re
import shlex
from typing import Final

from typer.testing import CliRunner

from proxy import cli, config
from proxy.config import NO_OVERRIDES
from tests.deploy.places import SYSTEMD

UNIT_FILE: Final = SYSTEMD / "holdfast.service"
SHIPPED: Final = SYSTEMD / "holdfast.toml"


class _Repeated(dict[str, str]):
    """Keeps every value of a key that is written twice, as systemd does."""

    def __setitem__(self, key: str, value: object) -> None:
        if key in self and isinstance(value, list):
            value = [*self[key], *value]
        super().__setitem__(key, value)  # type: ignore[assignment]


def unit() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(dict_type=_Repeated, strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT_FILE.read_text())
    return parser


def service(key: str) -> str:
    return unit()["Service"][key]


def test_the_command_is_one_of_ours() -> None:
    program, command, *options = shlex.split(service("ExecStart"))
    assert program == "/opt/holdfast/bin/holdfast"
    shown = CliRunner().invoke(cli.app, [command, "--help"])
    assert shown.exit_code == 0
    for option in options[::2]:
        assert option in shown.output
    assert options[options.index("--config") + 1] == f"/etc/holdfast/{SHIPPED.name}"


def test_the_configuration_beside_it_keeps_to_the_directories_of_the_unit() -> None:
    read = config.load(SHIPPED, {}, NO_OVERRIDES)
    assert str(read.cache.dir) == f"/var/cache/{service('CacheDirectory')}"
    assert str(read.state.dir) == f"/var/lib/{service('StateDirectory')}"
    assert {address.port for address in read.server.listen} == {8080}
    # Below 1024 the unit would need a capability that it does not have.
    assert service("CapabilityBoundingSet") == ""


def test_it_is_given_the_time_to_drain() -> None:
    drain_s = config.load(SHIPPED, {}, NO_OVERRIDES).server.drain_s
    assert int(service("TimeoutStopSec")) >= drain_s + 20
    assert service("KillSignal") == "SIGTERM"


def test_a_reload_is_sighup_and_a_wrong_configuration_is_not_tried_for_ever() -> None:
    assert service("ExecReload") == "/bin/kill -HUP $MAINPID"
    assert service("Restart") == "on-failure"
    assert int(service("RestartPreventExitStatus")) == cli.USAGE
    assert int(service("RestartSec")) >= 10


def test_the_account_is_made() -> None:
    made = (SYSTEMD / "holdfast.sysusers.conf").read_text()
    assert re.search(rf"^u {service('User')} - ", made, re.MULTILINE)
    assert service("User") != "root"
    assert service("Group") == service("User")


def test_it_is_confined() -> None:
    wanted = {
        "ProtectSystem": "strict",
        "ProtectHome": "true",
        "PrivateTmp": "true",
        "PrivateDevices": "true",
        "NoNewPrivileges": "true",
        "MemoryDenyWriteExecute": "true",
        "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
        "SystemCallArchitectures": "native",
        "SystemCallFilter": "@system-service\n~@privileged",
        "CacheDirectoryMode": "0700",
        "StateDirectoryMode": "0700",
    }
    assert {key: service(key) for key in wanted} == wanted


def test_it_sees_what_the_metrics_of_its_process_need() -> None:
    # Without /proc/stat the client of Prometheus leaves out the process_* metrics without a word.
    assert "ProcSubset" not in unit()["Service"]
