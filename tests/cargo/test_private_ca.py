"""An upstream behind a company's own authority, which wants to see a certificate of ours.

What the files alone tell, `config check` and `serve` say under the key of the file. What only the
handshake tells is in the answer that a client gets, and in the log, with the key as well.
"""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from proxy import cli_check
from proxy.adapters.clock import SystemClock
from proxy.config import ConfigError, load
from tests.cargo.conftest import Desk
from tests.conftest import Launch
from tests.world.cargo import Run
from tests.world.crates import Dependency, Package
from tests.world.holdfast import Holdfast
from tests.world.nginx import nginx
from tests.world.private_ca import Identity, PrivateCA
from tests.world.registry import Registry
from tests.world.server import RegistryServer, bound_socket

UNKNOWN: Final = "/company/index/un/se/unseen"
Terms = dict[str, str]


@pytest.fixture
def ca(tmp_path: Path) -> PrivateCA:
    return PrivateCA(tmp_path / "ca")


@pytest.fixture
def stranger(tmp_path: Path) -> PrivateCA:
    return PrivateCA(tmp_path / "stranger")


@contextmanager
def outspoken(tls: ssl.SSLContext) -> Iterator[int]:
    """Refuse clients over TLS, and tell them why: asyncio's servers hang up without a word.

    The alert would be lost if the connection were closed with something in it that nobody has read.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    connection.settimeout(10)
                    refuse(connection, tls)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def refuse(connection: socket.socket, tls: ssl.SSLContext) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = tls.wrap_bio(incoming, outgoing, server_side=True)
    while True:
        try:
            session.do_handshake()
        except ssl.SSLWantReadError:
            connection.sendall(outgoing.read())
            incoming.write(connection.recv(65_536))
            continue
        except ssl.SSLError:
            connection.sendall(outgoing.read())
        break
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(65_536):
        pass


def test_cargo_builds_from_an_upstream_that_wants_a_certificate(
    desk: Desk, registry: Registry, ca: PrivateCA, launch: Launch
) -> None:
    registry.publish(Package("leaf"), Package("top", deps=[Dependency("leaf")]))
    terms = {"ca_file": str(ca.ca_file), **ca.client().keys}
    with RegistryServer(registry, tls=ca.tls(wants_certificate=True)) as server:
        proxy = launch({"company": server}, upstreams={"company": terms})
        assert "good" in proxy.command("config", "check").succeeded().stdout
        home = desk.home(proxy.index_url("company"), retries=0)
        home.run(desk.project('top = "1"\n'), "build").succeeded()
        assert len(home.crate_files()) == 2


@pytest.mark.parametrize("newest_tls", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_certificate_that_the_upstream_does_not_take_is_named_by_its_key(
    upstream: RegistryServer,
    ca: PrivateCA,
    stranger: PrivateCA,
    launch: Launch,
    newest_tls: ssl.TLSVersion,
) -> None:
    tls = ca.tls(wants_certificate=True)
    tls.maximum_version = newest_tls
    identities = {
        "none": {},
        "another": stranger.client().keys,
        "expired": ca.client("expired", expired_days=2).keys,
    }
    with outspoken(tls) as port:
        common = {"index": f"sparse+https://127.0.0.1:{port}/index/", "ca_file": str(ca.ca_file)}
        proxy = launch(
            dict.fromkeys(identities, upstream),
            upstreams={name: common | keys for name, keys in identities.items()},
        )
        for name in identities:
            key = f"upstreams.{name}.client_cert"
            words = f"it refuses our certificate, {key}: "
            if name == "none":
                words = f"it seems to want a certificate of ours ({key}, not set): "
            answer = proxy.get(f"/{name}/index/un/se/unseen")
            assert answer.status == 503
            assert f"{name}: TLS failed: {words}" in answer.body.decode()
            proxy.has_logged(f"{name}: TLS failed: {words}")
            assert proxy.metric("breaker_state", upstream=name) == 1
            # Nothing comes of showing the same certificate again.
            assert proxy.metric("upstream_requests_total", upstream=name, kind="index") == 1


def test_an_upstream_that_is_not_believed_is_told_with_the_key_that_helps(
    registry: Registry, ca: PrivateCA, stranger: PrivateCA, launch: Launch
) -> None:
    with RegistryServer(registry, tls=ca.tls()) as server:
        proxy = launch(
            {"company": server, "other": server},
            upstreams={
                "other": {"ca_file": str(stranger.ca_file)},
            },
        )
        for name in ("company", "other"):
            answer = proxy.get(f"/{name}/index/un/se/unseen")
            assert answer.status == 503
            assert "its certificate is not believed: " in answer.body.decode()
            assert f"upstreams.{name}.ca_file" in answer.body.decode()


def test_nginx_says_400_where_it_wants_a_certificate_and_the_key_is_named_all_the_same(
    registry: Registry, upstream: RegistryServer, ca: PrivateCA, launch: Launch, tmp_path: Path
) -> None:
    identity = ca.server()
    with closing(bound_socket(0)) as reserved:
        port = int(reserved.getsockname()[1])
        configuration = f"""
            server {{
                listen 127.0.0.1:{port} ssl;
                ssl_certificate {identity.certificate};
                ssl_certificate_key {identity.key};
                ssl_client_certificate {ca.ca_file};
                ssl_verify_client on;
                location / {{ proxy_pass {upstream.url}; }}
            }}
            """
        index = {"index": f"sparse+https://127.0.0.1:{port}/index/"}
        with nginx(tmp_path / "nginx", configuration, port=port):
            proxy = launch(
                {"company": upstream, "shown": upstream},
                upstreams={
                    "company": {**index, "ca_file": str(ca.ca_file)},
                    "shown": {**index, "ca_file": str(ca.ca_file), **ca.client().keys},
                },
            )
            answer = proxy.get(UNKNOWN)
            assert answer.status == 503
            assert "does it want upstreams.company.client_cert" in answer.body.decode()
            assert proxy.get("/shown/index/un/se/unseen").status == 404


# What the files alone tell

Damage = Callable[[PrivateCA, PrivateCA], tuple[str, str, Terms]]


def gone(ca: PrivateCA, _: PrivateCA) -> tuple[str, str, Terms]:
    return "ca_file", "No such file or directory", {"ca_file": str(ca.root / "nothing.pem")}


def no_authority(ca: PrivateCA, _: PrivateCA) -> tuple[str, str, Terms]:
    return "ca_file", "no certificates in PEM", {"ca_file": str(ca.client().key)}


def no_certificate(ca: PrivateCA, _: PrivateCA) -> tuple[str, str, Terms]:
    key = ca.client().key
    return "client_cert", "no certificate in PEM", Identity(key, key).keys


def no_key(ca: PrivateCA, _: PrivateCA) -> tuple[str, str, Terms]:
    certificate = ca.client().certificate
    return "client_key", "no private key in PEM", Identity(certificate, certificate).keys


def another_key(ca: PrivateCA, stranger: PrivateCA) -> tuple[str, str, Terms]:
    keys = Identity(ca.client().certificate, stranger.client().key).keys
    return "client_key", "not the key of the certificate in ", keys


def locked_key(ca: PrivateCA, _: PrivateCA) -> tuple[str, str, Terms]:
    return "client_key", "the key is encrypted", ca.locked(ca.client()).keys


def damaged_key(ca: PrivateCA, _: PrivateCA) -> tuple[str, str, Terms]:
    identity = ca.client()
    identity.key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    return "client_key", str(identity.key), identity.keys


DAMAGES: Final = (gone, no_authority, no_certificate, no_key, another_key, locked_key, damaged_key)


def told(run: Run, key: str, reason: str) -> None:
    """Expect one line, which names the key and the reason, and the code for configurations."""
    assert run.code == 2, run
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"holdfast: {key}: ")
    assert reason in line


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_cannot_be_used_is_told_under_its_key(
    ca: PrivateCA, stranger: PrivateCA, damage: Damage
) -> None:
    key, reason, terms = damage(ca, stranger)
    given = {"index": "sparse+https://packages.invalid/index/", **terms}
    variables = {f"HOLDFAST__UPSTREAMS__COMPANY__{each.upper()}": given[each] for each in given}
    with pytest.raises(ConfigError) as caught:
        cli_check.check(load(None, variables), SystemClock().now())
    ((named, message),) = caught.value.problems
    assert named == f"upstreams.company.{key}"
    assert reason in message


def test_serve_and_config_check_refuse_a_key_that_nobody_can_unlock(
    ca: PrivateCA, stranger: PrivateCA, tmp_path: Path
) -> None:
    key, reason, terms = locked_key(ca, stranger)
    index = {"index": "sparse+https://packages.invalid/index/"}
    proxy = Holdfast(tmp_path / "holdfast", {"upstreams": {"company": {**index, **terms}}})
    with closing(proxy):
        for command in (("config", "check"), ("serve",)):
            told(proxy.command(*command), f"upstreams.company.{key}", reason)


def test_a_certificate_that_has_expired_is_told_and_does_not_keep_serve_from_starting(
    registry: Registry, ca: PrivateCA, launch: Launch
) -> None:
    terms = {"ca_file": str(ca.ca_file), **ca.client(expired_days=2).keys}
    with RegistryServer(registry, tls=ca.tls()) as server:
        proxy = launch({"company": server}, upstreams={"company": terms})
        run = proxy.command("config", "check")
    told(run, "upstreams.company.client_cert", "expired on ")
    (warning,) = [str(each["message"]) for each in proxy.log() if each["level"] == "warning"]
    assert warning.startswith("upstreams.company.client_cert: ")
