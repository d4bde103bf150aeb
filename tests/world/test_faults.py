"""The faults themselves: each looked at on the wire, as a client sees it.

A fault that does not happen makes every test that relies on it worthless.
"""

import gzip
import http.client
import socket
import zlib

import pytest

from tests.world import faults
from tests.world.client import ask, raw
from tests.world.crates import Package
from tests.world.registry import Registry
from tests.world.server import RegistryServer

SERDE = Package("serde", "1.0.1", features={"std": (), "default": ("std",)})
SERDE_INDEX = "/index/se/rd/serde"


def test_faults_happen_as_often_as_asked_and_heal(
    registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE, Package("serde_json"))

    def statuses(path: str, count: int) -> list[int]:
        return [ask(upstream, path)[0].status for _ in range(count)]

    rule = upstream.fail(SERDE_INDEX, faults.status(503, retry_after="7"), times=2)
    assert statuses(SERDE_INDEX, 3) == [503, 503, 200]
    assert rule.played == 2
    upstream.fail("/index/*", faults.status(500), times_per_path=1)
    assert statuses("/index/se/rd/serde_json", 2) == [500, 200]
    assert statuses(SERDE_INDEX, 2) == [500, 200]
    upstream.fail("/index/*", faults.status(451))
    assert statuses(SERDE_INDEX, 1) == [451]
    upstream.heal()
    assert statuses(SERDE_INDEX, 1) == [200]


@pytest.mark.parametrize(
    "fault",
    [
        faults.reset("before the head"),
        faults.reset("in the head"),
        faults.reset("in the body"),
    ],
    ids=str,
)
def test_a_reset_is_a_reset(
    registry: Registry, upstream: RegistryServer, fault: faults.Fault
) -> None:
    registry.publish(SERDE)
    upstream.fail("*", fault)
    with pytest.raises(ConnectionResetError):
        raw(upstream, SERDE_INDEX)


@pytest.mark.parametrize(
    ("fault", "part_of_the_body"),
    [(faults.cut(), 0.5), (faults.cut(0.0), 0.0), (faults.cut_chunked(), 0.5)],
    ids=str,
)
def test_a_cut_body_ends_early(
    registry: Registry, upstream: RegistryServer, fault: faults.Fault, part_of_the_body: float
) -> None:
    registry.publish(SERDE)
    upstream.fail("*", fault)
    body = registry.index("serde")
    half = body[: int(len(body) * part_of_the_body)]
    received = raw(upstream, SERDE_INDEX)
    assert half in received
    assert body[: len(half) + 1] not in received
    with pytest.raises(http.client.IncompleteRead):
        ask(upstream, SERDE_INDEX)


def test_a_hanging_server_says_nothing_until_the_client_leaves(
    registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    upstream.fail("*", faults.hang(), times=1)
    with socket.create_connection(("127.0.0.1", upstream.port), 10) as client:
        client.sendall(f"GET {SERDE_INDEX} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        upstream.wait_for(SERDE_INDEX, 1)
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
    assert ask(upstream, SERDE_INDEX)[0].status == 200


def test_a_gzip_bomb_is_small_on_the_wire_and_valid(
    registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    upstream.fail("*", faults.gzip_bomb(64 << 20))
    response, body = ask(upstream, SERDE_INDEX)
    assert response.headers["Content-Encoding"] == "gzip"
    assert len(body) < 100_000
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
    assert len(inflater.decompress(body)) == 64 << 20
    assert inflater.eof


@pytest.mark.parametrize(
    ("fault", "longer_by"),
    [
        (faults.wrong_bytes("same length"), 0),
        (faults.wrong_bytes("shorter"), -10),
        (faults.wrong_bytes("longer"), 23),
        (faults.wrong_tail(), 0),
    ],
    ids=str,
)
def test_wrong_bytes_are_well_framed(
    registry: Registry, upstream: RegistryServer, fault: faults.Fault, longer_by: int
) -> None:
    registry.publish(SERDE)
    upstream.fail("/crates/*", fault)
    right = registry.crate("serde", "1.0.1")
    _, body = ask(upstream, registry.download_path("serde", "1.0.1"))
    assert body != right
    assert len(body) == len(right) + longer_by


@pytest.mark.parametrize(
    ("fault", "status_and_type", "begins"),
    [
        (faults.login_page(), (200, "text/html; charset=utf-8"), b"<!DOCTYPE html>"),
        (faults.login_page("text/plain"), (200, "text/plain"), b"<!DOCTYPE html>"),
        (faults.empty(), (200, "text/plain"), b""),
        (faults.garbage(), (200, "text/plain"), bytes(range(256))),
        (faults.unasked_304(), (304, None), b""),
        (faults.partial_content(), (206, "text/plain"), b'{"name":"serde"'),
        (faults.status(204), (204, "text/plain"), b""),
        (faults.oversized_head(40_000), (200, "text/plain"), b'{"name":"serde"'),
        (faults.unframed(), (200, "text/plain"), b'{"name":"serde"'),
        (faults.drip(0.0), (200, "text/plain"), b'{"name":"serde"'),
    ],
    ids=str,
)
def test_a_wrong_answer_is_complete(
    registry: Registry,
    upstream: RegistryServer,
    fault: faults.Fault,
    status_and_type: tuple[int, str | None],
    begins: bytes,
) -> None:
    registry.publish(SERDE)
    upstream.fail("*", fault)
    response, body = ask(upstream, SERDE_INDEX)
    assert (response.status, response.headers["Content-Type"]) == status_and_type
    assert body.startswith(begins)
    assert bool(body) == bool(begins)


def test_an_oversized_head_is_oversized(registry: Registry, upstream: RegistryServer) -> None:
    registry.publish(SERDE)
    upstream.fail("*", faults.oversized_head(200_000), times=1)
    response, _ = ask(upstream, SERDE_INDEX)
    assert sum(map(len, response.headers.values())) > 200_000


def test_a_truncated_gzip_stream_is_well_framed_and_ends_early(
    registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    upstream.fail("*", faults.gzip_truncated(), times=1)
    response, body = ask(upstream, SERDE_INDEX)
    assert response.headers["Content-Encoding"] == "gzip"
    with pytest.raises(EOFError):
        gzip.decompress(body)


def test_redirects_lead_where_they_say(registry: Registry, upstream: RegistryServer) -> None:
    upstream.fail("/index/a", faults.redirect_loop())
    upstream.fail("/index/b", faults.redirect(faults.LINK_LOCAL_URL, 307))
    upstream.fail("/index/c", faults.redirect_to_origin("http://127.0.0.1:1", 308))
    answers = [ask(upstream, f"/index/{each}")[0] for each in "abc"]
    assert [(each.status, each.headers["Location"]) for each in answers] == [
        (302, f"{upstream.url}/index/a"),
        (307, faults.LINK_LOCAL_URL),
        (308, "http://127.0.0.1:1/index/c"),
    ]
