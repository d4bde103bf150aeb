"""One upstream over HTTP, by aiohttp's client: the `Upstream` port.

Translated here: requests with the upstream's credentials, redirects followed by hand (each hop past
the address guard, credentials only at the index's own origin), content codings undone within a
ceiling, timeouts, and everything that can go wrong into `proxy.core.failures`. Nothing is decided
here about what an answer means for a crate.

Not here: retries and health (`proxy.service.source`), and any knowledge of what is cached.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from proxy.adapters.credentials import Credentials
from proxy.adapters.decoding import BodyTooLarge, UndecodableBody, decoder_for
from proxy.adapters.egress import Egress
from proxy.adapters.upstream_failures import (
    TRANSIENT_STATUSES,
    Way,
    doubts_about,
    failure_of,
    led_astray,
    refused_by_proxy,
    timed_out,
)
from proxy.core.addresses import Origin
from proxy.core.answers import NO_VALIDATORS, Absent, Answer, Found, Unchanged, Validators
from proxy.core.failures import (
    Crowded,
    Misbehaved,
    TimedOut,
    Troubled,
)
from proxy.core.retry import parse_retry_after
from proxy.ports import ApiAnswer, CrateBody, Upstream

# Of what else should be encoded, some is met with in practice; these would end a request line.
_NOT_IN_A_URL: Final = re.compile(r"[\x00-\x20\x7f]")
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_REDIRECTS_MAX: Final = 5
_API_MAX_BYTES: Final = 4 * 1024 * 1024
_API_TIMEOUT_S: Final = 15.0
# Below the others, so that who waits in vain for a connection of ours hears just that.
_TURN_TIMEOUT_S: Final = 14.0
# The slowest body that is still worth a connection: a ceiling in seconds for every read.
_INDEX_TIMEOUT_S: Final = 120.0
_CRATE_TIMEOUT_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class UpstreamTerms:
    """How one upstream is asked."""

    name: str
    index_url: str
    user_agent: str
    absent_statuses: frozenset[int]
    index_max_bytes: int
    crate_max_bytes: int
    first_byte_timeout_s: float
    idle_timeout_s: float


class HttpUpstream(Upstream):
    """An upstream that is asked over HTTP. For one event loop; `egress` is its way out."""

    def __init__(
        self, terms: UpstreamTerms, egress: Egress, credentials: Credentials | None = None
    ) -> None:
        self._terms = terms
        self._credentials = Credentials(None) if credentials is None else credentials
        self._egress = egress
        self._own = Origin.of(terms.index_url)

    @property
    def name(self) -> str:
        """The name it is configured under."""
        return self._terms.name

    def set_limits(self, *, index_max_bytes: int, crate_max_bytes: int) -> None:
        """Take bodies of other sizes, from the next request on."""
        self._terms = replace(
            self._terms, index_max_bytes=index_max_bytes, crate_max_bytes=crate_max_bytes
        )

    async def index_file(
        self, path: str, validators: Validators, *, new_connection: bool = False
    ) -> Answer:
        """Ask for a file of the index; see the port."""
        headers = {"Accept": "text/plain", "Accept-Encoding": "gzip", "cargo-protocol": "version=1"}
        if validators.etag is not None:
            headers["If-None-Match"] = validators.etag
        if validators.last_modified is not None:
            headers["If-Modified-Since"] = validators.last_modified
        url = self._terms.index_url + path
        if url.startswith("http:") and self._way(url).proxy is not None:
            # A forward proxy that caches would answer for as long as the upstream's max-age.
            headers["Cache-Control"] = "max-age=0"
        try:
            async with asyncio.timeout(_INDEX_TIMEOUT_S), AsyncExitStack() as stack:
                await self._take_turn(stack, self._egress.turns.for_index(), _TURN_TIMEOUT_S)
                self._egress.expect_more(URL(url, encoded=True))
                response = await self._follow(stack, url, headers, new_connection=new_connection)
                if response.status == 304:  # noqa: PLR2004 - Not Modified
                    if validators == NO_VALIDATORS:
                        raise Misbehaved(f"{self.name} said 304 for {path} to no validator")
                    return Unchanged()
                if response.status in self._terms.absent_statuses:
                    return Absent(response.status)
                self._require_ok(response)
                self._refuse_html(response, path)
                self._require_an_end(response, path)
                body = await self._read(response, self._terms.index_max_bytes)
        except TimeoutError:
            raise self._timed_out() from None
        return Found(
            body,
            Validators(
                _sendable(response.headers.get("ETag")),
                _sendable(response.headers.get("Last-Modified")),
            ),
        )

    @asynccontextmanager
    async def crate(self, url: str) -> AsyncIterator[CrateBody | Absent]:
        """Ask for a crate file; see the port."""
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        async with AsyncExitStack() as stack:
            await self._take_turn(stack, self._egress.turns.for_crates(), _CRATE_TIMEOUT_S)
            response = await self._follow(stack, url, headers)
            if response.status in self._terms.absent_statuses:
                yield Absent(response.status)
                return
            self._require_ok(response)
            length = response.content_length
            if length is not None and length > self._terms.crate_max_bytes:
                raise Misbehaved(
                    f"{self.name}: a crate of {length} bytes is over limits.crate "
                    f"({self._terms.crate_max_bytes})"
                )
            yield _HttpCrateBody(self, response, self._terms.crate_max_bytes)

    async def api_get(self, url: str) -> ApiAnswer:
        """Ask the web API; see the port."""
        headers = {"Accept": "application/json", "Accept-Encoding": "gzip"}
        try:
            async with asyncio.timeout(_API_TIMEOUT_S), AsyncExitStack() as stack:
                await self._take_turn(stack, self._egress.turns.for_index(), _TURN_TIMEOUT_S)
                response = await self._follow(stack, url, headers)
                body = await self._read(response, _API_MAX_BYTES)
        except TimeoutError:
            raise self._timed_out() from None
        return ApiAnswer(response.status, response.content_type, body)

    async def _take_turn(
        self, stack: AsyncExitStack, turn: AbstractAsyncContextManager[None], timeout_s: float
    ) -> None:
        """Wait for a connection to come free; given back with `stack`. Raises Crowded."""
        try:
            async with asyncio.timeout(timeout_s):
                await stack.enter_async_context(turn)
        except TimeoutError:
            raise Crowded(
                f"all connections to {self.name} are in use (see upstreams.{self.name}.connections)"
            ) from None

    async def _follow(
        self,
        stack: AsyncExitStack,
        url: str,
        headers: Mapping[str, str],
        *,
        new_connection: bool = False,
    ) -> aiohttp.ClientResponse:
        """Send a GET and follow redirects; the response is closed with `stack`."""
        for _ in range(_REDIRECTS_MAX + 1):
            response = await self._send(stack, url, headers, new_connection=new_connection)
            if response.status not in _REDIRECTS:
                return response
            location = response.headers.get("Location")
            if location is None:
                raise Misbehaved(f"{self.name}: a redirect without a Location")
            response.release()
            try:
                url = urljoin(url, location)
            except ValueError:
                raise led_astray(self.name) from None
        raise Misbehaved(f"{self.name}: more than {_REDIRECTS_MAX} redirects")

    async def _send(
        self, stack: AsyncExitStack, url: str, headers: Mapping[str, str], *, new_connection: bool
    ) -> aiohttp.ClientResponse:
        sent = {"User-Agent": self._terms.user_agent, **headers}
        if _NOT_IN_A_URL.search(url) is not None:
            raise led_astray(self.name)
        try:
            origin = Origin.of(url)
        except ValueError:
            raise led_astray(self.name) from None
        if origin != self._own:
            return await self._send_once(stack, url, sent, new_connection=new_connection)
        token = self._credentials.value
        response = await self._send_once(
            stack, url, _with_token(sent, token), new_connection=new_connection
        )
        if response.status == 401 and await self._credentials.renew(token):  # noqa: PLR2004
            response.release()
            renewed = _with_token(sent, self._credentials.value)
            return await self._send_once(stack, url, renewed, new_connection=new_connection)
        return response

    async def _send_once(
        self, stack: AsyncExitStack, url: str, sent: Mapping[str, str], *, new_connection: bool
    ) -> aiohttp.ClientResponse:
        try:
            async with asyncio.timeout(self._terms.first_byte_timeout_s):
                response = await stack.enter_async_context(
                    self._egress.get(URL(url, encoded=True), sent, new_connection=new_connection)
                )
        except TimeoutError:
            raise self._timed_out(url) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise failure_of(error, self._way(url)) from None
        refusal = refused_by_proxy(self._way(url), response)
        if refusal is not None:
            raise refusal
        return response

    def _require_ok(self, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if status == 200:  # noqa: PLR2004 - OK
            return
        doubts = doubts_about(status, response.url.scheme, self._way(str(response.url)))
        raise Troubled(
            f"{self.name} answered {status}{doubts}",
            status=status,
            transient=status in TRANSIENT_STATUSES,
            retry_after_s=parse_retry_after(response.headers.get("Retry-After"), time.time()),  # noqa: TID251 - a date is compared with the date
        )

    def _refuse_html(self, response: aiohttp.ClientResponse, path: str) -> None:
        if response.content_type in ("text/html", "application/xhtml+xml"):
            raise Misbehaved(f"{self.name} sent a web page in place of {path}")

    def _require_an_end(self, response: aiohttp.ClientResponse, path: str) -> None:
        """Refuse a body that ends where the connection does: nobody can tell it from half of one.

        A content coding has an end of its own (RFC 9112 section 6.3, item 8).
        """
        framed = response.headers.get("Transfer-Encoding", "").lower().endswith("chunked")
        coded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
        if response.content_length is None and not framed and not coded:
            raise Misbehaved(f"{self.name} sent {path} without saying how long it is")

    async def _read(self, response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
        parts = [part async for part in self.decoded(response, max_bytes, _INDEX_TIMEOUT_S)]
        return b"".join(parts)

    async def decoded(
        self, response: aiohttp.ClientResponse, max_bytes: int, timeout_s: float
    ) -> AsyncIterator[bytes]:
        """Yield a body without its content coding, never more than `max_bytes` in all."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        try:
            decoder = decoder_for(response.headers.get("Content-Encoding"), max_bytes)
            async for chunk in response.content.iter_any():
                if loop.time() > deadline:
                    raise self._timed_out(str(response.url))
                for part in decoder.feed(chunk):
                    yield part
            decoder.finish()
        except BodyTooLarge:
            raise Misbehaved(f"{self.name} sent more than the {max_bytes} bytes allowed") from None
        except UndecodableBody as problem:
            raise Misbehaved(f"{self.name}: {problem}") from None
        except TimeoutError:
            raise self._timed_out(str(response.url)) from None
        except (aiohttp.ClientError, OSError) as error:
            raise failure_of(error, self._way(str(response.url))) from None

    def _way(self, url: str) -> Way:
        proxy = None
        with contextlib.suppress(ValueError):
            proxy = self._egress.proxy_for(URL(url, encoded=True))
        return Way(self.name, proxy, shows_certificate=self._egress.shows_certificate)

    def _timed_out(self, url: str | None = None) -> TimedOut:
        return timed_out(self._way(self._terms.index_url if url is None else url))


class _HttpCrateBody(CrateBody):
    """A crate on the wire."""

    def __init__(
        self, upstream: HttpUpstream, response: aiohttp.ClientResponse, max_bytes: int
    ) -> None:
        self._upstream = upstream
        self._response = response
        self._max_bytes = max_bytes

    @property
    def length_bytes(self) -> int | None:
        """The announced length; unknown under a content coding, where it is another's."""
        if self._response.headers.get("Content-Encoding", "identity") != "identity":
            return None
        return self._response.content_length

    @property
    def content_type(self) -> str:
        """The claimed media type."""
        return self._response.content_type

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the decoded body; see the port."""
        return self._upstream.decoded(self._response, self._max_bytes, _CRATE_TIMEOUT_S)


def _with_token(headers: Mapping[str, str], token: str | None) -> Mapping[str, str]:
    return headers if token is None else {**headers, "Authorization": token}


def _sendable(validator: str | None) -> str | None:
    """Return a validator that can be sent back as it came; any other is as good as none."""
    if validator is None or not (validator.isascii() and validator.isprintable()):
        return None
    return validator
