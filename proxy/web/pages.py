"""Everything that is not a registry: the start page, health, metrics.

Health never depends on an upstream: a proxy that is taken out of service in an outage cannot do the
one thing that it is there for. Readiness says whether requests can be answered at all.
"""

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import hdrs, web

from proxy.core.negotiation import asks_for_html
from proxy.web import replies
from proxy.web.start_page import POLICY, StartPage


@dataclass(slots=True)
class Readiness:
    """Whether requests should be sent here; `reason` says why not."""

    ready: bool = False
    reason: str = "starting"


class Pages:
    """The pages. `metrics` renders them in the Prometheus text format."""

    def __init__(
        self,
        readiness: Readiness,
        metrics: Callable[[], tuple[bytes, str]],
        start: StartPage,
    ) -> None:
        self._readiness = readiness
        self._metrics = metrics
        self._start = start

    async def answer(self, path: str, base_url: str, accept: str | None) -> web.Response:
        """Answer for one of the pages; `path` is `/` or begins with `/-/`."""
        match path:
            case "/":
                return self._start_page(base_url, is_html=asks_for_html(accept))
            case "/-/healthz":
                return replies.plain(200, "ok")
            case "/-/readyz":
                if self._readiness.ready:
                    return replies.plain(200, "ready")
                return replies.plain(503, self._readiness.reason)
            case "/-/metrics":
                body, content_type = self._metrics()
                return web.Response(
                    body=body,
                    headers={hdrs.CONTENT_TYPE: content_type, hdrs.SERVER: replies.SERVER},
                )
            case _:
                return replies.plain(404, "no such page")

    def _start_page(self, base_url: str, *, is_html: bool) -> web.Response:
        status = "" if self._readiness.ready else self._readiness.reason
        write = self._start.html if is_html else self._start.text
        return web.Response(
            text=write(base_url, status),
            content_type="text/html" if is_html else "text/plain",
            headers={
                hdrs.SERVER: replies.SERVER,
                hdrs.CACHE_CONTROL: "no-store",
                hdrs.VARY: hdrs.ACCEPT,
                "Content-Security-Policy": POLICY,
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
            },
        )
