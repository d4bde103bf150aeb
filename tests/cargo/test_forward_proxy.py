"""The way out through a squid, as companies have it, and what cargo hears when that is in trouble.

The upstreams have names that squid alone can resolve: what arrives has gone through it. A proxy
that is away, refuses or is silent is an outage of the upstream, never an absence, and the message
says which proxy it is and which key or variable named it.
"""

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from email.utils import formatdate
from pathlib import Path
from typing import Final

import pytest

from tests.cargo.conftest import Desk
from tests.conftest import Launch
from tests.world.crates import Dependency, Package
from tests.world.holdfast import Holdfast
from tests.world.private_ca import PrivateCA
from tests.world.registry import Registry
from tests.world.server import RegistryServer, bound_socket
from tests.world.squid import IN_A_URL, NAMES, SECRET, Access, squid
from tests.world.wire import Reply, Request

KEY: Final = "upstreams.crates-io.proxy"
DEPENDENCIES: Final = 'top = "1"\n'
MAIN: Final = 'fn main() { println!("{}", top::NAME); }\n'


@pytest.fixture
def stocked(registry: Registry) -> Registry:
    lib = {"src/lib.rs": 'pub const NAME: &str = "top";\n'}
    registry.publish(Package("leaf"), Package("top", deps=[Dependency("leaf")], files=lib))
    registry.publish(Package("unseen"))
    return registry


@dataclass(frozen=True, slots=True)
class Inside:
    """An upstream that is known inside alone, and the terms that it takes."""

    server: RegistryServer
    terms: dict[str, object]
    variable: str


@pytest.fixture
def plain(stocked: Registry) -> Iterator[Inside]:
    with RegistryServer(stocked, name=NAMES[0]) as server:
        yield Inside(server, {}, "HTTP_PROXY")


@pytest.fixture
def secure(stocked: Registry, tmp_path: Path) -> Iterator[Inside]:
    ca = PrivateCA(tmp_path / "ca")
    with RegistryServer(stocked, name=NAMES[0], tls=ca.tls()) as server:
        yield Inside(server, {"ca_file": str(ca.ca_file)}, "HTTPS_PROXY")


@pytest.fixture(params=["plain", "secure"])
def inside(request: pytest.FixtureRequest) -> Inside:
    """Either of them: asked for by its address, or through a tunnel."""
    chosen: Inside = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody listens on but who is told to."""
    with closing(bound_socket(0)) as reserved:
        yield int(reserved.getsockname()[1])


def fetch(desk: Desk, proxy: Holdfast, dependencies: str = DEPENDENCIES) -> None:
    desk.home(proxy.index_url(), retries=0).run(desk.project(dependencies), "fetch").succeeded()


def complaint(desk: Desk, proxy: Holdfast) -> str:
    """Ask for what is not held; return what cargo says."""
    home = desk.home(proxy.index_url(), retries=0)
    said = home.run(desk.project('unseen = "1"\n'), "fetch").failed()
    assert "no matching package" not in said
    return " ".join(said.split())


@contextmanager
def silence(port: int) -> Iterator[None]:
    """Accept connections, and say nothing."""
    with bound_socket(port) as listener:
        listener.listen()
        yield


def test_the_keys_proxy_leads_to_an_upstream_that_nothing_else_leads_to(
    newest_desk: Desk, inside: Inside, port: int, launch: Launch
) -> None:
    """By its name, too: a proxy's own address may be private."""
    terms = {**inside.terms, "proxy": f"http://localhost:{port}"}
    proxy = launch(
        {"crates-io": inside.server}, upstreams={"crates-io": terms}, env={"NO_PROXY": "*"}
    )
    with squid(port):
        home = newest_desk.home(proxy.index_url())
        project = newest_desk.project(DEPENDENCIES, main=MAIN)
        assert home.run(project, "run", "--quiet").succeeded().stdout == "top\n"
        home.run(project, "update").succeeded()
    assert inside.server.count("/crates/*") == 2


@pytest.mark.parametrize("in_capitals", [True, False])
def test_the_environments_proxy_gets_the_credentials_in_it_and_exempts_hosts(
    newest_desk: Desk,
    stocked: Registry,
    upstream: RegistryServer,
    inside: Inside,
    port: int,
    launch: Launch,
    *,
    in_capitals: bool,
) -> None:
    given = {inside.variable: f"http://{IN_A_URL}@127.0.0.1:{port}", "NO_PROXY": "127.0.0.0/8"}
    env = given if in_capitals else {name.lower(): value for name, value in given.items()}
    proxy = launch(
        {"crates-io": inside.server, "near": upstream},
        upstreams={"crates-io": inside.terms},
        env=env,
    )
    assert proxy.get("/near/index/to/p/top").status == 404
    assert proxy.get("/near/index/3/t/top").status == 200
    with squid(port, Access.KNOWN):
        fetch(newest_desk, proxy)
    assert inside.server.count("/crates/*") == 2
    seen = [*inside.server.requests(), *upstream.requests()]
    assert not [each for each in seen if "proxy-authorization" in each.headers]
    assert SECRET not in proxy.stderr


def test_a_proxy_in_trouble_is_an_outage_that_names_it_and_its_key(
    newest_desk: Desk, inside: Inside, port: int, launch: Launch
) -> None:
    here = f"the proxy http://127.0.0.1:{port} ({KEY})"
    terms = {"fresh_for": "0s", "proxy": f"http://127.0.0.1:{port}"}
    proxy = launch({"crates-io": inside.server}, upstreams={"crates-io": {**inside.terms, **terms}})
    with squid(port):
        fetch(newest_desk, proxy)
    troubles = (
        (nullcontext(), f"{here} cannot be reached: "),
        (squid(port, Access.NOBODY), f"{here} answered 403: it does not let this through"),
        (squid(port, Access.KNOWN), f"{here} answered 407: it wants a user name"),
    )
    for trouble, words in troubles:
        with trouble:
            answer = proxy.get("/crates-io/index/un/se/unseen")
            assert answer.status == 503
            assert words in answer.body.decode()
            assert proxy.metric("breaker_state", upstream="crates-io") == 1, words
            assert proxy.get("/crates-io/index/3/t/top").how == "stale", words
    assert here in complaint(newest_desk, proxy)
    assert here in proxy.stderr
    fetch(newest_desk, proxy)
    with squid(port):
        fetch(newest_desk, proxy, 'unseen = "1"\n')
    assert proxy.metric("breaker_state", upstream="crates-io") == 0


def test_a_proxy_that_says_nothing_is_named(inside: Inside, port: int, launch: Launch) -> None:
    terms = {"idle_timeout": "300ms", "proxy": f"http://127.0.0.1:{port}"}
    proxy = launch({"crates-io": inside.server}, upstreams={"crates-io": {**inside.terms, **terms}})
    with silence(port):
        answer = proxy.get("/crates-io/index/un/se/unseen")
    assert answer.status == 504
    words = f"did not answer in time, through the proxy http://127.0.0.1:{port} ({KEY})"
    assert words in answer.body.decode()
    assert proxy.metric("breaker_state", upstream="crates-io") == 1


def test_a_refusal_of_the_proxys_is_never_an_absence(
    newest_desk: Desk, plain: Inside, port: int, launch: Launch
) -> None:
    """Even where the upstream says 403 for "no such crate", and both speak in the same place."""
    terms = {"absent_statuses": [403, 404], "proxy": f"http://127.0.0.1:{port}"}
    proxy = launch({"crates-io": plain.server}, upstreams={"crates-io": terms})
    with squid(port, Access.NOBODY):
        assert " 503" in complaint(newest_desk, proxy)
        assert proxy.get("/crates-io/api/v1/crates?q=top").status == 503


@dataclass(frozen=True, slots=True)
class Dated:
    """A registry that says what the time is, without which squid believes no `max-age`."""

    registry: Registry

    def answer(self, request: Request) -> Reply:
        reply = self.registry.answer(request)
        return replace(reply, headers=(*reply.headers, ("Date", formatdate(usegmt=True))))


def test_a_proxy_that_caches_does_not_hide_what_was_published(
    newest_desk: Desk, stocked: Registry, port: int, launch: Launch
) -> None:
    """The upstream allows ten minutes; how old a copy may be is for `fresh_for` to say."""
    terms = {"fresh_for": "0s", "proxy": f"http://127.0.0.1:{port}"}
    with RegistryServer(Dated(stocked), name=NAMES[0]) as server:
        proxy = launch({"crates-io": server}, upstreams={"crates-io": terms})
        with squid(port, caching=True):
            home, project = newest_desk.home(proxy.index_url()), newest_desk.project(DEPENDENCIES)
            home.run(project, "fetch").succeeded()
            stocked.publish(Package("leaf", "1.1.0"))
            home.run(project, "update").succeeded()
    assert b'name = "leaf"\nversion = "1.1.0"' in project.lock


def test_a_variable_that_names_no_http_proxy_is_named(
    newest_desk: Desk, secure: Inside, launch: Launch
) -> None:
    proxy = launch(
        {"crates-io": secure.server},
        upstreams={"crates-io": secure.terms},
        env={"https_proxy": f"socks5://{IN_A_URL}@127.0.0.1:1080"},
    )
    said = complaint(newest_desk, proxy)
    assert 'HTTPS_PROXY of the environment is not "http://HOST:PORT"' in said
    assert IN_A_URL not in said + proxy.stderr
    assert secure.server.connections() == 0


def test_a_dl_that_leads_to_the_proxy_itself_is_refused(
    newest_desk: Desk, stocked: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    """The proxy's address is trusted as a proxy's, not as a place that an upstream may name."""
    with closing(socket.create_server(("127.0.0.1", 0))) as trap:
        port = trap.getsockname()[1]
        stocked.dl = f"http://localhost:{port}/{{crate}}"
        proxy = launch(
            {"crates-io": upstream},
            env={"HTTP_PROXY": f"http://localhost:{port}", "NO_PROXY": "127.0.0.1,localhost"},
        )
        said = complaint(newest_desk, proxy)
        assert "allow_hosts" in said
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()
