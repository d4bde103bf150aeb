"""How addresses are written in the configuration: listeners, upstreams, hosts, networks.

The grammars follow the rules of `config_values`: what a `parse_*` refuses is not repeated, and what
is written reads as the same value again.

- Addresses hold no credentials: those have keys of their own, which are redacted.
- An index address ends in a slash: cargo appends to it, and refuses one that does not.
- A host that ends in a number is an IPv4 address or nothing: the C library reads `127.1` as one.

What is not here: which addresses may be reached (`proxy.core.addresses`), and what is made of the
Host that a client names (`proxy.core.forwarded`).
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Self
from urllib.parse import SplitResult, urlsplit

from proxy.config_values import ValueRefused, parse_text

Network = IPv4Network | IPv6Network

SPARSE: Final = "sparse+"
_LISTEN: Final = re.compile(
    r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<name>[^:\[\]]+)):(?P<port>\d{1,5})", re.ASCII
)
_PORT_MAX: Final = 65535
_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_][a-z0-9_-]{0,62})*\.?",
    re.ASCII | re.IGNORECASE,
)
_NUMERIC_END: Final = re.compile(r"(?:.*\.)?\d+\.?", re.ASCII)
_IPV6_CHARACTERS: Final = re.compile(r"[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?", re.ASCII)
_URL_CHARACTERS: Final = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+", re.ASCII)
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)*/*", re.ASCII)


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen: a host name or address without brackets, and a port (0: the kernel's)."""

    host: str
    port: int

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read `127.0.0.1:8080`, `[::]:8080`, `localhost:0`. Raises ValueRefused."""
        match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
        if match is not None and int(match["port"]) <= _PORT_MAX:
            name, v6 = match["name"], match["v6"]
            if (name is not None and _is_host(name)) or (v6 is not None and _is_ipv6(v6)):
                return cls(name or v6, int(match["port"]))
        raise ValueRefused(
            'expected "HOST:PORT", such as "127.0.0.1:8080", "[::]:8080" or "localhost:0"'
        )

    @property
    def is_loopback(self) -> bool:
        """Whether nobody on another machine can connect to it, as far as the name tells."""
        if self.host.lower().rstrip(".") == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_index(value: object) -> str:
    """Read the address of a sparse index, as cargo spells it. Raises ValueRefused."""
    text = parse_text(value)
    if not text.startswith((f"{SPARSE}http://", f"{SPARSE}https://")):
        raise ValueRefused(
            'expected a sparse index, "sparse+https://HOST/PATH/"; an index kept in git,'
            " which has no sparse+ in front, cannot be an upstream"
        )
    parts = _split_url(text.removeprefix(SPARSE))
    if not parts.path.endswith("/"):
        raise ValueRefused(
            "expected a slash at the end: cargo appends to it, and refuses an index without one"
        )
    return text


def parse_public_url(value: object) -> str:
    """Read an absolute address, with or without a path prefix; slashes at the end are dropped."""
    text = parse_text(value)
    parts = _split_url(text)
    if _PREFIX.fullmatch(parts.path) is None or {".", ".."} & set(parts.path.split("/")):
        raise ValueRefused("expected a path prefix of letters, digits, '.', '_', '~', '-' and '/'")
    return text.rstrip("/")


def parse_forward_proxy(value: object) -> str:
    """Read the address of an HTTP proxy. Raises ValueRefused."""
    text = parse_text(value)
    if _split_url(text).path not in ("", "/"):
        raise ValueRefused('expected no path: "http://HOST:PORT"')
    return text.removesuffix("/")


def _split_url(text: str) -> SplitResult:
    if not text.startswith(("http://", "https://")) or _URL_CHARACTERS.fullmatch(text) is None:
        raise ValueRefused("expected an absolute http:// or https:// address")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueRefused("expected a host, and a port between 1 and 65535 if any") from None
    if "@" in parts.netloc:
        raise ValueRefused("expected an address without a user name or a password")
    if "?" in text or "#" in text:
        raise ValueRefused("expected an address without '?' and '#'")
    is_bracketed = parts.netloc.startswith("[")
    if (
        not host
        or port == 0
        or parts.netloc.endswith(":")
        or not (_is_ipv6(host) if is_bracketed else _is_host(host))
    ):
        raise ValueRefused("expected a host, and a port between 1 and 65535 if any")
    return parts


def parse_network(value: object) -> Network:
    """Read a network or a single address. Raises ValueRefused."""
    if isinstance(value, str):
        try:
            return ip_network(value)
        except ValueError:
            pass
    raise ValueRefused(
        'expected a network without host bits, such as "10.0.0.0/8" or "fd00::/8", or an address'
    )


def parse_served_host(value: object) -> str:
    """Read a host name or address as a Host header has it, with or without a port."""
    text = value.lower() if isinstance(value, str) else ""
    if _is_host(text) or (text.startswith("[") and text.endswith("]") and _is_ipv6(text[1:-1])):
        return text
    try:
        return str(ListenAddress.parse(text))
    except ValueRefused:
        raise ValueRefused(
            'expected a host as clients write it, such as "crates.example.com",'
            ' "10.1.2.3:8080" or "[fd00::1]"'
        ) from None


def parse_reachable_host(value: object) -> str:
    """Read a host name, an address or a network. Raises ValueRefused."""
    text = value.lower() if isinstance(value, str) else ""
    if _is_host(text) or _is_ipv6(text):
        return text
    try:
        return str(parse_network(text))
    except ValueRefused:
        raise ValueRefused(
            'expected a host name, an address or a network, such as "files.example.com",'
            ' "10.1.2.3" or "10.1.0.0/16", without a port'
        ) from None


def _is_host(text: str) -> bool:
    """Tell whether `text` is a host name or an IPv4 address; what ends in a number is one."""
    if _NUMERIC_END.fullmatch(text) is not None:
        try:
            return ip_address(text).version == 4  # noqa: PLR2004 - the protocol's own name
        except ValueError:
            return False
    return _HOST_NAME.fullmatch(text) is not None


def _is_ipv6(text: str) -> bool:
    if _IPV6_CHARACTERS.fullmatch(text) is None:
        return False
    try:
        return isinstance(ip_address(text), IPv6Address)
    except ValueError:
        return False
