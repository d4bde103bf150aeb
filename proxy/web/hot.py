"""Answers that need no await: an index file or a small crate that is in memory and may be served.

For protocols that can answer without a handler and a task of their own. Whatever is out of the
ordinary (another method, a forwarded header, a range, a host to be checked) is not answered here:
None means "take the ordinary way", which gives the same answer at a higher price.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from proxy.core import routes
from proxy.core.conditional import format_http_date, if_modified_since_holds, if_none_match_holds
from proxy.core.events import How, IndexSent, Kind, RequestServed
from proxy.core.forwarded import AddressRules
from proxy.core.freshness import age_s
from proxy.core.negotiation import accepts_gzip
from proxy.ports import Clock, Observer
from proxy.service.journeys import Journeys
from proxy.service.registry import Registry
from proxy.service.rendered import Rendered
from proxy.web import replies

Field = tuple[bytes, bytes]

# With one of these, an answer depends on more than the hot path looks at.
_OUT_OF_THE_ORDINARY: Final = frozenset({"range", "if-range", "forwarded", "via", "expect"})


class HotReply(NamedTuple):
    """A whole answer: its fields as HTTP/2 writes them, `:status` first, and its body."""

    fields: list[Field]
    body: bytes


class Hot(NamedTuple):
    """A reply that may be sent, and what is to be told once it was."""

    reply: HotReply
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
        # A host to be checked or a prefix to be taken off is the ordinary way's business.
        self._is_open = not addresses.allowed_hosts and not addresses.public_urls
        self._clock = clock
        self._observer = observer
        self._date: tuple[int, Field] = (0, (b"date", b""))

    def answer(self, fields: list[tuple[str, str]], client: str) -> Hot | None:
        """Answer a request without a body, from its fields; `client` is the peer's address.

        Nothing is counted before `sent` is called: a reply that the windows have no room for goes
        the ordinary way.
        """
        if not self._is_open:
            return None
        asked = _read(fields)
        if asked is None:
            return None
        begun = self._clock.monotonic()
        route = routes.route(asked.path)
        if isinstance(route, routes.IndexFile):
            return self._index(route, asked, begun, client)
        if isinstance(route, routes.CrateFile) and asked.if_none_match is None:
            return self._crate(route, begun, client)
        return None

    def _index(
        self, route: routes.IndexFile, asked: "_Asked", begun: float, client: str
    ) -> Hot | None:
        if asked.is_conditional:
            self._insistence.note(client)
        registry = self._registries.get(route.registry)
        if registry is None or route.name is None:
            return None
        rendered = self._indexes.hot(registry.source, route.name)
        if rendered is None:
            return None
        has = asked.has(rendered)
        now = self._clock.now()
        made = _index_reply(rendered, gzip=accepts_gzip(asked.accept_encoding), has=has)
        reply = HotReply([*made.fields, self._dated(now)], made.body)
        return Hot(
            reply,
            registry.name,
            Kind.INDEX,
            304 if has else 200,
            begun,
            client,
            route.name,
            age_s(rendered.snapshot, now),
        )

    def _crate(self, route: routes.CrateFile, begun: float, client: str) -> Hot | None:
        registry = self._registries.get(route.registry)
        if registry is None or route.crate is None or route.version is None:
            return None
        found = self._crates.hot(registry.source, route.crate, route.version, route.sha256)
        if found is None:
            return None
        digest, body = found
        headers = replies.crate_headers(digest, How.HIT, content_addressed=route.sha256 is not None)
        fields = _fields(200, headers, len(body))
        fields.append(self._dated(self._clock.now()))
        reply = HotReply(fields, body)
        subject = f"{route.crate} {route.version}"
        return Hot(reply, registry.name, Kind.CRATE, 200, begun, client, subject, None)

    def _dated(self, now: float) -> Field:
        """Return the Date of an answer (RFC 9110 section 6.6.1), written once a second."""
        second = int(now)
        if self._date[0] != second:
            self._date = second, (b"date", format_http_date(second).encode())
        return self._date[1]

    def sent(self, hot: Hot) -> None:
        """Tell of a reply that was sent."""
        if hot.age_s is not None:
            self._observer.observe(IndexSent(max(0.0, hot.age_s)))
        self._observer.observe(
            RequestServed(
                registry=hot.registry,
                kind=hot.kind,
                how=How.HIT,
                status=hot.status,
                duration_s=self._clock.monotonic() - hot.begun,
                sent_bytes=len(hot.reply.body),
                client=hot.client,
                subject=hot.subject,
            )
        )


class _Asked(NamedTuple):
    """What a request's fields say, of that which the hot path can answer."""

    path: str
    accept_encoding: str | None
    if_none_match: str | None
    if_modified_since: str | None

    @property
    def is_conditional(self) -> bool:
        return self.if_none_match is not None or self.if_modified_since is not None

    def has(self, rendered: Rendered) -> bool:
        if self.if_none_match is not None:
            return if_none_match_holds(self.if_none_match, rendered.etag, rendered.gzip_etag)
        since = self.if_modified_since
        return since is not None and if_modified_since_holds(since, rendered.last_modified)


def _read(fields: list[tuple[str, str]]) -> _Asked | None:
    """Read a GET's fields; None for anything that is out of the ordinary."""
    read: dict[str, str] = {}
    for name, value in fields:
        if name in _OUT_OF_THE_ORDINARY or name.startswith("x-forwarded"):
            return None
        read[name] = value if name not in read else f"{read[name]}, {value}"
    if read.get(":method") != "GET" or ":path" not in read:
        return None
    return _Asked(
        read[":path"],
        read.get("accept-encoding"),
        read.get("if-none-match"),
        read.get("if-modified-since"),
    )


def _index_reply(rendered: Rendered, *, gzip: bool, has: bool) -> HotReply:
    key = ("gzip" if gzip else "identity") + (" 304" if has else "")
    reply = rendered.wire.get(key)
    if isinstance(reply, HotReply):
        return reply
    headers, body = replies.index_head(rendered, How.HIT, gzip=gzip, has=has)
    made = HotReply(_fields(304 if has else 200, headers, None if has else len(body)), body)
    rendered.wire[key] = made
    return made


def _fields(status: int, headers: Mapping[str, str], length: int | None) -> list[Field]:
    fields = [(b":status", str(status).encode())]
    fields += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    if length is not None:
        fields.append((b"content-length", str(length).encode()))
    return fields
