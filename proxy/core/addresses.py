"""Where may an upstream's own words send us? The guard against request forgery through `dl`.

An upstream names hosts in the `dl` and `api` of its `config.json` and in redirects. Those are
untrusted input (CVE-2026-0600, CVE-2025-59346 and their kin): a link-local or metadata address is
never followed, a private one only where the host is the configured index's own, or the operator
listed it in `allow_hosts`. Names are judged by what they resolve to, at the moment of connecting:
a name that was public a second ago may be 127.0.0.1 now. The configured index origin itself is
trusted, on whatever network it lies.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address

_NAT64: Final = IPv6Network("64:ff9b::/96")
_NEVER: Final = tuple(
    ip_network(text)
    for text in (
        "169.254.0.0/16",  # link-local; the metadata service of most clouds
        "fe80::/10",
        "fd00:ec2::/32",  # metadata and credentials of AWS over IPv6
        "fd20:ce::254/128",  # Google's
        "100.100.100.200/32",  # Alibaba's
        "192.0.0.192/32",  # Oracle's
        "168.63.129.16/32",  # Azure's host agent, behind a public number
        "0.0.0.0/8",
        "::/128",
        "224.0.0.0/4",
        "ff00::/8",
        "255.255.255.255/32",
    )
)
# `is_global` differs between versions of Python; these are inside, whatever it says.
_INSIDE: Final = (
    IPv4Network("100.64.0.0/10"),  # carrier-grade NAT
    IPv4Network("192.0.0.0/24"),  # IETF protocol assignments
)
# All of IPv6 that is handed out. Outside lie the forms that carry an IPv4 address nobody routes to.
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port (RFC 6454): what credentials are bound to."""

    scheme: str
    host: str
    port: int

    @staticmethod
    def of(url: str) -> "Origin":
        """Return the origin of an absolute http(s) URL. Raises ValueError for any other."""
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("not an absolute http(s) address")
        port = parts.port if parts.port is not None else (443 if parts.scheme == "https" else 80)
        return Origin(parts.scheme, host, port)


@dataclass(frozen=True, slots=True)
class AddressGuard:
    """Which addresses requests on behalf of one upstream may go to.

    `allow_hosts` holds host names, addresses and networks, as the operator wrote them.
    """

    own: Origin
    allow_hosts: tuple[str, ...] = ()

    def objection(self, host: str, address: str) -> str | None:
        """Return why `host`, which resolved to `address`, must not be asked; None if it may be."""
        plain = _unmapped(ip_address(address.partition("%")[0]))
        if host.rstrip(".").lower() == self.own.host.lower():
            return None
        if any(plain.version == network.version and plain in network for network in _NEVER):
            return f"{host} ({plain}) is a link-local, metadata or otherwise forbidden address"
        if not _is_inside(plain) or self._is_allowed(host, plain):
            return None
        return f"{host} ({plain}) is a private address; allow_hosts may list it"

    def names(self, host: str) -> bool:
        """Tell whether the operator named this very host: the index's own, or one of the list."""
        named = (self.own.host, *self.allow_hosts)
        return host.rstrip(".").lower() in {each.lower() for each in named}

    def _is_allowed(self, host: str, address: Address) -> bool:
        if self.names(host):
            return True
        for entry in self.allow_hosts:
            try:
                network = ip_network(entry, strict=False)
            except ValueError:
                continue
            if network.version == address.version and address in network:
                return True
        return False


def literal_address(host: str) -> str | None:
    """Return `host` if it is an IP address rather than a name."""
    try:
        return str(ip_address(host.strip("[]").partition("%")[0]))
    except ValueError:
        return None


def _unmapped(address: Address) -> Address:
    """Look through the IPv6 forms that carry an IPv4 address: mapped, 6to4, NAT64."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_inside(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not address.is_global or any(address in network for network in _INSIDE)
    return not address.is_global or address not in _GLOBAL_UNICAST
