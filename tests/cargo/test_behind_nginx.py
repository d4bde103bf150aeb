"""Cargo through an nginx that ends TLS and has us below a path, as `docs/networks.md` says it.

Both configurations are read from that page: the addresses and the certificate in them are replaced,
and nothing else. Cargo speaks HTTP/2 to nginx, nginx HTTP/1.1 with keep-alive to us.
"""

import json
import re
import ssl
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.cargo.conftest import Desk
from tests.conftest import Launch
from tests.world.cargo import CargoHome, replacing_crates_io
from tests.world.crates import Dependency, Package
from tests.world.holdfast import Holdfast
from tests.world.nginx import nginx
from tests.world.private_ca import PrivateCA
from tests.world.registry import Registry
from tests.world.server import RegistryServer, bound_socket

PAGE: Final = Path(__file__).parents[2] / "docs/networks.md"
WAYS: Final = ("nginx that says so", "nginx that says nothing")
LEAVES: Final = tuple(f"leaf-{number:02}" for number in range(20))
MAIN: Final = 'fn main() { println!("{}", fan::NAME); }\n'
DEPENDENCIES: Final = 'fan = "1"\n'


def blocks(heading: str) -> dict[str, str]:
    """Return the fenced blocks below a heading of the page, by their language."""
    _, _, below = PAGE.read_text().partition(f"\n### {heading}\n")
    section = re.split(r"^##", below, maxsplit=1, flags=re.MULTILINE)[0]
    return dict(re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))


def with_ours(text: str, replacements: dict[str, str]) -> str:
    for theirs, ours in replacements.items():
        assert theirs in text, f"{theirs!r} is not in the page any more"
        text = text.replace(theirs, ours)
    return text


@dataclass(frozen=True, slots=True)
class Front:
    """An nginx in front of a proxy, at an address of its own."""

    url: str
    ca: PrivateCA
    proxy: Holdfast
    access_log: Path

    def home(self, desk: Desk) -> CargoHome:
        """Make a fresh home that comes in through nginx."""
        config = replacing_crates_io(f"sparse+{self.url}/crates-io/index/")
        return desk.configured_home(f'[http]\ncainfo = "{self.ca.ca_file}"\n' + config, retries=0)

    def get(self, path: str) -> bytes:
        """Ask through nginx."""
        trust = ssl.create_default_context(cafile=self.ca.ca_file)
        with urllib.request.urlopen(self.url + path, context=trust, timeout=10) as answer:
            body: bytes = answer.read()
        return body


@pytest.fixture
def fan(registry: Registry) -> Registry:
    """A crate with dependencies enough to be asked for at once."""
    registry.publish(*(Package(leaf) for leaf in LEAVES))
    lib = {"src/lib.rs": 'pub const NAME: &str = "fan";\n'}
    deps = [Dependency(leaf) for leaf in LEAVES]
    registry.publish(Package("fan", deps=deps, files=lib), Package("fan", "1.1.0+x.1", files=lib))
    registry.yank("fan", "1.1.0+x.1")
    return registry


@pytest.fixture(params=WAYS)
def front(
    request: pytest.FixtureRequest,
    fan: Registry,
    upstream: RegistryServer,
    launch: Launch,
    tmp_path: Path,
) -> Iterator[Front]:
    given = blocks(request.param)
    ca = PrivateCA(tmp_path / "ca")
    certificate = ca.server()
    with ExitStack() as stack:
        reserved = stack.enter_context(closing(bound_socket(0)))
        port = int(reserved.getsockname()[1])
        settings = given["toml"]
        if "public_url" in settings:
            settings = with_ours(settings, {"crates.example.com": f"localhost:{port}"})
        proxy = launch(
            {"crates-io": upstream},
            upstreams={"crates-io": {"fresh_for": "0s"}},
            **tomllib.loads(settings),
        )
        configuration = with_ours(
            given["nginx"],
            {
                "listen 443 ": f"listen 127.0.0.1:{port} ",
                "server_name crates.example.com": "server_name localhost",
                "127.0.0.1:8080": f"127.0.0.1:{proxy.port}",
                "/etc/nginx/crates.pem": str(certificate.certificate),
                "/etc/nginx/crates.key": str(certificate.key),
            },
        )
        stack.enter_context(nginx(tmp_path / "nginx", configuration, port=port))
        url = f"https://localhost:{port}/cargo"
        yield Front(url, ca, proxy, tmp_path / "nginx/access.log")


def test_cargo_fetches_builds_and_updates_below_a_path_cold_and_warm(
    desk: Desk, fan: Registry, upstream: RegistryServer, front: Front
) -> None:
    document = json.loads(front.get("/crates-io/index/config.json"))
    assert document["api"] == f"{front.url}/crates-io"
    assert document["dl"].startswith(f"{front.url}/crates-io/crates/")
    cold, project = front.home(desk), desk.project(DEPENDENCIES, main=MAIN)
    cold.run(project, "fetch").succeeded()
    assert cold.run(project, "run", "--quiet", "--offline").succeeded().stdout == "fan\n"
    upstream.clear()
    warm = front.home(desk)
    warm.run(desk.locked_project(DEPENDENCIES, project.lock), "fetch", "--locked").succeeded()
    assert warm.crate_files() == cold.crate_files()
    assert upstream.count("/crates/*") == 0
    fan.unyank("fan", "1.1.0+x.1")
    warm.run(project, "update").succeeded()
    assert b'version = "1.1.0+x.1"' in project.lock
    assert warm.run(project, "run", "--quiet").succeeded().stdout == "fan\n"


def test_cargo_speaks_http2_to_nginx_which_keeps_its_connections_to_us_and_nobody_is_warned(
    newest_desk: Desk, front: Front
) -> None:
    front.home(newest_desk).run(newest_desk.project(DEPENDENCIES), "fetch").succeeded()
    asked = [line.split('"')[1].split() for line in front.access_log.read_text().splitlines()]
    assert {version for _, _, version in asked} == {"HTTP/2.0"}
    downloads = [path for _, path, _ in asked if path.startswith("/cargo/crates-io/crates/")]
    assert len(downloads) == len(LEAVES) + 1
    assert front.proxy.metric("requests_total", registry="crates-io") == len(asked)
    # One is the question itself.
    assert 1 < front.proxy.metric("connections", protocol="http/1.1") <= len(LEAVES) + 2
    assert "server.trusted_proxies" not in front.proxy.stderr


def test_an_nginx_that_is_not_trusted_is_named_with_the_key_once(
    newest_desk: Desk, fan: Registry, upstream: RegistryServer, launch: Launch, tmp_path: Path
) -> None:
    proxy = launch({"crates-io": upstream})
    with closing(bound_socket(0)) as reserved:
        port = int(reserved.getsockname()[1])
        configuration = f"""
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass http://127.0.0.1:{proxy.port};
                    proxy_set_header Host $http_host;
                    proxy_set_header X-Forwarded-For $remote_addr;
                    proxy_set_header X-Forwarded-Proto $scheme;
                }}
            }}
            """
        with nginx(tmp_path / "nginx", configuration, port=port):
            for _ in range(2):
                home = newest_desk.home(f"sparse+http://127.0.0.1:{port}/crates-io/index/")
                home.run(newest_desk.project(DEPENDENCIES), "fetch").succeeded()
    warnings = [each for each in proxy.log() if each["level"] == "warning"]
    assert len(warnings) == 1
    assert "server.trusted_proxies" in str(warnings[0]["message"])
