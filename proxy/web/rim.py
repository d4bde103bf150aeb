"""Requests to journeys, and journeys to responses: every URL of the contract goes through `handle`.

The rim translates. It reads the path by `proxy.core.routes`, finds the registry, calls one journey,
and turns its answer, or its failure by the one table, into a response; then it reports the request.
It holds no rule about crates. It does not know which version of HTTP it is serving.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, assert_never

from aiohttp import hdrs, web

from proxy.core import registry_config, routes
from proxy.core.events import How, IndexSent, Kind, RequestMisdirected, RequestServed
from proxy.core.failures import NoSuchCrate, StoreFailure, TooMany, UpstreamFailure
from proxy.core.forwarded import (
    Address,
    AddressRules,
    BadHost,
    Reached,
    base_url,
    check_host,
    client_address,
    is_trusted,
    own_path,
    path_prefixes,
    peer_address,
)
from proxy.core.freshness import age_s
from proxy.ports import Clock, Observer
from proxy.service.indexes import IndexAbsent
from proxy.service.journeys import Journeys
from proxy.service.registry import Registry
from proxy.web import replies
from proxy.web.failures import told
from proxy.web.gate import Ceilings, Gate, refusal
from proxy.web.pages import Pages

logger = logging.getLogger(__name__)

InRegistry = routes.ConfigFile | routes.IndexFile | routes.CrateFile | routes.ApiCall

_READING: Final = (hdrs.METH_GET, hdrs.METH_HEAD)
_PATH_TOLD_CHARS: Final = 200


@dataclass(slots=True)
class _Seen:
    """What is known so far about the request that is being answered."""

    registry: str
    kind: Kind
    how: How
    subject: str
    client: str
    sent_bytes: int = 0


class Rim:
    """The handler of all requests. For one event loop."""

    def __init__(
        self,
        registries: Mapping[str, Registry],
        journeys: Journeys,
        pages: Pages,
        addresses: AddressRules,
        clock: Clock,
        observer: Observer,
        *,
        admin_only_elsewhere: bool,
        gate: Gate | None = None,
    ) -> None:
        self._registries = registries
        self._journeys = journeys
        self._pages = pages
        self._addresses = addresses
        self._prefixes = path_prefixes(addresses)
        self._clock = clock
        self._observer = observer
        self._admin_only_elsewhere = admin_only_elsewhere
        self._gate = gate if gate is not None else Gate(Ceilings(), clock)
        self._warned_of_strangers = False

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request. Raises nothing but cancellation."""
        begun = time.perf_counter()
        raw_path = request.rel_url.raw_path
        route = routes.route(own_path(raw_path, self._prefixes, self._registries))
        match route:
            case routes.Page():
                return await self._page(request, route.path)
            case routes.Nowhere():
                return self._misdirected(request, begun)
        registry = self._registries.get(route.registry)
        if registry is None:
            return self._misdirected(request, begun)
        client = self._client(request)
        seen = _Seen(registry.name, *_kind_and_subject(route), client)
        response = await self._answer(request, route, registry, seen)
        self._observer.observe(
            RequestServed(
                registry=seen.registry,
                kind=seen.kind,
                how=seen.how,
                status=response.status,
                duration_s=time.perf_counter() - begun,
                sent_bytes=seen.sent_bytes,
                client=seen.client,
                subject=seen.subject,
            )
        )
        return response

    def _misdirected(self, request: web.Request, begun: float) -> web.Response:
        response = replies.plain(400, self._directions(), How.REFUSED)
        self._observer.observe(
            RequestMisdirected(
                status=response.status,
                duration_s=time.perf_counter() - begun,
                client=self._client(request),
                path=request.rel_url.raw_path[:_PATH_TOLD_CHARS],
            )
        )
        return response

    async def _answer(
        self, request: web.Request, route: InRegistry, registry: Registry, seen: _Seen
    ) -> web.StreamResponse:
        try:
            if self._addresses.allowed_hosts:
                check_host(_reached(request), self._addresses)
            return await self._dispatch(request, route, registry, seen)
        except BadHost as problem:
            seen.how = How.REFUSED
            return replies.plain(400, str(problem), How.REFUSED)
        except TooMany as limit:
            seen.how = How.REFUSED
            return refusal(limit, in_api=isinstance(route, routes.ApiCall))
        except (UpstreamFailure, StoreFailure) as failure:
            seen.how = How.ERROR
            return replies.failure(told(failure))
        except Exception:
            # The boundary: whatever was not foreseen is ours, and must not look like an absence.
            logger.exception("a request failed: %s %s", request.method, seen.subject)
            seen.how = How.ERROR
            return replies.plain(500, "an error in the proxy; its log says more", How.ERROR)

    async def _dispatch(
        self, request: web.Request, route: InRegistry, registry: Registry, seen: _Seen
    ) -> web.StreamResponse:
        match route:
            case routes.ConfigFile() | routes.IndexFile() | routes.CrateFile() if (
                request.method not in _READING
            ):
                seen.how = How.REFUSED
                return _only_read_here()
            case routes.ConfigFile():
                return self._config(request, registry, seen)
            case routes.IndexFile():
                return await self._index(request, route, registry, seen)
            case routes.CrateFile():
                return await self._crate(request, route, registry, seen)
            case routes.ApiCall():
                return await self._api(request, route, registry, seen)
            case _ as never:
                assert_never(never)

    def _client(self, request: web.Request) -> str:
        if self._addresses.trusted_proxies:
            return client_address(_reached(request), self._addresses)
        transport = request.transport
        peername = transport.get_extra_info("peername") if transport is not None else None
        return peer_address(str(peername[0])) if isinstance(peername, tuple) else "local"

    def _config(self, request: web.Request, registry: Registry, seen: _Seen) -> web.Response:
        reached = _reached(request)
        if reached.has_forwarded and not is_trusted(reached.peer, self._addresses):
            self._warn_of_stranger(reached)
        body = registry_config.ours(
            base_url(reached, self._addresses), registry.name, auth_required=registry.auth_required
        )
        response = replies.config_file(body)
        seen.sent_bytes = len(body)
        # Crates will be next, and where the upstream has them must be known by then.
        self._journeys.configs.expect(registry.source)
        return response

    async def _index(
        self, request: web.Request, route: routes.IndexFile, registry: Registry, seen: _Seen
    ) -> web.Response:
        if route.name is None:
            seen.how = How.REFUSED
            return replies.plain(404, "this is no crate's path in an index", How.REFUSED)
        conditional = replies.is_conditional(request)
        if conditional:
            self._journeys.insistence.note(seen.client)
        rendered = self._journeys.indexes.hot(registry.source, route.name)
        how, may_confirm = How.HIT, True
        if rendered is None:
            with self._gate.place(seen.client, registry.name):
                served = await self._journeys.indexes.answer(
                    registry.source,
                    route.name,
                    insisting=conditional or self._journeys.insistence.insists(seen.client),
                    admit=self._gate.admission(seen.client, registry.name),
                )
            if isinstance(served, IndexAbsent):
                seen.how = served.how
                return replies.plain(404, f"{registry.name} has no crate {route.name}", served.how)
            rendered, how, may_confirm = served.rendered, served.how, served.may_confirm
        seen.how = how
        response = replies.index_file(request, rendered, how, may_confirm=may_confirm)
        age = age_s(rendered.snapshot, self._clock.now())
        self._observer.observe(IndexSent(max(0.0, age)))
        seen.sent_bytes = _sent_bytes(request, response)
        return response

    async def _crate(
        self, request: web.Request, route: routes.CrateFile, registry: Registry, seen: _Seen
    ) -> web.StreamResponse:
        if route.crate is None or route.version is None:
            seen.how = How.REFUSED
            return replies.plain(404, "this is no crate's address", How.REFUSED)
        with self._gate.place(seen.client, registry.name):
            served = await self._journeys.crates.open(
                registry.source,
                route.crate,
                route.version,
                route.sha256,
                self._gate.admission(seen.client, registry.name),
            )
            if isinstance(served, NoSuchCrate):
                seen.how = How.NEGATIVE
                return replies.plain(404, served.message, How.NEGATIVE)
            seen.how = served.how
            try:
                response, seen.sent_bytes = await replies.crate_file(
                    request, served, content_addressed=route.sha256 is not None
                )
            finally:
                await served.aclose()
            return response

    async def _api(
        self, request: web.Request, route: routes.ApiCall, registry: Registry, seen: _Seen
    ) -> web.Response:
        if request.method not in _READING:
            seen.how = How.REFUSED
            return replies.api_error(
                501,
                f"{registry.name}: this proxy only reads; publish to the registry itself",
                How.REFUSED,
            )
        try:
            with self._gate.place(seen.client, registry.name):
                served = await self._journeys.api.get(
                    registry.source,
                    route.rest,
                    request.rel_url.raw_query_string,
                    self._gate.admission(seen.client, registry.name),
                )
        except UpstreamFailure as failure:
            seen.how = How.ERROR
            said = told(failure)
            return replies.api_error(said.status, said.message, How.ERROR, retry=said.retry)
        if served is None:
            seen.how = How.REFUSED
            return replies.api_error(404, f"{registry.name} has no web API", How.REFUSED)
        seen.how, seen.sent_bytes = served.how, len(served.answer.body)
        return replies.api_answer(served)

    async def _page(self, request: web.Request, path: str) -> web.StreamResponse:
        if path != "/" and self._admin_only_elsewhere:
            return replies.plain(404, "not on this listener (see server.admin_listen)")
        if request.method not in _READING:
            return _only_read_here()
        if path != "/":
            # Probes and scrapes come by an address of their own, whatever names are served here.
            return await self._pages.answer(path, "", None)
        try:
            base = base_url(_reached(request), self._addresses)
        except BadHost as problem:
            return replies.plain(400, str(problem), How.REFUSED)
        return await self._pages.answer(path, base, replies.all_lines(request, hdrs.ACCEPT))

    def _directions(self) -> str:
        known = ", ".join(sorted(self._registries))
        return (
            f"no such registry or path here; the registries are: {known}; "
            "an index is at /<registry>/index/"
        )

    def _warn_of_stranger(self, reached: Reached) -> None:
        if not self._warned_of_strangers:
            self._warned_of_strangers = True
            logger.warning(
                "X-Forwarded-* from %s is ignored; list the proxy in server.trusted_proxies",
                reached.peer,
            )


def _only_read_here() -> web.Response:
    response = replies.plain(405, "only GET and HEAD here", How.REFUSED)
    response.headers[hdrs.ALLOW] = "GET, HEAD"
    return response


def _kind_and_subject(route: InRegistry) -> tuple[Kind, How, str]:
    match route:
        case routes.ConfigFile():
            return Kind.CONFIG, How.HIT, "config.json"
        case routes.IndexFile():
            return Kind.INDEX, How.HIT, route.name or "?"
        case routes.CrateFile():
            return Kind.CRATE, How.HIT, f"{route.crate or '?'} {route.version or '?'}"
        case routes.ApiCall():
            return Kind.API, How.BYPASS, route.rest


def _reached(request: web.Request) -> Reached:
    headers = request.headers
    transport = request.transport
    sockname = transport.get_extra_info("sockname") if transport is not None else None
    peername = transport.get_extra_info("peername") if transport is not None else None
    # A proxy may add a line of its own below one that the client made up: all of them count.
    return Reached(
        scheme=request.url.scheme if transport is None else _scheme(request),
        host=headers.get(hdrs.HOST),
        peer=_address(peername),
        local=(sockname[0], sockname[1]) if isinstance(sockname, tuple) else None,
        forwarded_proto=replies.all_lines(request, hdrs.X_FORWARDED_PROTO),
        forwarded_host=replies.all_lines(request, hdrs.X_FORWARDED_HOST),
        forwarded_prefix=replies.all_lines(request, "X-Forwarded-Prefix"),
        forwarded_for=replies.all_lines(request, hdrs.X_FORWARDED_FOR),
    )


def _scheme(request: web.Request) -> str:
    transport = request.transport
    assert transport is not None, "the caller looked"
    return "https" if transport.get_extra_info("sslcontext") is not None else "http"


def _address(peername: object) -> Address | None:
    if not isinstance(peername, tuple) or not peername:
        return None
    try:
        return ip_address(str(peername[0]).partition("%")[0])
    except ValueError:
        return None


def _sent_bytes(request: web.Request, response: web.Response) -> int:
    body = response.body
    return len(body) if isinstance(body, bytes) and request.method == hdrs.METH_GET else 0
