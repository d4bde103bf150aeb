"""What may change while the proxy runs: every key is decided, and found where it differs."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from pydantic import BaseModel

from proxy.config import load
from proxy.config_changes import RELOADED, RESTART, Change, Reading, compare
from proxy.config_keys import NAMED_SECTIONS, PLAIN_SECTIONS

ENVIRON: Final = {"ONE": "Bearer 1", "OTHER": "Bearer 2"}
# For every key, two ways to write its table that differ in that key alone.
EXAMPLES: Final = {
    "server.listen": ("", 'listen = ["127.0.0.1:1"]'),
    "server.admin_listen": ("", 'admin_listen = "127.0.0.1:1"'),
    "server.public_url": ("", 'public_url = "https://crates.example.com"'),
    "server.allowed_hosts": ("", 'allowed_hosts = ["crates.example.com"]'),
    "server.trusted_proxies": ("", 'trusted_proxies = ["10.0.0.0/8"]'),
    "server.h2c": ("", "h2c = false"),
    "server.tls": (
        'tls = { certificate = "c", key = "k" }',
        'tls = { certificate = "d", key = "k" }',
    ),
    "server.drain": ("", 'drain = "1s"'),
    "server.contact": ("", 'contact = "ops@example.com"'),
    "cache.dir": ('dir = "a"', 'dir = "b"'),
    "cache.max_size": ("", 'max_size = "1GiB"'),
    "cache.min_free": ("", 'min_free = "1GiB"'),
    "cache.memory": ("", 'memory = "1MiB"'),
    "state.dir": ('dir = "a"', 'dir = "b"'),
    "limits.index": ("", 'index = "1MiB"'),
    "limits.crate": ("", 'crate = "1MiB"'),
    "limits.connections": ("", "connections = 10"),
    "limits.client_requests": ("", "client_requests = 10"),
    "limits.client_misses": ("", 'client_misses = "10/s"'),
    "limits.registry_requests": ("", "registry_requests = 10"),
    "limits.registry_misses": ("", 'registry_misses = "10/s"'),
    "log.format": ("", 'format = "json"'),
    "log.level": ("", 'level = "debug"'),
    "upstreams.company.index": ("", 'index = "sparse+https://b.example.com/"'),
    "upstreams.company.token": ('token = { env = "ONE" }', 'token = { env = "OTHER" }'),
    "upstreams.company.fresh_for": ("", 'fresh_for = "1s"'),
    "upstreams.company.stale_while_revalidate": ("", 'stale_while_revalidate = "1s"'),
    "upstreams.company.stale_if_error": ("", 'stale_if_error = "1s"'),
    "upstreams.company.offline": ("", "offline = true"),
    "upstreams.company.allow_hosts": ("", 'allow_hosts = ["10.0.0.1"]'),
    "upstreams.company.absent_statuses": ("", "absent_statuses = [404]"),
    "upstreams.company.proxy": ("", 'proxy = "http://proxy.example.com:3128"'),
    "upstreams.company.ca_file": ("", 'ca_file = "a.pem"'),
    "upstreams.company.client_cert": (
        'client_cert = "a.pem"\nclient_key = "k.pem"',
        'client_cert = "b.pem"\nclient_key = "k.pem"',
    ),
    "upstreams.company.client_key": (
        'client_cert = "a.pem"\nclient_key = "k.pem"',
        'client_cert = "a.pem"\nclient_key = "l.pem"',
    ),
    "upstreams.company.mirrors": ("", 'mirrors = ["sparse+https://b.example.com/"]'),
    "upstreams.company.api_interval": ("", 'api_interval = "1s"'),
    "upstreams.company.connections": ("", "connections = 1"),
    "upstreams.company.connect_timeout": ("", 'connect_timeout = "1s"'),
    "upstreams.company.idle_timeout": ("", 'idle_timeout = "1s"'),
    "registries.alias.upstreams": ("", 'upstreams = ["crates-io"]'),
    "registries.alias.access": ("", 'access = "open"'),
}
# What a table has where its example does not say otherwise.
NEEDED: Final = {
    "upstreams.company": {"index": '"sparse+https://a.example.com/"'},
    "registries.alias": {"upstreams": '["company"]'},
}
COMPANY: Final = '[upstreams.company]\nindex = "sparse+https://a.example.com/"\n'


def keys(*, reserved: bool) -> Iterator[tuple[str, str]]:
    """Yield section and key of all that takes a value, or of all that takes none yet."""
    for section, model in (*PLAIN_SECTIONS.items(), *NAMED_SECTIONS.items()):
        for name, info in model.model_fields.items():
            if bool(info.exclude) == reserved:
                yield section, info.alias or name


def place(example: str) -> tuple[str, str, str]:
    """Return section, table and key of an example."""
    table, _, key = example.rpartition(".")
    return table.partition(".")[0], table, key


def written(table: str, lines: str) -> str:
    """Return a whole configuration with `lines` in `table`."""
    tables = {name: dict(needed) for name, needed in NEEDED.items()}
    tables.setdefault(table, {}).update(
        tuple(part.strip() for part in line.split("=", 1))  # type: ignore[misc]
        for line in lines.splitlines()
    )
    return "\n".join(
        f"[{name}]\n" + "\n".join(f"{key} = {value}" for key, value in values.items())
        for name, values in tables.items()
    )


def reading(folder: Path, text: str) -> Reading:
    file = folder / "holdfast.toml"
    file.write_text(text)
    return Reading.of(load(file, ENVIRON))


def change(folder: Path, before: str, after: str) -> Change:
    return compare(reading(folder, before), reading(folder, after))


def test_every_key_is_decided_once_and_nothing_else_is() -> None:
    models: dict[str, type[BaseModel]] = {**PLAIN_SECTIONS, **NAMED_SECTIONS}
    assert models.keys() >= RELOADED.keys() | RESTART.keys()
    for section, model in models.items():
        reloaded = RELOADED.get(section, frozenset())
        restart = RESTART.get(section, frozenset())
        known = {info.alias or name for name, info in model.model_fields.items()}
        assert reloaded | restart == known, f"decide what SIGHUP does about a key of {section}"
        assert not reloaded & restart


def test_what_takes_no_value_yet_is_not_reloaded() -> None:
    for section, key in keys(reserved=True):
        assert key in RESTART[section]


def test_every_key_that_takes_a_value_has_an_example() -> None:
    tried = {(place(example)[0], place(example)[2]) for example in EXAMPLES}
    assert tried == set(keys(reserved=False))


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_key_that_differs_is_found_and_judged(tmp_path: Path, example: str) -> None:
    section, table, key = place(example)
    before, after = (written(table, lines) for lines in EXAMPLES[example])
    found = change(tmp_path, before, after)
    is_taken = key in RELOADED.get(section, ())
    assert (found.taken, found.refused) == (((example,), ()) if is_taken else ((), (example,)))
    assert found.touches(example) == is_taken
    assert found.settings == reading(tmp_path, after).settings
    same = change(tmp_path, after, after)
    assert (same.taken, same.refused) == ((), ())


def test_several_changes_come_in_the_order_of_the_tables(tmp_path: Path) -> None:
    after = '[log]\nlevel = "debug"\n[cache]\nmemory = "1MiB"\nmax_size = "1GiB"\n'
    after += '[server]\ndrain = "1s"\n[upstreams.crates-io]\nfresh_for = "1s"\n'
    found = change(tmp_path, "", after)
    assert found.taken == ("cache.max_size", "log.level", "upstreams.crates-io.fresh_for")
    assert found.refused == ("server.drain", "cache.memory")


@pytest.mark.parametrize("turned", [slice(None), slice(None, None, -1)])
def test_listeners_neither_begin_nor_cease_to_speak_tls(tmp_path: Path, turned: slice) -> None:
    texts = ["", '[server]\ntls = { certificate = "c", key = "k" }'][turned]
    found = change(tmp_path, texts[0], texts[1])
    assert (found.taken, found.refused) == ((), ("server.tls",))


@pytest.mark.parametrize("turned", [slice(None), slice(None, None, -1)])
def test_an_upstream_comes_and_goes_under_its_own_name(tmp_path: Path, turned: slice) -> None:
    texts = ["", COMPANY][turned]
    found = change(tmp_path, texts[0], texts[1])
    assert (found.taken, found.refused) == ((), ("upstreams.company",))


def test_an_alias_comes_and_goes_under_its_name(tmp_path: Path) -> None:
    found = change(tmp_path, COMPANY, COMPANY + '[registries.alias]\nupstreams = ["company"]\n')
    assert (found.taken, found.refused) == ((), ("registries.alias",))


def test_a_token_is_another_when_its_file_says_something_else(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("Bearer 1\n")
    text = COMPANY + f'token = {{ file = "{token}" }}\n'
    before = reading(tmp_path, text)
    token.write_text("Bearer 1")
    assert compare(before, reading(tmp_path, text)).taken == ()
    token.write_text("Bearer 2")
    found = compare(before, reading(tmp_path, text))
    assert (found.taken, found.refused) == (("upstreams.company.token",), ())


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[server]\ntls = { certificate = "other.pem", key = "file.pem" }', "server.tls"),
        ('[server]\ntls = { certificate = "file.pem", key = "other.pem" }', "server.tls"),
        (COMPANY + 'ca_file = "file.pem"', "upstreams.company.ca_file"),
        (
            COMPANY + 'client_cert = "file.pem"\nclient_key = "other.pem"',
            "upstreams.company.client_cert",
        ),
        (
            COMPANY + 'client_cert = "other.pem"\nclient_key = "file.pem"',
            "upstreams.company.client_key",
        ),
    ],
)
def test_a_file_that_holds_something_else_is_a_change_of_the_key_that_names_it(
    tmp_path: Path, text: str, key: str
) -> None:
    file = tmp_path / "file.pem"
    (tmp_path / "other.pem").write_text("other")
    file.write_text("one")
    before = reading(tmp_path, text)
    file.unlink()
    file.write_text("one")
    assert compare(before, reading(tmp_path, text)).taken == ()
    file.write_text("two")
    assert compare(before, reading(tmp_path, text)).taken == (key,)
    file.unlink()
    assert compare(before, reading(tmp_path, text)).taken == (key,)


def test_files_that_an_upstream_does_not_open_while_offline_are_not_looked_at(
    tmp_path: Path,
) -> None:
    text = COMPANY + 'offline = true\nca_file = "file.pem"'
    before = reading(tmp_path, text)
    (tmp_path / "file.pem").write_text("something")
    assert compare(before, reading(tmp_path, text)).taken == ()


def test_a_pipe_is_not_emptied_before_it_is_used(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    found = reading(tmp_path, COMPANY + 'ca_file = "pipe"')
    assert found.contents == {"upstreams.company.ca_file": None}
