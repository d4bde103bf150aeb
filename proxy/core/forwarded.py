"""By which address did the client reach us? What we write into `config.json` depends on it.

A wrong answer sends every later download to a place that the client cannot reach, or that somebody
else chose. So: `public_url` decides where it is given; otherwise the request's own scheme and Host,
or X-Forwarded-Proto, -Host, -Prefix and -For where the peer is a trusted proxy (the last value of a
list is the one that the trusted peer wrote; for -For, the last that is not itself trusted). What a
stranger forwards is ignored. `0.0.0.0` and `[::]` are nobody's address: in their place stands the
local address of this very connection.
"""

import re
from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from itertools import chain
from typing import Final
from urllib.parse import urlsplit

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

_HOST: Final = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9])?\.?)(?::(?P<port>\d{1,5}))?",
    re.ASCII,
)
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)*/?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reached:
    """How a request came in: facts of the connection and the headers that bear on its address.

    `peer` and `local` are the two ends of the socket (None on a Unix socket).
    """

    scheme: str
    host: str | None
    peer: Address | None
    local: tuple[str, int] | None
    forwarded_proto: str | None = None
    forwarded_host: str | None = None
    forwarded_prefix: str | None = None
    forwarded_for: str | None = None

    @property
    def has_forwarded(self) -> bool:
        """Whether any of the X-Forwarded headers is there."""
        return (
            self.forwarded_proto is not None
            or self.forwarded_host is not None
            or self.forwarded_prefix is not None
            or self.forwarded_for is not None
        )


@dataclass(frozen=True, slots=True)
class AddressRules:
    """What the operator said about addresses; see `server.*` of the configuration."""

    public_urls: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()


class BadHost(ValueError):
    """The Host (or what a trusted proxy forwarded of it) is malformed or not allowed."""


def is_trusted(peer: Address | None, rules: AddressRules) -> bool:
    """Tell whether `peer` is a proxy whose X-Forwarded-* is believed."""
    if peer is None:
        return False
    plain = _unmapped(peer)
    return any(plain in network for network in rules.trusted_proxies)


def check_host(reached: Reached, rules: AddressRules) -> str | None:
    """Return the host name that the client asked for, if it gave one. Raises BadHost."""
    host = reached.host
    if is_trusted(reached.peer, rules) and reached.forwarded_host is not None:
        host = _last(reached.forwarded_host)
    if host is not None and not _is_host(host):
        raise BadHost("the Host header is not a host name")
    if rules.allowed_hosts and (host is None or not _is_allowed(host, rules.allowed_hosts)):
        raise BadHost("this host name is not served here (see server.allowed_hosts)")
    return host


def base_url(reached: Reached, rules: AddressRules) -> str:
    """Return the absolute address of our root for this client, with no slash at the end.

    Raises BadHost.
    """
    trusted = is_trusted(reached.peer, rules)
    host = check_host(reached, rules)
    if rules.public_urls:
        return _public_url(host, rules.public_urls)
    scheme = reached.scheme
    if trusted and reached.forwarded_proto is not None:
        forwarded = _last(reached.forwarded_proto).lower()
        scheme = forwarded if forwarded in ("http", "https") else scheme
    prefix = ""
    if trusted and reached.forwarded_prefix is not None:
        forwarded = _last(reached.forwarded_prefix)
        prefix = forwarded.rstrip("/") if _PREFIX.fullmatch(forwarded) else ""
    return f"{scheme}://{_reachable(host, reached.local)}{prefix}"


def client_address(reached: Reached, rules: AddressRules) -> str:
    """Return the address of the client itself, for logs and limits.

    Where every hop is trusted, it is the first one: proxies and clients may share a network.
    """
    client = reached.peer
    hops = reached.forwarded_for.split(",") if reached.forwarded_for is not None else []
    while hops and is_trusted(client, rules):
        try:
            client = ip_address(hops.pop().strip())
        except ValueError:
            break
    return str(_unmapped(client)) if client is not None else "local"


@lru_cache(maxsize=4096)
def peer_address(text: str) -> str:
    """Write the address of a socket's other end as `client_address` does, nobody in between.

    The same client must have the same name on every way in; a dual-stack listener sees IPv4 mapped.
    """
    try:
        return str(_unmapped(ip_address(text.partition("%")[0])))
    except ValueError:
        return "local"


def path_prefixes(rules: AddressRules) -> tuple[str, ...]:
    """Return the paths of the public addresses that have one, with no slash at the end."""
    paths = (urlsplit(url).path.rstrip("/") for url in rules.public_urls)
    return tuple(path for path in paths if path)


def own_path(raw_path: str, prefixes: tuple[str, ...], registries: Container[str]) -> str:
    """Take off the path prefix of a public address, where a proxy in front has left it on.

    A registry may be called as the prefix is; what is in it goes by its own path.
    """
    for prefix in prefixes:
        if raw_path == prefix or raw_path.startswith(prefix + "/"):
            first, _, rest = raw_path[1:].partition("/")
            if first in registries and rest.startswith(("index/", "crates/", "api/")):
                return raw_path
            return raw_path[len(prefix) :] or "/"
    return raw_path


def _is_host(text: str) -> bool:
    match = _HOST.fullmatch(text)
    if match is None:
        return False
    try:
        return not text.startswith("[") or isinstance(ip_address(_bare(text)), IPv6Address)
    except ValueError:
        return False


def _last(header: str) -> str:
    return header.rpartition(",")[2].strip()


def _is_allowed(host: str, allowed: tuple[str, ...]) -> bool:
    forms = (host.lower(), _bare(host))
    return any(one.lower() in forms or one.lower().strip("[]") in forms for one in allowed)


def _bare(host: str) -> str:
    match = _HOST.fullmatch(host)
    return match["host"].lower().rstrip(".").strip("[]") if match is not None else host.lower()


def _public_url(host: str | None, public_urls: tuple[str, ...]) -> str:
    """Choose the public address that the client used, or the first where it used none of them."""
    if host is None:
        return public_urls[0].rstrip("/")
    exact = (url for url in public_urls if host.lower() == urlsplit(url).netloc.lower())
    similar = (url for url in public_urls if _bare(host) == urlsplit(url).hostname)
    return next(chain(exact, similar, public_urls)).rstrip("/")


def _reachable(host: str | None, local: tuple[str, int] | None) -> str:
    if host is not None and not _is_unspecified(_bare(host)):
        return host
    match = _HOST.fullmatch(host) if host is not None else None
    address, port = local if local is not None else ("127.0.0.1", 80)
    if match is not None and match["port"] is not None:
        port = int(match["port"])
    plain = _unmapped(ip_address(address))
    if plain.is_unspecified:
        plain = IPv4Address("127.0.0.1")
    return f"[{plain}]:{port}" if isinstance(plain, IPv6Address) else f"{plain}:{port}"


def _is_unspecified(host: str) -> bool:
    try:
        return _unmapped(ip_address(host)).is_unspecified
    except ValueError:
        return False


def _unmapped(address: Address) -> Address:
    """Return the IPv4 address of a client that came to a listener for both families."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped
