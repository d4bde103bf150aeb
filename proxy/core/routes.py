"""The URLs of the contract: a raw request path to what it asks for.

The path is split before it is decoded, and each segment is decoded once, so that `%2F` can never
become a slash. `+` in a version comes literally or as `%2B`. Empty segments (`//`, from a `dl` that
ends in a slash) are skipped. No URL of ours has a segment `.` or `..`, encoded or not, nor a slash
or anything beyond ASCII within a segment: in an upstream's web API those could lead out of it. What
a crate or a version may look like is `names`' word; nothing here knows which registries exist.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_to_bytes

from proxy.core.names import (
    is_crate_name,
    is_registry_name,
    is_sha256,
    is_version,
    name_of_index_path,
)
from proxy.core.registry_config import CHECKSUM_MARKER

_PATH_MAX_CHARS: Final = 2048
# RFC 9112 has nothing else in a request target, but HTTP/2 can carry anything in `:path`.
_VISIBLE: Final = re.compile(r"[!-~]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """`/{registry}/index/config.json`."""

    registry: str


@dataclass(frozen=True, slots=True)
class IndexFile:
    """`/{registry}/index/se/rd/serde`; `name` is None when the path is no name's canonical path."""

    registry: str
    name: str | None


@dataclass(frozen=True, slots=True)
class CrateFile:
    """`/{registry}/crates/...` or the API's download path; `sha256` is None where it has none.

    `crate` and `version` are None when they are not even well formed.
    """

    registry: str
    crate: str | None
    version: str | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class ApiCall:
    """`/{registry}/api/v1/...`; `rest` is what follows `/api/v1`, still percent-encoded."""

    registry: str
    rest: str


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that is not a registry: `/`, `/-/...` and the aliases."""

    path: str


@dataclass(frozen=True, slots=True)
class Nowhere:
    """No URL of ours: an index address without `/index/`, or anything else."""

    first_segment: str


Route = ConfigFile | IndexFile | CrateFile | ApiCall | Page | Nowhere

_ALIASES: Final = {"healthz", "readyz", "metrics"}
_UNREADABLE: Final = "\ufffd"


@lru_cache(maxsize=4096)
def route(raw_path: str) -> Route:
    """Read the path of a request target, without query, percent-encoded as it came.

    A resolve asks for the same few hundred paths over and over; reading one costs more than all
    that follows for a hot answer.
    """
    if len(raw_path) > _PATH_MAX_CHARS or _VISIBLE.fullmatch(raw_path) is None:
        return Nowhere("")
    raw = [segment for segment in raw_path.split("/") if segment]
    segments = [_decode(segment) for segment in raw]
    if not segments:
        return Page("/")
    first = segments[0]
    if first == "-" or (len(segments) == 1 and first in _ALIASES):
        return Page("/-/" + "/".join(segments[first == "-" :]))
    if not is_registry_name(first):
        return Nowhere(first)
    match segments[1:]:
        case ["index", "config.json"]:
            return ConfigFile(first)
        case ["index", *path] if path:
            return IndexFile(first, name_of_index_path("/".join(path)))
        case ["crates", crate, version, last]:
            return _crate_file(first, crate, version, last)
        case ["api", "v1", "crates", crate, version, "download"]:
            return _crate_file(first, crate, version, "download")
        case ["api", "v1", *rest] if _UNREADABLE not in rest:
            return ApiCall(first, "/" + "/".join(raw[3:]))
        case _:
            return Nowhere(first)


def _crate_file(registry: str, crate: str, version: str, last: str) -> CrateFile:
    if not is_crate_name(crate) or not is_version(version):
        return CrateFile(registry, None, None, None)
    if last in ("download", CHECKSUM_MARKER):
        return CrateFile(registry, crate, version, None)
    if is_sha256(last):
        return CrateFile(registry, crate, version, last)
    return CrateFile(registry, None, None, None)


def _decode(segment: str) -> str:
    text = unquote_to_bytes(segment).decode("latin-1")
    plain = text.isascii() and text.isprintable() and "/" not in text and text not in (".", "..")
    return text if plain else _UNREADABLE
