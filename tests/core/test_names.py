"""Names, versions and checksums, against the Cargo Book and Semantic Versioning 2.0.0."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.names import (
    index_path,
    index_prefix,
    is_crate_name,
    is_registry_name,
    is_sha256,
    is_version,
    name_of_index_path,
)
from tests.core import strategies as our

SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def path_by_the_book(name: str) -> str:
    """The Cargo Book, "Index files", rule by rule."""
    lowered = name.lower()
    folders = {1: "1", 2: "2", 3: f"3/{lowered[:1]}"}
    return f"{folders.get(len(name), f'{lowered[0:2]}/{lowered[2:4]}')}/{lowered}"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a", "1/a"),
        ("Ab", "2/ab"),
        ("abc", "3/a/abc"),
        ("Foo", "3/f/foo"),
        ("cargo", "ca/rg/cargo"),
        ("SERDE", "se/rd/serde"),
        ("ff-ggg", "ff/-g/ff-ggg"),
        ("hh_iii", "hh/_i/hh_iii"),
        ("_", "1/_"),
        ("1password", "1p/as/1password"),
    ],
)
def test_a_file_lies_where_cargo_asks_for_it(name: str, path: str) -> None:
    assert index_path(name) == path
    assert name_of_index_path(path) == name.lower()


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("A", "1"), ("Ab", "2"), ("Abc", "3/A"), ("MyCrate", "My/Cr"), ("mycrate", "my/cr")],
)
def test_a_prefix_keeps_the_case_of_the_name(name: str, prefix: str) -> None:
    assert index_prefix(name) == prefix


@given(our.crate_names())
def test_every_name_has_one_path_and_comes_back_from_it(name: str) -> None:
    assert is_crate_name(name)
    assert index_path(name) == path_by_the_book(name)
    assert name_of_index_path(index_path(name)) == name.lower()


def spoiled(name: str) -> st.SearchStrategy[str]:
    """Make paths near the canonical one, and sometimes the canonical one itself."""
    path = path_by_the_book(name)
    folders = path.rpartition("/")[0]
    return st.sampled_from(
        [
            path,
            path.upper(),
            path.title(),
            "/" + path,
            path + "/",
            path + ".json",
            path.replace("/", "//", 1),
            "./" + path,
            "../" + path,
            f"{folders}/../{folders}/{name.lower()}",
            name,
            f"{folders}/{name}",
            f"{folders}/{name.lower()}x",
            f"{folders}/x{name.lower()}",
            f"{name[:2]}/{name}",
            f"3/{name[:1]}/{name}",
            f"2/{name}",
            f"1/{name}",
            f"{name[:2]}/{name[2:4]}/{name}",
            path + "\n",
            path.replace("/", "\\"),
        ]
    )


@given(our.crate_names().flatmap(spoiled) | our.any_text)
@example("")
@example("config.json")
@example("1/\u0131")  # lowers to itself, is a letter, and is no crate's
@example("se/rd/serde\n")
@example("3/\u212a/\u212aab")  # the Kelvin sign lowers to an ASCII k
def test_every_path_but_the_canonical_one_is_nobodys(path: str) -> None:
    name = name_of_index_path(path)
    last = path.rpartition("/")[2]
    belongs = (
        last.isascii()
        and 1 <= len(last) <= 64
        and last[0] != "-"
        and last.replace("-", "a").replace("_", "a").isalnum()
        and path == path_by_the_book(last)
    )
    assert name == (last if belongs else None)


@pytest.mark.parametrize(
    "text",
    ["a", "A", "_", "0", "serde", "serde_json", "serde-json", "x" * 64, "a-", "a_-_-"],
)
def test_crate_names(text: str) -> None:
    assert is_crate_name(text)


@pytest.mark.parametrize(
    "text",
    ["", "-a", "a b", "a.b", "a/b", "..", "a\n", "x" * 65, "é", "\u0660", "a\0", "a+b", "a%2Fb"],
)
def test_no_crate_names(text: str) -> None:
    assert not is_crate_name(text)


# The lists of valid and invalid versions that semver.org publishes for its regular expression.
@pytest.mark.parametrize(
    "text",
    [
        "0.0.4",
        "1.2.3",
        "10.20.30",
        "1.1.2-prerelease+meta",
        "1.1.2+meta",
        "1.1.2+meta-valid",
        "1.0.0-alpha",
        "1.0.0-alpha.beta.1",
        "1.0.0-alpha0.valid",
        "1.0.0-alpha.0valid",
        "1.0.0-alpha-a.b-c-somethinglong+build.1-aef.1-its-okay",
        "1.0.0-rc.1+build.1",
        "10.2.3-DEV-SNAPSHOT",
        "1.2.3-SNAPSHOT-123",
        "2.0.0+build.1848",
        "2.0.1-alpha.1227",
        "1.2.3----RC-SNAPSHOT.12.9.1--.12+788",
        "1.2.3----R-S.12.9.1--.12+meta",
        "1.0.0+0.build.1-rc.10000aaa-kk-0.1",
        "1.0.0-0A.is.legal",
        "1.0.0-0",
        "1.0.0+001",
    ],
)
def test_versions(text: str) -> None:
    assert is_version(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1.2",
        "1.2.3-0123",
        "1.2.3-0123.0123",
        "1.1.2+.123",
        "+invalid",
        "-invalid",
        "-invalid+invalid",
        "alpha",
        "alpha.beta.1",
        "1.0.0-alpha_beta",
        "1.0.0-alpha..",
        "1.0.0-alpha..1",
        "01.1.1",
        "1.01.1",
        "1.1.01",
        "1.2.3.DEV",
        "1.2-SNAPSHOT",
        "1.2.31.2.3----RC-SNAPSHOT.12.09.1--..12+788",
        "-1.0.3-gamma+b7718",
        "+justmeta",
        "9.8.7+meta+meta",
        "9.8.7-whatever+meta+meta",
        "1.0.0-",
        "1.0.0+",
        "v1.0.0",
        " 1.0.0",
        "1.0.0\n",
        "1.0.0 b",
        "\u0661.\u0660.\u0660",
        "1.0.0/..",
    ],
)
def test_no_versions(text: str) -> None:
    assert not is_version(text)


@given(our.versions())
def test_what_the_grammar_of_semver_makes_is_a_version(text: str) -> None:
    assert is_version(text)


def test_a_version_has_at_most_255_characters() -> None:
    assert is_version("1.0.0-" + "a" * 249)
    assert not is_version("1.0.0-" + "a" * 250)


@given(our.checksums())
def test_a_checksum_is_64_digits_in_lower_case(text: str) -> None:
    assert is_sha256(text)
    assert not is_sha256(text[:-1])
    assert not is_sha256(text + "0")
    assert not is_sha256(text[:-1] + "g")


@pytest.mark.parametrize("text", ["", SHA256.upper(), SHA256 + "\n", f" {SHA256}", "\u0660" * 64])
def test_no_checksums(text: str) -> None:
    assert not is_sha256(text)


@given(our.registry_names())
def test_a_registry_name_is_one(text: str) -> None:
    assert is_registry_name(text)


@pytest.mark.parametrize(
    "text", ["", "-", "-a", "A", "a_b", "a.b", "a/b", "é", "a\n", "\u0660", "crates.io"]
)
def test_no_registry_names(text: str) -> None:
    assert not is_registry_name(text)
