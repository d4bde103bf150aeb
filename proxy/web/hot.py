"""Answers that need no await: an index file or a small crate that is in memory and may be served.

For protocols that can answer without a handler and a task of their own. A protocol reads a request
into `Asked` and names the `Dialect` that it writes heads in. What is out of the ordinary is not
answered here: None means "take the ordinary way", which gives the same answer at a higher price.
What is written for one form of one index file is kept with it.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from typing import Final, Generic, NamedTuple, TypeVar, cast

from proxy.core import routes
from proxy.core.conditional import format_http_date, if_modified_since_holds, if_none_match_holds
from proxy.core.events import How, IndexSent, Kind, RequestServed
from proxy.core.forwarded import (
    AddressRules,
    BadHost,
    Reached,
    check_host,
    client_address,
    own_path,
    path_prefixes,
)
from proxy.core.freshness import age_s
from proxy.core.negotiation import accepts_gzip
from proxy.ports import Clock, Observer
from proxy.service.journeys import Journeys
from proxy.service.registry import Registry
from proxy.service.rendered import Rendered
from proxy.web import replies

Head = TypeVar("Head")

# With one of these, an answer depends on more than the hot path looks at.
OUT_OF_THE_ORDINARY: Final = frozenset({"range", "if-range", "expect", "te", "content-length"})
_REMEMBERED: Final = 4096
# Who sends more for one of them is not remembered: what is kept must not be a client's to size.
_REMEMBERED_MAX_CHARS: Final = 512


class Asked(NamedTuple):
    """What a GET without a body says, of that which the hot path looks at; None: not said."""

    path: str
    host: str | None = None
    accept_encoding: str | None = None
    if_none_match: str | None = None
    if_modified_since: str | None = None
    forwarded_for: str | None = None
    forwarded_host: str | None = None


# The fields whose values `Asked` holds behind the path, in its order; each may be there once.
LOOKED_AT: Final = (
    "host",
    "accept-encoding",
    "if-none-match",
    "if-modified-since",
    "x-forwarded-for",
    "x-forwarded-host",
)


class Dialect(Generic[Head]):
    """How one protocol writes a head, but for its Date, which is added when it is sent."""

    __slots__ = ("head", "keys")

    def __init__(
        self, name: str, head: Callable[[int, Mapping[str, str], int | None], Head]
    ) -> None:
        self.head = head
        self.keys = tuple(f"{name} {form}" for form in ("200", "200 gzip", "304", "304 gzip"))


class Hot(NamedTuple, Generic[Head]):
    """A reply that may be sent, and what is to be told once it was."""

    head: Head
    date: str
    body: bytes
    registry: str
    kind: Kind
    status: int
    begun: float
    client: str
    subject: str
    age_s: float | None


class HotPath:
    """Answers from memory. For one event loop."""

    def __init__(
        self,
        registries: Mapping[str, Registry],
        journeys: Journeys,
        addresses: AddressRules,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._registries = registries
        self._indexes = journeys.indexes
        self._crates = journeys.crates
        self._insistence = journeys.insistence
        self._trusts_proxies = bool(addresses.trusted_proxies)
        self._checks_hosts = bool(addresses.allowed_hosts)
        self._prefixes = path_prefixes(addresses)
        self._clock = clock
        self._observer = observer
        self._date: tuple[int, str] = (0, "")

        # The same few clients and hosts come over and over.
        @lru_cache(maxsize=_REMEMBERED)
        def client_behind(peer: str, forwarded_for: str) -> str:
            reached = _reached(peer, forwarded_for=forwarded_for)
            return client_address(reached, addresses)

        @lru_cache(maxsize=_REMEMBERED)
        def may_ask_for(peer: str, host: str | None, forwarded_host: str | None) -> bool:
            try:
                check_host(_reached(peer, host=host, forwarded_host=forwarded_host), addresses)
            except BadHost:
                return False
            return True

        self._client_behind = client_behind
        self._may_ask_for = may_ask_for

    def answer(self, asked: Asked, peer: str, dialect: Dialect[Head]) -> Hot[Head] | None:
        """Answer a request; `peer` is the address of the socket's other end.

        Nothing is counted before `sent` is called: a reply that there is no room for goes the
        ordinary way.
        """
        if self._checks_hosts:
            if len(asked.host or "") + len(asked.forwarded_host or "") > _REMEMBERED_MAX_CHARS:
                return None
            if not self._may_ask_for(peer, asked.host, asked.forwarded_host):
                return None
        path = asked.path
        if self._prefixes:
            path = own_path(path, self._prefixes, self._registries)
        begun = self._clock.monotonic()
        client = peer
        if self._trusts_proxies and asked.forwarded_for is not None:
            if len(asked.forwarded_for) > _REMEMBERED_MAX_CHARS:
                return None
            client = self._client_behind(peer, asked.forwarded_for)
        route = routes.route(path)
        if isinstance(route, routes.IndexFile):
            return self._index(route, asked, begun, client, dialect)
        if isinstance(route, routes.CrateFile) and asked.if_none_match is None:
            return self._crate(route, begun, client, dialect)
        return None

    def _index(
        self,
        route: routes.IndexFile,
        asked: Asked,
        begun: float,
        client: str,
        dialect: Dialect[Head],
    ) -> Hot[Head] | None:
        registry = self._registries.get(route.registry)
        if registry is None or route.name is None:
            return None
        if asked.if_none_match is not None or asked.if_modified_since is not None:
            self._insistence.note(client)
        rendered = self._indexes.hot(registry.source, route.name)
        if rendered is None:
            return None
        has = _has(asked, rendered)
        gzip = accepts_gzip(asked.accept_encoding)
        key = dialect.keys[gzip + 2 * has]
        made = rendered.wire.get(key)
        if made is None:
            headers, body = replies.index_head(rendered, How.HIT, gzip=gzip, has=has)
            status, length = (304, None) if has else (200, len(body))
            made = dialect.head(status, headers, length), body
            rendered.wire[key] = made
        # What lies under a dialect's key was made by that dialect.
        head, body = cast("tuple[Head, bytes]", made)
        now = self._clock.now()
        return Hot(
            head,
            self._dated(now),
            body,
            registry.name,
            Kind.INDEX,
            304 if has else 200,
            begun,
            client,
            route.name,
            age_s(rendered.snapshot, now),
        )

    def _crate(
        self, route: routes.CrateFile, begun: float, client: str, dialect: Dialect[Head]
    ) -> Hot[Head] | None:
        registry = self._registries.get(route.registry)
        if registry is None or route.crate is None or route.version is None:
            return None
        found = self._crates.hot(registry.source, route.crate, route.version, route.sha256)
        if found is None:
            return None
        digest, body = found
        headers = replies.crate_headers(digest, How.HIT, content_addressed=route.sha256 is not None)
        head = dialect.head(200, headers, len(body))
        subject = f"{route.crate} {route.version}"
        date = self._dated(self._clock.now())
        return Hot(head, date, body, registry.name, Kind.CRATE, 200, begun, client, subject, None)

    def _dated(self, now: float) -> str:
        """Return the Date of an answer (RFC 9110 section 6.6.1), written once a second."""
        second = int(now)
        if self._date[0] != second:
            self._date = second, format_http_date(second)
        return self._date[1]

    def sent(self, hot: Hot[Head]) -> None:
        """Tell of a reply that was sent."""
        if hot.age_s is not None:
            self._observer.observe(IndexSent(max(0.0, hot.age_s)))
        self._observer.observe(
            RequestServed(
                hot.registry,
                hot.kind,
                How.HIT,
                hot.status,
                self._clock.monotonic() - hot.begun,
                len(hot.body),
                hot.client,
                hot.subject,
            )
        )


def _has(asked: Asked, rendered: Rendered) -> bool:
    """Tell whether the client holds this very file (RFC 9110 section 13.1)."""
    etags = asked.if_none_match
    if etags is not None:
        if etags in (rendered.etag, rendered.gzip_etag):
            return True
        return if_none_match_holds(etags, rendered.etag, rendered.gzip_etag)
    since = asked.if_modified_since
    return since is not None and if_modified_since_holds(since, rendered.last_modified)


def _reached(
    peer: str,
    *,
    host: str | None = None,
    forwarded_host: str | None = None,
    forwarded_for: str | None = None,
) -> Reached:
    try:
        address = ip_address(peer)
    except ValueError:
        address = None
    return Reached(
        scheme="http",
        host=host,
        peer=address,
        local=None,
        forwarded_host=forwarded_host,
        forwarded_for=forwarded_for,
    )
