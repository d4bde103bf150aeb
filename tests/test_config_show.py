"""What is printed of the configuration: nothing secret, and what a real cargo works with."""

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from proxy.config import ConfigError, Overrides, Settings, load
from proxy.config_show import cargo_config, redacted, redacted_toml
from tests.world.cargo import CargoHome, Project, Toolchain
from tests.world.crates import CRATES_IO_GIT_INDEX, Dependency, Package
from tests.world.registry import Registry
from tests.world.server import RegistryServer
from tests.world.wire import Reply, Request

CANONICAL: Final = "sparse+https://packages.example.com/index/"
COMPANY: Final = f'[upstreams.company]\nindex = "{CANONICAL}"\n'
Load = Callable[[str], Settings]


@pytest.fixture
def loaded(tmp_path: Path) -> Load:
    def from_text(text: str) -> Settings:
        path = tmp_path / "holdfast.toml"
        path.write_text(text)
        return load(path, {"TOKEN": "hunter2"})

    return from_text


def tables(text: str) -> dict[str, dict[str, dict[str, str]]]:
    return tomllib.loads(text)


def listening_on(*addresses: str) -> Settings:
    return load(None, {}, Overrides(listen=addresses))


def test_every_key_is_shown_with_its_value_in_effect(loaded: Load) -> None:
    settings = loaded(COMPANY + 'fresh_for = "90s"\ntoken = { env = "TOKEN" }\n')
    shown = tomllib.loads(redacted_toml(settings))
    assert shown["server"]["listen"] == ["127.0.0.1:8080"]
    assert shown["cache"]["memory"] == "256MiB"
    assert shown["upstreams"]["crates-io"]["fresh_for"] == "60s"
    assert shown["upstreams"]["company"]["fresh_for"] == "90s"
    assert shown["upstreams"]["company"]["token"] == {"env": "TOKEN"}
    assert shown["upstreams"]["company"]["absent_statuses"] == [404, 410, 451]
    assert shown["registries"]["company"] == {"upstreams": ["company"]}
    assert "hunter2" not in redacted_toml(settings)


def test_a_key_without_a_value_is_a_comment_that_says_what_holds() -> None:
    lines = redacted_toml(load(None, {})).splitlines()
    assert "# max_size is not set: the smaller of 50 GiB and 80 % of what is free" in lines
    assert "# token is not set: requests go without" in lines


def test_access_that_was_not_written_is_not_shown_as_if_it_were(loaded: Load) -> None:
    # Otherwise what is shown, kept as a file, would open a registry that listening on the network
    # has to open by name.
    settings = loaded(COMPANY + 'token = { env = "TOKEN" }\n')
    again = redacted_toml(settings).replace("127.0.0.1:8080", "0.0.0.0:8080")
    with pytest.raises(ConfigError, match=r"registries\.company\.access"):
        loaded(again)


def test_characters_that_toml_wants_escaped_are_escaped(loaded: Load, tmp_path: Path) -> None:
    odd = 'a\x7f\x1b"\\\u00e9\U0001f980\u0085'
    settings = loaded(f"[cache]\ndir = {json.dumps(odd)}".replace(r"\ud83e\udd80", "\U0001f980"))
    assert settings.cache.dir == tmp_path / odd
    assert tomllib.loads(redacted_toml(settings))["cache"]["dir"] == str(tmp_path / odd)


def test_as_json_a_key_without_a_value_is_null(loaded: Load) -> None:
    settings = loaded(COMPANY + 'token = { env = "TOKEN" }\n')
    document = json.loads(json.dumps(redacted(settings)))
    assert document["cache"]["max_size"] is None
    assert document["upstreams"]["company"]["token"] == {"env": "TOKEN"}
    assert document["upstreams"]["crates-io"]["token"] is None
    assert document["server"]["listen"] == ["127.0.0.1:8080"]


# The client's half


def test_crates_io_is_replaced() -> None:
    assert tables(cargo_config(load(None, {}), None, None)) == {
        "source": {"crates-io": {"replace-with": "holdfast"}},
        "registries": {"holdfast": {"index": "sparse+http://127.0.0.1:8080/crates-io/index/"}},
    }


def test_another_registry_keeps_its_address_and_is_read_through_us(loaded: Load) -> None:
    text = cargo_config(loaded(COMPANY), "https://crates.example.com/cargo/", "company")
    ours = "sparse+https://crates.example.com/cargo/company/index/"
    assert tables(text) == {
        "source": {"company": {"registry": CANONICAL, "replace-with": "holdfast-company"}},
        "registries": {"company": {"index": CANONICAL}, "holdfast-company": {"index": ours}},
    }


def test_without_a_choice_every_upstream_is_there_and_no_alias(loaded: Load) -> None:
    settings = loaded(COMPANY + '[registries.alias]\nupstreams = ["company"]\n')
    everything = tables(cargo_config(settings, None, None))
    assert set(everything["registries"]) == {"holdfast", "company", "holdfast-company"}
    alias = tables(cargo_config(settings, None, "alias"))
    assert alias["registries"]["holdfast-company"]["index"].endswith("/alias/index/")
    assert alias["registries"]["company"]["index"] == CANONICAL


def test_an_alias_of_crates_io_replaces_crates_io(loaded: Load) -> None:
    settings = loaded('[registries.mirror]\nupstreams = ["crates-io"]\n')
    alias = tables(cargo_config(settings, None, "mirror"))
    assert alias["source"] == {"crates-io": {"replace-with": "holdfast"}}
    assert alias["registries"]["holdfast"]["index"].endswith("/mirror/index/")


def test_no_replacement_takes_the_name_of_an_upstream_or_of_another(loaded: Load) -> None:
    names = ["holdfast", "a", "holdfast-a", "a-proxy"]
    text = "".join(f'[upstreams.{n}]\nindex = "sparse+https://{n}.example.com/"\n' for n in names)
    found = tables(cargo_config(loaded(text), None, None))
    for name in names:
        assert found["registries"][name]["index"] == f"sparse+https://{name}.example.com/"
    replacements = {name: source["replace-with"] for name, source in found["source"].items()}
    assert len(set(replacements.values())) == len(names) + 1
    for name, replacement in replacements.items():
        assert found["registries"][replacement]["index"].endswith(f":8080/{name}/index/")


def test_one_source_is_never_defined_twice(loaded: Load) -> None:
    mirror = '[upstreams.mirror]\nindex = "sparse+https://index.crates.io/"\n'
    found = tables(
        cargo_config(loaded(COMPANY + COMPANY.replace("company", "again") + mirror), None, None)
    )
    assert set(found["source"]) == {"crates-io", "company"}
    assert found["registries"]["again"]["index"] == CANONICAL
    assert found["registries"]["mirror"]["index"] == "sparse+https://index.crates.io/"


@pytest.mark.parametrize(
    ("listen", "base"),
    [
        ("127.0.0.1:99", "http://127.0.0.1:99"),
        ("proxy.local:99", "http://proxy.local:99"),
        ("0.0.0.0:99", "http://127.0.0.1:99"),
        ("[::]:99", "http://[::1]:99"),
    ],
)
def test_nobodys_address_is_never_printed(listen: str, base: str) -> None:
    text = cargo_config(listening_on(listen), None, None)
    assert f'"sparse+{base}/crates-io/index/"' in text
    is_guess = base.removeprefix("http://") != listen
    assert ("# The proxy listens on" in text) == is_guess


def test_a_public_address_is_printed_before_a_listener(loaded: Load) -> None:
    settings = loaded('[server]\npublic_url = ["https://a.example/x", "https://b.example"]\n')
    assert '"sparse+https://a.example/x/crates-io/index/"' in cargo_config(settings, None, None)
    assert '"sparse+http://c/crates-io/index/"' in cargo_config(settings, "http://c", None)


@pytest.mark.parametrize(
    ("settings", "url", "registry", "option"),
    [
        (listening_on("127.0.0.1:0"), None, None, "--url"),
        (listening_on("127.0.0.1:1"), "crates.example.com", None, "--url"),
        (listening_on("127.0.0.1:1"), 'http://a"\n[x]', None, "--url"),
        (listening_on("127.0.0.1:1"), None, "crates", "--registry"),
    ],
)
def test_options_that_cannot_be_used_are_named(
    settings: Settings, url: str | None, registry: str | None, option: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        cargo_config(settings, url, registry)
    assert [key for key, _ in caught.value.problems] == [option]


@dataclass(frozen=True, slots=True)
class Mounted:
    """Serves registries below their names, as the proxy does."""

    registries: Mapping[str, Registry]

    def answer(self, request: Request) -> Reply:
        name, _, rest = request.target.removeprefix("/").partition("/")
        if name in self.registries:
            return self.registries[name].answer(replace(request, target=f"/{rest}"))
        replies = [registry.answer(request) for registry in self.registries.values()]
        return next((reply for reply in replies if reply.status == 200), replies[0])


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    public, private = Registry(), Registry()
    public.publish(Package("public"))
    private.publish(
        Package("inner", deps=(Dependency("public", registry=CRATES_IO_GIT_INDEX),)),
    )
    with RegistryServer(Mounted({"crates-io": public, "company": private})) as running:
        yield running


def test_a_real_cargo_reads_both_through_us_and_locks_the_canonical_addresses(
    toolchain: Toolchain, server: RegistryServer, loaded: Load, tmp_path: Path
) -> None:
    upstreams = COMPANY + '[upstreams.again]\nindex = "sparse+https://index.crates.io/"\n'
    text = cargo_config(loaded(upstreams), server.url, None)
    home = CargoHome(toolchain, tmp_path / "home", text, retries=0)
    dependencies = 'inner = { version = "1", registry = "company" }\npublic = "1"\n'
    project = Project.create(tmp_path / "project", dependencies)
    home.run(project, "fetch").succeeded()
    sources = {package.get("source") for package in tomllib.loads(project.lock.decode())["package"]}
    assert sources == {None, f"registry+{CRATES_IO_GIT_INDEX}", CANONICAL}
    assert set(home.crate_files()) == {"inner-1.0.0.crate", "public-1.0.0.crate"}
    home.run(project, "fetch", "--locked", "--offline").succeeded()
