"""What a client takes: gzip or not (RFC 9110 section 12.5.3), HTML or not (section 12.5.1)."""

from functools import lru_cache


@lru_cache(maxsize=256)
def accepts_gzip(accept_encoding: str | None) -> bool:
    """Tell whether gzip may be sent; without the header, identity is the safe reading."""
    if not accept_encoding:
        return False
    wildcard: bool | None = None
    for item in accept_encoding.split(","):
        coding, _, parameters = item.partition(";")
        name = coding.strip().lower()
        if name in ("gzip", "x-gzip"):
            return _weight(parameters) > 0
        if name == "*":
            wildcard = _weight(parameters) > 0
    return wildcard is True


def _weight(parameters: str) -> float:
    name, _, value = parameters.partition("=")
    if name.strip().lower() != "q":
        return 1.0
    try:
        return float(value.strip())
    except ValueError:
        return 0.0


def asks_for_html(accept: str | None) -> bool:
    """Tell whether an Accept header names HTML, as browsers do; `*/*` is what tools say."""
    for item in (accept or "").split(","):
        media, _, parameters = item.partition(";")
        if media.strip().lower() == "text/html":
            return _weight(parameters.rpartition(";")[2]) > 0
    return False
