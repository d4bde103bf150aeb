"""A Cargo registry as a value that tests can change: what it holds, and what it says when asked.

`Registry` is the healthy half of the scripted upstream. Tests publish, yank, delete and republish;
`answer` says what a registry with those contents replies, with the headers that crates.io's CDN
sends: a quoted MD5 as ETag, Last-Modified, `public,max-age=600`, `text/plain`, no compression.
Last-Modified comes from a clock of the registry's own that moves one second with every change, so
that the same story always has the same bytes.

Addresses are made from the Host header of each request: one registry can stand behind several
servers. What is not here: sockets, and anything going wrong (`server`, `faults`).
"""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from tests.world.crates import Package, crate_file, index_line, listed_cksum, sha256
from tests.world.wire import Headers, Reply, Request

INDEX: Final = "/index/"
PLAIN_DL: Final = "{base}/crates/{crate}/{crate}-{version}.crate"
_MARKERS: Final = ("{crate}", "{version}", "{prefix}", "{lowerprefix}", "{sha256-checksum}")
_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
_INDEX_HEADERS: Final[Headers] = (
    ("Content-Type", "text/plain"),
    ("Cache-Control", "public,max-age=600"),
    ("Accept-Ranges", "bytes"),
    ("Via", "1.1 varnish"),
    ("X-Cache", "HIT"),
)
_CRATE_HEADERS: Final[Headers] = (
    ("Content-Type", "application/gzip"),
    ("Cache-Control", "public,max-age=31536000,immutable"),
    ("Accept-Ranges", "bytes"),
)


@dataclass(frozen=True, slots=True)
class Release:
    """One published version: its declaration, its checksum, and its bytes unless only listed."""

    package: Package
    cksum: str
    data: bytes | None

    @property
    def line(self) -> bytes:
        """This version's line in the index."""
        return index_line(self.package, self.cksum)


@dataclass(frozen=True, slots=True)
class IndexFile:
    """One state that an index file was in."""

    body: bytes
    last_modified: datetime

    @property
    def etag(self) -> str:
        """S3's kind of validator."""
        return f'"{hashlib.md5(self.body, usedforsecurity=False).hexdigest()}"'

    def reply(self) -> Reply:
        """Answer an unconditional request with this state."""
        validators: Headers = (
            ("ETag", self.etag),
            ("Last-Modified", format_datetime(self.last_modified, usegmt=True)),
        )
        return Reply(200, self.body, (*_INDEX_HEADERS, *validators))


def index_path(name: str) -> str:
    """Return where the index keeps `name`, below its root."""
    lowered = name.lower()
    return f"{_prefix(lowered)}/{lowered}"


def _prefix(name: str) -> str:
    return {1: "1", 2: "2", 3: f"3/{name[0]}"}.get(len(name), f"{name[:2]}/{name[2:4]}")


class Registry:
    """The contents of one registry. Safe to change while a server answers from it.

    `dl` and `api` are written into config.json, `{base}` standing for the address the client used;
    `api=None` leaves the key out. With a `token`, everything wants exactly that Authorization.
    """

    def __init__(
        self, *, dl: str = PLAIN_DL, api: str | None = "{base}", token: str | None = None
    ) -> None:
        self.dl = dl
        self.api = api
        self.token = token
        self._lock = threading.RLock()
        self._releases: dict[str, dict[str, Release]] = {}
        self._history: dict[str, list[IndexFile]] = {}
        self._overrides: dict[str, bytes] = {}
        self._downloads: dict[str, bytes] = {}
        self._changes = 0

    def copy(self) -> "Registry":
        """Return another one with the same contents, as a mirror has that falls behind."""
        other = Registry(dl=self.dl, api=self.api, token=self.token)
        with self._lock:
            other._releases = {name: dict(each) for name, each in self._releases.items()}
            other._history = {name: list(each) for name, each in self._history.items()}
            other._overrides = dict(self._overrides)
            other._changes = self._changes
        return other

    def publish(self, *packages: Package) -> None:
        """Publish packages; a version that is there already is replaced where it stands."""
        for package in packages:
            data = crate_file(package)
            self._releases_of(package.name)[package.vers] = Release(package, sha256(data), data)
        self._changed({package.name for package in packages})

    def publish_listed(self, *packages: Package) -> None:
        """Publish index lines alone: versions that nobody will download."""
        for package in packages:
            release = Release(package, listed_cksum(package), None)
            self._releases_of(package.name)[package.vers] = release
        self._changed({package.name for package in packages})

    def yank(self, name: str, vers: str) -> None:
        """Yank a version."""
        self._amend(name, vers, lambda package: replace(package, yanked=True))

    def unyank(self, name: str, vers: str) -> None:
        """Take a yank back."""
        self._amend(name, vers, lambda package: replace(package, yanked=False))

    def _amend(self, name: str, vers: str, change: Callable[[Package], Package]) -> None:
        with self._lock:
            release = self.release(name, vers)
            amended = replace(release, package=change(release.package))
            self._releases_of(name)[vers] = amended
            self._changed({name})

    def delete(self, name: str) -> None:
        """Remove a crate with all its versions, index file and downloads."""
        with self._lock:
            del self._releases[name.lower()]
            self._history.pop(name.lower())
            self._changed(set())

    def override_index(self, name: str, body: bytes | None) -> None:
        """Let `name`'s index file be `body`, whatever is published; None takes that back."""
        with self._lock:
            if body is None:
                self._overrides.pop(name.lower())
            else:
                self._overrides[name.lower()] = body
            self._changed({name})

    def release(self, name: str, vers: str) -> Release:
        """Return what is published as this version."""
        with self._lock:
            return self._releases[name.lower()][vers]

    def crate(self, name: str, vers: str) -> bytes:
        """Return the `.crate` of a version."""
        data = self.release(name, vers).data
        assert data is not None, f"{name} {vers} is only listed"
        return data

    def index(self, name: str) -> bytes:
        """Return the body of `name`'s index file as it is now."""
        return self.history(name)[-1].body

    def history(self, name: str) -> tuple[IndexFile, ...]:
        """Return every state that `name`'s index file was in, oldest first."""
        with self._lock:
            return tuple(self._history[name.lower()])

    def names(self) -> tuple[str, ...]:
        """Return every name (in lower case) that has an index file."""
        with self._lock:
            return tuple(self._history)

    def download_path(self, name: str, vers: str) -> str:
        """Return the path (with the query, if `dl` has one) that a version is downloaded from."""
        release = self.release(name, vers)
        return _expand(_without_origin(self.dl), release)

    def _releases_of(self, name: str) -> dict[str, Release]:
        with self._lock:
            return self._releases.setdefault(name.lower(), {})

    def _changed(self, names: set[str]) -> None:
        with self._lock:
            self._changes += 1
            now = _EPOCH + timedelta(seconds=self._changes)
            for name in sorted(each.lower() for each in names):
                body = self._overrides.get(name)
                if body is None:
                    body = b"".join(release.line for release in self._releases_of(name).values())
                self._history.setdefault(name, []).append(IndexFile(body, now))
            self._downloads = {}

    def answer(self, request: Request) -> Reply:
        """Say what a healthy registry with these contents says to `request`."""
        if self.token is not None and request.headers.get("authorization") != self.token:
            challenge = f'Cargo login_url="{request.base_url}/me"'
            return Reply(401, b"who are you?\n", (("WWW-Authenticate", challenge),))
        with self._lock:
            if request.path == f"{INDEX}config.json":
                return Reply(200, self._config(request.base_url), _INDEX_HEADERS)
            if request.path.startswith(INDEX):
                return self._answer_index(request)
            if request.path.startswith("/api/"):
                return self._answer_api(request)
            return self._answer_download(request)

    def _config(self, base_url: str) -> bytes:
        config: dict[str, object] = {"dl": self.dl.replace("{base}", base_url)}
        if self.api is not None:
            config["api"] = self.api.replace("{base}", base_url)
        if self.token is not None:
            config["auth-required"] = True
        return json.dumps(config).encode()

    def _answer_index(self, request: Request) -> Reply:
        name = request.path.rpartition("/")[2]
        if name not in self._history or request.path != INDEX + index_path(name):
            return _not_found()
        current = self._history[name][-1]
        reply = current.reply()
        return Reply(304, b"", reply.headers) if _is_current(request.headers, current) else reply

    def _answer_download(self, request: Request) -> Reply:
        if not self._downloads:
            template = _without_origin(self.dl)
            self._downloads = {
                unquote(_expand(template, release)): release.data
                for releases in self._releases.values()
                for release in releases.values()
                if release.data is not None
            }
        data = self._downloads.get(unquote(request.target))
        if data is None:
            return _not_found()
        etag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        return Reply(200, data, (*_CRATE_HEADERS, ("ETag", etag)))

    def _answer_api(self, request: Request) -> Reply:
        if request.method != "GET":
            return _json({"ok": True})
        if request.path != "/api/v1/crates":
            return _json({"errors": [{"detail": "Not Found"}]}, status=404)
        wanted = parse_qs(request.query).get("q", [""])[0]
        found = [
            {"name": last.package.name, "max_version": last.package.vers, "description": "made"}
            for name, releases in sorted(self._releases.items())
            if wanted in name
            for last in [list(releases.values())[-1]]
        ]
        return _json({"crates": found, "meta": {"total": len(found)}})


def _is_current(headers: Mapping[str, str], current: IndexFile) -> bool:
    # RFC 9110, 13.2.2: If-Modified-Since counts only without If-None-Match.
    if (tags := headers.get("if-none-match")) is not None:
        return current.etag in [tag.strip().removeprefix("W/") for tag in tags.split(",")]
    since = headers.get("if-modified-since")
    return since == format_datetime(current.last_modified, usegmt=True)


def _without_origin(dl: str) -> str:
    relative = dl.removeprefix("{base}")
    if relative != dl:
        return relative
    parts = urlsplit(dl)
    return parts.path + (f"?{parts.query}" if parts.query else "")


def _expand(template: str, release: Release) -> str:
    name, vers = release.package.name, release.package.vers
    if not any(marker in template for marker in _MARKERS):
        return f"{template}/{name}/{vers}/download"
    meanings = (name, vers, _prefix(name), _prefix(name.lower()), release.cksum)
    for marker, meaning in zip(_MARKERS, meanings, strict=True):
        template = template.replace(marker, meaning)
    return template


def _not_found() -> Reply:
    return Reply(404, b"Not Found\n", (("Content-Type", "text/plain"),))


def _json(document: object, status: int = 200) -> Reply:
    body = json.dumps(document).encode()
    return Reply(status, body, (("Content-Type", "application/json"),))
