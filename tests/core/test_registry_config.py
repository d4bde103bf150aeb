"""The upstream's `config.json`, read as cargo reads it, and ours."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.registry_config import (
    NotARegistryConfig,
    RegistryConfig,
    download_url,
    ours,
    parse,
)
from tests.core import strategies as our

SHA = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


# The requests on the right are what real cargo was seen to send for these templates.
@pytest.mark.parametrize(
    ("dl", "crate", "version", "url"),
    [
        ("https://h/crates", "Foo", "1.0.0", "https://h/crates/Foo/1.0.0/download"),
        ("https://h/crates/", "Foo", "1.0.0", "https://h/crates//Foo/1.0.0/download"),
        ("https://h/dl?x=1", "Foo", "1.0.0", "https://h/dl?x=1/Foo/1.0.0/download"),
        ("https://h/d", "a", "1.0.0+b.1", "https://h/d/a/1.0.0+b.1/download"),
        ("https://h/d?c={crate}&v={version}", "a", "1.0.0+b.1", "https://h/d?c=a&v=1.0.0+b.1"),
        ("https://h/{crate}-{version}.crate", "Foo", "1.0.0", "https://h/Foo-1.0.0.crate"),
        ("https://h/{prefix}/{crate}", "MyCrate", "1.0.0", "https://h/My/Cr/MyCrate"),
        ("https://h/{lowerprefix}/{crate}", "MyCrate", "1.0.0", "https://h/my/cr/MyCrate"),
        ("https://h/{prefix}/{lowerprefix}", "Abc", "1.0.0", "https://h/3/A/3/a"),
        ("https://h/{prefix}", "Ab", "1.0.0", "https://h/2"),
        ("https://h/{prefix}", "A", "1.0.0", "https://h/1"),
        ("https://h/{prefix}", "Hh_Iii", "1.0.0", "https://h/Hh/_I"),
        ("https://h/{sha256-checksum}", "Foo", "1.0.0", f"https://h/{SHA}"),
        ("https://h/{crate}/{crate}/{crate}", "Foo", "1.0.0", "https://h/Foo/Foo/Foo"),
        ("https://{crate}.h/{version}", "foo", "1.0.0", "https://foo.h/1.0.0"),
        ("https://h/{Crate}", "Foo", "1.0.0", "https://h/{Crate}/Foo/1.0.0/download"),
        ("https://h/{name}/{version}", "Foo", "1.0.0", "https://h/{name}/1.0.0"),
        ("https://h/%7Bcrate%7D", "a", "1.0.0", "https://h/%7Bcrate%7D/a/1.0.0/download"),
    ],
)
def test_a_template_is_expanded_as_cargo_does(dl: str, crate: str, version: str, url: str) -> None:
    assert download_url(dl, crate, version, SHA) == url


templates = st.lists(
    st.sampled_from(
        [
            *("{crate}", "{version}", "{prefix}", "{lowerprefix}", "{sha256-checksum}"),
            *("{", "}", "/", "{cksum}", "{{crate}}", "x", "?v=", "crate", "-"),
        ]
    ),
    max_size=8,
).map(lambda parts: "https://h/" + "".join(parts))


@given(templates, our.crate_names(), our.versions(), our.checksums())
def test_every_marker_is_replaced_once_and_nothing_else_changes(
    dl: str, crate: str, version: str, cksum: str
) -> None:
    prefix = {1: "1", 2: "2", 3: f"3/{crate[0]}"}.get(len(crate), f"{crate[:2]}/{crate[2:4]}")
    values = {
        "crate": crate,
        "version": version,
        "prefix": prefix,
        "lowerprefix": prefix.lower(),
        "sha256-checksum": cksum,
    }
    expected, replaced = re.subn(
        "{(crate|version|prefix|lowerprefix|sha256-checksum)}", lambda m: values[m[1]], dl
    )
    if replaced == 0:
        expected = f"{dl}/{crate}/{version}/download"
    assert download_url(dl, crate, version, cksum) == expected


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (
            '{"dl":"https://static.crates.io/crates","api":"https://crates.io"}',
            RegistryConfig("https://static.crates.io/crates", "https://crates.io", False),
        ),
        ('{"dl":"http://h:81/d"}', RegistryConfig("http://h:81/d", None, False)),
        ('{"dl":"http://h/","api":null}', RegistryConfig("http://h/", None, False)),
        ('{"dl":"http://h","api":"http://h/x//"}', RegistryConfig("http://h", "http://h/x", False)),
        ('{"dl":"http://h","auth-required":true}', RegistryConfig("http://h", None, True)),
        ('{"dl":"http://h","auth-required":false}', RegistryConfig("http://h", None, False)),
        (
            '{"dl":"HTTPS://[::1]:8/{crate}"}',
            RegistryConfig("HTTPS://[::1]:8/{crate}", None, False),
        ),
        (' {"new": [1], "dl": "http://h"}\r\n', RegistryConfig("http://h", None, False)),
        # Cargo fetches from such registries all the same; only the web API is not there.
        ('{"dl":"http://h","api":""}', RegistryConfig("http://h", None, False)),
        ('{"dl":"http://h","api":"/api"}', RegistryConfig("http://h", None, False)),
    ],
)
def test_a_config_that_cargo_accepts(document: str, expected: RegistryConfig) -> None:
    assert parse(document.encode()) == expected


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<!DOCTYPE html><title>Sign in</title>",
        b"null",
        b'["https://h"]',
        b'"https://h"',
        b"{}",
        b'{"dl":"https://h"',
        b'{"dl":null}',
        b'{"dl":1}',
        b'{"dl":""}',
        b'{"dl":"crates"}',
        b'{"dl":"//h/crates"}',
        b'{"dl":"/crates"}',
        b'{"dl":"h:80/crates"}',
        b'{"dl":"https:///crates"}',
        b'{"dl":"https://:80/crates"}',
        b'{"dl":"file:///crates"}',
        b'{"dl":"ftp://h/crates"}',
        b'{"dl":"javascript:alert(1)"}',
        b'{"dl":"http://[::1/"}',
        b'{"dl":"http://h:port/"}',
        b'{"dl":"http://h:99999/"}',
        b'{"dl":"http://h:0/"}',
        b'{"dl":"http://h","api":1}',
        b'{"dl":"http://h","api":["http://h"]}',
        b'{"dl":"http://h","auth-required":"yes"}',
        b'{"dl":"http://h","auth-required":null}',
        b'{"dl":"http://h","auth-required":1}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_what_cargo_would_not_accept_either_is_refused(document: bytes) -> None:
    with pytest.raises(NotARegistryConfig, match=r"^config\.json "):
        parse(document)


@given(
    base=st.sampled_from(["http://127.0.0.1:8080", "https://h.example/cargo", "http://[::1]"]),
    registry=our.registry_names(),
    auth_required=st.booleans(),
)
def test_ours_can_be_read_and_says_where_we_are(
    base: str, registry: str, *, auth_required: bool
) -> None:
    assert parse(ours(base, registry, auth_required=auth_required)) == RegistryConfig(
        dl=f"{base}/{registry}/crates/{{crate}}/{{version}}/{{sha256-checksum}}",
        api=f"{base}/{registry}",
        auth_required=auth_required,
    )


def test_auth_required_is_written_only_where_it_is_so() -> None:
    assert "auth-required" not in json.loads(ours("http://h", "r", auth_required=False))
    assert json.loads(ours("http://h", "r", auth_required=True))["auth-required"] is True
