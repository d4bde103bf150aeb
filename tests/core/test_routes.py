"""The URLs of the contract, and everything else that may stand in a request line."""

import posixpath
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.names import index_path, is_crate_name, is_registry_name, is_sha256, is_version
from proxy.core.registry_config import download_url, ours, parse
from proxy.core.routes import (
    ApiCall,
    ConfigFile,
    CrateFile,
    IndexFile,
    Nowhere,
    Page,
    Route,
    route,
)
from tests.core import strategies as our

SHA = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
NO_CRATE = CrateFile("r", None, None, None)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/crates-io/index/config.json", ConfigFile("crates-io")),
        ("/crates-io/index/se/rd/serde", IndexFile("crates-io", "serde")),
        ("/r/index/1/a", IndexFile("r", "a")),
        ("/r/index/3/f/foo", IndexFile("r", "foo")),
        (f"/r/crates/Foo/1.0.0/{SHA}", CrateFile("r", "Foo", "1.0.0", SHA)),
        ("/r/crates/Foo/1.0.0/download", CrateFile("r", "Foo", "1.0.0", None)),
        ("/r/crates/Foo/1.0.0/{sha256-checksum}", CrateFile("r", "Foo", "1.0.0", None)),
        ("/r/crates/Foo/1.0.0/%7Bsha256-checksum%7D", CrateFile("r", "Foo", "1.0.0", None)),
        ("/r/api/v1/crates/Foo/1.0.0/download", CrateFile("r", "Foo", "1.0.0", None)),
        ("/r/api/v1/crates", ApiCall("r", "/crates")),
        ("/r/api/v1/crates/new", ApiCall("r", "/crates/new")),
        ("/r/api/v1/crates/Foo/1.0.0/yank", ApiCall("r", "/crates/Foo/1.0.0/yank")),
        ("/r/api/v1/crates/Foo/owners", ApiCall("r", "/crates/Foo/owners")),
        ("/r/api/v1", ApiCall("r", "/")),
        ("/-/healthz", Page("/-/healthz")),
        ("/-/readyz", Page("/-/readyz")),
        ("/-/metrics", Page("/-/metrics")),
        ("/-/pages/anything", Page("/-/pages/anything")),
        ("/-/", Page("/-/")),
        ("/healthz", Page("/-/healthz")),
        ("/readyz", Page("/-/readyz")),
        ("/metrics", Page("/-/metrics")),
        ("/", Page("/")),
        ("", Page("/")),
    ],
)
def test_a_url_of_the_contract(path: str, expected: Route) -> None:
    assert route(path) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("//r//index///se/rd//serde/", IndexFile("r", "serde")),
        ("/r/crates//Foo/1.0.0/download", CrateFile("r", "Foo", "1.0.0", None)),
        ("/r/crates/Foo/1.0.0+b.1/download", CrateFile("r", "Foo", "1.0.0+b.1", None)),
        ("/r/crates/Foo/1.0.0%2Bb.1/download", CrateFile("r", "Foo", "1.0.0+b.1", None)),
        ("/r/crates/Foo/1.0.0%2bb.1/download", CrateFile("r", "Foo", "1.0.0+b.1", None)),
        ("/%72/index/se/rd/serd%65", IndexFile("r", "serde")),
        ("/r/api/v1/crates/Foo/1.0.0/downloa%64", CrateFile("r", "Foo", "1.0.0", None)),
        # What follows /api/v1 is the upstream's to decode.
        ("/r/api/v1/categories/a%3A%3Ab", ApiCall("r", "/categories/a%3A%3Ab")),
        ("/healthz/index/config.json", ConfigFile("healthz")),
    ],
)
def test_other_spellings_of_the_same_url(path: str, expected: Route) -> None:
    assert route(path) == expected


@pytest.mark.parametrize(
    "path",
    [
        "se/rd/Serde",
        "SE/RD/SERDE",
        "se/rd/other",
        "serde",
        "3/serde",
        "se%2Frd/serde",
        "se/rd%2Fserde",
        "se/rd/serde%00",
        "se/rd/serde%0A",
        "se/rd/serde.json",
        "config.json/x",
        "../../../etc/passwd",
        "%2e%2e/%2e%2e/passwd",
        "se/rd/s%C3%A9rde",
    ],
)
def test_an_index_path_that_is_no_names_own_names_nobody(path: str) -> None:
    assert route(f"/r/index/{path}") == IndexFile("r", None)


@pytest.mark.parametrize(
    "path",
    [
        "crates/Foo/1.0/download",
        "crates/Foo/01.0.0/download",
        "crates/F.o/1.0.0/download",
        "crates/Foo%2F..%2FBar/1.0.0/download",
        "crates/Foo/1.0.0%2F..%2F2.0.0/download",
        "crates/Foo/1.0.0%0A/download",
        "crates/Foo/1.0.0/Download",
        "crates/Foo/1.0.0/{sha256-checksum",
        f"crates/Foo/1.0.0/{SHA.upper()}",
        f"crates/Foo/1.0.0/{SHA[1:]}",
        "crates/../1.0.0/download",
        "crates/%2e%2e/1.0.0/download",
        "api/v1/crates/F.o/1.0.0/download",
        "api/v1/crates/Foo/latest/download",
    ],
)
def test_a_crate_file_that_is_not_well_formed_names_nothing(path: str) -> None:
    assert route(f"/r/{path}") == NO_CRATE


@pytest.mark.parametrize(
    ("path", "first"),
    [
        # A client that was given an index address without /index/ at its end.
        ("/crates-io/config.json", "crates-io"),
        ("/crates-io/se/rd/serde", "crates-io"),
        ("/config.json", "config.json"),
        ("/index/config.json", "index"),
        ("/r", "r"),
        ("/r/index", "r"),
        ("/r/index/", "r"),
        ("/r/crates/Foo/1.0.0", "r"),
        (f"/r/crates/Foo/1.0.0/{SHA}/more", "r"),
        ("/r/api/v2/crates", "r"),
        ("/r/api", "r"),
        ("/Crates-IO/index/config.json", "Crates-IO"),
        ("/crates_io/index/config.json", "crates_io"),
        ("/favicon.ico", "favicon.ico"),
        ("*", "*"),
        ("/a%2Fb/index/config.json", "\ufffd"),
        ("/%0d%0a/index/config.json", "\ufffd"),
        ("/%ff/index/config.json", "\ufffd"),
        ("/../-/healthz", "\ufffd"),
    ],
)
def test_what_is_no_url_of_ours_says_where_it_began(path: str, first: str) -> None:
    assert route(path) == Nowhere(first)


@pytest.mark.parametrize(
    "rest",
    [
        "..",
        "../../admin",
        "crates/../../../admin",
        "%2e%2e/admin",
        "%2E./admin",
        "./crates",
        "crates/..%2f..%2fadmin",
        "crates/a%2Fb",
        "crates/%C3%A9",
        "crates/a%0d%0ab",
        "crates/a%00",
    ],
)
def test_nothing_leads_out_of_the_web_api(rest: str) -> None:
    assert route(f"/r/api/v1/{rest}") == Nowhere("r")


@pytest.mark.parametrize(
    "path",
    [
        "/r/api/v1/crates\r\nHost: elsewhere",
        "/r/api/v1/a b",
        "/r/index/se/rd/serd\xe9",
        "/\udcff/index/config.json",
        "/\ud800",
        "/\x7f",
        "/r/index/" + "a" * 2048,
    ],
)
def test_what_no_request_line_may_hold_is_nowhere(path: str) -> None:
    assert route(path) == Nowhere("")


def test_a_path_may_be_2048_characters_long() -> None:
    path = "/r/api/v1/"
    longest = path + "a" * (2048 - len(path))
    assert route(longest) == ApiCall("r", longest.removeprefix("/r/api/v1"))
    assert route(longest + "a") == Nowhere("")


def spelled(*segments: str) -> st.SearchStrategy[str]:
    """Make every spelling of a path: encoded or not, with empty segments."""
    slashes = st.sampled_from(["/", "/", "//"])
    pieces = [st.tuples(slashes, our.percent_encoded(segment)).map("".join) for segment in segments]
    return st.tuples(*pieces, st.sampled_from(["", "/"])).map("".join)


@given(st.data(), our.registry_names(), our.crate_names())
def test_an_index_file_is_found_under_every_spelling(
    data: st.DataObject, registry: str, name: str
) -> None:
    path = data.draw(spelled(registry, "index", *index_path(name).split("/")))
    assert route(path) == IndexFile(registry, name.lower())


@given(
    st.data(),
    our.registry_names(),
    our.crate_names(),
    our.versions(),
    our.checksums() | st.sampled_from(["download", "{sha256-checksum}"]),
)
def test_a_crate_file_is_found_under_every_spelling(
    data: st.DataObject, registry: str, crate: str, version: str, last: str
) -> None:
    expected = CrateFile(registry, crate, version, last if is_sha256(last) else None)
    assert route(data.draw(spelled(registry, "crates", crate, version, last))) == expected
    path = data.draw(spelled(registry, "api", "v1", "crates", crate, version, "download"))
    assert route(path) == CrateFile(registry, crate, version, None)


@given(
    st.sampled_from(["http://127.0.0.1:8080", "https://crates.example.com/cargo"]),
    our.registry_names(),
    our.crate_names(),
    our.versions(),
    our.checksums(),
)
def test_what_our_config_json_makes_cargo_ask_for_is_routed(
    base: str, registry: str, crate: str, version: str, cksum: str
) -> None:
    config = parse(ours(base, registry, auth_required=False))
    asked = download_url(config.dl, crate, version, cksum)
    assert route(asked.removeprefix(base)) == CrateFile(registry, crate, version, cksum)
    assert config.api is not None
    api = urlsplit(f"{config.api}/api/v1/crates?q=x").geturl().removeprefix(base)
    assert route(api.partition("?")[0]) == ApiCall(registry, "/crates")


segments = st.sampled_from(
    [
        *("index", "crates", "api", "v1", "-", "config.json", "download", "{sha256-checksum}"),
        *("r", "crates-io", "healthz", "se", "rd", "serde", "1", "2", "3", "a", "A", "1.0.0"),
        *("", ".", "..", "%2e", "%2E%2e", "%2F", "%2f..", "..%2F", "%5C", "%00", "%0A", "%", "%zz"),
        *("%25%32%46", "%252F", "%C3%A9", "%FF", "é", "\udcff", "\n", " ", "+", "%2B", SHA),
    ]
)
paths = st.lists(segments | our.any_text, max_size=8).map(lambda parts: "/" + "/".join(parts))


@given(our.any_text | paths)
@example("/r/api/v1/%2e%2e%2fx")
def test_no_path_raises_or_yields_anything_that_is_not_well_formed(path: str) -> None:
    match route(path):
        case ConfigFile(registry):
            assert is_registry_name(registry)
        case IndexFile(registry, name):
            assert is_registry_name(registry)
            if name is not None:
                assert unquote(path).replace("/", "").endswith(index_path(name).replace("/", ""))
        case CrateFile(registry, crate, version, sha256):
            assert is_registry_name(registry)
            assert (crate is None) == (version is None)
            assert crate is None or is_crate_name(crate)
            assert version is None or is_version(version)
            assert sha256 is None or (is_sha256(sha256) and crate is not None)
        case ApiCall(registry, rest):
            assert is_registry_name(registry)
            # As it came, and a server that decodes and resolves it stays where it was sent.
            assert rest.strip("/") in "/".join(part for part in path.split("/") if part)
            assert posixpath.normpath(unquote(rest)).count("/") == rest.count("/")
        case Page(page):
            assert page == "/" or page.startswith("/-/")
            assert page.isprintable()
        case Nowhere(first):
            assert first.isprintable()
            assert "/" not in first


@given(paths, st.data())
def test_an_encoded_slash_is_never_a_slash(path: str, data: st.DataObject) -> None:
    parts = path.split("/")
    at = data.draw(st.integers(1, len(parts) - 1))
    if at == len(parts) - 1:
        parts.append("")
    joined = [*parts[:at], parts[at] + "%2F" + parts[at + 1], *parts[at + 2 :]]
    match route("/".join(joined)):
        case IndexFile(_, name) | CrateFile(_, name, _, _):
            assert name is None
        case Page(page):
            assert page == "/-/" or "\ufffd" in page
        case other:
            assert isinstance(other, Nowhere)
