"""Which hosts `NO_PROXY` exempts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.no_proxy import is_exempt


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "exempt"),
    [
        ("", "a.example", 443, False),
        (" , ,", "a.example", 443, False),
        ("*", "a.example", 443, True),
        ("b.example, a.example", "a.example", 443, True),
        ("b.example a.example", "a.example", 443, True),
        ("A.Example", "a.EXAMPLE.", 443, True),
        ("example", "a.example", 443, True),
        (".example", "a.example", 443, True),
        (".a.example", "a.example", 443, True),
        ("*.example", "a.example", 443, True),
        ("ample", "a.example", 443, False),
        ("a.example", "example", 443, False),
        ("a.example:443", "a.example", 443, True),
        ("a.example:8443", "a.example", 443, False),
        ("a.example:x", "a.example", 443, False),
        ("10.1.2.3", "10.1.2.3", 80, True),
        ("10.1.2.3:80", "10.1.2.3", 80, True),
        ("10.1.2.3:81", "10.1.2.3", 80, False),
        ("10.0.0.0/8", "10.1.2.3", 80, True),
        ("10.0.0.1/8", "10.1.2.3", 80, True),
        ("10.0.0.0/8", "11.1.2.3", 80, False),
        ("10.0.0.0/8", "ten.example", 80, False),
        ("2.3", "10.1.2.3", 80, False),
        ("::1", "::1", 80, True),
        ("[::1]", "::1", 80, True),
        ("::1", "[::1]", 80, True),
        ("[::1]:80", "::1", 80, True),
        ("[::1]:81", "::1", 80, False),
        ("0:0::1", "::1", 80, True),
        ("fd00::/8", "fd00::7", 80, True),
        ("[fd00::]/8", "fd00::7", 80, False),
        ("fe80::1", "fe80::1%eth0", 80, True),
        ("::1", "127.0.0.1", 80, False),
        ("localhost", "127.0.0.1", 80, False),
        (".", "a.example", 80, False),
        ("*.", "a.example", 80, False),
    ],
)
def test_hosts_that_are_named_are_exempt(
    no_proxy: str, host: str, port: int, *, exempt: bool
) -> None:
    assert is_exempt(no_proxy, host, port) is exempt


@given(st.text(max_size=40), st.text(max_size=40), st.integers(0, 65_535))
def test_nothing_that_a_variable_may_hold_is_an_error(no_proxy: str, host: str, port: int) -> None:
    assert is_exempt(no_proxy, host, port) in (True, False)


@given(st.ip_addresses(), st.integers(1, 65_535))
def test_every_address_names_itself_with_and_without_its_port(address: object, port: int) -> None:
    written = f"[{address}]" if ":" in str(address) else str(address)
    for entry in (str(address), written, f"{written}:{port}", f"{address}/8"):
        assert is_exempt(f"other.example,{entry}", str(address), port)
