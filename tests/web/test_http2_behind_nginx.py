"""nginx in front, set up to pass `Upgrade` on, as its websocket recipes do: nothing may tunnel.

An nginx that passes `Upgrade` on and gets a 101 back connects its two sides and looks at nothing
any more: who is granted HTTP/2 through it reaches whatever nginx would have refused. So a smuggler
tries here, in all the orders of fields that a client can choose, to reach a path that nginx keeps
to itself, past each recipe that is found in the wild.

What cannot be told from a client's own request is an nginx that writes User-Agent, Connection and
Upgrade anew, in this order, and passes the client's HTTP2-Settings on behind them. The last test
shows it, and that naming nginx in `server.trusted_proxies`, or `server.h2c = false`, closes it.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.web import http11
from tests.web.doorstep import doorstep
from tests.world import http2
from tests.world.nginx import nginx
from tests.world.registry import Registry
from tests.world.server import RegistryServer, bound_socket

PATIENCE_SECONDS = 10.0
ALLOWED, FORBIDDEN = "/crates-io/index/config.json", "/metrics"
BOTH = "Connection: Upgrade, HTTP2-Settings"
SETTINGS = "HTTP2-Settings: AAMAAABkAAQAAQAAAAIAAAAA"
AGENT, UPGRADE, HOST = "User-Agent: cargo/1.95.0", "Upgrade: h2c", "Host: localhost"
ORDERS = {
    "cargo's": [HOST, AGENT, "Accept: */*", BOTH, UPGRADE, SETTINGS],
    "nightly cargo's": [HOST, AGENT, "Accept: */*", UPGRADE, SETTINGS, BOTH],
    "settings first": [SETTINGS, HOST, AGENT, UPGRADE, BOTH],
    "settings behind the agent": [AGENT, SETTINGS, UPGRADE, BOTH, HOST],
}
RECIPES = {
    "websocket": ["Upgrade $http_upgrade", 'Connection "upgrade"'],
    "websocket with a host": ["Host $host", "Upgrade $http_upgrade", 'Connection "Upgrade"'],
    "websocket with a map": ["Upgrade $http_upgrade", "Connection $connection_upgrade"],
    "verbatim": ["Upgrade $http_upgrade", "Connection $http_connection"],
    "verbatim, turned round": [
        "Host $http_host",
        "Connection $http_connection",
        "Upgrade $http_upgrade",
    ],
    "both words": ["Upgrade $http_upgrade", 'Connection "Upgrade, HTTP2-Settings"'],
    "verbatim with an agent": [
        "User-Agent $http_user_agent",
        "Upgrade $http_upgrade",
        "Connection $http_connection",
    ],
    "verbatim and said so": [
        "User-Agent $http_user_agent",
        "X-Forwarded-For $proxy_add_x_forwarded_for",
        "Connection $http_connection",
        "Upgrade $http_upgrade",
    ],
}
UNKNOWABLE = [
    "Host $http_host",
    "User-Agent $http_user_agent",
    "Connection $http_connection",
    "Upgrade $http_upgrade",
]


@contextmanager
def fronted(root: Path, upstream_port: int, fields: Sequence[str]) -> Iterator[int]:
    """Run nginx in front of a port; returns its own. `fields` are its `proxy_set_header`s."""
    set_header = "\n".join(f"proxy_set_header {each};" for each in fields)
    with closing(bound_socket(0)) as reserved:
        port = int(reserved.getsockname()[1])
        configuration = f"""
            map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
            server {{
                listen 127.0.0.1:{port};
                location = {FORBIDDEN} {{ return 403; }}
                location / {{
                    proxy_pass http://127.0.0.1:{upstream_port};
                    proxy_http_version 1.1;
                    {set_header}
                }}
            }}
            """
        with nginx(root / "nginx", configuration, port=port):
            yield port


async def smuggled(port: int, head: Sequence[str]) -> bytes:
    """Ask for an upgrade, and for the forbidden path behind it; returns all that comes back."""
    request = "\r\n".join([f"GET {ALLOWED} HTTP/1.1", *head, "", ""]).encode()
    received = b""
    async with asyncio.timeout(PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        received += await reader.readuntil(b"\r\n\r\n")
        room = {http2.Setting.INITIAL_WINDOW_SIZE: 1 << 20}
        writer.write(http2.PREFACE + http2.settings(room) + http2.window_update(1 << 20))
        writer.write(http2.get(3, FORBIDDEN) + http2.goaway())
        try:
            while piece := await reader.read(65_536):
                received += piece
        except ConnectionError:
            pass  # a server that was told nonsense may hang up on the rest of it
        writer.close()
    return received


SECRET = b"holdfast_"
Server = Mapping[str, object]


@pytest.mark.parametrize("recipe", RECIPES)
async def test_nothing_tunnels_through_an_nginx_that_passes_upgrades_on(
    recipe: str, tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    async with doorstep(tmp_path, upstream) as door:
        with fronted(tmp_path, door.port, RECIPES[recipe]) as port:
            assert (await http11.ask(port, ALLOWED)).status == 200
            assert (await http11.ask(port, FORBIDDEN)).status == 403
            for order, head in ORDERS.items():
                received = await smuggled(port, head)
                assert received.startswith(b"HTTP/1.1 200 "), (order, received)
                assert SECRET not in received, order
            assert door.entrance.http2_connections() == 0


async def test_without_nginx_the_same_request_is_granted(
    tmp_path: Path, stocked: Registry, upstream: RegistryServer
) -> None:
    """The smuggler of this module would be seen to succeed."""
    async with doorstep(tmp_path, upstream) as door:
        received = await smuggled(door.port, ORDERS["cargo's"])
        assert received.startswith(b"HTTP/1.1 101 ")
        assert SECRET in received


@pytest.mark.parametrize(
    ("server", "is_granted"),
    [({}, True), ({"trusted_proxies": ["127.0.0.1/32"]}, False), ({"h2c": False}, False)],
    ids=["as it is", "named as a proxy", "without h2c"],
)
async def test_an_nginx_that_nothing_gives_away_must_be_named(
    tmp_path: Path,
    stocked: Registry,
    upstream: RegistryServer,
    server: Server,
    *,
    is_granted: bool,
) -> None:
    async with doorstep(tmp_path, upstream, server=server, h2c="h2c" not in server) as door:
        with fronted(tmp_path, door.port, UNKNOWABLE) as port:
            received = [await smuggled(port, head) for head in ORDERS.values()]
            assert any(SECRET in each for each in received) is is_granted
