"""What the guides show is accepted by what it is for: the chart, or the program."""

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from proxy import config
from proxy.config import NO_OVERRIDES
from tests.deploy.dockerfile import stages
from tests.deploy.places import DOCKERFILE, ROOT

GUIDES: Final = ("docs/docker.md", "docs/systemd.md")


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", GUIDES)
def test_the_configurations_shown_are_accepted(name: str, tmp_path: Path) -> None:
    shown = blocks(name, "toml")
    assert shown
    token = tmp_path / "company-token"
    token.write_text("a token\n")
    for number, text in enumerate(shown):
        file = tmp_path / f"{number}.toml"
        file.write_text(re.sub(r'"/[^"]*/company-token"', f'"{token}"', text))
        config.load(file, {}, NO_OVERRIDES)


def test_the_compose_file_gives_the_container_what_the_image_has() -> None:
    (text,) = blocks("docs/docker.md", "yaml")
    service: dict[str, Any] = yaml.safe_load(text)["services"]["holdfast"]
    read = config.load(
        None,
        {key: value for key, value in service["environment"].items() if "__" in key},
        NO_OVERRIDES,
    )
    assert int(service["stop_grace_period"].removesuffix("s")) >= read.server.drain_s + 15
    mounted = {volume.split(":")[1] for volume in service["volumes"]}
    assert mounted >= {"/var/cache/holdfast", "/var/lib/holdfast"}
    image = stages(DOCKERFILE)[-1].all("ENV")[-1].rest
    assert re.findall(r"HOLDFAST_CONFIG=(\S+)", image)[0] in mounted
    # A registry that needs a token is not for everyone who reaches the machine.
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
