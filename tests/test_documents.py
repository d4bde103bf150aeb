"""The documents say what is so: what they name is compared with the code.

Links, paths, commands and their options, make targets, configuration keys, metrics with their types
and labels, the X-Cache words, exit codes and limits are compared. What a sentence says is for its
reader to judge; only words that have no business here are looked for.
"""

import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from proxy import cli, config
from proxy.adapters.clock import SystemClock
from proxy.adapters.telemetry import Telemetry
from proxy.config_changes import RELOADED
from proxy.config_show import cargo_config, redacted
from proxy.core.events import How
from proxy.version import VERSION
from tests.conftest import Launch
from tests.world.server import RegistryServer

ROOT: Final = Path(__file__).parent.parent
DOCUMENTS: Final = tuple(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
)
DECISIONS: Final = tuple(name for name in DOCUMENTS if re.match(r"docs/adr/\d", name))

# Letters in brackets keep these from being found here.
OUT_OF_PLACE: Final = (
    r"/(?:wor[k]|roo[t]|far[m]|tm[p]|Use[r]s)/\w",
    r"\b(?:ses[s]ions?|sub-?age[n]ts?|steer[i]ng|C[E]O|hel[p]ers? (?:wrote|did|found))\b",
    r"\bpy[p]i\b|pythonho[s]ted|deb\.debi[a]n",
    r"\b(?:T[O]DO|FI[X]ME|T[B]D)\b",
    r"\b(?:blaz[i]ng|seam[l]ess|cutting[- ]ed[g]e|world-cl[a]ss|lever[a]g|effort[l]ess|rob[u]st)",
    r"\b(?:issue|ticket) #?\d",
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a document."""

    language: str
    text: str


def read(name: str) -> str:
    return (ROOT / name).read_text()


def blocks(name: str) -> Iterator[Block]:
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", read(name), re.MULTILINE | re.DOTALL):
        yield Block(match[1], match[2])


def prose(name: str) -> str:
    return re.sub(r"^```.*?^```$", "", read(name), flags=re.MULTILINE | re.DOTALL)


def spans(name: str) -> list[str]:
    """Return what stands between backticks."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(name))]


def rows(name: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    below = read(name).split(f"\n{heading}\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert table is not None, f"no table below {heading!r} in {name}"
    lines = table[0].splitlines()[2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def word(cell: str) -> str:
    return cell.strip(" `|")


def anchors(name: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(name), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_document_and_to_a_heading_in_it(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(name)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        document = (ROOT / name).parent / path if path else ROOT / name
        assert document.is_file(), f"{name} links to {target}"
        if anchor:
            assert anchor in anchors(document.resolve().relative_to(ROOT).as_posix()), target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_and_module_that_a_document_names_is_there(name: str) -> None:
    named = re.findall(r"\b(?:proxy|tests|docs|\.ci)/[\w./*-]*\w", read(name))
    for path in named:
        assert list(ROOT.glob(path)) or list(ROOT.glob(f"{path}.py")), f"{name} names {path}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_document_has_words_that_are_out_of_place(name: str) -> None:
    for pattern in OUT_OF_PLACE:
        assert re.findall(pattern, read(name), re.IGNORECASE) == []


def test_every_decision_is_listed_and_has_its_four_parts() -> None:
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", read("docs/adr/README.md"))
    assert sorted(f"docs/adr/{name}" for name in listed) == sorted(DECISIONS)
    for name in DECISIONS:
        parts = re.findall(r"^## (.+)$", read(name), re.MULTILINE)
        assert parts == ["Context", "Decision", "Rejected", "Consequences"], name
        title = re.match(r"# (\d{4}: .+)\n", read(name))
        assert title is not None
        assert f"[{title[1]}]({Path(name).name})" in read("docs/adr/README.md")


# Commands


def command_lines(name: str) -> Iterator[str]:
    """Return every `holdfast ...` that a document shows, in blocks and between backticks."""
    for block in blocks(name):
        if block.language == "console":
            for line in block.text.splitlines():
                shown = re.match(r"\$ (?:\S*/)?(holdfast\b.*)", line)
                if shown is not None:
                    yield shown[1].partition("  #")[0]
    for span in spans(name):
        if re.match(r"holdfast [a-z-]", span):
            yield span


@cache
def help_of(*command: str) -> str:
    shown = CliRunner().invoke(cli.app, [*command, "--help"])
    assert shown.exit_code == 0, f"there is no command {' '.join(command)!r}"
    return shown.output


def commands_below(*command: str) -> list[str]:
    _, _, listed = help_of(*command).partition("\nCommands:\n")
    return re.findall(r"^  ([a-z]+) ", listed, re.MULTILINE)


def options_of(*command: str) -> set[str]:
    return set(re.findall(r"^  (--[a-z-]+)", help_of(*command), re.MULTILINE))


def leaves(*command: str) -> Iterator[tuple[str, ...]]:
    below = commands_below(*command)
    if not below:
        yield command
    for name in below:
        yield from leaves(*command, name)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_shown_exists_with_its_options(name: str) -> None:
    for line in command_lines(name):
        words = shlex.split(line)[1:]
        command: tuple[str, ...] = ()
        while words and words[0] in commands_below(*command):
            command = (*command, words.pop(0))
        assert command in leaves() or words == ["--help"], f"{name}: {line}"
        given = {each.partition("=")[0] for each in words if each.startswith("--")}
        assert given <= options_of(*command), f"{name}: {line}"


def test_every_command_and_every_option_is_described() -> None:
    described = read("docs/operations.md")
    for command in leaves():
        assert f"**`holdfast {' '.join(command)}`**" in described, command
        for option in options_of(*command) - {"--help"}:
            assert option in described, (command, option)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_make_target_shown_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    shown = [line for block in blocks(name) for line in block.text.splitlines()] + spans(name)
    for line in shown:
        made = re.match(r"(?:\$ )?make ([a-z]+)", line)
        if made is not None:
            assert made[1] in targets, f"{name}: {line}"


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    documented = {int(row[0]) for row in rows("docs/operations.md", "## Commands")}
    codes = {cli.DONE, cli.FOUND_WRONG, cli.USAGE, cli.COULD_NOT, cli.INTERRUPTED}
    assert documented == codes


def test_the_version_is_the_one_that_runs() -> None:
    assert f"holdfast {VERSION} is serving on http://127.0.0.1:8080/" in read("README.md")
    assert f"## {VERSION}" in read("CHANGELOG.md")


# Configuration


def settings_keys() -> set[str]:
    shown = redacted(config.load(None, {}, config.Overrides()))
    keys: set[str] = set()
    for section, content in shown.items():
        assert isinstance(content, dict)
        tables = content.values() if section in ("upstreams", "registries") else [content]
        keys |= {f"{section}.{key}" for table in tables for key in table}
    return keys


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if "configuration" not in name])
def test_every_configuration_key_named_exists(name: str) -> None:
    known = settings_keys()
    sections = "|".join({key.partition(".")[0] for key in known})
    for span in spans(name):
        key = re.match(rf"({sections})\.(?:NAME\.)?([a-z0-9_]+)", span)
        if key is not None and not span.endswith(".db"):
            assert f"{key[1]}.{key[2]}" in known, f"{name}: {span}"


def test_the_keys_that_are_reloaded_are_those_of_the_code() -> None:
    named = [key for row in rows("docs/operations.md", "## Reloading") for key in row[0].split(",")]
    known = [f"{section}.{key}" for section, keys in RELOADED.items() for key in keys]
    assert sorted(word(key).replace(".NAME", "") for key in named) == sorted(known)


@pytest.mark.parametrize("name", ["README.md", "docs/operations.md"])
def test_the_configurations_shown_are_accepted_or_are_cargos(name: str, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(name)):
        if block.language != "toml":
            continue
        document = tomllib.loads(block.text)
        if document.keys() & {"source", "http"}:
            continue
        file = tmp_path / f"{number}.toml"
        file.write_text(block.text)
        config.load(file, {}, config.Overrides(), secrets=False)


def test_the_lines_to_paste_are_those_that_the_command_prints() -> None:
    printed = cargo_config(config.load(None, {}, config.Overrides()), None, None)
    pasted = next(block for block in blocks("README.md") if block.language == "toml")
    assert tomllib.loads(pasted.text) == tomllib.loads(printed)


# Metrics, words, limits


def documented_metrics() -> dict[str, tuple[str, frozenset[str]]]:
    return {
        word(name): (kind.strip(), frozenset(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, _ in rows("docs/operations.md", "## Metrics")
    }


def types_on_the_page(page: str) -> dict[str, str]:
    return dict(re.findall(r"^# TYPE (holdfast_\w+) (\w+)$", page, re.MULTILINE))


def test_the_metrics_are_those_of_a_running_proxy(upstream: RegistryServer, launch: Launch) -> None:
    page = launch({"crates-io": upstream}).get("/-/metrics").body.decode()
    documented = {name: kind for name, (kind, _) in documented_metrics().items()}
    assert documented == types_on_the_page(page)


def test_the_labels_of_each_metric_are_documented() -> None:
    telemetry = Telemetry(["crates-io"], ["crates-io"], VERSION, SystemClock())
    telemetry.watch_flights(lambda: 0)
    telemetry.watch_upstream("crates-io", lambda: 0, lambda: 0, {"mirror": lambda: 0})
    telemetry.watch_connections({"http/1.1": lambda: 0})
    telemetry.set_cache("blobs", used=1, entries=1, limit=1)
    page = telemetry.render()[0].decode()
    types = types_on_the_page(page)
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for family in text_string_to_metric_families(page):
        for name in (family.name, f"{family.name}_total", f"{family.name}_info"):
            if name in types:
                labels = {label for sample in family.samples for label in sample.labels}
                found[name] = (types[name], frozenset(labels - {"le"}))
    assert documented_metrics() == found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_metric_named_in_passing_is_in_the_table(name: str) -> None:
    known = set(documented_metrics())
    for named in re.findall(r"\bholdfast_[a-z_]*[a-z]\b", read(name)):
        assert named in known, f"{name}: {named}"


def test_the_x_cache_words_are_those_of_the_code() -> None:
    table = rows("docs/operations.md", "## How an answer was come by: X-Cache")
    assert [word(row[0]) for row in table] == [how.value for how in How]


UNITS: Final = {"": 1, "s": 1, "min": 60, "KiB": 1024}


def test_the_limits_are_those_of_the_code() -> None:
    table = rows("docs/operations.md", "## Limits")
    assert len(table) > 1
    for _, value, where in table:
        module, _, constant = word(where).rpartition(".")
        number, _, unit = value.partition(" ")
        said = int(number.replace(",", "")) * UNITS[unit]
        assert getattr(importlib.import_module(module), constant) == said, where
