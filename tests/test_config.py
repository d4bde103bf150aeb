"""The configuration: what it means, which mistakes it finds, and how it names them."""

import contextlib
import dataclasses
import json
import os
import string
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.config import ConfigError, Overrides, Settings, load
from proxy.config_addresses import ListenAddress, parse_index, parse_public_url
from proxy.config_keys import key_shapes
from proxy.config_show import redacted_toml
from proxy.config_sources import Kind
from proxy.config_values import (
    MinFree,
    Secret,
    ValueRefused,
    parse_duration,
    parse_min_free,
    parse_size,
    write_duration,
    write_min_free,
    write_size,
)

SECRET: Final = "hunter2-NeverShown"
COMPANY: Final = '[upstreams.company]\nindex = "sparse+https://packages.example.com/index/"\n'
MIRROR: Final = "sparse+https://packages.site-b.example.com/index/"
Write = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


@pytest.fixture
def write(folder: Path) -> Write:
    def to_file(text: str) -> Path:
        path = folder / "holdfast.toml"
        path.write_text(text)
        return path

    return to_file


def problems(
    path: Path | None, environ: Mapping[str, str] | None = None, overrides: Overrides | None = None
) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {}, overrides or Overrides())
    found = dict(caught.value.problems)
    assert len(found) == len(caught.value.problems), "one key, one complaint"
    assert str(caught.value).splitlines() == [f"{key}: {text}" for key, text in found.items()]
    return found


# What is meant


def test_no_file_is_crates_io_on_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere/state")
    loaded = load(None, {})
    assert loaded.server.listen == (ListenAddress("127.0.0.1", 8080),)
    assert loaded.server.admin_listen is None
    assert (loaded.server.public_urls, loaded.server.allowed_hosts) == ((), ())
    assert (loaded.server.trusted_proxies, loaded.server.contact) == ((), None)
    assert (loaded.server.h2c, loaded.server.drain_s) == (True, 25)
    assert loaded.cache.dir == Path("/somewhere/cache/holdfast")
    assert loaded.cache.max_size_bytes is None
    assert loaded.cache.min_free == MinFree(percent=5)
    assert loaded.cache.memory_bytes == 256 * 2**20
    assert loaded.state.dir == Path("/somewhere/state/holdfast")
    assert (loaded.limits.index_bytes, loaded.limits.crate_bytes) == (64 * 2**20, 2**30)
    assert (loaded.log.format, loaded.log.level) == (None, "info")
    assert list(loaded.upstreams) == list(loaded.registries) == ["crates-io"]
    crates_io = loaded.upstreams["crates-io"]
    assert crates_io.index == "sparse+https://index.crates.io/"
    assert crates_io.index_url == "https://index.crates.io/"
    assert (crates_io.fresh_for_s, crates_io.stale_while_revalidate_s) == (60, 60)
    assert crates_io.stale_if_error_s == 7 * 86400
    assert loaded.registries["crates-io"].upstream == "crates-io"
    assert loaded.registries["crates-io"].access is None


def test_another_upstream_has_its_own_defaults_and_a_registry_of_its_name(write: Write) -> None:
    loaded = load(write(COMPANY), {})
    company = loaded.upstreams["company"]
    assert (company.fresh_for_s, company.stale_while_revalidate_s) == (10, 0)
    assert company.stale_if_error_s == 7 * 86400
    assert (company.token, company.offline, company.allow_hosts) == (None, False, ())
    assert company.absent_statuses == {404, 410, 451}
    assert (company.proxy, company.ca_file, company.client_cert) == (None, None, None)
    assert (company.connections, company.connect_timeout_s, company.idle_timeout_s) == (64, 5, 20)
    assert list(loaded.registries) == ["crates-io", "company"]
    assert loaded.registries["company"].upstreams == ("company",)


def test_a_table_for_crates_io_keeps_what_it_does_not_say(write: Write) -> None:
    crates_io = load(write('[upstreams.crates-io]\nfresh_for = "5m"\n'), {}).upstreams["crates-io"]
    assert crates_io.fresh_for_s == 300
    assert crates_io.index == "sparse+https://index.crates.io/"
    assert crates_io.stale_while_revalidate_s == 60


def test_every_key_is_read(write: Write, folder: Path) -> None:
    loaded = load(
        write("""
            [server]
            listen = ["127.0.0.1:8080", "[::]:8081", "localhost:0"]
            admin_listen = "127.0.0.1:9090"
            public_url = "https://crates.example.com/cargo/"
            allowed_hosts = ["Crates.Example.com", "10.1.2.3:8080", "[fd00::1]"]
            trusted_proxies = ["10.0.0.0/8", "fd00::1"]
            h2c = false
            drain = "1500ms"
            contact = "platform@example.com"
            [cache]
            dir = "/var/cache/holdfast"
            max_size = "100GiB"
            min_free = "2GB"
            memory = 0
            [state]
            dir = "/var/lib/holdfast"
            [limits]
            index = "1MiB"
            crate = 1000
            [log]
            format = "json"
            level = "debug"
            [upstreams.company]
            index = "sparse+http://packages.example.com:8000/index/"
            token = { env = "COMPANY_TOKEN" }
            fresh_for = "0s"
            stale_while_revalidate = "3s"
            stale_if_error = "2h"
            offline = true
            mirrors = []
            allow_hosts = ["10.1.2.3", "10.2.0.0/16", "fd00::2", "Files.example.com"]
            absent_statuses = [400, 403, 404]
            proxy = "http://proxy.corp:3128/"
            ca_file = "corp.pem"
            client_cert = "certs/c.pem"
            client_key = "/certs/k.pem"
            connections = 3
            connect_timeout = "1s"
            idle_timeout = "250ms"
            [registries.company]
            upstreams = ["company"]
            access = "open"
            [registries.second-name]
            upstreams = ["company"]
            access = "open"
        """),
        {"COMPANY_TOKEN": "Bearer abc"},
    )
    server, company = loaded.server, loaded.upstreams["company"]
    assert [str(each) for each in server.listen] == ["127.0.0.1:8080", "[::]:8081", "localhost:0"]
    assert server.admin_listen == ListenAddress("127.0.0.1", 9090)
    assert server.public_urls == ("https://crates.example.com/cargo",)
    assert server.allowed_hosts == ("crates.example.com", "10.1.2.3:8080", "[fd00::1]")
    assert server.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("fd00::1/128"))
    assert (server.h2c, server.drain_s, server.contact) == (False, 1.5, "platform@example.com")
    assert loaded.cache.dir == Path("/var/cache/holdfast")
    assert (loaded.cache.max_size_bytes, loaded.cache.memory_bytes) == (100 * 2**30, 0)
    assert loaded.cache.min_free.of(10**15) == 2 * 10**9
    assert loaded.state.dir == Path("/var/lib/holdfast")
    assert (loaded.limits.index_bytes, loaded.limits.crate_bytes) == (2**20, 1000)
    assert (loaded.log.format, loaded.log.level) == ("json", "debug")
    assert company.index_url == "http://packages.example.com:8000/index/"
    assert company.token is not None
    assert company.token.reveal() == "Bearer abc"
    assert (company.fresh_for_s, company.stale_while_revalidate_s) == (0, 3)
    assert (company.stale_if_error_s, company.offline) == (7200, True)
    assert company.allow_hosts == ("10.1.2.3", "10.2.0.0/16", "fd00::2", "files.example.com")
    assert company.absent_statuses == {400, 403, 404}
    assert company.proxy == "http://proxy.corp:3128"
    assert company.ca_file == folder / "corp.pem"
    assert company.client_cert == folder / "certs/c.pem"
    assert company.client_key == Path("/certs/k.pem")
    assert company.connections == 3
    assert (company.connect_timeout_s, company.idle_timeout_s) == (1, 0.25)
    assert not loaded.upstreams["crates-io"].offline
    assert list(loaded.registries) == ["crates-io", "company", "second-name"]
    assert loaded.registries["second-name"].upstream == "company"
    assert loaded.registries["company"].access == "open"


def test_public_url_takes_a_list_as_well_as_one_address(write: Write) -> None:
    loaded = load(write('[server]\npublic_url = ["https://a.example/", "http://[::1]:80/b"]\n'), {})
    assert loaded.server.public_urls == ("https://a.example", "http://[::1]:80/b")


def test_settings_cannot_be_changed() -> None:
    loaded = load(None, {})
    with pytest.raises(TypeError):
        loaded.upstreams["other"] = loaded.upstreams["crates-io"]  # type: ignore[index]
    with pytest.raises(ValueError, match="frozen"):
        loaded.server.h2c = False


def test_equal_sources_make_equal_settings_and_a_new_token_different_ones(write: Write) -> None:
    path = write(COMPANY + 'token = { env = "T" }\n')
    assert load(path, {"T": "one"}) == load(path, {"T": "one"})
    assert load(path, {"T": "one"}) != load(path, {"T": "two"})


# What is refused, and under which name


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("server = 3", "server", "expected a table, [server]"),
        ("upstreams = []", "upstreams", "expected a table, [upstreams]"),
        ("[upstreams]\ncompany = 1", "upstreams.company", "[upstreams.company]"),
        ("[sever]\nlisten = []", "sever", "did you mean server?"),
        ("[server]\nlistne = []", "server.listne", "did you mean listen?"),
        ("[log]\n'a b' = 1", 'log."a b"', "known here: format, level"),
        ("[server]\nlisten = '127.0.0.1:1'", "server.listen", "expected a list"),
        ("[server]\nlisten = []", "server.listen", "at least one"),
        ("[server]\nlisten = ['a:1', ':8080']", "server.listen[1]", '"127.0.0.1:8080"'),
        ("[server]\nlisten = ['a:1', 'a:1']", "server.listen", "twice"),
        ("[server]\nadmin_listen = '127.0.0.1:8080'", "server.admin_listen", "server.listen too"),
        ("[server]\nadmin_listen = ['a:1']", "server.admin_listen", "HOST:PORT"),
        ("[server]\nh2c = 'true'", "server.h2c", "true or false"),
        ("[server]\nh2c = 1", "server.h2c", "true or false"),
        ("[server]\ndrain = 25", "server.drain", "unit"),
        ("[server]\ncontact = 'a (b)'", "server.contact", "parentheses"),
        ("[server]\ncontact = ''", "server.contact", "1 to 200"),
        ("[server]\ntrusted_proxies = ['10.0.0.1/8']", "server.trusted_proxies[0]", "host bits"),
        ("[server]\ntrusted_proxies = [10]", "server.trusted_proxies[0]", "10.0.0.0/8"),
        ("[server]\nallowed_hosts = ['*.a.example']", "server.allowed_hosts[0]", "a host"),
        ("[server]\nallowed_hosts = ['https://a']", "server.allowed_hosts[0]", "host"),
        ("[server]\npublic_url = 'crates.example.com'", "server.public_url[0]", "absolute"),
        ("[cache]\ndir = ''", "cache.dir", "expected a path"),
        ("[cache]\ndir = '~/cache'", "cache.dir", "'~' is not expanded"),
        ("[cache]\ndir = 3", "cache.dir", "expected a string"),
        ("[cache]\nmax_size = '80%'", "cache.max_size", "a size"),
        ("[cache]\nmax_size = 0", "cache.max_size", "above 0"),
        ("[cache]\nmin_free = '100%'", "cache.min_free", "below 100 %"),
        ("[cache]\nmemory = -1", "cache.memory", "between 0"),
        ("[limits]\nindex = 1.5", "limits.index", "a size"),
        ("[limits]\ncrate = true", "limits.crate", "a size"),
        ("[limits]\nconnections = 0", "limits.connections", "between 1 and 1000000"),
        ("[limits]\nclient_requests = '5'", "limits.client_requests", "a whole number"),
        ("[limits]\nclient_misses = '0/m'", "limits.client_misses", "a rate"),
        ("[limits]\nregistry_misses = 600", "limits.registry_misses", "600/m"),
        ("[log]\nlevel = 'INFO'", "log.level", '"debug", "info", "warning" or "error"'),
        ("[log]\nformat = 'text'", "log.format", '"console" or "json"'),
        ("[upstreams.company]", "upstreams.company.index", "required"),
        ("[upstreams.Company]", "upstreams.Company", "lower-case"),
        ("[upstreams.my_crates]", "upstreams.my_crates", "lower-case"),
        (f"[upstreams.{'a' * 65}]", f"upstreams.{'a' * 65}", "at most 64"),
        ("[registries.metrics]", "registries.metrics", "an address of ours"),
        (COMPANY + "connections = 0", "upstreams.company.connections", "between 1 and"),
        (COMPANY + "connections = true", "upstreams.company.connections", "between 1 and"),
        (COMPANY + "connect_timeout = '0s'", "upstreams.company.connect_timeout", "above 0s"),
        (COMPANY + "absent_statuses = []", "upstreams.company.absent_statuses", "at least one"),
        (COMPANY + "absent_statuses = [404, 503]", "upstreams.company.absent_statuses[1]", "400"),
        (COMPANY + "absent_statuses = [429]", "upstreams.company.absent_statuses[0]", "later"),
        (COMPANY + "absent_statuses = 404", "upstreams.company.absent_statuses", "a list"),
        (COMPANY + "allow_hosts = ['a:80']", "upstreams.company.allow_hosts[0]", "without a port"),
        (COMPANY + "proxy = 'socks5://a:1'", "upstreams.company.proxy", "http://"),
        (COMPANY + "proxy = 'http://a:1/path'", "upstreams.company.proxy", "no path"),
        (COMPANY + "proxy = 'http://u:p@a:1'", "upstreams.company.proxy", "password"),
        (COMPANY + "client_cert = 'c'", "upstreams.company.client_cert", "client_key is required"),
        (COMPANY + "client_key = 'k'", "upstreams.company.client_key", "client_cert is required"),
        (COMPANY + "mirrors = ['http://b.test/']", "upstreams.company.mirrors[0]", "sparse+"),
        (COMPANY + f"mirrors = ['{MIRROR}', '{MIRROR}']", "upstreams.company.mirrors", "twice"),
        (
            COMPANY + "mirrors = ['sparse+https://packages.example.com/index/']",
            "upstreams.company.mirrors",
            "its own index",
        ),
        (COMPANY + "api_interval = 'soon'", "upstreams.company.api_interval", "duration"),
        ("[registries.all]", "registries.all.upstreams", "required"),
        ("[registries.all]\nupstreams = []", "registries.all.upstreams", "at least one"),
        ("[registries.all]\nupstreams = ['nobody']", "registries.all.upstreams", "crates-io"),
        (
            COMPANY + "[registries.company]\nupstreams = ['crates-io']",
            "registries.company.upstreams",
            'expected ["company"]',
        ),
        ("[registries.crates-io]\naccess = 'closed'", "registries.crates-io.access", '"open"'),
    ],
)
def test_a_mistake_is_named_by_its_key(write: Write, text: str, key: str, expected: str) -> None:
    found = problems(write(text))
    assert list(found) == [key]
    assert expected in found[key]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (COMPANY + "owns = ['company-*']", "upstreams.company.owns"),
        (COMPANY + "owns = []", "upstreams.company.owns"),
        (COMPANY + "publish_token = { env = 'A' }", "upstreams.company.publish_token"),
        ("[registries.crates-io]\naccess = 'token'", "registries.crates-io.access"),
        ("[registries.crates-io]\naccess = 'upstream'", "registries.crates-io.access"),
        (
            COMPANY + "[registries.all]\nupstreams = ['company', 'crates-io']",
            "registries.all.upstreams",
        ),
    ],
)
def test_what_this_version_lacks_is_refused_by_name(write: Write, text: str, key: str) -> None:
    found = problems(write(text))
    assert list(found) == [key]
    assert "not available in this version" in found[key]


def test_all_mistakes_are_reported_together(write: Write) -> None:
    path = write("""
        nonsense = 1
        [server]
        listen = ["0.0.0.0:80"]
        [cache]
        max_size = "huge"
        [upstreams.company]
        index = "https://packages.example.com/index/"
        token = { env = "UNSET" }
        client_key = "k.pem"
        [upstreams.Bad]
        [registries.other]
        upstreams = ["nobody"]
    """)
    environ = {"HOLDFAST__SERVER__H2C": "maybe", "HOLDFAST__SERVER__HTC": "true"}
    assert list(problems(path, environ, Overrides(cache_dir=""))) == [
        "HOLDFAST__SERVER__HTC",
        "nonsense",
        "HOLDFAST__SERVER__H2C",
        "--cache-dir",
        "cache.max_size",
        "upstreams.Bad",
        "upstreams.company.index",
        "upstreams.company.token",
        "upstreams.company.client_key",
        "registries.other.upstreams",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[server]\nlisten = [\n\nh2c = true\n", "line 4"),
        (b"[server]\n[server]\n", "line 2"),
        (b"[server]\ncontact = '\xff'\n", "UTF-8 at byte 20"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = " + b"9" * 5_000, "not TOML"),
    ],
)
def test_a_file_that_is_not_toml_is_named_with_the_place(
    folder: Path, content: bytes, expected: str
) -> None:
    path = folder / "broken.toml"
    path.write_bytes(content)
    found = problems(path)
    assert list(found) == [str(path)]
    assert expected in found[str(path)]


def test_a_file_that_cannot_be_read_is_named_with_the_reason(folder: Path) -> None:
    missing = folder / "missing.toml"
    assert "No such file" in problems(missing)[str(missing)]
    assert "directory" in problems(folder)[str(folder)]


def test_a_broken_file_does_not_hide_what_is_wrong_with_the_environment(write: Write) -> None:
    path = write("[server")
    assert list(problems(path, {"HOLDFAST__LOG__LEVEL": "loud"})) == [
        str(path),
        "HOLDFAST__LOG__LEVEL",
    ]


def test_a_user_without_a_home_must_name_the_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    found = problems(None)
    assert list(found) == ["cache.dir", "state.dir"]
    assert "no home directory" in found["cache.dir"]
    environ = {"HOLDFAST__CACHE__DIR": "/c", "HOLDFAST__STATE__DIR": "/s"}
    assert load(None, environ).cache.dir == Path("/c")


# The environment and the options


def test_every_section_is_reached_by_variables() -> None:
    loaded = load(
        None,
        {
            "HOLDFAST__SERVER__LISTEN": '["127.0.0.1:1", "[::1]:2"]',
            "HOLDFAST__SERVER__PUBLIC_URL": "https://a.example",
            "HOLDFAST__SERVER__H2C": "false",
            "HOLDFAST__CACHE__MAX_SIZE": "1GiB",
            "HOLDFAST__CACHE__MEMORY": "4096",
            "HOLDFAST__LOG__FORMAT": "json",
            "HOLDFAST__UPSTREAMS__CRATES_IO__FRESH_FOR": "5m",
            "HOLDFAST__UPSTREAMS__MY_OWN__INDEX": "sparse+https://my.example/",
            "HOLDFAST__UPSTREAMS__MY_OWN__CONNECTIONS": "7",
            "HOLDFAST__UPSTREAMS__MY_OWN__ABSENT_STATUSES": "[403]",
            "HOLDFAST__UPSTREAMS__MY_OWN__TOKEN__ENV": "MINE",
            "HOLDFAST__REGISTRIES__MY_OWN__ACCESS": "open",
            "HOLDFAST__REGISTRIES__ALIAS__UPSTREAMS": '["my-own"]',
            "HOLDFAST__UPSTREAMS__CRATES_IO__MIRRORS": "[]",
            "MINE": "t",
            "HOLDFAST_CONFIG": "not ours to read",
        },
    )
    assert [str(each) for each in loaded.server.listen] == ["127.0.0.1:1", "[::1]:2"]
    assert (loaded.server.public_urls, loaded.server.h2c) == (("https://a.example",), False)
    assert (loaded.cache.max_size_bytes, loaded.cache.memory_bytes) == (2**30, 4096)
    assert loaded.log.format == "json"
    assert loaded.upstreams["crates-io"].fresh_for_s == 300
    mine = loaded.upstreams["my-own"]
    assert (mine.index, mine.connections) == ("sparse+https://my.example/", 7)
    assert mine.absent_statuses == {403}
    assert mine.token is not None
    assert mine.token.reveal() == "t"
    assert loaded.registries["my-own"].access == "open"
    assert loaded.registries["alias"].upstream == "my-own"


def test_a_variable_replaces_the_value_of_the_file_and_a_list_all_of_the_list(write: Write) -> None:
    path = write(
        '[server]\ndrain = "1s"\ncontact = "file"\nlisten = ["127.0.0.1:1", "127.0.0.1:2"]'
    )
    environ = {"HOLDFAST__SERVER__DRAIN": "2s", "HOLDFAST__SERVER__LISTEN": '["127.0.0.1:3"]'}
    server = load(path, environ).server
    assert (server.drain_s, server.contact) == (2, "file")
    assert server.listen == (ListenAddress("127.0.0.1", 3),)


def test_a_variable_may_heal_what_is_wrong_in_the_file(write: Write) -> None:
    path = write('[server]\ndrain = "soon"')
    assert load(path, {"HOLDFAST__SERVER__DRAIN": "2s"}).server.drain_s == 2


def test_a_variable_does_not_paper_over_something_that_is_no_table(write: Write) -> None:
    environ = {"HOLDFAST__UPSTREAMS__COMPANY__TOKEN__ENV": "T", "T": "t"}
    for text in ("upstreams = 3", "upstreams.company = 3"):
        assert list(problems(write(text), environ)) == [text.removesuffix(" = 3")]


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("HOLDFAST__SERVER__LISTNE", "x", "did you mean LISTEN?"),
        ("HOLDFAST__SEVER__LISTEN", "x", "did you mean SERVER?"),
        ("HOLDFAST__SERVER", "x", "no such key"),
        ("HOLDFAST__", "x", "no such section"),
        ("HOLDFAST__SERVER__LISTEN__0", "x", "no such key"),
        ("HOLDFAST__server__listen", '["a:1"]', "HOLDFAST__SERVER__LISTEN"),
        ("HOLDFAST__UPSTREAMS__COMPANY", "x", "HOLDFAST__UPSTREAMS__NAME__KEY"),
        ("HOLDFAST__UPSTREAMS___COMPANY__INDEX", "x", "HOLDFAST__UPSTREAMS__NAME__KEY"),
        ("HOLDFAST__UPSTREAMS__COMPANY__INDX", "x", "did you mean INDEX?"),
        ("HOLDFAST__UPSTREAMS__CRATES_IO__TOKEN", SECRET, "TOKEN__ENV or"),
        ("HOLDFAST__SERVER__TLS__KEY", "k.pem", "expected { certificate"),
        ("HOLDFAST__SERVER__LISTEN", "127.0.0.1:1", "list in JSON"),
        ("HOLDFAST__SERVER__LISTEN", '["127.0.0.1:1"', "JSON list"),
        ("HOLDFAST__SERVER__LISTEN", "[" * 100_000, "JSON list"),
        ("HOLDFAST__SERVER__H2C", "True", "true or false"),
        ("HOLDFAST__SERVER__CONTACT", "\udcff", "UTF-8"),
        ("HOLDFAST__UPSTREAMS__CRATES_IO__CONNECTIONS", "many", "whole number"),
        ("HOLDFAST__UPSTREAMS__CRATES_IO__OWNS", '["a"]', "not available in this version"),
    ],
)
def test_a_mistake_in_a_variable_is_named_by_the_variable(
    variable: str, value: str, expected: str
) -> None:
    found = problems(None, {variable: value})
    assert list(found) == [variable]
    assert expected in found[variable]


def test_a_member_of_a_list_in_a_variable_is_counted() -> None:
    found = problems(None, {"HOLDFAST__SERVER__LISTEN": '["127.0.0.1:1", 2]'})
    assert list(found) == ["HOLDFAST__SERVER__LISTEN[1]"]


def test_the_name_of_a_variable_reaches_no_terminal_raw() -> None:
    assert list(problems(None, {"HOLDFAST__\x1b[31m\udcff": "x"})) == [r"HOLDFAST__\x1b[31m\udcff"]


def test_an_upstream_that_variables_alone_name_is_traced_to_them() -> None:
    variable = "HOLDFAST__UPSTREAMS__COMPNY__FRESH_FOR"
    found = problems(None, {variable: "1s"})
    assert variable in found["upstreams.compny.index"]


def test_options_beat_the_environment_and_are_named_in_complaints(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write('[cache]\ndir = "in-file"\n[upstreams.crates-io]\noffline = false\n' + COMPANY)
    environ = {"HOLDFAST__SERVER__LISTEN": '["127.0.0.1:1"]', "HOLDFAST__CACHE__DIR": "in-env"}
    overrides = Overrides(listen=("127.0.0.1:2", "127.0.0.1:3"), cache_dir="here", offline=True)
    loaded = load(path, environ, overrides)
    assert [each.port for each in loaded.server.listen] == [2, 3]
    assert loaded.cache.dir == tmp_path / "here"
    assert [one.offline for one in loaded.upstreams.values()] == [True, True]
    assert load(path, environ).cache.dir == tmp_path / "in-env"
    assert load(path, {}).cache.dir == path.parent / "in-file"
    assert list(problems(path, {}, Overrides(listen=("nowhere",)))) == ["--listen[0]"]


def test_a_relative_path_without_a_working_directory_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "absolute path" in problems(None, {}, Overrides(cache_dir="here"))["--cache-dir"]


# Secrets


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (f'"{SECRET}"', "not written into the configuration"),
        (f'["{SECRET}"]', "expected either"),
        (f'{{ value = "{SECRET}" }}', "expected either"),
        (f'{{ env = "A", file = "{SECRET}" }}', "expected either"),
        ("{}", "expected either"),
        ("{ env = 3 }", "name of an environment variable"),
        (f'{{ env = "{SECRET}" }}', "name of an environment variable"),
        ('{ env = "NOT_THERE" }', "not set"),
        ('{ env = "EMPTY" }', "printable ASCII"),
        ('{ env = "LINES" }', "printable ASCII"),
        ('{ env = "FOREIGN" }', "printable ASCII"),
        (f'{{ file = "{SECRET}" }}', "cannot be read: No such file"),
        ('{ file = "" }', "expected a path"),
    ],
)
def test_a_secret_is_given_by_reference_only(write: Write, form: str, expected: str) -> None:
    environ = {"EMPTY": " \n", "LINES": f"{SECRET}\nx", "FOREIGN": f"{SECRET}\u00e9"}
    found = problems(write(f"{COMPANY}token = {form}"), environ)
    assert list(found) == ["upstreams.company.token"]
    assert expected in found["upstreams.company.token"]
    assert SECRET not in str(found)


def test_a_secret_in_a_file_is_relative_to_the_configuration_and_read_again(
    write: Write, folder: Path
) -> None:
    (folder / "token").write_text("Bearer first\n")
    token = load(write(f'{COMPANY}token = {{ file = "token" }}'), {}).upstreams["company"].token
    assert token is not None
    assert token.reveal() == "Bearer first"
    (folder / "token").write_text("\tBearer second \r\n")
    assert token.reveal() == "Bearer first"
    assert token.reread().reveal() == "Bearer second"
    (folder / "token").write_text("x" * 20_000)
    with pytest.raises(ValueRefused):
        token.reread()


def test_a_secret_in_a_file_is_shown_as_its_path(write: Write, folder: Path) -> None:
    (folder / "token").write_text(SECRET)
    loaded = load(write(f'{COMPANY}token = {{ file = "token" }}'), {})
    assert repr(loaded.upstreams["company"].token) == f"Secret(file='{folder / 'token'}')"
    assert load(write(redacted_toml(loaded)), {}) == loaded
    assert SECRET not in redacted_toml(loaded)


def test_the_text_of_a_secrets_file_is_judged_alike_whoever_read_it() -> None:
    assert Secret.parse("\tBearer second \r\n") == "Bearer second"
    with pytest.raises(ValueRefused):
        Secret.parse("two\nlines")


def test_a_secret_from_the_environment_stays_as_it_was() -> None:
    token = Secret("NAME", None, "value")
    assert token.reread() == token


def test_the_variables_form_of_a_secret_replaces_the_files(write: Write, folder: Path) -> None:
    (folder / "token").write_text("from file")
    path = write(f'{COMPANY}token = {{ env = "UNSET" }}')
    variable = "HOLDFAST__UPSTREAMS__COMPANY__TOKEN__FILE"
    token = load(path, {variable: str(folder / "token")}).upstreams["company"].token
    assert token is not None
    assert token.reveal() == "from file"
    assert list(problems(path, {variable: "/nowhere"})) == [variable]


def test_a_secret_shows_only_where_it_came_from(write: Write) -> None:
    loaded = load(write(f'{COMPANY}token = {{ env = "TOKEN" }}'), {"TOKEN": SECRET})
    token = loaded.upstreams["company"].token
    assert repr(token) == str(token) == "Secret(env='TOKEN')"
    shown = [repr(loaded), str(loaded), f"{loaded.upstreams}", loaded.model_dump_json()]
    shown += [str(loaded.model_dump()), redacted_toml(loaded)]
    assert not [each for each in shown if SECRET in each]


# A private registry on the network


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "LocalHost:1"])
def test_on_the_loopback_a_token_needs_no_access(write: Write, listen: str) -> None:
    path = write(f'{COMPANY}token = {{ env = "T" }}')
    assert load(path, {"T": "t"}, Overrides(listen=(listen,))).registries["company"].access is None


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "proxy.local:1"])
def test_beyond_the_loopback_a_token_needs_access(write: Write, listen: str) -> None:
    overrides = Overrides(listen=("127.0.0.1:2", listen))
    text = f'{COMPANY}token = {{ env = "T" }}\n[registries.alias]\nupstreams = ["company"]\n'
    found = problems(write(text), {"T": "t"}, overrides)
    assert list(found) == ["registries.company.access", "registries.alias.access"]
    assert listen in found["registries.company.access"]
    assert "upstreams.company has a token" in found["registries.alias.access"]
    text += 'access = "open"\n[registries.company]\naccess = "open"\n'
    assert load(write(text), {"T": "t"}, overrides).registries["alias"].access == "open"


def test_beyond_the_loopback_no_token_needs_no_access(write: Write) -> None:
    overrides = Overrides(listen=("0.0.0.0:1",))
    assert load(write(COMPANY), {}, overrides).registries["company"].access is None


# Single values

# The same examples every time, so that a red suite is red again when looked at.
LAWS: Final = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        (0, 0),
        ("0", 0),
        ("7B", 7),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("500MB", 500 * 10**6),
        ("64 MiB", 64 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("2TB", 2 * 10**12),
        ("2TiB", 2**41),
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_sizes(written: object, size_bytes: int) -> None:
    assert parse_size(written) == size_bytes


@pytest.mark.parametrize(
    "written",
    [
        "",
        "1G",
        "1gib",
        "1 GB ",
        "-1",
        "1e3",
        "\u0661",
        "GiB",
        "1,5GiB",
        1.0,
        None,
        2**63,
        "9999999TiB",
    ],
)
def test_no_sizes(written: object) -> None:
    with pytest.raises(ValueRefused):
        parse_size(written)


@pytest.mark.parametrize(
    ("written", "duration_s"),
    [("0s", 0), ("250ms", 0.25), ("1.5s", 1.5), ("25s", 25), ("2m", 120), ("1h", 3600)],
)
def test_durations(written: str, duration_s: float) -> None:
    assert parse_duration(written) == duration_s


@pytest.mark.parametrize(
    "written", ["", "25", 25, "1h30m", "1w", "-1s", "1S", "0.5ms", "3651d", "inf", "1e3s", None]
)
def test_no_durations(written: object) -> None:
    with pytest.raises(ValueRefused):
        parse_duration(written)


@pytest.mark.parametrize(
    ("duration_s", "written"),
    [(0, "0s"), (1, "1s"), (60, "60s"), (90, "90s"), (120, "2m"), (604800, "7d"), (0.001, "1ms")],
)
def test_durations_are_written_as_people_say_them(duration_s: float, written: str) -> None:
    assert write_duration(duration_s) == written


@LAWS
@given(st.integers(0, 2**63 - 1))
def test_a_written_size_reads_as_the_same_size(size_bytes: int) -> None:
    assert parse_size(write_size(size_bytes)) == size_bytes


@LAWS
@given(st.integers(0, 3650 * 86_400_000))
def test_a_written_duration_reads_as_the_same_duration(duration_ms: int) -> None:
    duration_s = duration_ms / 1000
    assert parse_duration(write_duration(duration_s)) == duration_s


@LAWS
@given(st.integers(0, 9999), st.integers(1, 2**62))
def test_a_share_of_the_disk_reads_back_and_is_less_than_the_disk(
    hundredths: int, total_bytes: int
) -> None:
    min_free = parse_min_free(f"{hundredths / 100:.2f}%")
    assert parse_min_free(write_min_free(min_free)) == min_free
    assert 0 <= min_free.of(total_bytes) <= total_bytes
    assert min_free.of(10_000) == hundredths


@pytest.mark.parametrize(
    ("written", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("[::]:8080", "::", 8080),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        ("localhost:0", "localhost", 0),
        ("my_host.example.:65535", "my_host.example.", 65535),
    ],
)
def test_listeners(written: str, host: str, port: int) -> None:
    address = ListenAddress.parse(written)
    assert address == ListenAddress(host, port)
    assert str(address) == written


@pytest.mark.parametrize(
    "written",
    [
        "",
        "8080",
        ":8080",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "127.0.0.256:80",
        "127.1:80",
        "::1:80",
        "[::1]",
        "[127.0.0.1]:80",
        "[::1%e\x1b]:80",
        "unix:/run/holdfast.sock",
        "/run/holdfast.sock:1",
        "http://127.0.0.1:80",
        "a b:80",
        "-a:80",
        "a..b:80",
        "a:\u0661",
        "caf\u00e9:80",
        80,
    ],
)
def test_no_listeners(written: object) -> None:
    with pytest.raises(ValueRefused):
        ListenAddress.parse(written)


@pytest.mark.parametrize(
    "written",
    [
        "sparse+https://index.crates.io/",
        "sparse+http://127.0.0.1:8000/index/",
        "sparse+https://[fd00::1]:8443/a/b/",
        "sparse+https://packages.example.com/api/v1/(company)/~index.git/",
    ],
)
def test_index_addresses_stay_as_they_are_written(written: str) -> None:
    assert parse_index(written) == written


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("https://index.crates.io/", "sparse+"),
        ("https://github.com/rust-lang/crates.io-index", "git"),
        ("sparse+file:///srv/index/", "sparse+"),
        ("sparse+https://packages.example.com/index", "slash at the end"),
        ("sparse+https://packages.example.com", "slash at the end"),
        ("sparse+https://user:hunter2@packages.example.com/index/", "without a user name"),
        ("sparse+https://packages.example.com/index/?a=b/", "without '?'"),
        ("sparse+https://packages.example.com/index/#/", "without '?'"),
        ("sparse+https:///index/", "a host"),
        ("sparse+https://packages.example.com:0/", "port"),
        ("sparse+https://packages.example.com:/", "port"),
        ("sparse+https://packages.example.com:x/", "port"),
        ("sparse+https://[::1/", "a host"),
        ("sparse+https://999.1.1.1/", "a host"),
        ("sparse+https://packages.example.com/a b/", "absolute"),
        ("sparse+https://packages.example.com/\u00e9/", "absolute"),
        ("sparse+https://packages.example.com/\n/", "absolute"),
        (3, "a string"),
    ],
)
def test_index_addresses_that_cargo_would_refuse_or_that_hold_a_password(
    written: object, expected: str
) -> None:
    with pytest.raises(ValueRefused) as caught:
        parse_index(written)
    assert expected in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "written",
    ["https://a.example/x y", "https://a.example/{b}", "https://a.example/a/../b", "https://a/?x"],
)
def test_public_addresses_that_cannot_stand_in_a_download_template(written: str) -> None:
    with pytest.raises(ValueRefused):
        parse_public_url(written)


# Laws

NAMES: Final = st.from_regex(r"[a-z0-9][a-z0-9-]{0,12}", fullmatch=True).filter(
    lambda name: name not in {"healthz", "readyz", "metrics", "crates-io"}
)
# Names that variables can spell.
SPELT_NAMES: Final = NAMES.filter(lambda name: "--" not in name and not name.endswith("-"))
SIZES: Final = st.one_of(
    st.integers(1, 2**63 - 1),
    st.builds("{}{}".format, st.integers(1, 999), st.sampled_from(["KB", "MiB", "GB", "TiB"])),
)
DURATIONS: Final = st.builds(
    "{}{}".format, st.integers(1, 999), st.sampled_from(["ms", "s", "m", "h", "d"])
)
HOSTS: Final = st.one_of(
    st.from_regex(r"[a-z][a-z0-9-]{0,9}(\.[a-z][a-z0-9-]{0,9}){0,2}", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)
PATHS: Final = st.text(
    st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20
).filter(lambda path: not path.startswith("~"))
URLS: Final = st.builds("http{}://{}:{}".format, st.sampled_from(["", "s"]), HOSTS, st.just(8000))
LISTENERS: Final = st.builds("{}:{}".format, HOSTS, st.integers(1, 65535))

SERVER: Final = st.fixed_dictionaries(
    {},
    optional={
        "listen": st.lists(LISTENERS, min_size=1, max_size=3, unique_by=str.lower),
        "public_url": st.one_of(URLS, st.lists(URLS, max_size=2)),
        "allowed_hosts": st.lists(HOSTS, max_size=2),
        "trusted_proxies": st.lists(st.ip_addresses().map(str), max_size=2),
        "h2c": st.booleans(),
        "drain": DURATIONS,
        "contact": st.text(string.ascii_letters + "@ +:;", min_size=1, max_size=20),
    },
)
CACHE: Final = st.fixed_dictionaries(
    {},
    optional={
        "dir": PATHS,
        "max_size": SIZES,
        "min_free": st.one_of(SIZES, st.integers(0, 99).map("{}%".format)),
        "memory": SIZES,
    },
)
LOG: Final = st.fixed_dictionaries(
    {},
    optional={
        "format": st.sampled_from(["console", "json"]),
        "level": st.sampled_from(["debug", "info", "warning", "error"]),
    },
)
UPSTREAM: Final = st.fixed_dictionaries(
    {"index": URLS.map("sparse+{}/i/".format)},
    optional={
        "token": st.just({"env": "TOKEN"}),
        "fresh_for": DURATIONS,
        "stale_while_revalidate": DURATIONS,
        "stale_if_error": DURATIONS,
        "offline": st.booleans(),
        "allow_hosts": st.lists(st.ip_addresses().map(str), max_size=2),
        "absent_statuses": st.lists(st.sampled_from([400, 403, 404, 499]), min_size=1),
        "proxy": URLS,
        "ca_file": PATHS,
        "connections": st.integers(1, 10_000),
        "connect_timeout": DURATIONS,
        "mirrors": st.sampled_from([[], [MIRROR], [MIRROR, f"{MIRROR}second/"]]),
        "api_interval": DURATIONS,
    },
)
COUNTS: Final = st.integers(1, 1_000_000)
RATES: Final = st.builds("{}/{}".format, COUNTS, st.sampled_from("smhd"))
LIMITS: Final = st.fixed_dictionaries(
    {},
    optional={
        "index": SIZES,
        "crate": SIZES,
        "connections": COUNTS,
        "client_requests": COUNTS,
        "client_misses": RATES,
        "registry_requests": COUNTS,
        "registry_misses": RATES,
    },
)
Table = dict[str, object]


@st.composite
def configurations(draw: st.DrawFn, names: st.SearchStrategy[str] = NAMES) -> Table:
    upstreams = draw(st.dictionaries(names, UPSTREAM, max_size=2))
    # Written for each, so that no draw of tokens and listeners is refused.
    registries: Table = {name: {"access": "open"} for name in upstreams}
    config: Table = {
        "server": draw(SERVER),
        "cache": draw(CACHE),
        "state": draw(st.fixed_dictionaries({}, optional={"dir": PATHS})),
        "limits": draw(LIMITS),
        "log": draw(LOG),
        "upstreams": upstreams,
        "registries": registries,
    }
    return config


def toml(table: Mapping[str, object], at: tuple[str, ...] = ()) -> Iterator[str]:
    """Write tables as TOML, each value on a line of its own under its full key."""
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from toml(value, (*at, key))
        else:
            path = ".".join(json.dumps(part, ensure_ascii=False) for part in (*at, key))
            written = "{}" if value == {} else json.dumps(value, ensure_ascii=False)
            yield f"{path} = {written}".replace("\x7f", "\\u007f")


def variables(table: Mapping[str, object], at: str = "HOLDFAST") -> Iterator[tuple[str, str]]:
    """Write tables as the environment would have them."""
    for key, value in table.items():
        name = f"{at}__{key.upper().replace('-', '_')}"
        if isinstance(value, dict):
            yield from variables(value, name)
        else:
            yield name, value if isinstance(value, str) else json.dumps(value)


def load_text(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> Settings:
    path = folder / "law.toml"
    path.write_text(text)
    return load(path, {"TOKEN": SECRET, **(environ or {})})


def test_mirrors_are_addresses_in_their_order_and_crates_io_is_asked_slowly(write: Write) -> None:
    loaded = load(write(COMPANY + f"mirrors = ['{MIRROR}second/', '{MIRROR}']"), {}, Overrides())
    url = MIRROR.removeprefix("sparse+")
    assert loaded.upstreams["company"].mirror_urls == (f"{url}second/", url)
    assert loaded.upstreams["crates-io"].mirror_urls == ()
    intervals = {name: each.api_interval_s for name, each in loaded.upstreams.items()}
    assert intervals == {"crates-io": 1.0, "company": 0.0}


@LAWS
@given(config=configurations())
def test_what_is_shown_reads_as_the_same_settings(folder: Path, config: Table) -> None:
    loaded = load_text(folder, "\n".join(toml(config)))
    shown = redacted_toml(loaded)
    assert SECRET not in shown
    assert load_text(folder, shown) == loaded
    assert redacted_toml(load_text(folder, shown)) == shown


@LAWS
@given(config=configurations(SPELT_NAMES))
def test_variables_mean_what_the_file_means(folder: Path, config: Table) -> None:
    # Paths are the one thing that differs: here both are relative to the same folder.
    anchored = json.loads(json.dumps(config))
    for section in (anchored["cache"], anchored["state"]):
        section.update({key: f"/x/{path}" for key, path in section.items() if key == "dir"})
    for upstream in anchored["upstreams"].values():
        upstream.update({key: f"/x/{p}" for key, p in upstream.items() if key == "ca_file"})
    by_file = load_text(folder, "\n".join(toml(anchored)))
    by_environment = load(None, {"TOKEN": SECRET, **dict(variables(anchored))})
    assert by_environment == by_file


@LAWS
@given(data=st.data(), file=configurations(SPELT_NAMES), env=configurations(SPELT_NAMES))
def test_the_environment_beats_the_file_key_by_key(
    folder: Path, data: st.DataObject, file: Table, env: Table
) -> None:
    section = data.draw(st.sampled_from(["server", "cache", "limits", "log"]))
    in_file, in_env = file[section], env[section]
    assert isinstance(in_file, dict)
    assert isinstance(in_env, dict)
    in_env.pop("dir", None)
    text = "\n".join(toml({section: in_file}))
    merged = "\n".join(toml({section: in_file | in_env}))
    assert load_text(folder, text, dict(variables({section: in_env}))) == load_text(folder, merged)


KEYS: Final = sorted(
    {
        *(key for keys in key_shapes().plain.values() for key in keys),
        *(key for keys in key_shapes().named.values() for key in keys),
        *("server", "cache", "state", "limits", "log", "upstreams", "registries"),
        *("crates-io", "company", "env", "file", "tls", "token"),
    }
)
WORDS: Final = st.one_of(st.sampled_from(KEYS), st.text(st.characters(codec="utf-8"), max_size=8))


@LAWS
@given(
    config=configurations(),
    word=st.text(string.ascii_letters, min_size=1, max_size=12),
    data=st.data(),
)
def test_an_unknown_key_is_an_error_at_every_level(
    folder: Path, config: Table, word: str, data: st.DataObject
) -> None:
    word = f"x{word}"
    tables: dict[str, Table] = {"": config}
    for section, table in config.items():
        assert isinstance(table, dict)
        if section in {"upstreams", "registries"}:
            tables |= {f"{section}.{name}": inner for name, inner in table.items()}
        else:
            tables[section] = table
    at = data.draw(st.sampled_from(sorted(tables)))
    tables[at][word] = data.draw(st.one_of(st.integers(), st.text("ab"), st.just({"a": 1})))
    path = folder / "unknown.toml"
    path.write_text("\n".join(toml(config)))
    found = problems(path, {"TOKEN": SECRET})
    assert list(found) == [f"{at}.{word}" if at else word]


@LAWS
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_a_configuration_or_a_config_error(folder: Path, content: bytes) -> None:
    path = folder / "bytes.toml"
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        assert "crates-io" in load(path, {}).upstreams


VALUES: Final = st.recursive(
    st.one_of(
        st.integers(-(2**63), 2**63 - 1),
        st.booleans(),
        st.floats(allow_nan=False, allow_infinity=False).filter(
            lambda number: "e" not in str(number)
        ),
        st.text(st.characters(codec="utf-8"), max_size=8),
        st.sampled_from(["127.0.0.1:1", "sparse+http://a/", "5%", "1s", "1MiB", "open"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, min_size=1, max_size=3)
    ),
    max_leaves=6,
)


def is_flat(value: object) -> bool:
    """Tell whether JSON writes a value as TOML does: tables inside of lists it does not."""
    if isinstance(value, list):
        return all(not isinstance(one, dict) and is_flat(one) for one in value)
    return not isinstance(value, dict) or all(is_flat(one) for one in value.values())


@settings(LAWS, max_examples=150)
@given(
    tree=st.dictionaries(
        WORDS, st.one_of(VALUES, st.dictionaries(WORDS, VALUES, max_size=3)), max_size=4
    ).filter(is_flat),
    environ=st.dictionaries(
        st.lists(st.one_of(WORDS.map(str.upper), st.sampled_from(["", "_"])), max_size=4).map(
            lambda words: "__".join(["HOLDFAST", *words])
        ),
        st.one_of(
            st.text(max_size=10), st.sampled_from(["[]", "[1]", '["a:1"]', "true", "\ud800"])
        ),
        max_size=3,
    ),
    overrides=st.builds(
        Overrides,
        listen=st.lists(st.text(max_size=5), max_size=2).map(tuple),
        cache_dir=st.one_of(st.none(), st.text(max_size=5)),
        offline=st.booleans(),
    ),
)
def test_any_values_are_a_configuration_or_a_config_error(
    folder: Path, tree: Table, environ: dict[str, str], overrides: Overrides
) -> None:
    path = folder / "values.toml"
    path.write_text("\n".join(toml(tree)), encoding="utf-8", newline="")
    found: tuple[tuple[str, str], ...] = ()
    try:
        loaded = load(path, environ, overrides)
    except ConfigError as error:
        found = error.problems
    else:
        assert load_text(folder, redacted_toml(loaded)) == loaded
    assert not [text for _, text in found if "is not TOML" in text]
    assert all(key.isprintable() and text for key, text in found)


@LAWS
@given(data=st.data())
def test_a_secret_in_the_wrong_place_is_not_in_the_complaint(
    folder: Path, data: st.DataObject
) -> None:
    shapes = key_shapes()
    places = [(section, key) for section, keys in shapes.plain.items() for key in keys]
    places += [
        (f"{section}.company", key) for section, keys in shapes.named.items() for key in keys
    ]
    section, key = data.draw(st.sampled_from(places))
    wrong = data.draw(
        st.sampled_from(
            [SECRET, [SECRET], f"https://user:{SECRET}@a/", f"\x01{SECRET}", {"a": SECRET}]
        )
    )
    path = folder / "secret.toml"
    path.write_text("\n".join(toml({"q": 1})) + f"\n[{section}]\n" + "\n".join(toml({key: wrong})))
    variable = f"HOLDFAST__{section}__{key}".replace(".", "__").upper()
    in_variable = wrong if isinstance(wrong, str) else json.dumps(wrong)
    environ = {variable: in_variable, "HOLDFAST__Q": SECRET}
    for source, given_environ in ((path, {}), (None, environ)):
        with pytest.raises(ConfigError) as caught:
            load(source, given_environ)
        assert SECRET not in f"{caught.value} {caught.value!r} {caught.value.problems}"
        assert caught.value.__context__ is None


def test_every_key_has_a_way_to_be_read_from_a_variable() -> None:
    kinds = {
        f"{section}.{key}": kind
        for section, keys in (*key_shapes().plain.items(), *key_shapes().named.items())
        for key, kind in keys.items()
    }
    assert {key for key, kind in kinds.items() if kind is Kind.FLAG} == {
        "server.h2c",
        "upstreams.offline",
    }
    assert {key for key, kind in kinds.items() if kind is Kind.LIST} == {
        "server.listen",
        "server.public_url",
        "server.allowed_hosts",
        "server.trusted_proxies",
        "upstreams.owns",
        "upstreams.mirrors",
        "upstreams.allow_hosts",
        "upstreams.absent_statuses",
        "registries.upstreams",
    }
    assert {key for key, kind in kinds.items() if kind is Kind.PATH} == {
        "server.tls.certificate",
        "server.tls.key",
        "cache.dir",
        "state.dir",
        "upstreams.token.file",
        "upstreams.publish_token.file",
        "upstreams.ca_file",
        "upstreams.client_cert",
        "upstreams.client_key",
    }


def test_overrides_that_say_nothing_change_nothing() -> None:
    assert dataclasses.astuple(Overrides()) == ((), None, False)
    assert load(None, {}, Overrides()) == load(None, {})


def test_certificate_and_key_come_together_and_lie_beside_the_file(write: Write) -> None:
    file = write("[server]\ntls = { certificate = 'cert.pem', key = '/etc/key.pem' }")
    tls = load(file, {}).server.tls
    assert tls is not None
    assert (tls.certificate, tls.key) == (file.parent / "cert.pem", Path("/etc/key.pem"))
    for text in ("tls = { certificate = 'c' }", "tls = 'c'", "tls = { cert = 'c', key = 'k' }"):
        assert list(problems(write(f"[server]\n{text}"))) in (["server.tls"], ["server.tls.cert"])
