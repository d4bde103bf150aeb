"""Everything that is not a registry: the start page, health, metrics.

Health never depends on an upstream: a proxy that is taken out of service in an outage cannot do the
one thing that it is there for. Readiness says whether requests can be answered at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from aiohttp import hdrs, web

from proxy import version
from proxy.web import replies


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
        registries: Sequence[str],
    ) -> None:
        self._readiness = readiness
        self._metrics = metrics
        self._registries = tuple(registries)

    async def answer(self, path: str, base_url: str) -> web.Response:
        """Answer for one of the pages; `path` is `/` or begins with `/-/`."""
        match path:
            case "/":
                return self._start(base_url)
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

    def _start(self, base_url: str) -> web.Response:
        registries = "".join(
            f"<li><code>sparse+{escape(base_url)}/{escape(name)}/index/</code></li>"
            for name in self._registries
        )
        paste = (
            '[source.crates-io]\nreplace-with = "holdfast"\n\n[registries.holdfast]\n'
            f'index = "sparse+{base_url}/crates-io/index/"\n'
        )
        status = "ready" if self._readiness.ready else self._readiness.reason
        page = (
            "<!doctype html><html lang=en><meta charset=utf-8><title>Holdfast</title>"
            "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:3rem auto;"
            "padding:0 1rem}pre{background:#f4f4f4;padding:1rem;overflow:auto}</style>"
            f"<h1>Holdfast {escape(version.VERSION)}</h1>"
            "<p>A caching proxy for Cargo registries. Put this into "
            "<code>$CARGO_HOME/config.toml</code>:</p>"
            f"<pre>{escape(paste)}</pre><p>Registries here:</p><ul>{registries}</ul>"
            f"<p>Status: {escape(status)}.</p>"
        )
        return web.Response(
            text=page,
            content_type="text/html",
            headers={
                hdrs.SERVER: replies.SERVER,
                hdrs.CACHE_CONTROL: "no-store",
                "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
                "X-Content-Type-Options": "nosniff",
            },
        )
