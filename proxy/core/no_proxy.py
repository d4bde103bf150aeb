"""`NO_PROXY`: which hosts are reached without the forward proxy of the environment.

There is no standard for it; the forms understood here are those of curl and Go together, so that
one value serves all programs of a machine. An entry is `*`, a host name (the names below it count
too, with or without a dot in front), an address, or a network; a name or an address may have a
port. IPv6 comes with brackets or without.
"""

import re
from ipaddress import ip_address, ip_network
from typing import Final

_ENTRY: Final = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>\d{1,5}))?", re.ASCII)


def is_exempt(no_proxy: str, host: str, port: int) -> bool:
    """Tell whether the variable's value names `host`, which is a name or an address."""
    bare = host.strip("[]").partition("%")[0].rstrip(".").lower()
    entries = (each.strip().lower() for each in re.split(r"[,\s]+", no_proxy))
    return any(_names(entry, bare, port) for entry in entries if entry)


def _names(entry: str, host: str, port: int) -> bool:
    if entry == "*" or _holds(entry, host):
        return True
    match = _ENTRY.fullmatch(entry)
    if match is None or (match["port"] is not None and int(match["port"]) != port):
        return False
    named = match["host"]
    if _is_address(host):
        return _holds(named.removeprefix("[").removesuffix("]"), host)
    name = named.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _holds(network: str, host: str) -> bool:
    """Tell whether an address is one or lies in a network; no for names on either side."""
    try:
        return ip_address(host) in ip_network(network, strict=False)
    except ValueError:
        return False
