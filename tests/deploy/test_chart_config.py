"""What the chart's `config` takes: the keys of the program, and nothing that is a secret.

It becomes a ConfigMap, which many people of a cluster may read. So a key that there is not, and a
value of another form, are refused by the schema of the values, and nothing is sent to a cluster.
"""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from typing import Any, Final

import pytest

from proxy.config_keys import key_shapes
from tests.conftest import Launch
from tests.deploy.helm import IMAGE, Helm, Refused
from tests.deploy.places import CHART, ROOT, merged
from tests.world.holdfast import COMMAND
from tests.world.server import RegistryServer

INDEX: Final = "sparse+https://packages.example.com/index/"
PEM: Final = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\n-----END PRIVATE KEY-----\n"
# Keys that the chart lets through for versions of the program which have them.
AHEAD: Final = frozenset({"upstreams.api_interval"})

CHARTS_OWN: Final = (
    ("server", "listen"),
    ("server", "admin_listen"),
    ("server", "tls"),
    ("server", "drain"),
    ("cache", "dir"),
    ("state", "dir"),
)


def keys_of_the_schema() -> set[str]:
    definitions = json.loads((CHART / "values.schema.json").read_text())["definitions"]
    sections = {
        name: below.get("additionalProperties", below)
        for name, below in definitions["config"]["properties"].items()
    }
    return {
        f"{section}.{key}"
        for section, below in sections.items()
        for key in definitions[below["$ref"].rpartition("/")[2]]["properties"]
    }


def test_the_schema_has_the_keys_of_the_program() -> None:
    shapes = key_shapes()
    known = {
        f"{section}.{key.partition('.')[0]}"
        for sections in (shapes.plain, shapes.named)
        for section, keys in sections.items()
        for key in keys
    }
    assert keys_of_the_schema() - AHEAD == known - AHEAD


def test_every_setting_that_the_documents_show_is_accepted(helm: Helm) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    shown = re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(shown) > 20
    for block in shown:
        config = tomllib.loads(block)
        for section, key in CHARTS_OWN:
            config.get(section, {}).pop(key, None)
        registries = config.setdefault("registries", {})
        for name in config.get("upstreams", {}):
            registries.setdefault(name, {}).setdefault("access", "open")
        variables = [{"name": "COMPANY_TOKEN", "value": "x"}]
        assert helm.objects({"config": config, "existingSecret": "tokens", "env": variables})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("index", "sparse+https://me:hunter2@packages.example.com/"),
        ("index", "sparse+https://packages.example.com/?token=hunter2/"),
        ("proxy", "http://me:hunter2@proxy.corp:3128"),
        ("mirrors", ["sparse+https://me:hunter2@mirror.example.com/"]),
        ("client_key", PEM),
        ("client_cert", PEM),
        ("ca_file", PEM),
        ("token", "hunter2"),
        ("token", {"file": "hunter2"}),
        ("password", "hunter2"),
        ("authorization", "Bearer hunter2"),
    ],
)
def test_a_secret_has_no_way_through_an_upstream(helm: Helm, key: str, value: object) -> None:
    with pytest.raises(Refused, match=rf"company(/{key}|.*'{key}' not allowed)"):
        helm.objects({"config": {"upstreams": {"company": {"index": INDEX} | {key: value}}}})


@pytest.mark.parametrize(
    "secret",
    [
        "cargo-token-in-plain-text",
        {"value": "cargo-token-in-plain-text"},
        {"env": "not a name: cargo-token-in-plain-text"},
        {"env": "TOKEN", "file": "/run/secrets/holdfast/token"},
        {},
    ],
)
@pytest.mark.parametrize("key", ["token", "publish_token"])
def test_a_secret_written_into_the_configuration_is_refused(
    helm: Helm, key: str, secret: object
) -> None:
    with pytest.raises(Refused, match=f"upstreams/company/{key}"):
        helm.objects({"config": {"upstreams": {"company": {key: secret}}}})


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"cache": {"max_sise": "100GiB"}}, "max_sise"),
        ({"cache": {"max_size": "100 gigabytes"}}, "cache/max_size"),
        ({"cache": {"min_free": "a lot"}}, "cache/min_free"),
        ({"server": {"trusted_proxies": "10.0.0.0/8"}}, "server/trusted_proxies"),
        ({"server": {"public_url": "https://me:hunter2@crates.example.com"}}, "server/public_url"),
        ({"server": {"password": "hunter2"}}, "password"),
        ({"limits": {"crates": "1GiB"}}, "crates"),
        ({"limits": {"client_misses": 600}}, "limits/client_misses"),
        ({"log": {"level": "verbose"}}, "log/level"),
        ({"state": {"token": "hunter2"}}, "token"),
        ({"registries": {"company": {"token": "hunter2"}}}, "token"),
        ({"registries": {"company": {"access": "everyone"}}}, "company/access"),
        ({"upstreams": {"crates-io": {"fresh_for": 60}}}, "crates-io/fresh_for"),
        ({"upstreams": {"Company": {"index": INDEX}}}, "Company"),
        ({"servers": {}}, "servers"),
    ],
)
def test_what_the_program_would_not_start_with_is_refused(
    helm: Helm, config: dict[str, Any], where: str
) -> None:
    with pytest.raises(Refused, match=where):
        helm.objects({"config": config})


@pytest.mark.parametrize(
    ("index", "code"), [(INDEX, 0), (INDEX.replace(".com/", ".com:99999/"), 2)]
)
def test_the_guides_lines_have_the_proxy_look_at_what_was_rendered(
    helm: Helm, index: str, code: int
) -> None:
    guide = (ROOT / "docs" / "kubernetes.md").read_text()
    (script,) = re.findall(r"configmap\.yaml \| (sed '.*') > holdfast\.toml", guide)
    (check,) = re.findall(r"-- (holdfast config check .*) < holdfast\.toml", guide)
    values = {"config": {"upstreams": {"company": {"index": index}}}}
    rendered = "---\n# Source: x\n" + helm.files(merged(IMAGE, values))["configmap.yaml"]
    taken = subprocess.run(
        shlex.split(script), input=rendered, capture_output=True, text=True, check=True, timeout=30
    )
    command = [COMMAND, *shlex.split(check)[1:]]
    done = subprocess.run(
        command, input=taken.stdout, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == code, done.stderr
    assert ("upstreams.company.index" in done.stderr) == bool(code)


def test_the_guides_copy_of_the_state_can_be_made_while_it_serves(
    upstream: RegistryServer, launch: Launch
) -> None:
    guide = (ROOT / "docs" / "kubernetes.md").read_text()
    (script,) = re.findall(r'-- python -c "(import sqlite3 .*)"$', guide, re.MULTILINE)
    proxy = launch({"crates-io": upstream})
    script = script.replace("/var/lib/holdfast", str(proxy.state_dir))
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
    (proxy.state_dir / "state.copy").rename(proxy.state_dir / "restored.db")
    proxy.stop()
    for file in proxy.state_dir.glob("state.db*"):
        file.unlink()
    (proxy.state_dir / "restored.db").rename(proxy.state_dir / "state.db")
    proxy.start()
