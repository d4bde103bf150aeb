"""Crate names, versions and checksums, and where the sparse index keeps a name.

The rules of the Cargo Book, "Index files": names are ASCII letters, digits, `-` and `_`, at most
64 of them; the path is made of the lower-cased name, `1/a`, `2/ab`, `3/a/abc`, `ab/cd/abcdef`. Only
the canonical path of a name is a path: everything else is nobody's, and no upstream is asked for
it. Paths on disk are never made from these; they come from digests.

What is not here: who owns a name, and whether a version exists.
"""

import re
from typing import Final

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", re.ASCII)
_REGISTRY: Final = re.compile(r"[a-z0-9][a-z0-9-]*", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
# Semantic Versioning 2.0.0, items 2, 9 and 10. Cargo rejects anything else in an index line.
_VERSION: Final = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(?:-(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*))*)?"
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?",
    re.ASCII,
)
_VERSION_MAX_CHARS: Final = 255


def is_crate_name(text: str) -> bool:
    """Tell whether `text` can name a crate, in any case."""
    return _NAME.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """Tell whether `text` is a semantic version as an index line may carry one."""
    return len(text) <= _VERSION_MAX_CHARS and _VERSION.fullmatch(text) is not None


def is_sha256(text: str) -> bool:
    """Tell whether `text` is a SHA-256 in lower-case hexadecimal, as `cksum` is written."""
    return _SHA256.fullmatch(text) is not None


def is_registry_name(text: str) -> bool:
    """Tell whether `text` may name one of our registries or upstreams."""
    return _REGISTRY.fullmatch(text) is not None


def index_prefix(name: str) -> str:
    """Return the folders above `name` in an index, without lowering its case.

    This is also what `{prefix}` in a `dl` template means: `1`, `2`, `3/a`, `ab/cd`.
    """
    if len(name) <= 2:  # noqa: PLR2004 - the Cargo Book's own numbers
        return str(len(name))
    if len(name) == 3:  # noqa: PLR2004
        return f"3/{name[0]}"
    return f"{name[:2]}/{name[2:4]}"


def index_path(name: str) -> str:
    """Return the path of `name`'s file in an index: `se/rd/serde`."""
    lowered = name.lower()
    return f"{index_prefix(lowered)}/{lowered}"


def name_of_index_path(path: str) -> str | None:
    """Return the lower-case name whose canonical path `path` is; None if it is no name's."""
    name = path.rpartition("/")[2]
    if is_crate_name(name) and index_path(name) == path:
        return name
    return None
