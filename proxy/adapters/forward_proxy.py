"""The forward proxy on the way to an upstream: the key's, or else the environment's.

`HTTPS_PROXY` and `HTTP_PROXY` are looked at by the scheme of each address, in small letters first,
and `NO_PROXY` exempts hosts (`proxy.core.no_proxy`). The key is for one upstream, has no user name
and password, and nothing is exempt from it; a variable may have both. What cannot be used is told
when it is needed: whoever waits for a request learns which variable it is.

Connections through a forward proxy are `egress`'s.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.request import getproxies_environment

from yarl import URL

from proxy.core.no_proxy import is_exempt


class UnusableProxy(ValueError):
    """A variable of the environment names no HTTP proxy; the message names the variable."""


@dataclass(frozen=True, slots=True)
class ForwardProxy:
    """One proxy. `url` may have credentials in it; `variable` is None where the key names it."""

    url: URL = field(repr=False)
    variable: str | None

    def described(self, upstream: str) -> str:
        """Name the proxy and what says that it is used, without credentials, for a message."""
        key = self.variable or f"upstreams.{upstream}.proxy"
        return f"the proxy {self.url.with_user(None).origin()} ({key})"


@dataclass(frozen=True, slots=True)
class ForwardProxies:
    """Which proxy to use for which address."""

    configured: ForwardProxy | None
    environment: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, configured: str | None) -> Self:
        """Take the key's value, or the environment as it is now."""
        proxy = None if configured is None else ForwardProxy(URL(configured), None)
        return cls(proxy, {} if proxy is not None else getproxies_environment())

    def on_the_way_to(self, url: URL) -> ForwardProxy | None:
        """Return the proxy for an address, or None. Raises UnusableProxy."""
        if self.configured is not None:
            return self.configured
        address = self.environment.get(url.scheme)
        if address is None:
            return None
        if is_exempt(self.environment.get("no", ""), url.host or "", url.port or 0):
            return None
        return _read(address, f"{url.scheme.upper()}_PROXY")

    def hosts(self) -> frozenset[str]:
        """Return the host names of all proxies: they may lie on a private network."""
        if self.configured is not None:
            return frozenset({self.configured.url.host or ""})
        found = set()
        for scheme in self.environment.keys() & {"http", "https"}:
            with contextlib.suppress(UnusableProxy):
                found.add(_read(self.environment[scheme], "").url.host or "")
        return frozenset(found)


def _read(address: str, variable: str) -> ForwardProxy:
    with contextlib.suppress(ValueError):
        url = URL(address if "://" in address else f"http://{address}")
        if url.scheme in ("http", "https") and url.host:
            return ForwardProxy(url, variable)
    raise UnusableProxy(f'{variable} of the environment is not "http://HOST:PORT"')
