"""Index files, crates and plain words as HTTP responses: conditional requests, ranges, headers.

Everything that a client could hold against us is set here: ETag and Vary, Cache-Control, X-Cache,
Content-Length. Whether something may be served, and how it was come by, was decided before.
"""

from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web

from proxy import version
from proxy.core.conditional import if_modified_since_holds, if_none_match_holds
from proxy.core.events import How
from proxy.core.failures import StoreFailure, UpstreamFailure
from proxy.core.negotiation import accepts_gzip
from proxy.core.ranges import ByteRange, Unsatisfiable, parse_range
from proxy.service.api import ApiServed
from proxy.service.crates import CrateServed
from proxy.service.download import HOLD_BACK_BYTES
from proxy.service.rendered import Rendered
from proxy.web.failures import RETRY_AFTER_S, Told

X_CACHE: Final = "X-Cache"
SERVER: Final = f"holdfast/{version.VERSION}"
_IMMUTABLE: Final = "public, max-age=31536000, immutable"
_NO_CACHE: Final = "no-cache"
# What is sent in one write. A crate that is still arriving is streamed as it is released.
_WHOLE_BODY_BYTES: Final = 256 * 1024


def plain(
    status: int, message: str, how: How | None = None, *, retry: bool = False
) -> web.Response:
    """Say one line of text."""
    headers: dict[str, str] = {hdrs.SERVER: SERVER, hdrs.CACHE_CONTROL: "no-store"}
    if how is not None:
        headers[X_CACHE] = how.value
    if retry:
        headers[hdrs.RETRY_AFTER] = str(RETRY_AFTER_S)
    return web.Response(status=status, text=message + "\n", headers=headers)


def api_error(status: int, detail: str, how: How, *, retry: bool = False) -> web.Response:
    """Say what went wrong in the web API's own form, which cargo shows (Web API, "Responses")."""
    response = web.json_response({"errors": [{"detail": detail}]}, status=status)
    response.headers[X_CACHE] = how.value
    response.headers[hdrs.SERVER] = SERVER
    if retry:
        response.headers[hdrs.RETRY_AFTER] = str(RETRY_AFTER_S)
    return response


def api_answer(served: ApiServed) -> web.Response:
    """Pass on what a web API said."""
    return web.Response(
        status=served.answer.status,
        body=served.answer.body,
        headers={
            hdrs.SERVER: SERVER,
            hdrs.CONTENT_TYPE: served.answer.content_type,
            hdrs.CACHE_CONTROL: "no-store",
            X_CACHE: served.how.value,
            "X-Content-Type-Options": "nosniff",
        },
    )


def failure(told: Told) -> web.Response:
    """Tell of a failure."""
    return plain(told.status, told.message, How.ERROR, retry=told.retry)


def index_file(
    request: web.Request, rendered: Rendered, how: How, *, may_confirm: bool
) -> web.Response:
    """Send an index file, or 304 where the client has it and `may_confirm`."""
    has = may_confirm and _client_has(request, rendered)
    gzip = accepts_gzip(all_lines(request, hdrs.ACCEPT_ENCODING))
    headers, body = index_head(rendered, how, gzip=gzip, has=has)
    if has:
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    return web.Response(body=body, headers=headers)


def index_head(
    rendered: Rendered, how: How, *, gzip: bool, has: bool
) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of an index file; `has`: for a 304, which has no body."""
    gzipped = rendered.gzipped if gzip else None
    headers: dict[str, str] = {
        hdrs.SERVER: SERVER,
        hdrs.ETAG: rendered.etag if gzipped is None else rendered.gzip_etag,
        hdrs.LAST_MODIFIED: rendered.last_modified,
        hdrs.VARY: hdrs.ACCEPT_ENCODING,
        hdrs.CACHE_CONTROL: _NO_CACHE,
        X_CACHE: how.value,
    }
    if has:
        return headers, b""
    headers[hdrs.CONTENT_TYPE] = "text/plain"
    if gzipped is None:
        return headers, rendered.identity
    headers[hdrs.CONTENT_ENCODING] = "gzip"
    return headers, gzipped


def all_lines(request: web.Request, name: str) -> str | None:
    """Return a header that is a list, whichever lines it came on (RFC 9110 section 5.2)."""
    lines = request.headers.getall(name, None)
    return ", ".join(lines) if lines else None


def is_conditional(request: web.Request) -> bool:
    """Tell whether the client asks about something that it holds."""
    return hdrs.IF_NONE_MATCH in request.headers or hdrs.IF_MODIFIED_SINCE in request.headers


def _client_has(request: web.Request, rendered: Rendered) -> bool:
    # RFC 9110 13.1.3: If-Modified-Since is ignored where there is an If-None-Match.
    etags = all_lines(request, hdrs.IF_NONE_MATCH)
    if etags is not None:
        return if_none_match_holds(etags, rendered.etag, rendered.gzip_etag)
    since = request.headers.get(hdrs.IF_MODIFIED_SINCE)
    return since is not None and if_modified_since_holds(since, rendered.last_modified)


def config_file(body: bytes) -> web.Response:
    """Send our `config.json`: never cached, never 304 (cargo takes that for an error)."""
    return web.Response(
        body=body,
        headers={
            hdrs.SERVER: SERVER,
            hdrs.CONTENT_TYPE: "application/json",
            hdrs.CACHE_CONTROL: "no-store",
            X_CACHE: How.HIT.value,
        },
    )


def crate_headers(digest: str, how: How, *, content_addressed: bool) -> dict[str, str]:
    """Return the headers that every answer about a crate carries."""
    return {
        hdrs.SERVER: SERVER,
        hdrs.ETAG: f'"{digest}"',
        hdrs.CACHE_CONTROL: _IMMUTABLE if content_addressed else _NO_CACHE,
        hdrs.ACCEPT_RANGES: "bytes",
        hdrs.CONTENT_TYPE: "application/gzip",
        X_CACHE: how.value,
        "X-Content-Type-Options": "nosniff",
    }


async def crate_file(
    request: web.Request, served: CrateServed, *, content_addressed: bool
) -> tuple[web.StreamResponse, int]:
    """Send a crate; returns the response and the bytes of body that were handed to the client.

    Raises UpstreamFailure or StoreFailure only before the head is sent. After that a body that
    breaks off breaks the transfer: the client must never take it for complete.
    """
    etag = f'"{served.digest}"'
    headers = crate_headers(served.digest, served.how, content_addressed=content_addressed)
    if_none_match = all_lines(request, hdrs.IF_NONE_MATCH)
    if if_none_match is not None and if_none_match_holds(if_none_match, etag):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers), 0
    size = served.body.size_bytes
    start, stop, status = 0, size, HTTPStatus.OK
    wanted = _range(request, etag, size) if served.seekable and size is not None else None
    if isinstance(wanted, Unsatisfiable):
        headers[hdrs.CONTENT_RANGE] = f"bytes */{size}"
        status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        return web.Response(status=status, headers=headers), 0
    if isinstance(wanted, ByteRange):
        start, stop, status = wanted.start, wanted.stop, HTTPStatus.PARTIAL_CONTENT
        headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{stop - 1}/{size}"
    if request.method == hdrs.METH_HEAD:
        if stop is not None:
            headers[hdrs.CONTENT_LENGTH] = str(stop - start)
        return web.Response(status=status, headers=headers), 0
    at_once_bytes = _WHOLE_BODY_BYTES if served.seekable else HOLD_BACK_BYTES
    if stop is not None and stop - start <= at_once_bytes:
        body = await _read_whole(served, start, stop)
        return web.Response(status=status, body=body, headers=headers), len(body)
    return await _stream(request, served, status, headers, start, stop)


def _range(request: web.Request, etag: str, size: int) -> ByteRange | Unsatisfiable | None:
    header = request.headers.get(hdrs.RANGE)
    if header is None or request.method != hdrs.METH_GET:
        return None
    if_range = request.headers.get(hdrs.IF_RANGE)
    if if_range is not None and if_range.strip() != etag:
        return None
    return parse_range(header, size)


async def _read_whole(served: CrateServed, start: int, stop: int) -> bytes:
    """Read a short stretch; it is all there, or a failure that still becomes a status."""
    chunk = await served.body.read(start)
    if len(chunk) >= stop - start:
        return chunk[: stop - start] if len(chunk) > stop - start else chunk
    parts = [chunk]
    at = start + len(chunk)
    while at < stop:
        chunk = await served.body.read(at)
        if not chunk:
            raise StoreFailure("a crate ended before its length")
        parts.append(chunk)
        at += len(chunk)
    return b"".join(parts)[: stop - start]


async def _stream(
    request: web.Request,
    served: CrateServed,
    status: int,
    headers: dict[str, str],
    start: int,
    stop: int | None,
) -> tuple[web.StreamResponse, int]:
    first = await served.body.read(start)
    response = web.StreamResponse(status=status, headers=headers)
    if stop is not None:
        response.content_length = stop - start
    await response.prepare(request)
    at, chunk = start, first
    try:
        while chunk:
            if stop is not None and at + len(chunk) > stop:
                chunk = chunk[: stop - at]
            await response.write(chunk)
            at += len(chunk)
            if at == stop:
                break
            chunk = await served.body.read(at)
        if stop is not None and at != stop:
            break_off(request)
        else:
            await response.write_eof()
    except (UpstreamFailure, StoreFailure):
        break_off(request)
    except ConnectionError:
        pass  # the client left; the flight goes on without it
    return response, at - start


def break_off(request: web.Request) -> None:
    """End a transfer so that nobody can take it for complete."""
    if request.transport is not None:
        request.transport.abort()
