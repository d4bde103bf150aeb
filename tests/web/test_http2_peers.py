"""Other people's clients: curl, nghttp and h2load, on every way in. Cargo has tests of its own."""

import re
from pathlib import Path

import pytest

from tests.conftest import Launch
from tests.web.conftest import crate_url, index_url
from tests.world.certificates import Authority
from tests.world.crates import Package
from tests.world.holdfast import Holdfast
from tests.world.programs import output_of, program
from tests.world.registry import Registry
from tests.world.server import RegistryServer

LARGE_BYTES = 700_000


@pytest.fixture
def stocked(registry: Registry) -> Registry:
    """A registry with a short index file, a long one, and a crate larger than any first window."""
    registry.publish(Package("small"), Package("large", padding_bytes=LARGE_BYTES))
    registry.publish_listed(*(Package("wide", f"1.{minor}.0") for minor in range(600)))
    return registry


@pytest.fixture
def proxy(launch: Launch, stocked: Registry, upstream: RegistryServer) -> Holdfast:
    """A proxy in front of it, everything in memory."""
    proxy = launch({"crates-io": upstream})
    for target in (index_url("small"), index_url("wide"), crate_url(stocked, "large")):
        assert proxy.get(target).status == 200
    return proxy


def written(text: str, name: str) -> int:
    found = re.search(rf"(\d+) {name}", text)
    assert found is not None, text
    return int(found[1])


@pytest.mark.parametrize(
    ("options", "version"),
    [
        (["--http1.1"], "1.1"),
        (["--http2"], "2"),
        (["--http2-prior-knowledge"], "2"),
    ],
    ids=["http/1.1", "upgrade", "prior knowledge"],
)
def test_curl_gets_the_same_bytes_on_every_way_in(
    proxy: Holdfast, stocked: Registry, tmp_path: Path, options: list[str], version: str
) -> None:
    wanted = {
        index_url("wide"): stocked.index("wide"),
        crate_url(stocked, "large"): stocked.crate("large", "1.0.0"),
    }
    for number, (target, body) in enumerate(wanted.items()):
        file = tmp_path / str(number)
        told = output_of(
            program("curl"),
            *("--silent", "--show-error", "--max-time", "20", "--noproxy", "*", *options),
            *("--output", str(file), "--write-out", "%{http_version} %{http_code}"),
            proxy.url + target,
        )
        assert told == f"{version} 200"
        assert file.read_bytes() == body


def test_curl_over_tls_is_given_http2(
    launch: Launch,
    stocked: Registry,
    upstream: RegistryServer,
    authority: Authority,
    tmp_path: Path,
) -> None:
    proxy = launch({"crates-io": upstream}, server={"tls": authority.issue(tmp_path / "tls")})
    root = tmp_path / "root.pem"
    authority.issuer.cert_pem.write_to_path(root)
    told = output_of(
        program("curl"),
        *("--silent", "--show-error", "--max-time", "20", "--noproxy", "*", "--cacert", str(root)),
        *("--output", str(tmp_path / "body"), "--write-out", "%{http_version} %{http_code}"),
        f"https://127.0.0.1:{proxy.port}{crate_url(stocked, 'large')}",
    )
    assert told == "2 200"
    assert (tmp_path / "body").read_bytes() == stocked.crate("large", "1.0.0")


def test_nghttp_multiplexes_what_is_hot_and_what_is_not(proxy: Holdfast, stocked: Registry) -> None:
    targets = [index_url("small"), index_url("wide"), crate_url(stocked, "large")]
    targets += [index_url("nobody"), "/crates-io/index/config.json"]
    told = output_of(
        program("nghttp"),
        *("--stat", "--null-out", "--timeout=20", "--window-bits=16"),
        *(proxy.url + target for target in targets),
    )
    rows = re.findall(r"^\s*\d+ .* (\d{3}) +\S+ (/\S+)$", told, re.MULTILINE)
    statuses = {target: int(status) for status, target in rows}
    assert statuses == {target: 404 if "nobody" in target else 200 for target in targets}


@pytest.mark.parametrize("streams", [1, 100])
def test_h2load_counts_no_failure_among_many_streams(
    proxy: Holdfast, stocked: Registry, streams: int
) -> None:
    for target, count in ((index_url("small"), 5000), (crate_url(stocked, "large"), 200)):
        told = output_of(
            program("h2load"),
            *("--requests", str(count), "--clients", "4", "--max-concurrent-streams", str(streams)),
            proxy.url + target,
        )
        for name in ("failed", "errored", "timeout"):
            assert written(told, name) == 0, told
        assert written(told, "succeeded") == written(told, "2xx") == count
