"""The test registry and its server: what they say, remember, withhold and refuse."""

import contextlib
import socket
from threading import Thread

import pytest

from tests.world import faults
from tests.world.client import PATIENCE_SECONDS, ask
from tests.world.crates import Package, sha256
from tests.world.registry import Registry
from tests.world.server import RegistryServer

SERDE = Package("serde", "1.0.1", features={"std": (), "default": ("std",)})
SERDE_INDEX = "/index/se/rd/serde"


def test_index_answers_have_the_headers_of_crates_io(
    registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    response, body = ask(upstream, SERDE_INDEX)
    assert response.status == 200
    assert body == registry.index("serde")
    assert response.headers["ETag"].startswith('"')
    assert response.headers["Last-Modified"] == "Thu, 01 Jan 2026 00:00:01 GMT"
    assert response.headers["Cache-Control"] == "public,max-age=600"
    assert response.headers["Content-Type"] == "text/plain"
    assert "Content-Encoding" not in response.headers


@pytest.mark.parametrize(
    ("header", "validator"), [("If-None-Match", "ETag"), ("If-Modified-Since", "Last-Modified")]
)
def test_a_validator_earns_a_304_until_something_changes(
    registry: Registry, upstream: RegistryServer, header: str, validator: str
) -> None:
    registry.publish(SERDE)
    first, _ = ask(upstream, SERDE_INDEX)
    condition = {header: first.headers[validator]}
    assert ask(upstream, SERDE_INDEX, condition)[0].status == 304
    registry.yank("serde", "1.0.1")
    changed, body = ask(upstream, SERDE_INDEX, condition)
    assert changed.status == 200
    assert b'"yanked":true' in body


def test_a_republished_version_has_other_bytes_and_keeps_its_place(registry: Registry) -> None:
    registry.publish(SERDE, Package("serde", "1.0.2"))
    before = registry.release("serde", "1.0.1")
    registry.publish(Package("serde", "1.0.1", files={"NEWS": "other bytes"}))
    after = registry.release("serde", "1.0.1")
    assert before.cksum != after.cksum == sha256(registry.crate("serde", "1.0.1"))
    lines = registry.index("serde").splitlines()
    assert [b'"1.0.1"' in line for line in lines] == [True, False]


def test_a_deleted_crate_is_gone_and_another_spelling_never_was(
    registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    assert ask(upstream, "/index/SE/RD/serde")[0].status == 404
    assert ask(upstream, registry.download_path("serde", "1.0.1"))[0].status == 200
    path = registry.download_path("serde", "1.0.1")
    registry.delete("serde")
    assert ask(upstream, SERDE_INDEX)[0].status == 404
    assert ask(upstream, path)[0].status == 404


def test_a_token_is_wanted_verbatim_and_is_recorded() -> None:
    with RegistryServer(Registry(token="Bearer of good news")) as server:
        refused, _ = ask(server, "/index/config.json", {"Authorization": "Bearer of bad news"})
        assert refused.status == 401
        assert refused.headers["WWW-Authenticate"].startswith("Cargo login_url=")
        _, config = ask(server, "/index/config.json", {"Authorization": "Bearer of good news"})
        assert b'"auth-required": true' in config
        seen = [request.headers.get("authorization") for request in server.requests()]
        assert seen == ["Bearer of bad news", "Bearer of good news"]


def test_a_stopped_server_refuses_and_comes_back_on_its_port(
    registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    with socket.create_connection(("127.0.0.1", upstream.port), 10) as idle:
        upstream.wait_for_connections(1)
        upstream.stop()
        assert idle.recv(1) == b""
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            ask(upstream, SERDE_INDEX)
    upstream.start()
    assert ask(upstream, SERDE_INDEX)[0].status == 200


def test_a_gate_keeps_requests_until_it_is_released(
    registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    statuses: list[int] = []
    clients = [
        Thread(target=lambda: statuses.append(ask(upstream, SERDE_INDEX)[0].status))
        for _ in range(5)
    ]
    with upstream.hold(SERDE_INDEX) as gate:
        for client in clients:
            client.start()
        gate.wait_for(5)
        assert ask(upstream, "/index/config.json")[0].status == 200
        assert statuses == []
    for client in clients:
        client.join(10)
    assert statuses == [200] * 5
    assert upstream.counts() == {SERDE_INDEX: 5, "/index/config.json": 1}


def test_a_tap_lets_through_as_much_of_a_body_as_it_is_told(
    registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(Package("big", padding_bytes=10_000))
    tap = upstream.tap("/crates/*", slice_bytes=1000)
    with socket.create_connection(("127.0.0.1", upstream.port), 10) as client:
        path = registry.download_path("big", "1.0.0")
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        tap.let(2)
        tap.wait_for(2)
        received = b""
        while (head_end := received.find(b"\r\n\r\n")) < 0 or len(received) < head_end + 2004:
            received += client.recv(65536)
        assert len(received) == head_end + 2004
        tap.open()
        while len(received) < head_end + 4 + len(registry.crate("big", "1.0.0")):
            received += client.recv(65536)
    assert received[head_end + 4 :] == registry.crate("big", "1.0.0")


def test_an_older_copy_can_be_served_again(registry: Registry, upstream: RegistryServer) -> None:
    registry.publish(SERDE)
    registry.publish(Package("serde", "1.0.2"))
    older = registry.history("serde")[0]
    upstream.fail(SERDE_INDEX, faults.instead("older copy", older.reply()))
    response, body = ask(upstream, SERDE_INDEX)
    assert body.count(b"\n") == 1
    assert response.headers["ETag"] == older.etag


def test_a_throttled_body_arrives_in_slices_and_whole(
    registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    body = registry.index("serde")
    tap = upstream.throttle("/index/*", slice_bytes=50, pause_seconds=0.001)
    assert ask(upstream, SERDE_INDEX)[1] == body
    tap.wait_for(-(-len(body) // 50))


def test_a_server_that_stops_closes_every_connection(
    registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    gate = upstream.hold()
    with (
        socket.create_connection(("127.0.0.1", upstream.port), PATIENCE_SECONDS) as waiting,
        socket.create_connection(("127.0.0.1", upstream.port), PATIENCE_SECONDS) as silent,
    ):
        waiting.sendall(f"GET {SERDE_INDEX} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        gate.wait_for(1)
        upstream.wait_for_connections(2)
        upstream.stop()
        for connection in (waiting, silent):
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
