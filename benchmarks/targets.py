"""What Holdfast has to reach, beside whom, and in which row."""

from typing import Final

from benchmarks.figures import Target
from benchmarks.measures import label

_CLEAR: Final = label("holdfast", "h2c")
_TLS: Final = label("holdfast", "tls")
_HTTP1: Final = label("holdfast", "http1")
_NGINX_HTTP1: Final = label("nginx", "http1")
_NGINX_H2C: Final = label("nginx", "h2c")
_NGINX_TLS: Final = label("nginx", "tls")


def _times_faster(rtt_ms: int, times: float) -> Target:
    what = f"`cargo update`, warm, {rtt_ms} ms: times faster than nginx over cleartext HTTP/1.1"
    row = f"update-{rtt_ms}ms"
    return Target(what, row, _CLEAR, _NGINX_HTTP1, times, inverted=True)


def _no_slower(what: str, row: str, contender: str, baseline: str) -> Target:
    return Target(what, row, contender, baseline, 1.15, direction="at most")


def _share(what: str, row: str, of: str, to: str, limit: float, aim: float) -> Target:
    return Target(f"{what}: share of nginx's rate", row, of, to, limit, aim)


def _one_request(key: str, contender: str) -> Target:
    what = f"cold stampede, {key}, {contender}: requests to the registry"
    return Target(what, f"stampede-{key}-upstream", contender, None, 1, direction="at most")


TARGETS: Final = (
    _times_faster(5, 5),
    _no_slower("the same: time beside nginx over TLS", "update-5ms", _CLEAR, _NGINX_TLS),
    _times_faster(20, 10),
    _no_slower("the same: time beside nginx over TLS", "update-20ms", _CLEAR, _NGINX_TLS),
    _no_slower(
        "cold `cargo fetch`, registry at 20 ms: time beside the registry directly, h2c",
        "fetch-cold-20ms",
        _CLEAR,
        label("direct", "h2c"),
    ),
    _no_slower(
        "cold `cargo fetch`, registry at 20 ms: time beside the registry directly, TLS",
        "fetch-cold-20ms",
        _TLS,
        label("direct", "tls"),
    ),
    _share("hot index 4 KB, 200, HTTP/2", "index-4k-h2c", _CLEAR, _NGINX_H2C, 0.3, 0.5),
    _share("hot index, 304, HTTP/2", "index-304-h2c", _CLEAR, _NGINX_H2C, 0.2, 0.4),
    _share("hot index 4 KB, 200, HTTP/1.1", "index-4k-http1", _HTTP1, _NGINX_HTTP1, 0.35, 0.5),
    _share("hot index, 304, HTTP/1.1", "index-304-http1", _HTTP1, _NGINX_HTTP1, 0.35, 0.5),
    _share("hot crate 200 KB, HTTP/1.1", "crate-200k-http1", _HTTP1, _NGINX_HTTP1, 0.4, 0.8),
    _share("hot crate 200 KB, HTTP/2", "crate-200k-h2c", _CLEAR, _NGINX_H2C, 0.4, 0.8),
    *(
        _one_request(key, contender)
        for key in ("index-4k", "crate-200k", "crate-5m")
        for contender in (_HTTP1, _CLEAR)
    ),
)
