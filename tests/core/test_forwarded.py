"""By which address the client reached us: what goes into `config.json`."""

from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.forwarded import (
    Address,
    AddressRules,
    BadHost,
    Reached,
    base_url,
    client_address,
    is_trusted,
    own_path,
    path_prefixes,
    peer_address,
)
from tests.core import strategies as our

PROXY, STRANGER = ip_address("10.0.0.7"), ip_address("192.0.2.9")
ANYONE = AddressRules()
BEHIND = AddressRules(trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("fd00::/8")))


@dataclass(frozen=True, slots=True)
class Claim:
    """What X-Forwarded headers say."""

    proto: str | None = None
    host: str | None = None
    prefix: str | None = None
    client: str | None = None

    def made_in(self, reached: Reached) -> Reached:
        return replace(
            reached,
            forwarded_proto=self.proto,
            forwarded_host=self.host,
            forwarded_prefix=self.prefix,
            forwarded_for=self.client,
        )


DIRECT = Reached("http", "h.example:8080", STRANGER, ("192.0.2.1", 8080))
VIA = replace(DIRECT, peer=PROXY)


@pytest.mark.parametrize(
    ("scheme", "host", "expected"),
    [
        ("http", "127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https", "crates.example.com", "https://crates.example.com"),
        ("http", "Crates.Example.COM:80", "http://Crates.Example.COM:80"),
        ("http", "localhost", "http://localhost"),
        ("http", "my_host.local.", "http://my_host.local."),
        ("http", "[::1]:8080", "http://[::1]:8080"),
        ("http", "[2001:db8::7]", "http://[2001:db8::7]"),
        ("http", "x", "http://x"),
    ],
)
def test_without_rules_it_is_the_host_that_the_client_named(
    scheme: str, host: str, expected: str
) -> None:
    assert base_url(replace(DIRECT, scheme=scheme, host=host), ANYONE) == expected


@pytest.mark.parametrize(
    "host",
    [
        *("", " ", "a b", "a/b", "a?b", "a#b", "user@h", "h:", "h:x", "h:123456", "-h", "h-", ".h"),
        *("::1", "[::1", "::1]", "[]", "[g::1]", "[::1]x", "[fe80::1%25eth0]", "h\r\nX: y"),
        *(
            "é.example",
            "h..\\",
            "h:8080:1",
            '"h"',
            "<h>",
            "\u0661",
            "x" * 300,
            "[:::]",
            "[1.2.3.4]",
        ),
    ],
)
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(BadHost, match="is not a host name"):
        base_url(replace(DIRECT, host=host), ANYONE)
    with pytest.raises(BadHost, match="is not a host name"):
        base_url(replace(VIA, forwarded_host=host), BEHIND)


@pytest.mark.parametrize("host", ["a,b", "h\n", " h", "h.example, h.example"])
def test_only_a_trusted_proxy_may_send_a_list_or_space_around_it(host: str) -> None:
    with pytest.raises(BadHost, match="is not a host name"):
        base_url(replace(DIRECT, host=host), ANYONE)
    assert base_url(replace(VIA, forwarded_host=host), BEHIND).startswith("http://")


@pytest.mark.parametrize(
    ("host", "local", "expected"),
    [
        ("0.0.0.0:8080", ("192.0.2.1", 8080), "http://192.0.2.1:8080"),
        ("0.0.0.0", ("192.0.2.1", 8080), "http://192.0.2.1:8080"),
        # A port that was mapped on the way is the client's.
        ("0.0.0.0:9000", ("192.0.2.1", 8080), "http://192.0.2.1:9000"),
        ("[::]:8080", ("::1", 8080), "http://[::1]:8080"),
        ("[::0]:8080", ("2001:db8::1", 8080), "http://[2001:db8::1]:8080"),
        ("[0:0:0:0:0:0:0:0]", ("::1", 8080), "http://[::1]:8080"),
        ("[::ffff:0.0.0.0]:8080", ("127.0.0.1", 8080), "http://127.0.0.1:8080"),
        # One listener for both families: its IPv4 clients see mapped addresses.
        ("0.0.0.0:8080", ("::ffff:192.0.2.1", 8080), "http://192.0.2.1:8080"),
        (None, ("192.0.2.1", 8080), "http://192.0.2.1:8080"),
        (None, ("::1", 8080), "http://[::1]:8080"),
        (None, ("0.0.0.0", 8080), "http://127.0.0.1:8080"),
        (None, ("::", 8080), "http://127.0.0.1:8080"),
        (None, None, "http://127.0.0.1:80"),
        ("0.0.0.0:8080", None, "http://127.0.0.1:8080"),
    ],
)
def test_nobodys_address_gives_way_to_that_of_the_connection(
    host: str | None, local: tuple[str, int] | None, expected: str
) -> None:
    assert base_url(replace(DIRECT, host=host, local=local), ANYONE) == expected
    assert base_url(replace(VIA, forwarded_host=host, host=host, local=local), BEHIND) == expected


@pytest.mark.parametrize(
    ("proto", "host", "prefix", "expected"),
    [
        ("https", None, None, "https://h.example:8080"),
        ("HTTPS", None, None, "https://h.example:8080"),
        ("http", None, None, "http://h.example:8080"),
        ("http, https", None, None, "https://h.example:8080"),
        ("https,http", None, None, "http://h.example:8080"),
        ("wss", None, None, "http://h.example:8080"),
        ("", None, None, "http://h.example:8080"),
        (None, "crates.example.com", None, "http://crates.example.com"),
        (None, "evil.example, crates.example.com", None, "http://crates.example.com"),
        (None, "[2001:db8::1]:8443", None, "http://[2001:db8::1]:8443"),
        (None, None, "/cargo", "http://h.example:8080/cargo"),
        (None, None, "/cargo/", "http://h.example:8080/cargo"),
        (None, None, "/a/b-c_d.e~f", "http://h.example:8080/a/b-c_d.e~f"),
        (None, None, "/a, /b", "http://h.example:8080/b"),
        (None, None, "/", "http://h.example:8080"),
        (None, None, "", "http://h.example:8080"),
        (None, None, "cargo", "http://h.example:8080"),
        (None, None, "//evil.example", "http://h.example:8080"),
        (None, None, "/a?b", "http://h.example:8080"),
        (None, None, "/a#b", "http://h.example:8080"),
        (None, None, "/a b", "http://h.example:8080"),
        (None, None, "/{crate}", "http://h.example:8080"),
        ("https", "crates.example.com", "/cargo", "https://crates.example.com/cargo"),
    ],
)
def test_what_a_trusted_proxy_forwards_is_believed(
    proto: str | None, host: str | None, prefix: str | None, expected: str
) -> None:
    claim = Claim(proto, host, prefix)
    assert base_url(claim.made_in(VIA), BEHIND) == expected
    assert base_url(claim.made_in(DIRECT), BEHIND) == "http://h.example:8080"


header_values = (
    st.none()
    | our.any_text
    | st.sampled_from(
        [
            "https",
            "evil.example",
            "/evil",
            "0.0.0.0",
            "203.0.113.5",
            "10.0.0.1, 203.0.113.5",
            "[::]",
        ]
    )
)
claims = st.builds(Claim, header_values, header_values, header_values, header_values)
strangers = st.none() | st.ip_addresses().filter(
    lambda address: (
        not any(
            (getattr(address, "ipv4_mapped", None) or address) in network
            for network in BEHIND.trusted_proxies
        )
    )
)
hosts = st.none() | st.sampled_from(
    [
        "h.example",
        "0.0.0.0:80",
        "[::]",
        "[::1]:8080",
        "10.0.0.1",
        "[::ffff:0.0.0.0]",
        "[::ffff:0:0]",
    ]
)
locals_ = st.none() | st.tuples(
    st.ip_addresses().map(str) | st.sampled_from(["0.0.0.0", "::", "::ffff:0.0.0.0"]),
    st.integers(1, 65535),
)
rule_sets = st.sampled_from(
    [
        ANYONE,
        BEHIND,
        replace(BEHIND, public_urls=("https://a.example/x", "https://b.example")),
        replace(BEHIND, allowed_hosts=("h.example", "::1", "0.0.0.0", "::")),
    ]
)


def outcome(reached: Reached, rules: AddressRules) -> str:
    try:
        return base_url(reached, rules)
    except BadHost as refusal:
        return f"refused: {refusal}"


@given(hosts, strangers, locals_, rule_sets, claims)
def test_what_a_stranger_forwards_changes_nothing(
    host: str | None,
    peer: Address | None,
    local: tuple[str, int] | None,
    rules: AddressRules,
    claim: Claim,
) -> None:
    plain = replace(DIRECT, host=host, peer=peer, local=local)
    forged = claim.made_in(plain)
    assert outcome(forged, rules) == outcome(plain, rules)
    assert client_address(forged, rules) == client_address(plain, rules)


@given(
    hosts | our.any_text,
    st.sampled_from([PROXY, STRANGER, None]),
    locals_,
    rule_sets,
    claims,
)
@example("0", PROXY, None, BEHIND, Claim())
def test_whatever_is_claimed_the_answer_is_an_address_that_someone_has(
    host: str | None,
    peer: Address | None,
    local: tuple[str, int] | None,
    rules: AddressRules,
    claim: Claim,
) -> None:
    url = outcome(claim.made_in(replace(DIRECT, host=host, peer=peer, local=local)), rules)
    if url.startswith("refused: "):
        assert url.isprintable()
        return
    parts = urlsplit(url)
    assert parts.scheme in ("http", "https")
    assert parts.hostname
    assert not url.endswith("/")
    assert (parts.query, parts.fragment, parts.username) == ("", "", None)
    try:
        address = ip_address(parts.hostname)
    except ValueError:
        return
    mapped = getattr(address, "ipv4_mapped", None)
    assert not (mapped or address).is_unspecified


@pytest.mark.parametrize(
    ("allowed", "host", "served"),
    [
        ("crates.example.com", "crates.example.com", True),
        ("crates.example.com", "crates.example.com:8080", True),
        ("crates.example.com", "CRATES.example.com.", True),
        ("Crates.Example.com", "crates.example.com", True),
        ("crates.example.com:8080", "crates.example.com:8080", True),
        ("crates.example.com:8080", "crates.example.com:9090", False),
        ("crates.example.com", "evil.example", False),
        ("crates.example.com", "crates.example.com.evil.example", False),
        ("example.com", "crates.example.com", False),
        ("crates.example.com", None, False),
        ("::1", "[::1]:8080", True),
        ("[::1]", "[::1]:8080", True),
        ("[::1]:8080", "[::1]:8080", True),
        ("[::1]:8080", "[::1]:9090", False),
        ("127.0.0.1", "127.0.0.1:8080", True),
    ],
)
def test_only_allowed_hosts_are_served(allowed: str, host: str | None, served: bool) -> None:
    rules = replace(BEHIND, allowed_hosts=("other.example", allowed))
    assert ("refused" not in outcome(replace(DIRECT, host=host), rules)) is served
    # The proxy's word replaces the Host header; it is held to the same list.
    via = replace(VIA, host="other.example", forwarded_host=host)
    assert ("refused" not in outcome(via, rules)) is (served or host is None)


PUBLIC = (
    "https://a.example:8443/x/",
    "https://a.example/y",
    "https://b.example",
    "http://[2001:db8::1]:8080",
)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("a.example:8443", "https://a.example:8443/x"),
        ("a.example", "https://a.example/y"),
        ("A.Example", "https://a.example/y"),
        # A port that somebody maps is not one of ours: the name decides, in order.
        ("a.example:9", "https://a.example:8443/x"),
        ("b.example:8080", "https://b.example"),
        ("b.example.", "https://b.example"),
        ("[2001:db8::1]:8080", "http://[2001:db8::1]:8080"),
        ("[2001:db8::1]", "http://[2001:db8::1]:8080"),
        ("127.0.0.1:8080", "https://a.example:8443/x"),
        ("0.0.0.0:8080", "https://a.example:8443/x"),
        (None, "https://a.example:8443/x"),
    ],
)
def test_a_public_url_is_given_out_the_clients_own_if_there_are_several(
    host: str | None, expected: str
) -> None:
    rules = replace(BEHIND, public_urls=PUBLIC)
    assert base_url(replace(DIRECT, host=host), rules) == expected
    assert base_url(replace(VIA, host="b.example", forwarded_host=host), rules) == (
        expected if host is not None else "https://b.example"
    )


@pytest.mark.parametrize("public_urls", [(), PUBLIC])
def test_a_malformed_or_forbidden_host_is_refused_whatever_is_public(
    public_urls: tuple[str, ...],
) -> None:
    rules = AddressRules(public_urls=public_urls, allowed_hosts=("a.example",))
    with pytest.raises(BadHost, match="allowed_hosts"):
        base_url(replace(DIRECT, host="c.example"), rules)
    with pytest.raises(BadHost, match="not a host name"):
        base_url(replace(DIRECT, host="a.example/x"), rules)


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("10.0.0.7", True),
        ("::ffff:10.0.0.7", True),
        ("fd00::1", True),
        ("11.0.0.7", False),
        ("::ffff:11.0.0.7", False),
        ("2001:db8::1", False),
        ("::a00:7", False),
    ],
)
def test_a_proxy_is_trusted_for_its_address(peer: str, trusted: bool) -> None:
    assert is_trusted(ip_address(peer), BEHIND) is trusted
    assert not is_trusted(ip_address(peer), ANYONE)


def test_nobody_on_a_unix_socket_is_a_trusted_proxy() -> None:
    assert not is_trusted(None, replace(BEHIND, trusted_proxies=(ip_network("0.0.0.0/0"),)))


@pytest.mark.parametrize(
    ("forwarded_for", "expected"),
    [
        (None, "10.0.0.7"),
        ("203.0.113.5", "203.0.113.5"),
        ("198.51.100.1, 203.0.113.5", "203.0.113.5"),
        ("203.0.113.5, 10.1.1.1, 10.2.2.2", "203.0.113.5"),
        ("203.0.113.5,10.1.1.1 , fd00::5", "203.0.113.5"),
        ("2001:db8::5, 10.1.1.1", "2001:db8::5"),
        ("203.0.113.5, unknown", "10.0.0.7"),
        ("203.0.113.5, unknown, 10.1.1.1", "10.1.1.1"),
        ("unknown, 203.0.113.5", "203.0.113.5"),
        ("::ffff:203.0.113.5, ::ffff:10.1.1.1", "203.0.113.5"),
        ("10.3.3.3, 10.1.1.1", "10.3.3.3"),
        ("unknown, 10.3.3.3, 10.1.1.1", "10.3.3.3"),
        ("", "10.0.0.7"),
    ],
)
def test_the_client_is_the_last_hop_that_no_trusted_proxy_is(
    forwarded_for: str | None, expected: str
) -> None:
    assert client_address(replace(VIA, forwarded_for=forwarded_for), BEHIND) == expected
    assert client_address(replace(DIRECT, forwarded_for=forwarded_for), BEHIND) == "192.0.2.9"


def test_a_client_has_one_address_whichever_listener_it_came_to() -> None:
    mapped = replace(DIRECT, peer=ip_address("::ffff:192.0.2.9"))
    assert client_address(mapped, ANYONE) == client_address(DIRECT, ANYONE) == "192.0.2.9"
    assert client_address(replace(DIRECT, peer=None), ANYONE) == "local"


@pytest.mark.parametrize(
    "claim", [Claim(proto=""), Claim(host="h"), Claim(prefix="/"), Claim(client="203.0.113.5")]
)
def test_each_forwarded_header_is_noticed(claim: Claim) -> None:
    assert claim.made_in(DIRECT).has_forwarded
    assert not Claim().made_in(DIRECT).has_forwarded


@pytest.mark.parametrize(
    ("peer", "written"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("", "local"),
    ],
)
def test_a_client_has_the_same_name_on_every_way_in(peer: str, written: str) -> None:
    assert peer_address(peer) == written
    if written != "local":
        reached = Reached("http", None, ip_address(peer.partition("%")[0]), None)
        assert client_address(reached, AddressRules()) == written


def test_the_prefixes_are_the_paths_of_the_public_addresses_that_have_one() -> None:
    assert path_prefixes(replace(BEHIND, public_urls=PUBLIC)) == ("/x", "/y")
    assert path_prefixes(ANYONE) == ()


@pytest.mark.parametrize(
    ("raw_path", "own"),
    [
        ("/a/cargo/crates-io/index/config.json", "/crates-io/index/config.json"),
        ("/a/cargo/", "/"),
        ("/a/cargo", "/"),
        ("/a/cargoes/crates-io/", "/a/cargoes/crates-io/"),
        ("/a/crates-io/", "/a/crates-io/"),
        ("/b/crates-io/index/x", "/b/crates-io/index/x"),
        ("/A/cargo/x", "/A/cargo/x"),
        # What is in a registry goes by its own path, even where a prefix is called as it is.
        ("/house/index/se/rd/serde", "/house/index/se/rd/serde"),
        ("/house/crates/a/1.0.0/download", "/house/crates/a/1.0.0/download"),
        ("/house/api/v1/crates", "/house/api/v1/crates"),
        ("/house/house/index/se/rd/serde", "/house/index/se/rd/serde"),
        ("/house/crates-io/index/x", "/crates-io/index/x"),
        ("/house/indexes", "/indexes"),
        ("/house/", "/"),
        # Taken off once.
        ("/a/cargo/a/cargo/x", "/a/cargo/x"),
    ],
)
def test_a_prefix_that_was_left_on_is_taken_off(raw_path: str, own: str) -> None:
    assert own_path(raw_path, ("/a/cargo", "/house"), {"house", "crates-io"}) == own


def test_without_a_prefix_a_path_is_as_it_came() -> None:
    assert own_path("/a/cargo/x", (), {"a"}) == "/a/cargo/x"
