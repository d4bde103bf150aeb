"""`docs/configuration.md` against the program: every key, every default, every example."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from pydantic import BaseModel

from proxy.config import ConfigError, Settings, load
from proxy.config_keys import NAMED_SECTIONS, PLAIN_SECTIONS, key_shapes

PAGE: Final = Path(__file__).parents[1] / "docs/configuration.md"
MAIN, RESERVED = PAGE.read_text().split("\n## Not available in this version\n")
BLOCKS: Final = re.findall(r"^```toml\n(.*?)^```", MAIN, re.MULTILINE | re.DOTALL)
COMPANY: Final = '[upstreams.company]\nindex = "sparse+https://packages.example.com/index/"\n'
FOLDERS: Final = {
    "cache.dir": "the user's cache directory",
    "state.dir": "the user's state directory",
    "registries.NAME.upstreams": "the upstream of the same name",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table of keys."""

    key: str
    default: str
    for_crates_io: str
    variables: tuple[str, ...]


def rows() -> Iterator[Row]:
    for line in MAIN.splitlines():
        if line.startswith("| `"):
            key, _, default, *others, variables = [
                cell.strip() for cell in line.strip("|").split("|")
            ]
            crates_io = others[0] if others and others[0] != "the same" else default
            yield Row(key.strip("`"), default, crates_io, tuple(re.findall("`(.*?)`", variables)))


def keys(*, reserved: bool) -> Iterator[tuple[str, type[BaseModel], str]]:
    for sections, name in ((PLAIN_SECTIONS, ""), (NAMED_SECTIONS, ".NAME")):
        for section, model in sections.items():
            for attribute, info in model.model_fields.items():
                if bool(info.exclude) == reserved:
                    yield f"{section}{name}.{info.alias or attribute}", model, attribute


def settings(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "example.toml"
    path.write_text(text)
    (tmp_path / "company-token").write_text("t")
    text = text.replace("/run/secrets/", f"{tmp_path}/")
    path.write_text(text)
    return load(path, {"COMPANY_TOKEN": "t"})


def test_every_key_is_in_a_table_once_and_no_other_is() -> None:
    assert sorted(row.key for row in rows()) == sorted(key for key, _, _ in keys(reserved=False))


def test_every_key_has_a_text_and_an_example() -> None:
    described = re.findall(r"^((?:`[a-zA-Z0-9._]+`(?:, |:))+)", MAIN, re.MULTILINE)
    texts = [key for line in described for key in re.findall("`(.*?)`", line)]
    assert sorted(texts) == sorted(row.key for row in rows())
    written: set[str] = set()
    for block in BLOCKS:
        for section, table in tomllib.loads(block).items():
            inner = {"": table} if section in PLAIN_SECTIONS else table
            name = "" if section in PLAIN_SECTIONS else ".NAME"
            written |= {f"{section}{name}.{key}" for one in inner.values() for key in one}
    assert written == {row.key for row in rows()}


def test_the_keys_that_are_refused_are_listed_as_such() -> None:
    listed = set(re.findall(r"^\| `([a-zA-Z0-9._]+)` \|", RESERVED, re.MULTILINE))
    assert listed == {key for key, _, _ in keys(reserved=True)}


def test_every_variable_is_spelt_as_the_program_reads_it() -> None:
    shapes = key_shapes()
    for row in rows():
        section, _, key = row.key.replace(".NAME", "").partition(".")
        kinds = shapes.plain.get(section) or shapes.named[section]
        spelt = [one for one in kinds if one == key or one.startswith(f"{key}.")]
        prefix = "HOLDFAST__" + row.key.removesuffix(key).replace(".", "__").upper()
        assert list(row.variables) == [prefix + one.replace(".", "__").upper() for one in spelt]


def test_every_default_is_the_programs_own() -> None:
    loaded = load(None, {"HOLDFAST__UPSTREAMS__COMPANY__INDEX": "sparse+https://a/"})
    models = {key: (model, attribute) for key, model, attribute in keys(reserved=False)}
    for row in rows():
        model, attribute = models[row.key]
        section = row.key.partition(".")[0]
        value = getattr(loaded, section)
        if section in PLAIN_SECTIONS:
            expect(row, row.default, value, attribute)
        elif row.default == "required":
            assert model.model_fields[attribute].is_required()
            expect(row, row.for_crates_io, value["crates-io"], attribute)
        else:
            expect(row, row.default, value["company"], attribute)
            expect(row, row.for_crates_io, value["crates-io"], attribute)


def expect(row: Row, default: str, model: BaseModel, attribute: str) -> None:
    info = type(model).model_fields[attribute]
    key = info.alias or attribute
    value = model.model_dump(mode="json", by_alias=True)[key]
    if row.key in FOLDERS:
        assert default == FOLDERS[row.key]
    elif value is None:
        assert default == f"not set: {info.description}", row.key
    else:
        written = default.removeprefix("`").removesuffix("`")
        assert tomllib.loads(f"{key} = {written}") == {key: value}, row.key


@pytest.mark.parametrize("block", BLOCKS)
def test_every_example_is_a_configuration(tmp_path: Path, block: str) -> None:
    try:
        loaded = settings(tmp_path, block)
    except ConfigError as error:
        pytest.fail(f"{error}\n{block}")
    assert "crates-io" in loaded.registries


def test_the_examples_of_variables_are_understood(tmp_path: Path) -> None:
    examples = dict(re.findall(r"^(HOLDFAST__\w+)='?(.*?)'?$", MAIN, re.MULTILINE))
    assert len(examples) == 5
    token = tmp_path / "company"
    token.write_text("t")
    examples["HOLDFAST__UPSTREAMS__COMPANY__TOKEN__FILE"] = str(token)
    examples["HOLDFAST__REGISTRIES__COMPANY__ACCESS"] = "open"
    path = tmp_path / "company.toml"
    path.write_text(COMPANY)
    loaded = load(path, examples)
    assert loaded.upstreams["crates-io"].fresh_for_s == 300
    assert not loaded.server.h2c
