"""The `config.json` at the root of a registry's index: the upstream's, read; ours, written.

Cargo Book, "Index configuration" and cargo's `download.rs`: `dl` is a template. If it has none of
the five markers, `/{crate}/{version}/download` is appended; otherwise the markers are replaced as
plain text, with no percent-encoding (a version `1.0.0+b.1` is asked for with its plus sign).

Ours carries `{sha256-checksum}` in `dl`, so that each crate's address says which bytes it must
have, and is never cached: it holds the address by which this client reached us.
"""

import json
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from proxy.core.names import index_prefix

_MARKERS: Final = ("{crate}", "{version}", "{prefix}", "{lowerprefix}", "{sha256-checksum}")
CHECKSUM_MARKER: Final = "{sha256-checksum}"


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """What an upstream says of itself; URLs as written, save for a slash at the end of `api`.

    `api` is None where there is none that could be asked: crates can be fetched all the same.
    """

    dl: str
    api: str | None
    auth_required: bool


class NotARegistryConfig(ValueError):
    """A body is not a `config.json` that cargo would accept; the message says why."""


def parse(body: bytes) -> RegistryConfig:
    """Read an upstream's `config.json`, ignoring keys we do not know. Raises NotARegistryConfig."""
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError):
        raise NotARegistryConfig("config.json is not JSON") from None
    if not isinstance(document, dict):
        raise NotARegistryConfig("config.json is not a JSON object")
    dl, api = document.get("dl"), document.get("api")
    auth_required = document.get("auth-required", False)
    if not isinstance(dl, str) or not _is_absolute_http(dl):
        raise NotARegistryConfig("config.json has no absolute http(s) address in 'dl'")
    if api is not None and not isinstance(api, str):
        raise NotARegistryConfig("config.json has something in 'api' that is no string")
    if not isinstance(auth_required, bool):
        raise NotARegistryConfig("config.json has neither true nor false in 'auth-required'")
    return RegistryConfig(
        dl=dl,
        api=api.rstrip("/") if api is not None and _is_absolute_http(api) else None,
        auth_required=auth_required,
    )


def _is_absolute_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # Reading the port is what finds one that is no number.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def download_url(dl: str, crate: str, version: str, cksum: str) -> str:
    """Expand a `dl` template as cargo does."""
    if not any(marker in dl for marker in _MARKERS):
        return f"{dl}/{crate}/{version}/download"
    return (
        dl.replace("{crate}", crate)
        .replace("{version}", version)
        .replace("{prefix}", index_prefix(crate))
        .replace("{lowerprefix}", index_prefix(crate.lower()))
        .replace(CHECKSUM_MARKER, cksum)
    )


def ours(base_url: str, registry: str, *, auth_required: bool) -> bytes:
    """Write the `config.json` of our registry, for a client that reached us at `base_url`.

    `base_url` is absolute, with the path prefix if there is one and no trailing slash.
    """
    document: dict[str, object] = {
        "dl": f"{base_url}/{registry}/crates/{{crate}}/{{version}}/{CHECKSUM_MARKER}",
        "api": f"{base_url}/{registry}",
    }
    if auth_required:
        document["auth-required"] = True
    return json.dumps(document, separators=(",", ":")).encode()
