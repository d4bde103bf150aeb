"""The start page: what this is, how it does, what it saved, and what to paste to use it.

In HTML for who asks for HTML, which is browsers, and as text for everybody else: that is a whole
`config.toml`, all but the lines to paste a comment. The page stands alone: no script, no picture,
no font, nothing from anywhere, and a policy that says so, its one style sheet named by its digest.
Every word on it that is not written here is escaped, and the address at which it was opened was
checked before (`proxy.core.forwarded`).
"""

import hashlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from textwrap import wrap
from typing import Final

from proxy import version
from proxy.core.savings import Served
from proxy.service.overview import CacheState, Overview, UpstreamState

_WHAT: Final = (
    "A caching proxy for Cargo registries. It keeps the index files and crates that were asked for,"
    " checks each crate against the index, and goes on serving them when the registry is down."
)
_PASTE: Final = (
    "Put these lines into $CARGO_HOME/config.toml, which is usually ~/.cargo/config.toml. What is"
    " given for several registries goes into one file."
)
_UNDO: Final = (
    "To undo it, take the lines out again. Cargo.toml and Cargo.lock name the registries"
    " themselves, with the proxy and without it, and need no change. Crates that cargo fetched"
    " through the proxy are below $CARGO_HOME/registry, in directories named after its host, and"
    " may be deleted."
)
_STYLE: Final = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "h2{font-size:1.15rem;margin:2rem 0 .5rem}h3{font-size:1rem;margin:1rem 0 .25rem}"
    "pre{padding:.75rem 1rem;overflow:auto;border:1px solid #8886;border-radius:4px;"
    "background:#8881;font-size:14px}"
    "table{border-collapse:collapse}th,td{text-align:left;padding:.2rem 1.5rem .2rem 0;"
    "vertical-align:top}th{font-weight:600}.bad{color:light-dark(#b00020,#ff8a80);font-weight:600}"
)
_DIGEST: Final = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
_UNITS: Final = ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute"), (1.0, "second"))
_KIBI: Final = 1024.0

Lines = Callable[[str], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class StartPage:
    """The page of one proxy.

    `registries` are all names that are served. `lines` gives, for the address at which the page was
    opened, what to paste for each registry that has such lines.
    """

    registries: tuple[str, ...]
    lines: Lines
    overview: Callable[[], Overview]

    def html(self, base_url: str, status: str) -> str:
        """Write it for a browser; `status` is empty if all is well."""
        overview = self.overview()
        return "".join(
            (
                "<!doctype html><html lang=en><head><meta charset=utf-8>",
                "<meta name=viewport content='width=device-width'>",
                f"<title>Holdfast</title><style>{_STYLE}</style></head><body>",
                f"<h1>Holdfast</h1><p>{escape(_WHAT)}</p>",
                f"<h2>Use it</h2><p>{escape(_PASTE)}</p>",
                *self._html_lines(base_url),
                f"<h2>Undo it</h2><p>{escape(_UNDO)}</p>",
                "<h2>How it does</h2>",
                _table(_health(overview, status)),
                "<h2>What it saved</h2>",
                _table((name, told, False) for name, told in _saved(overview)),
                f"<p>Holdfast {escape(version.VERSION)}</p></body></html>\n",
            )
        )

    def text(self, base_url: str, status: str) -> str:
        """Write it for a terminal; the lines to paste are those that do not begin with `#`."""
        overview = self.overview()
        parts = [
            f"# Holdfast {version.VERSION}",
            _commented(_WHAT),
            _commented(_PASTE),
            *self._text_lines(base_url),
            _commented(_UNDO),
            "\n".join(
                [
                    "# How it does",
                    *(f"#   {name}: {told}" for name, told, _ in _health(overview, status)),
                ]
            ),
            "\n".join(
                ["# What it saved", *(f"#   {name}: {told}" for name, told in _saved(overview))]
            ),
        ]
        return "\n\n".join(parts) + "\n"

    def _addresses(self, base_url: str) -> Iterator[tuple[str, str, str | None]]:
        """Give each registry's name, index address, and lines to paste if it has any."""
        lines = self.lines(base_url)
        for name in self.registries:
            yield name, f"sparse+{base_url}/{name}/index/", lines.get(name)

    def _html_lines(self, base_url: str) -> Iterator[str]:
        for name, address, lines in self._addresses(base_url):
            shown = lines if lines is not None else address
            yield f"<h3>{escape(name)}</h3><pre>{escape(shown)}</pre>"

    def _text_lines(self, base_url: str) -> Iterator[str]:
        for name, address, lines in self._addresses(base_url):
            yield lines if lines is not None else f"# {name} is at {address}"


def _health(overview: Overview, status: str) -> Iterator[tuple[str, str, bool]]:
    """Give what is looked at, how it is, and whether that is bad."""
    yield "proxy", status or "ready", bool(status)
    if overview.cache is not None:
        yield "cache", *_cache(overview.cache)
    for upstream in overview.upstreams:
        yield upstream.name, *_upstream(upstream)


def _cache(cache: CacheState) -> tuple[str, bool]:
    held = (
        f"{cache.blobs} crates, {_size(cache.blob_bytes)} of {_size(cache.limit_bytes)};"
        f" {cache.index_files} index files"
    )
    if cache.refused_ago_s is None:
        return held, False
    return f"{held}; the disk refused something {_time(cache.refused_ago_s)} ago", True


def _upstream(upstream: UpstreamState) -> tuple[str, bool]:
    ago = upstream.answered_ago_s
    answered = (
        "it has not answered since the start" if ago is None else f"last answer {_time(ago)} ago"
    )
    if upstream.offline:
        return "offline, as configured; what is held is served", False
    if upstream.failing_for_s is not None:
        failing = f"failing for {_time(upstream.failing_for_s)}"
        return f"{failing}; {answered}; what is held is served", True
    return ("not asked since the start" if ago is None else answered), False


def _saved(overview: Overview) -> Iterator[tuple[str, str]]:
    since = datetime.fromtimestamp(overview.saved_since, UTC).date().isoformat()
    for saved in overview.saved:
        yield saved.name, f"today {_amount(saved.today)}; since {since} {_amount(saved.ever)}"


def _amount(served: Served) -> str:
    return f"{served.saved_requests} of {served.requests} requests, {_size(served.saved_bytes)}"


def _table(rows: Iterable[tuple[str, str, bool]]) -> str:
    cells = (
        f"<tr><th>{escape(name)}</th><td{' class=bad' if is_bad else ''}>{escape(told)}</td></tr>"
        for name, told, is_bad in rows
    )
    return f"<table>{''.join(cells)}</table>"


def _commented(text: str) -> str:
    return "\n".join(f"# {line}" for line in wrap(text, 78))


def _time(seconds: float) -> str:
    for length, unit in _UNITS:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return "a moment"


def _size(count: float) -> str:
    if count < _KIBI:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= _KIBI
        if count < _KIBI:
            return f"{count:.1f} {unit}"
    return f"{count / _KIBI:.1f} TiB"
