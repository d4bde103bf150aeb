"""TLS towards clients: ALPN, what cargo makes of it, and a certificate renewed in place."""

import os
import signal
import socket
import ssl
from pathlib import Path

import pytest

from proxy.web.tls import CertificateRefused, load, server_context
from tests.conftest import Launch
from tests.world.cargo import CargoHome, Project, Toolchain
from tests.world.certificates import Authority
from tests.world.crates import Package
from tests.world.holdfast import Holdfast
from tests.world.registry import Registry
from tests.world.server import RegistryServer


def handshake(proxy: Holdfast, trust: ssl.SSLContext) -> tuple[str | None, str | None, bytes]:
    """Return the protocol that ALPN chose, the version of TLS, and the server's certificate."""
    with (
        socket.create_connection(("127.0.0.1", proxy.port), 10) as plain,
        trust.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        certificate = connection.getpeercert(binary_form=True)
        assert certificate is not None
        return connection.selected_alpn_protocol(), connection.version(), certificate


def hang_up(proxy: Holdfast, trust: ssl.SSLContext, expected: str) -> None:
    """Send SIGHUP and wait until the log says what came of it."""
    before = proxy.stderr.count(expected)
    os.kill(proxy.pid, signal.SIGHUP)
    for _ in range(500):
        handshake(proxy, trust)
        if proxy.stderr.count(expected) > before:
            return
    raise AssertionError(f"waited for {expected!r}, saw:\n{proxy.stderr}")


@pytest.fixture
def trust(authority: Authority) -> ssl.SSLContext:
    return authority.trusted()


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), (["http/1.1", "h2"], "h2")],
)
def test_alpn_prefers_http2(
    launch: Launch,
    upstream: RegistryServer,
    authority: Authority,
    trust: ssl.SSLContext,
    tmp_path: Path,
    *,
    offered: list[str],
    chosen: str,
) -> None:
    proxy = launch({"crates-io": upstream}, server={"tls": authority.issue(tmp_path / "tls")})
    trust.set_alpn_protocols(offered)
    protocol, version, _ = handshake(proxy, trust)
    assert protocol == chosen
    assert version in ("TLSv1.2", "TLSv1.3")


def test_tls_older_than_1_2_is_refused(
    launch: Launch, upstream: RegistryServer, authority: Authority, tmp_path: Path
) -> None:
    proxy = launch({"crates-io": upstream}, server={"tls": authority.issue(tmp_path / "tls")})
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLS"):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLS"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(proxy, old)


def test_a_certificate_is_renewed_by_sighup_and_a_broken_one_is_not(
    launch: Launch,
    upstream: RegistryServer,
    authority: Authority,
    trust: ssl.SSLContext,
    tmp_path: Path,
) -> None:
    files = authority.issue(tmp_path / "tls")
    proxy = launch({"crates-io": upstream}, server={"tls": files})
    first = handshake(proxy, trust)[2]
    authority.issue(tmp_path / "tls")
    assert handshake(proxy, trust)[2] == first
    hang_up(proxy, trust, "the certificate was read again")
    renewed = handshake(proxy, trust)[2]
    assert renewed != first
    Path(files["key"]).write_text("no key")
    hang_up(proxy, trust, "the certificate in use stays")
    assert handshake(proxy, trust)[2] == renewed


def test_a_key_that_is_not_the_certificates_is_named_by_its_key_in_the_configuration(
    authority: Authority, tmp_path: Path
) -> None:
    one, other = authority.issue(tmp_path / "one"), authority.issue(tmp_path / "other")
    with pytest.raises(CertificateRefused, match=r"server\.tls: certificate .*cert\.pem"):
        server_context(Path(one["certificate"]), Path(other["key"]))
    context = server_context(Path(one["certificate"]), Path(one["key"]))
    with pytest.raises(CertificateRefused, match="No such file"):
        load(context, tmp_path / "nothing", Path(one["key"]))


def test_cargo_fetches_over_tls_and_http2(
    launch: Launch,
    registry: Registry,
    upstream: RegistryServer,
    authority: Authority,
    toolchain: Toolchain,
    tmp_path: Path,
) -> None:
    registry.publish(*(Package(f"leaf-{number}") for number in range(20)))
    proxy = launch({"crates-io": upstream}, server={"tls": authority.issue(tmp_path / "tls")})
    authority.issuer.cert_pem.write_to_path(tmp_path / "ca.pem")
    config = (
        f'[http]\ncainfo = "{tmp_path / "ca.pem"}"\n'
        '[source.crates-io]\nreplace-with = "holdfast"\n[registries.holdfast]\n'
        f'index = "sparse+https://127.0.0.1:{proxy.port}/crates-io/index/"\n'
    )
    home = CargoHome(toolchain, tmp_path / "home", config)
    leaves = "".join(f'leaf-{number} = "1"\n' for number in range(20))
    home.run(Project.create(tmp_path / "project", leaves), "fetch").succeeded()
    assert len(home.crate_files()) == 20
