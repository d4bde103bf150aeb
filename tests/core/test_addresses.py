"""Where an upstream's own words may send us, and where they never may."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.addresses import AddressGuard, Origin, literal_address
from tests.core import strategies as our

OWN = Origin.of("https://packages.corp.example/index/")
GUARD = AddressGuard(OWN)
EVERYTHING = AddressGuard(
    OWN, ("0.0.0.0/0", "::/0", "dl.example", "169.254.169.254", "fd00:ec2::254", "64:ff9b::/96")
)

# RFC 6890 and its successors, and what clouds tell their guests' secrets at.
NEVER = [
    *("169.254.0.0/16", "fe80::/10", "0.0.0.0/8", "::/128", "224.0.0.0/4", "ff00::/8"),
    *("255.255.255.255/32", "169.254.169.254/32", "169.254.170.2/32", "169.254.170.23/32"),
    *("fd00:ec2::254/128", "fd00:ec2::23/128", "fd20:ce::254/128", "100.100.100.200/32"),
    *("192.0.0.192/32", "168.63.129.16/32"),
]
PRIVATE = [
    *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "100.64.0.0/11"),
    *("::1/128", "fc00::/8", "fd12::/16", "fec0::/10", "192.0.0.0/29", "198.18.0.0/15"),
    *("64:ff9b:1::/48", "100::/64", "2001:db8::/32", "240.0.0.0/8", "2001::/32"),
    # An IPv4 address in forms that nobody routes to, but that a tunnel might.
    *("::7f00:0/104", "::a9fe:a9fe/128", "::ffff:0:a9fe:a9fe/128"),
]
PUBLIC = ["8.8.8.0/24", "151.101.0.0/16", "2606:4700::/32", "2a04:4e42::/32", "1.1.1.1/32"]


def within(networks: list[str]) -> st.SearchStrategy[IPv4Address | IPv6Address]:
    return st.sampled_from(networks).flatmap(lambda text: st.ip_addresses(network=text))


@st.composite
def disguised(draw: st.DrawFn, addresses: st.SearchStrategy[IPv4Address | IPv6Address]) -> str:
    """Write an address as it is, or an IPv4 address inside an IPv6 one that leads to it."""
    address = draw(addresses)
    if isinstance(address, IPv6Address):
        return draw(st.sampled_from([str(address), address.exploded, f"{address}%eth0"]))
    low = int(address)
    return draw(
        st.sampled_from(
            [
                str(address),
                f"::ffff:{address}",
                str(IPv6Address((0x2002 << 112) | (low << 80) | 1)),  # 6to4
                str(IPv6Address((0x64FF9B << 96) | low)),  # NAT64
            ]
        )
    )


hosts = st.sampled_from(["dl.example", "packages.corp.example.evil.example", "169.254.169.254"])


@given(hosts, disguised(within(NEVER)))
def test_metadata_and_link_local_are_never_asked_whatever_is_allowed(
    host: str, address: str
) -> None:
    for guard in (GUARD, EVERYTHING):
        objection = guard.objection(host, address)
        assert objection is not None
        assert host in objection
        assert "allow_hosts" not in objection


@given(hosts, disguised(within(PRIVATE)))
def test_the_inside_is_asked_only_where_it_is_allowed(host: str, address: str) -> None:
    objection = GUARD.objection(host, address)
    assert objection is not None
    assert host in objection
    assert "allow_hosts" in objection
    assert EVERYTHING.objection(host, address) is None


@given(hosts, disguised(within(PUBLIC)))
def test_the_outside_may_be_asked(host: str, address: str) -> None:
    assert GUARD.objection(host, address) is None


@given(
    st.sampled_from(["packages.corp.example", "Packages.CORP.example", "packages.corp.example."]),
    disguised(within(NEVER + PRIVATE + PUBLIC)),
)
def test_the_configured_host_is_trusted_wherever_it_lies(host: str, address: str) -> None:
    assert GUARD.objection(host, address) is None


@given(
    st.ip_addresses() | within(NEVER + PRIVATE + PUBLIC), st.lists(our.any_text, max_size=3), hosts
)
def test_entries_that_are_neither_names_nor_networks_allow_nothing(
    address: IPv4Address | IPv6Address, entries: list[str], host: str
) -> None:
    junk = tuple(entry for entry in entries if not entry[:1].isdigit() and ":" not in entry)
    guard = AddressGuard(OWN, junk)
    assert guard.objection(host, str(address)) == GUARD.objection(host, str(address))


@given(st.ip_addresses(), hosts)
def test_allowing_more_never_forbids_more(address: IPv4Address | IPv6Address, host: str) -> None:
    if EVERYTHING.objection(host, str(address)) is not None:
        assert GUARD.objection(host, str(address)) is not None


@pytest.mark.parametrize(
    ("allowed", "host", "address", "permitted"),
    [
        ("10.1.2.3", "dl.example", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "dl.example", "10.1.2.4", False),
        ("10.1.2.3", "dl.example", "::ffff:10.1.2.3", True),
        ("10.1.0.0/16", "dl.example", "10.1.2.4", True),
        ("10.1.2.3/16", "dl.example", "10.1.9.9", True),
        ("10.1.0.0/16", "dl.example", "10.2.0.1", False),
        ("10.1.0.0/16", "dl.example", "fd00::1", False),
        ("fd12::/16", "dl.example", "fd12::1", True),
        ("fd12::/16", "dl.example", "10.1.2.3", False),
        ("storage.corp.example", "storage.corp.example", "10.9.9.9", True),
        ("Storage.corp.example", "storage.CORP.example.", "10.9.9.9", True),
        ("storage.corp.example", "other.corp.example", "10.9.9.9", False),
        ("corp.example", "storage.corp.example", "10.9.9.9", False),
        ("storage.corp.example", "storage.corp.example", "169.254.169.254", False),
    ],
)
def test_what_an_entry_of_allow_hosts_allows(
    allowed: str, host: str, address: str, permitted: bool
) -> None:
    assert (AddressGuard(OWN, (allowed,)).objection(host, address) is None) is permitted


def test_a_refusal_names_the_host_and_the_address_that_is_meant() -> None:
    assert GUARD.objection("dl.example", "::ffff:10.0.0.1") == (
        "dl.example (10.0.0.1) is a private address; allow_hosts may list it"
    )
    assert GUARD.objection("dl.example", "64:ff9b::a9fe:a9fe") == (
        "dl.example (169.254.169.254) is a link-local, metadata or otherwise forbidden address"
    )


@pytest.mark.parametrize("text", ["", "dl.example", "10.0.0"])
def test_a_name_is_not_judged_before_it_is_resolved(text: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        GUARD.objection("dl.example", text)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://h.example/x", Origin("https", "h.example", 443)),
        ("http://h.example", Origin("http", "h.example", 80)),
        ("http://h.example:8080/", Origin("http", "h.example", 8080)),
        ("HTTPS://H.Example:443/", Origin("https", "h.example", 443)),
        ("https://h.example./", Origin("https", "h.example", 443)),
        ("https://user:pw@h.example/", Origin("https", "h.example", 443)),
        ("http://[::1]:81/", Origin("http", "::1", 81)),
        ("https://h.example?x=http://other", Origin("https", "h.example", 443)),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, origin: Origin) -> None:
    assert Origin.of(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        *("", "h.example", "//h.example/", "ftp://h.example/", "file:///etc/passwd", "https:///x"),
        *("http://:80/", "http://./", "http://h:port/", "http://h:65536/", "http://[::1/"),
    ],
)
def test_nothing_else_has_an_origin(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Origin.of(url)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[::FFFF:a00:1]", "::ffff:a00:1"),
        ("dl.example", None),
        ("localhost", None),
        # Forms that only a resolver takes for addresses: it is asked, and then judged.
        ("127.1", None),
        ("2130706433", None),
        ("0x7f.0.0.1", None),
        ("0177.0.0.1", None),
        ("", None),
    ],
)
def test_a_literal_address_is_told_from_a_name(host: str, address: str | None) -> None:
    found = literal_address(host)
    assert (found and ip_address(found)) == (address and ip_address(address))
