"""The Dockerfile against the tree: no image is built here, but what it is built from is there."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from proxy import config
from proxy.config import Overrides
from proxy.version import VERSION
from tests.conftest import Launch
from tests.deploy.dockerfile import Stage, stages
from tests.deploy.places import DOCKERFILE, ROOT
from tests.world.server import RegistryServer

BUILD, FINAL = stages(DOCKERFILE)
IGNORED: Final = (ROOT / ".dockerignore").read_text().splitlines()


def environment(stage: Stage) -> dict[str, str]:
    pairs = [pair for one in stage.all("ENV") for pair in shlex.split(one.rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def copied(stage: Stage) -> list[str]:
    """Return what is copied from the tree."""
    copies = [shlex.split(one.rest) for one in stage.all("COPY")]
    return [source for words in copies if "--from" not in words[0] for source in words[:-1]]


def is_sent(path: str) -> bool:
    """Tell whether .dockerignore lets a path go to the builder: its last match counts."""
    sent = True
    for line in IGNORED:
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        plain = pattern.removeprefix("**/")
        anywhere = pattern != plain and plain in path.split("/")
        if anywhere or fnmatch(path, pattern) or path.startswith(f"{pattern}/"):
            sent = line.startswith("!")
    return sent


def test_what_is_copied_is_there_and_is_sent_to_the_builder() -> None:
    sources = [source.removeprefix("./") for source in copied(BUILD)]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert is_sent(source)
    assert is_sent("proxy/adapters/blocks.py")


@pytest.mark.parametrize(
    "path", [".git/config", ".venv/bin/python", "tests/conftest.py", "proxy/__pycache__/cli.pyc"]
)
def test_what_does_not_belong_in_an_image_is_not_sent(path: str) -> None:
    assert not is_sent(path)


def test_all_that_a_build_needs_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {project["project"]["readme"], *project["project"]["license-files"], *packages}
    assert needed | {"pyproject.toml", "requirements.lock"} == set(copied(BUILD))


def test_nothing_is_copied_into_what_runs_but_what_was_built() -> None:
    (copy,) = FINAL.all("COPY")
    words = shlex.split(copy.rest)
    assert words[0] == f"--from={BUILD.name}"
    # A virtual environment has its own path written into it.
    assert words[1] == words[2]
    assert f"python -m venv {words[1]}" in BUILD.instructions_text


def test_both_stages_are_of_one_pinned_base() -> None:
    assert BUILD.base == FINAL.base
    image, _, tag = BUILD.base.partition(":")
    assert image == "python"
    assert re.fullmatch(r"3\.\d+-slim-[a-z]+", tag)
    minor = int(tag.split("-")[0].split(".")[1])
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Programming Language :: Python :: 3.{minor}" in requires["classifiers"]


def test_dependencies_come_by_hash() -> None:
    for one in BUILD.all("RUN"):
        for command in re.findall(r"pip install ([^&]+)", one.rest):
            assert "--require-hashes" in command or "--no-deps --no-build-isolation" in command


def runtime() -> set[str]:
    """Return the names of all that the program needs when it runs, by what is installed here."""
    needed: set[str] = set()
    waiting = ["holdfast"]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in needed:
            continue
        needed.add(name)
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return needed


def test_what_only_builds_is_taken_out_again_and_nothing_else() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    locked = re.findall(r"^([\w.-]+)==\S+(.*)$", lock, re.MULTILINE)
    on_linux = {canonicalize_name(name) for name, rest in locked if "win32" not in rest}
    removed = re.search(r"pip uninstall --yes ([\w\s-]+)", BUILD.instructions_text)
    assert removed is not None
    assert set(removed[1].split()) == on_linux - runtime() | {"pip"}


def test_it_runs_as_nobody_and_is_told_to_stop_by_sigterm() -> None:
    user, _, group = FINAL.last("USER").rest.partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert FINAL.last("STOPSIGNAL").rest == "SIGTERM"
    words = [one.word for one in FINAL.instructions]
    assert "RUN" not in words[words.index("USER") :]


def test_what_it_runs_is_there() -> None:
    (entry,) = FINAL.last("ENTRYPOINT").form
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert entry in scripts
    assert environment(FINAL)["PATH"].split(":")[0] == "/opt/holdfast/bin"
    command = [str(Path(sys.executable).with_name(entry)), *FINAL.last("CMD").form, "--help"]
    assert subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0


def test_its_variables_are_a_configuration_and_its_volumes_are_what_is_written_to() -> None:
    read = config.load(None, environment(FINAL), Overrides())
    places = {str(read.cache.dir), str(read.state.dir)}
    assert set(FINAL.last("VOLUME").form) == places
    assert {str(address) for address in read.server.listen} == {"0.0.0.0:8080", "[::]:8080"}
    assert {str(address.port) for address in read.server.listen} == {FINAL.last("EXPOSE").rest}
    # Docker kills ten seconds after SIGTERM.
    assert read.server.drain_s < 10
    owner = FINAL.last("USER").rest.partition(":")[0]
    made = next(one.rest for one in FINAL.all("RUN") if "install -d" in one.rest)
    for place in places:
        assert re.search(rf"-o {owner} -g {owner} -m 0700 [^&]*{place}", made)


def test_a_configuration_that_is_mounted_is_read_and_without_one_there_is_an_empty_file() -> None:
    place = environment(FINAL)["HOLDFAST_CONFIG"]
    (written,) = re.findall(rf"echo '(.*)' > {place}", FINAL.instructions_text)
    assert tomllib.loads(written) == {}


def test_its_labels_are_the_projects() -> None:
    labels = dict(pair.split("=", 1) for pair in shlex.split(FINAL.last("LABEL").rest))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "org.opencontainers.image"
    assert labels[f"{prefix}.version"] == project["version"] == VERSION
    assert labels[f"{prefix}.description"] == project["description"]
    assert labels[f"{prefix}.licenses"] == project["license"]


def test_the_health_check_sees_health(upstream: RegistryServer, launch: Launch) -> None:
    _, _, form = FINAL.last("HEALTHCHECK").rest.partition(" CMD ")
    words = json.loads(form)
    proxy = launch({"crates-io": upstream})

    def healthy(script: str) -> bool:
        return (
            subprocess.run([sys.executable, "-c", script], check=False, timeout=30).returncode == 0
        )

    assert words[:2] == ["/opt/holdfast/bin/python", "-c"]
    script = words[2].replace("8080", str(proxy.port))
    assert script != words[2]
    assert healthy(script)
    assert not healthy(script.replace("/-/healthz", "/-/nowhere"))
