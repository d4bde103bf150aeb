"""What only the upstream over HTTP has: where it goes, what it sends there, what it puts up with.

What it has in common with the fake is in `tests/contracts/test_upstream.py`.
"""

import asyncio
import gzip
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from proxy.adapters.client_tls import CertificateRefused
from proxy.adapters.credentials import Credentials
from proxy.adapters.egress import (
    Egress,
    EgressTerms,
    ForbiddenByGuard,
    GuardedResolver,
    tls_context,
)
from proxy.adapters.offline import OfflineUpstream
from proxy.adapters.upstream import HttpUpstream, UpstreamTerms
from proxy.core.addresses import AddressGuard, Origin
from proxy.core.answers import NO_VALIDATORS, Absent, Found, Unchanged, Validators
from proxy.core.failures import (
    ForbiddenAddress,
    Misbehaved,
    Offline,
    TimedOut,
    Troubled,
    Unreachable,
    UpstreamFailure,
)
from tests.world import faults
from tests.world.crates import Package
from tests.world.registry import Registry
from tests.world.server import RegistryServer
from tests.world.wire import Exchange, Reply, Request, read_request

SERDE = Package("serde", "1.0.1")
LARGE = Package("large", "1.0.0", padding_bytes=1_000_000)
INDEX_PATH = "se/rd/serde"
SERDE_INDEX = "/index/se/rd/serde"
TOKEN = "Bearer s3cr3t"
USER_AGENT = "holdfast/1.2.3 (ops@example.com)"
PATIENCE_S = 20.0
IMPATIENT_S = 0.3


@dataclass(frozen=True, slots=True)
class Given:
    """What an upstream is made with, its index address apart."""

    token: str | None = None
    token_file: Path | None = None
    allow_hosts: tuple[str, ...] = ()
    index_max_bytes: int = 1 << 20
    crate_max_bytes: int = 1 << 24
    first_byte_timeout_s: float = PATIENCE_S
    idle_timeout_s: float = PATIENCE_S
    connections: int = 8
    proxy: str | None = None
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None


Before = Callable[..., HttpUpstream]


@pytest.fixture(autouse=True)
def no_proxy_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
async def before() -> AsyncIterator[Before]:
    """Make an upstream whose index is at an address: `before(server.url, token=TOKEN)`."""
    async with AsyncExitStack() as stack:

        def make(url: str, **given: object) -> HttpUpstream:
            terms = replace(Given(), **given)  # type: ignore[arg-type]
            index_url = f"{url}/index/"
            egress = Egress(
                EgressTerms(
                    connections=terms.connections,
                    connect_timeout_s=PATIENCE_S,
                    idle_timeout_s=terms.idle_timeout_s,
                    proxy=terms.proxy,
                    ca_file=terms.ca_file,
                    client_cert=terms.client_cert,
                    client_key=terms.client_key,
                ),
                AddressGuard(Origin.of(index_url), terms.allow_hosts),
            )
            stack.push_async_callback(egress.close)
            return HttpUpstream(
                UpstreamTerms(
                    name="company",
                    index_url=index_url,
                    user_agent=USER_AGENT,
                    absent_statuses=frozenset({404}),
                    index_max_bytes=terms.index_max_bytes,
                    crate_max_bytes=terms.crate_max_bytes,
                    first_byte_timeout_s=terms.first_byte_timeout_s,
                    idle_timeout_s=terms.idle_timeout_s,
                ),
                egress,
                Credentials(terms.token, terms.token_file),
            )

        yield make


async def index_of_serde(upstream: HttpUpstream) -> bytes:
    answer = await upstream.index_file(INDEX_PATH, NO_VALIDATORS)
    assert isinstance(answer, Found)
    return answer.body


async def crate_at(upstream: HttpUpstream, url: str) -> bytes:
    async with upstream.crate(url) as body:
        assert not isinstance(body, Absent)
        return b"".join([chunk async for chunk in body.chunks()])


async def enter(upstream: HttpUpstream, url: str) -> None:
    """Ask for a crate, and leave before its body."""
    async with upstream.crate(url):
        pass


class Trap:
    """A listening socket that nobody must connect to."""

    def __init__(self, host: str) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.bind((host, 0))
        self._socket.listen()
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]

    def is_untouched(self) -> bool:
        """Tell whether nobody has connected: the kernel accepts for us."""
        try:
            connection, _ = self._socket.accept()
        except BlockingIOError:
            return True
        connection.close()
        return False

    def close(self) -> None:
        self._socket.close()


@contextmanager
def trap_at(host: str) -> Iterator[Trap]:
    trap = Trap(host)
    try:
        yield trap
    finally:
        trap.close()


def test_the_trap_sees_whoever_connects() -> None:
    with trap_at("127.0.0.2") as trap:
        assert trap.is_untouched()
        with socket.create_connection(("127.0.0.2", trap.port), PATIENCE_S):
            assert not trap.is_untouched()


# What is sent


async def test_the_index_is_asked_for_as_cargo_does_and_by_our_own_name(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    ours = before(upstream.url)
    await index_of_serde(ours)
    headers = dict(upstream.requests(SERDE_INDEX)[0].headers)
    assert headers == {
        "host": f"127.0.0.1:{upstream.port}",
        "user-agent": USER_AGENT,
        "accept": "text/plain",
        "accept-encoding": "gzip",
        "cargo-protocol": "version=1",
    }
    await crate_at(ours, upstream.url + registry.download_path("serde", "1.0.1"))
    headers = dict(upstream.requests("/crates/*")[0].headers)
    assert headers == {
        "host": f"127.0.0.1:{upstream.port}",
        "user-agent": USER_AGENT,
        "accept": "*/*",
        "accept-encoding": "identity",
    }


async def test_validators_are_replayed_to_the_letter(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    validators = Validators('W/"a:b"', "Thu, 01 Jan 1970 00:00:01 GMT")
    await before(upstream.url).index_file(INDEX_PATH, validators)
    sent = upstream.requests(SERDE_INDEX)[0].headers
    assert sent["if-none-match"] == validators.etag
    assert sent["if-modified-since"] == validators.last_modified


@pytest.mark.parametrize(
    "path",
    [
        "/crates/foo/foo-1.0.0+build.5.crate",
        "/crates/foo/foo-1.0.0%2Bbuild.5.crate",
        "/a//b/./c/../d?x=%2F&y=1+2",
    ],
)
async def test_an_address_is_asked_for_as_it_is_written(
    before: Before, upstream: RegistryServer, path: str
) -> None:
    async with before(upstream.url).crate(upstream.url + path) as body:
        assert body == Absent(404)
    assert [request.target for request in upstream.requests()] == [path]


async def test_cookies_are_not_kept(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    cookie = ("Set-Cookie", "session=1; Path=/")
    upstream.fail(
        "*", faults.bent("cookie", lambda reply: replace(reply, headers=(*reply.headers, cookie)))
    )
    # By name: a client that keeps cookies keeps none of a bare address.
    ours = before(f"http://localhost:{upstream.port}")
    for _ in range(2):
        await index_of_serde(ours)
    assert all("cookie" not in request.headers for request in upstream.requests())


async def test_validators_that_cannot_be_sent_back_are_none(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    strange = (("ETag", '"caf\xe9"'), ("Last-Modified", "gest\xe4rn"))
    upstream.fail("*", faults.instead("strange", Reply(200, registry.index("serde"), strange)))
    answer = await before(upstream.url).index_file(INDEX_PATH, NO_VALIDATORS)
    assert isinstance(answer, Found)
    assert answer.validators == NO_VALIDATORS


# Credentials


async def test_credentials_go_to_the_own_origin(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.token = TOKEN
    registry.publish(SERDE)
    ours = before(upstream.url, token=TOKEN)
    assert await index_of_serde(ours) == registry.index("serde")
    await crate_at(ours, upstream.url + registry.download_path("serde", "1.0.1"))
    assert (await ours.api_get(f"{upstream.url}/api/v1/crates?q=serde")).status == 200
    assert [request.headers["authorization"] for request in upstream.requests()] == [TOKEN] * 3


async def test_credentials_go_to_no_other_origin(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    path = registry.download_path("serde", "1.0.1")
    with RegistryServer(registry) as elsewhere:
        ours = before(upstream.url, token=TOKEN)
        await crate_at(ours, elsewhere.url + path)
        await ours.api_get(f"{elsewhere.url}/api/v1/crates?q=serde")
        assert elsewhere.count() == 2
        assert all("authorization" not in each.headers for each in elsewhere.requests())
    # The same port under another name is another origin too.
    by_name = before(upstream.url, token=TOKEN, allow_hosts=("localhost",))
    await crate_at(by_name, f"http://localhost:{upstream.port}{path}")
    assert [request.headers.get("authorization") for request in upstream.requests()] == [None]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_credentials_do_not_follow_a_redirect_to_another_origin(
    before: Before, registry: Registry, upstream: RegistryServer, code: int
) -> None:
    registry.publish(SERDE)
    with RegistryServer(registry) as elsewhere:
        upstream.fail("*", faults.redirect_to_origin(elsewhere.url, code))
        ours = before(upstream.url, token=TOKEN)
        assert await index_of_serde(ours) == registry.index("serde")
        assert upstream.requests()[0].headers["authorization"] == TOKEN
        (there,) = elsewhere.requests()
        assert "authorization" not in there.headers
        assert there.headers["user-agent"] == USER_AGENT


async def test_credentials_in_an_address_do_not_take_the_place_of_ours(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    path = registry.download_path("serde", "1.0.1")
    ours = before(upstream.url, token=TOKEN)
    with pytest.raises(Misbehaved):
        await enter(ours, f"http://mallory:pass@127.0.0.1:{upstream.port}{path}")
    assert upstream.count() == 0


async def test_a_token_that_was_renewed_in_its_file_is_read_again_after_a_401(
    before: Before, registry: Registry, upstream: RegistryServer, tmp_path: Path
) -> None:
    registry.token = TOKEN
    registry.publish(SERDE)
    file = tmp_path / "token"
    file.write_text("Bearer s3cr3t-of-yesterday\n")
    ours = before(upstream.url, token="Bearer s3cr3t-of-yesterday", token_file=file)
    with pytest.raises(Troubled) as caught:
        await index_of_serde(ours)
    assert caught.value.status == 401
    assert upstream.count() == 1, "the same token is not tried twice"
    file.unlink()
    with pytest.raises(Troubled):
        await index_of_serde(ours)
    file.write_text(f"{TOKEN}\n")
    assert await index_of_serde(ours) == registry.index("serde")
    assert await index_of_serde(ours) == registry.index("serde")
    sent = [request.headers["authorization"] for request in upstream.requests()]
    assert sent[-3:] == ["Bearer s3cr3t-of-yesterday", TOKEN, TOKEN]


async def test_a_401_from_elsewhere_renews_nothing(
    before: Before, registry: Registry, upstream: RegistryServer, tmp_path: Path
) -> None:
    registry.publish(SERDE)
    file = tmp_path / "token"
    file.write_text("Bearer another")
    with RegistryServer(registry) as elsewhere:
        elsewhere.fail("*", faults.status(401))
        ours = before(upstream.url, token=TOKEN, token_file=file)
        with pytest.raises(Troubled):
            await enter(ours, f"{elsewhere.url}/crates/serde/serde-1.0.1.crate")
        assert elsewhere.count() == 1
    await index_of_serde(ours)
    assert upstream.requests()[0].headers["authorization"] == TOKEN


# Redirects


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/index/3/f/foo", "../../3/f/foo", "//{host}/index/3/f/foo"])
async def test_redirects_are_followed(
    before: Before, registry: Registry, upstream: RegistryServer, code: int, location: str
) -> None:
    registry.publish(SERDE, Package("foo"))
    location = location.format(host=f"127.0.0.1:{upstream.port}")
    upstream.fail(SERDE_INDEX, faults.redirect(location, code))
    ours = before(upstream.url)
    assert await index_of_serde(ours) == registry.index("foo")


async def test_validators_go_along_with_a_redirect(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    validators = Validators(registry.history("serde")[-1].etag)
    with RegistryServer(registry) as elsewhere:
        upstream.fail("*", faults.redirect_to_origin(elsewhere.url))
        assert await before(upstream.url).index_file(INDEX_PATH, validators) == Unchanged()


@pytest.mark.parametrize("hops", [5, 6])
async def test_five_redirects_are_enough(
    before: Before, registry: Registry, upstream: RegistryServer, hops: int
) -> None:
    registry.publish(SERDE)
    for hop in range(hops):
        here = SERDE_INDEX if hop == 0 else f"/hop/{hop}"
        there = SERDE_INDEX + "?end" if hop == hops - 1 else f"/hop/{hop + 1}"
        upstream.fail(here, faults.redirect(there), times=1)
    asking = index_of_serde(before(upstream.url))
    if hops == 5:
        assert await asking == registry.index("serde")
    else:
        with pytest.raises(Misbehaved, match="more than 5 redirects"):
            await asking
    assert upstream.count() == 6


@pytest.mark.parametrize(
    "location",
    [
        None,
        "",
        "http://[",
        "http://[::1",
        "http://",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:http/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "javascript:alert(1)",
        "https:",
        "http://\x7f/",
        "http://a..b/",
        "//",
    ],
)
async def test_a_redirect_to_no_address_is_misbehaviour(
    before: Before, registry: Registry, upstream: RegistryServer, location: str | None
) -> None:
    registry.publish(SERDE)
    headers = () if location is None else (("Location", location),)
    upstream.fail("*", faults.instead("astray", Reply(302, b"", headers)))
    ours = before(upstream.url)
    with pytest.raises(UpstreamFailure) as caught:
        await index_of_serde(ours)
    # A host that does not resolve is an outage, as far as anybody can tell.
    assert isinstance(caught.value, Misbehaved | Unreachable)
    upstream.heal()
    assert await index_of_serde(ours) == registry.index("serde")


@pytest.mark.parametrize("fault", [faults.redirect_loop(), faults.redirect("/index/elsewhere")])
async def test_a_loop_ends(
    before: Before, registry: Registry, upstream: RegistryServer, fault: faults.Fault
) -> None:
    registry.publish(SERDE)
    upstream.fail("*", fault)
    with pytest.raises(Misbehaved):
        await index_of_serde(before(upstream.url))
    assert upstream.count() == 6


# Where it must not go

# All of them lead to 127.0.0.2, or to link-local addresses, in one spelling or another.
FORBIDDEN_HOSTS = [
    "127.0.0.2",
    "127.0.0.2.",
    "127.2",
    "2130706434",
    "0x7f000002",
    "0x7f.0.0.2",
    "0177.0.0.2",
    "127.0.0.02",
    "[::ffff:127.0.0.2]",
    "[::ffff:7f00:2]",
    "[64:ff9b::127.0.0.2]",
    "[::127.0.0.2]",
    "\uff11\uff12\uff17.0.0.2",
    "169.254.169.254",
    "[fe80::1]",
    "[fe80::1%25lo]",
    "[fd00:ec2::254]",
    "100.100.100.200",
    "2852039166",
    "224.0.0.1",
    "255.255.255.255",
]


@pytest.mark.parametrize("host", FORBIDDEN_HOSTS)
async def test_a_forbidden_address_is_refused_before_any_connection(
    before: Before, registry: Registry, upstream: RegistryServer, host: str
) -> None:
    with trap_at("127.0.0.2") as trap:
        url = f"http://{host}:{trap.port}/latest/meta-data/"
        ours = before(upstream.url, token=TOKEN)
        with pytest.raises(Misbehaved):
            await enter(ours, url)
        with pytest.raises(Misbehaved):
            await ours.api_get(url)
        if host.isascii():
            upstream.fail("*", faults.redirect(url))
            with pytest.raises(Misbehaved):
                await index_of_serde(ours)
        assert trap.is_untouched()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "0.0.0.0", "[::1]"])
async def test_this_machine_by_another_name_is_refused_before_any_connection(
    before: Before, registry: Registry, upstream: RegistryServer, host: str
) -> None:
    with trap_at("127.0.0.1") as trap:
        url = f"http://{host}:{trap.port}/"
        upstream.fail("*", faults.redirect(url))
        ours = before(upstream.url)
        with pytest.raises(ForbiddenAddress):
            await enter(ours, url)
        with pytest.raises(ForbiddenAddress) as caught:
            await index_of_serde(ours)
        assert trap.is_untouched()
    assert host.strip("[]").rstrip(".").lower() in str(caught.value).lower()
    assert not caught.value.transient


@pytest.mark.parametrize("allowed", ["localhost", "127.0.0.0/8", "127.0.0.1"])
async def test_the_operator_may_allow_it(
    before: Before, registry: Registry, upstream: RegistryServer, allowed: str
) -> None:
    registry.publish(SERDE)
    with RegistryServer(registry) as elsewhere:
        upstream.fail("*", faults.redirect_to_origin(f"http://localhost:{elsewhere.port}"))
        ours = before(upstream.url, allow_hosts=(allowed, "::1"))
        assert await index_of_serde(ours) == registry.index("serde")


async def test_a_refusal_names_host_address_and_key(
    before: Before, upstream: RegistryServer
) -> None:
    with pytest.raises(ForbiddenAddress) as caught:
        await enter(before(upstream.url), f"http://localhost:{upstream.port}/x")
    said = str(caught.value)
    assert "company" in said
    assert "localhost (127.0.0.1)" in said or "localhost (::1)" in said
    assert "allow_hosts" in said


class Directory(AbstractResolver):
    """A name server that gives the same answer to every question."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in self._addresses
        ]

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("addresses", "allowed"),
    [
        (("8.8.8.8", "10.1.2.3", "169.254.169.254"), ["8.8.8.8"]),
        (("10.9.9.9",), ["10.9.9.9"]),
        (("10.1.2.3", "169.254.169.254"), None),
        (("::ffff:127.0.0.1",), None),
        ((), []),
    ],
)
async def test_a_name_leads_to_those_of_its_addresses_that_are_allowed(
    addresses: tuple[str, ...], allowed: list[str] | None
) -> None:
    guard = AddressGuard(Origin.of("https://packages.example/"), ("10.9.0.0/16",))
    resolver = GuardedResolver(guard, Directory(*addresses))
    if allowed is None:
        with pytest.raises(ForbiddenByGuard):
            await resolver.resolve("elsewhere.example", 443)
    else:
        found = await resolver.resolve("elsewhere.example", 443)
        assert [one["host"] for one in found] == allowed
    await resolver.close()


@pytest.mark.parametrize(
    "tail", ["\r\nX-Evil: 1", " HTTP/1.1\r\nX-Evil: 1\r\n", "/a b", "\n", "\t", "\x7f"]
)
async def test_an_address_cannot_carry_a_header(
    before: Before, upstream: RegistryServer, tail: str
) -> None:
    with pytest.raises(Misbehaved):
        await enter(before(upstream.url), f"{upstream.url}/crates/a{tail}")
    assert upstream.count() == 0


# Codings and ceilings

Encode = Callable[[bytes], bytes]


def encoded(coding: str, encode: Encode) -> faults.Fault:
    def bend(reply: Reply) -> Reply:
        return replace(
            reply, body=encode(reply.body), headers=(*reply.headers, ("Content-Encoding", coding))
        )

    return faults.bent(coding, bend)


@pytest.mark.parametrize(
    ("coding", "encode"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress)],
)
async def test_codings_are_undone(
    before: Before, registry: Registry, upstream: RegistryServer, coding: str, encode: Encode
) -> None:
    registry.publish(SERDE, LARGE)
    upstream.fail("*", encoded(coding, encode))
    ours = before(upstream.url)
    assert await index_of_serde(ours) == registry.index("serde")
    async with ours.crate(upstream.url + registry.download_path("large", "1.0.0")) as body:
        assert not isinstance(body, Absent)
        assert body.length_bytes is None, "the announced length is that of the coded body"
        whole = b"".join([chunk async for chunk in body.chunks()])
    assert whole == registry.crate("large", "1.0.0")
    answer = await ours.api_get(f"{upstream.url}/api/v1/crates?q=serde")
    assert b'"name": "serde"' in answer.body


@pytest.mark.parametrize(
    "fault",
    [
        faults.gzip_truncated(),
        faults.gzip_bomb(8 << 20),
        encoded("br", gzip.compress),
        encoded("gzip, gzip", lambda body: gzip.compress(gzip.compress(body))),
        encoded("gzip", b"no gzip".__add__),
        encoded("deflate", gzip.compress),
        encoded("gzip", lambda body: gzip.compress(body) + b"more"),
        encoded("gzip", lambda _: gzip.compress(b"") * 60_000),
    ],
    ids=str,
)
async def test_what_cannot_be_decoded_within_the_ceiling_is_misbehaviour(
    before: Before, registry: Registry, upstream: RegistryServer, fault: faults.Fault
) -> None:
    registry.publish(SERDE)
    upstream.fail("*", fault)
    ours = before(upstream.url, crate_max_bytes=1 << 20)
    with pytest.raises(Misbehaved):
        await index_of_serde(ours)
    with pytest.raises(Misbehaved):
        await crate_at(ours, upstream.url + registry.download_path("serde", "1.0.1"))
    upstream.heal()
    assert await index_of_serde(ours) == registry.index("serde")


async def test_an_answer_of_the_web_api_has_a_ceiling(
    before: Before, upstream: RegistryServer
) -> None:
    upstream.fail("*", faults.gzip_bomb(8 << 20))
    with pytest.raises(Misbehaved):
        await before(upstream.url).api_get(f"{upstream.url}/api/v1/crates")


def heading(*lines: bytes, forever: bytes = b"") -> faults.Fault:
    """Send header lines of one's own, the last of them for ever."""

    async def play(exchange: Exchange) -> bool:
        await exchange.send(b"HTTP/1.1 200 OK\r\n" + b"\r\n".join(lines) + b"\r\n")
        while forever:
            await exchange.send(forever)
        return False

    return faults.Fault(repr(lines or forever)[:30], play)


@pytest.mark.parametrize(
    "fault",
    [
        heading(b"X-Long: " + b"x" * 100_000, b"Content-Length: 0", b""),
        heading(forever=b"X-More: " + b"x" * 1000 + b"\r\n"),
        heading(forever=b"x" * 1000),
        heading(*[b"X-%d: 1" % number for number in range(5000)], b"Content-Length: 0", b""),
    ],
    ids=str,
)
async def test_a_head_without_end_is_not_swallowed(
    before: Before, registry: Registry, upstream: RegistryServer, fault: faults.Fault
) -> None:
    registry.publish(SERDE)
    upstream.fail("*", fault)
    ours = before(upstream.url)
    with pytest.raises(Misbehaved):
        await index_of_serde(ours)
    upstream.heal()
    assert await index_of_serde(ours) == registry.index("serde")


def speaking(what: bytes) -> faults.Fault:
    async def play(exchange: Exchange) -> bool:
        await exchange.send(what)
        return False

    return faults.Fault(repr(what[:20]), play)


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"",
    ],
)
async def test_what_is_no_http_is_a_failure(
    before: Before, registry: Registry, upstream: RegistryServer, said: bytes
) -> None:
    registry.publish(SERDE)
    upstream.fail("*", speaking(said))
    ours = before(upstream.url)
    with pytest.raises((Misbehaved, Unreachable)):
        await index_of_serde(ours)
    upstream.heal()
    assert await index_of_serde(ours) == registry.index("serde")


async def test_an_index_file_that_ends_with_its_connection_is_not_believed(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    upstream.fail("*", faults.unframed())
    with pytest.raises(Misbehaved):
        await index_of_serde(before(upstream.url))


# What failures say


@pytest.mark.parametrize(
    "fault",
    [
        faults.status(403),
        faults.login_page(),
        faults.reset("before the head"),
        faults.cut(),
        faults.cut_chunked(),
        faults.gzip_truncated(),
        faults.redirect("http://[?signature=s3cr3t"),
        faults.redirect("http://localhost:1/?signature=s3cr3t"),
        speaking(b"HTTP/1.1 abc OK\r\n\r\n"),
        speaking(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"),
        heading(b"X-Long: " + b"x" * 100_000, b""),
        faults.redirect_loop(),
    ],
    ids=str,
)
async def test_no_message_has_a_token_or_a_query_in_it(
    before: Before, registry: Registry, upstream: RegistryServer, fault: faults.Fault
) -> None:
    registry.publish(SERDE, Package("foo"))
    upstream.fail(SERDE_INDEX, faults.redirect("/index/3/f/foo?signature=s3cr3t"))
    upstream.fail("/index/3/*", fault)
    with pytest.raises(UpstreamFailure) as caught:
        await index_of_serde(before(upstream.url, token=TOKEN))
    said = str(caught.value)
    assert "company" in said
    assert "s3cr3t" not in said
    assert "\n" not in said
    assert len(said) < 400


# Time


async def test_a_head_that_drips_is_a_timeout(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    upstream.fail("*", faults.drip(0.02))
    with pytest.raises(TimedOut):
        await index_of_serde(before(upstream.url, first_byte_timeout_s=IMPATIENT_S))


async def test_a_body_may_take_longer_than_the_first_byte(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(LARGE)
    tap = upstream.throttle("/crates/*", slice_bytes=100_000, pause_seconds=0.08)
    ours = before(upstream.url, first_byte_timeout_s=0.6)
    whole = await crate_at(ours, upstream.url + registry.download_path("large", "1.0.0"))
    assert whole == registry.crate("large", "1.0.0")
    tap.wait_for(11)


async def test_a_body_that_never_stalls_and_never_ends_has_a_ceiling_in_seconds(
    before: Before,
    registry: Registry,
    upstream: RegistryServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.publish(SERDE)
    for name in ("_INDEX_TIMEOUT_S", "_CRATE_TIMEOUT_S", "_API_TIMEOUT_S"):
        monkeypatch.setattr(f"proxy.adapters.upstream.{name}", IMPATIENT_S)
    upstream.throttle("*", slice_bytes=1, pause_seconds=0.02)
    ours = before(upstream.url, index_max_bytes=1000)
    outcomes = await asyncio.gather(
        index_of_serde(ours),
        crate_at(ours, upstream.url + registry.download_path("serde", "1.0.1")),
        ours.api_get(f"{upstream.url}/api/v1/crates?q=serde"),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [TimedOut] * 3


async def test_an_hour_in_the_queue_is_too_long(
    before: Before,
    registry: Registry,
    upstream: RegistryServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.publish(LARGE)
    url = upstream.url + registry.download_path("large", "1.0.0")
    ours = before(upstream.url, connections=1)
    upstream.tap("/crates/*")
    first = asyncio.ensure_future(crate_at(ours, url))
    await upstream.arrived("/crates/*", 1)
    monkeypatch.setattr("proxy.adapters.upstream._CRATE_TIMEOUT_S", 0.05)
    with pytest.raises(TimedOut):
        await enter(ours, url)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


# Connections


async def test_connections_are_used_again_and_a_new_one_is_really_new(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    ours = before(upstream.url)
    for new_connection in (False, False, True, False, True):
        await ours.index_file(INDEX_PATH, NO_VALIDATORS, new_connection=new_connection)
    assert [request.connection for request in upstream.requests()] == [1, 1, 2, 1, 3]


async def test_there_are_never_more_connections_than_allowed(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    ours = before(upstream.url, connections=3)
    with upstream.hold() as gate:
        asking = [
            asyncio.ensure_future(
                ours.index_file(INDEX_PATH, NO_VALIDATORS, new_connection=number % 2 == 0)
            )
            for number in range(9)
        ]
        await gate.arrived(3)
        done, _ = await asyncio.wait(asking, timeout=0.1)
        assert (done, upstream.count()) == (set(), 3)
        gate.release()
        answers = await asyncio.gather(*asking)
    assert all(isinstance(answer, Found) for answer in answers)
    assert upstream.count() == 9


async def test_waiting_for_a_connection_is_not_the_upstreams_fault(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE, LARGE)
    ours = before(upstream.url, connections=2, first_byte_timeout_s=0.8)
    url = upstream.url + registry.download_path("large", "1.0.0")
    tap = upstream.tap("/crates/*", slice_bytes=100_000)
    slow = [asyncio.ensure_future(crate_at(ours, url)) for _ in range(2)]
    await upstream.arrived("/crates/*", 2)
    waiting = asyncio.ensure_future(index_of_serde(ours))
    done, _ = await asyncio.wait({waiting}, timeout=1.0)
    assert not done
    tap.open()
    assert await waiting == registry.index("serde")
    assert await asyncio.gather(*slow) == [registry.crate("large", "1.0.0")] * 2


async def test_crates_leave_some_connections_to_the_index(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE, LARGE)
    ours = before(upstream.url, connections=4)
    url = upstream.url + registry.download_path("large", "1.0.0")
    tap = upstream.tap("/crates/*", slice_bytes=100_000)
    slow = [asyncio.ensure_future(crate_at(ours, url)) for _ in range(9)]
    await upstream.arrived("/crates/*", 3)
    assert await asyncio.wait_for(index_of_serde(ours), PATIENCE_S) == registry.index("serde")
    assert upstream.count("/crates/*") == 3
    tap.open()
    assert await asyncio.gather(*slow) == [registry.crate("large", "1.0.0")] * 9


async def ask_at_once(ours: HttpUpstream, upstream: RegistryServer, count: int) -> None:
    """Have so many requests for an index file under way at one moment."""
    with upstream.hold() as gate:
        asking = [asyncio.ensure_future(index_of_serde(ours)) for _ in range(count)]
        await gate.arrived(count)
    await asyncio.gather(*asking)


@pytest.mark.parametrize(("allowed", "opened"), [(20, 20), (1000, 64)])
async def test_a_burst_opens_the_connections_that_the_next_level_will_need(
    before: Before, registry: Registry, upstream: RegistryServer, allowed: int, opened: int
) -> None:
    registry.publish(SERDE)
    ours = before(upstream.url, connections=allowed)
    await ask_at_once(ours, upstream, 8)
    spares = ours._egress._spares
    assert spares is not None
    await asyncio.wait_for(spares, PATIENCE_S)
    for _ in range(2):
        await ask_at_once(ours, upstream, opened)
    assert upstream.connections() == opened
    assert upstream.count() == 8 + 2 * opened


async def test_a_few_requests_open_no_connection_but_their_own(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    ours = before(upstream.url, connections=20)
    for _ in range(2):
        await ask_at_once(ours, upstream, 7)
    assert upstream.connections() == 7


async def test_an_upstream_that_is_left_in_a_burst_leaves_nothing_open(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    ours = before(upstream.url, connections=20)
    with upstream.hold():
        asking = [asyncio.ensure_future(index_of_serde(ours)) for _ in range(8)]
        await upstream.arrived("*", 1)
        await ours._egress.close()
        assert {type(e) for e in await asyncio.gather(*asking, return_exceptions=True)} == {
            Unreachable
        }


@pytest.mark.parametrize("leave", ["at once", "half way", "cancelled"])
async def test_a_crate_that_is_left_gives_its_connection_back(
    before: Before, registry: Registry, upstream: RegistryServer, leave: str
) -> None:
    registry.publish(SERDE, LARGE)
    ours = before(upstream.url, connections=1)
    url = upstream.url + registry.download_path("large", "1.0.0")
    upstream.fail("/crates/*", faults.stall())
    for _ in range(5):
        flowing = asyncio.Event()

        async def visit(flowing: asyncio.Event) -> None:
            async with ours.crate(url) as body:
                assert not isinstance(body, Absent)
                if leave == "at once":
                    return
                async for _ in body.chunks():
                    flowing.set()
                    if leave == "half way":
                        return

        visiting = asyncio.ensure_future(visit(flowing))
        if leave == "cancelled":
            await asyncio.wait_for(flowing.wait(), PATIENCE_S)
            visiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await visiting
        else:
            await visiting
    assert await index_of_serde(ours) == registry.index("serde")
    assert upstream.connections() == 6, "none is used again while there is a body in it"


async def test_a_connection_that_the_server_closed_is_not_used_again(
    before: Before, registry: Registry, upstream: RegistryServer
) -> None:
    registry.publish(SERDE)
    ours = before(upstream.url)
    for _ in range(5):
        assert await index_of_serde(ours) == registry.index("serde")
        upstream.stop()
        upstream.start()
    assert {request.connection for request in upstream.requests()} == {1, 2, 3, 4, 5}


# TLS

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve connections with `handler` on a port of the loopback."""
    served: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.add(task)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)


def answering(registry: Registry) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await read_request(reader, connection=0)) is not None:
            await Exchange(request, registry.answer(request), reader, writer).send_reply()

    return handle


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_tls(authority: trustme.CA, host: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    return context


def written(blob: trustme.Blob, path: Path) -> Path:
    blob.write_to_path(str(path))
    return path


async def test_a_private_authority_is_trusted_where_the_operator_says_so(
    before: Before, registry: Registry, authority: trustme.CA, tmp_path: Path
) -> None:
    registry.publish(SERDE)
    ca_file = written(authority.cert_pem, tmp_path / "ca.pem")
    async with listening(answering(registry), server_tls(authority)) as port:
        url = f"https://127.0.0.1:{port}"
        assert await index_of_serde(before(url, ca_file=ca_file)) == registry.index("serde")
        with pytest.raises(Unreachable, match="TLS"):
            await index_of_serde(before(url))


async def test_a_certificate_for_another_host_is_refused(
    before: Before, registry: Registry, authority: trustme.CA, tmp_path: Path
) -> None:
    registry.publish(SERDE)
    ca_file = written(authority.cert_pem, tmp_path / "ca.pem")
    async with listening(answering(registry), server_tls(authority, "example.org")) as port:
        with pytest.raises(Unreachable, match="TLS"):
            await index_of_serde(before(f"https://127.0.0.1:{port}", ca_file=ca_file))


@pytest.mark.parametrize("in_one_file", [False, True])
async def test_a_client_certificate_is_shown(
    before: Before,
    registry: Registry,
    authority: trustme.CA,
    tmp_path: Path,
    in_one_file: bool,
) -> None:
    registry.publish(SERDE)
    ca_file = written(authority.cert_pem, tmp_path / "ca.pem")
    ours = authority.issue_cert("holdfast.example")
    if in_one_file:
        identity = {"client_cert": written(ours.private_key_and_cert_chain_pem, tmp_path / "c")}
    else:
        identity = {
            "client_cert": written(ours.cert_chain_pems[0], tmp_path / "c.pem"),
            "client_key": written(ours.private_key_pem, tmp_path / "k.pem"),
        }
    tls = server_tls(authority)
    tls.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(tls)
    async with listening(answering(registry), tls) as port:
        url = f"https://127.0.0.1:{port}"
        with_one = before(url, ca_file=ca_file, **identity)
        assert await index_of_serde(with_one) == registry.index("serde")
        with pytest.raises(Unreachable):
            await index_of_serde(before(url, ca_file=ca_file))


async def test_plain_text_where_tls_was_expected_is_unreachable(before: Before) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(Reply(400).framed_head())
        await writer.drain()

    async with listening(greet) as port:
        with pytest.raises(Unreachable, match="TLS"):
            await index_of_serde(before(f"https://127.0.0.1:{port}"))


@pytest.mark.parametrize("content", [None, "not a certificate"])
@pytest.mark.parametrize("key", ["ca_file", "client_cert", "client_key"])
def test_a_file_that_is_not_what_it_should_be_is_named_by_its_key(
    authority: trustme.CA, tmp_path: Path, key: str, content: str | None
) -> None:
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_text(content)
    good = written(authority.issue_cert("a.example").cert_chain_pems[0], tmp_path / "c.pem")
    terms = EgressTerms(
        connections=1, connect_timeout_s=1.0, idle_timeout_s=1.0, client_cert=good, client_key=good
    )
    with pytest.raises(CertificateRefused, match=str(path)) as refused:
        tls_context(replace(terms, **{key: path}))  # type: ignore[arg-type]
    if content is None or key == "ca_file":
        assert refused.value.key == key
    else:
        # OpenSSL does not say which of the two it means.
        assert refused.value.key in ("client_cert", "client_key")


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_passphrase(
    authority: trustme.CA, tmp_path: Path
) -> None:
    ours = authority.issue_cert("a.example")
    key = load_pem_private_key(ours.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a passphrase")
    )
    (tmp_path / "k.pem").write_bytes(encrypted)
    terms = EgressTerms(
        connections=1,
        connect_timeout_s=1.0,
        idle_timeout_s=1.0,
        client_cert=written(ours.cert_chain_pems[0], tmp_path / "c.pem"),
        client_key=tmp_path / "k.pem",
    )
    with pytest.raises(CertificateRefused, match="the key is encrypted") as refused:
        tls_context(terms)
    assert refused.value.key == "client_key"


# Forward proxies


class Forwarder:
    """A forward proxy for plain HTTP, as a site: it knows every origin."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def answer(self, request: Request) -> Reply:
        _, _, rest = request.target.partition("://")
        _, _, path = rest.partition("/")
        return self._registry.answer(replace(request, target=f"/{path}"))


@pytest.mark.parametrize("said_by", ["the configuration", "the environment"])
async def test_a_forward_proxy_is_used(
    before: Before,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    said_by: str,
) -> None:
    registry.publish(SERDE)
    with RegistryServer(Forwarder(registry)) as forwarder:
        configured = None
        if said_by == "the configuration":
            configured = forwarder.url
            monkeypatch.setenv("no_proxy", "*")
        else:
            monkeypatch.setenv("http_proxy", forwarder.url)
        ours = before("http://packages.invalid", proxy=configured)
        assert await index_of_serde(ours) == registry.index("serde")
        (seen,) = forwarder.requests()
        assert seen.target == "http://packages.invalid/index/se/rd/serde"
        assert seen.headers["host"] == "packages.invalid"


async def test_the_environment_may_exempt_a_host(
    before: Before,
    registry: Registry,
    upstream: RegistryServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.publish(SERDE)
    with trap_at("127.0.0.1") as trap:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{trap.port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert await index_of_serde(before(upstream.url)) == registry.index("serde")
        assert trap.is_untouched()


@pytest.mark.parametrize("host", ["169.254.169.254", "127.0.0.2", "[::ffff:127.0.0.2]", "127.2"])
async def test_no_forward_proxy_is_sent_to_a_forbidden_literal(
    before: Before, registry: Registry, host: str
) -> None:
    with RegistryServer(Forwarder(registry)) as forwarder:
        ours = before("http://packages.invalid", proxy=forwarder.url)
        with pytest.raises(Misbehaved):
            await enter(ours, f"http://{host}/x")
        assert forwarder.count() == 0


@pytest.mark.parametrize(("status", "transient"), [(502, True), (403, False), (407, False)])
async def test_a_forward_proxy_that_refuses_is_the_upstream_out_of_reach(
    before: Before, status: int, transient: bool
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"CONNECT packages.invalid:443 HTTP/1.1\r\n")
        writer.write(Reply(status, b"no way").framed_head() + b"no way")
        await writer.drain()

    async with listening(refuse) as port:
        address = f"http://127.0.0.1:{port}"
        ours = before("https://packages.invalid", proxy=address)
        with pytest.raises(
            Unreachable, match=rf"upstreams\.company\.proxy\) answered {status}"
        ) as e:
            await index_of_serde(ours)
    assert address in str(e.value)
    assert (e.value.transient, e.value.failing) == (transient, True)


@pytest.mark.parametrize("field", ["Proxy-Status: proxy.corp; error=http_request_denied", None])
@pytest.mark.parametrize("status", [403, 404, 407])
async def test_what_a_forward_proxy_says_of_its_own_is_no_word_of_the_upstreams(
    before: Before, status: int, field: str | None
) -> None:
    """It speaks in the upstream's place; where it does not say so, only 407 gives it away."""
    headers = () if field is None else (("Proxy-Status", field.partition(": ")[2]),)

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(Reply(status, b"no", headers).framed_head() + b"no")
        await writer.drain()

    async with listening(refuse) as port:
        ours = before("http://packages.invalid", proxy=f"http://127.0.0.1:{port}")
        asking = ours.index_file(INDEX_PATH, NO_VALIDATORS)
        if field is None and status == 404:
            assert await asking == Absent(404)
            return
        own = Unreachable if field is not None or status == 407 else Troubled
        with pytest.raises(own, match=r"the proxy http://127.*upstreams\.company\.proxy"):
            await asking


async def test_a_forward_proxy_that_is_away_is_an_outage_and_may_have_a_private_name(
    before: Before,
) -> None:
    with trap_at("127.0.0.1") as trap:
        address = f"http://localhost:{trap.port}"
    with pytest.raises(Unreachable, match=rf"the proxy {address} .*cannot be reached: "):
        await index_of_serde(before("https://packages.invalid", proxy=address))


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:1080", "http://", "http://[::1", "::"])
async def test_a_variable_that_names_no_proxy_is_an_outage_that_names_the_variable(
    before: Before, upstream: RegistryServer, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("http_proxy", value)
    with pytest.raises(Unreachable, match="HTTP_PROXY of the environment") as caught:
        await index_of_serde(before(upstream.url))
    assert not caught.value.transient
    assert upstream.connections() == 0


async def test_a_proxy_of_the_environment_needs_no_scheme(
    before: Before, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.publish(SERDE)
    with RegistryServer(Forwarder(registry)) as forwarder:
        monkeypatch.setenv("http_proxy", forwarder.url.removeprefix("http://"))
        assert await index_of_serde(before("http://packages.invalid")) == registry.index("serde")


# Offline


async def test_an_offline_upstream_says_so_to_everything() -> None:
    offline = OfflineUpstream("company")
    assert offline.name == "company"
    with pytest.raises(Offline, match="company is offline and serde"):
        await offline.index_file("serde", NO_VALIDATORS)
    with pytest.raises(Offline, match="company is offline"):
        async with offline.crate("http://127.0.0.1:1/serde-1.0.0.crate?s3cr3t"):
            pass
    with pytest.raises(Offline, match="company is offline"):
        await offline.api_get("http://127.0.0.1:1/api")
