"""Crate files on the wire: content-addressed, immutable, in whole or in part, and never guessed.

The word of the index decides what a version's bytes are; what contradicts it is nobody's.
"""

import pytest

from tests.web import http11
from tests.web.conftest import Proxy, Serve, bring_in, crate_url, index_url
from tests.world.crates import Package
from tests.world.registry import Registry
from tests.world.server import RegistryServer

IMMUTABLE = "public, max-age=31536000, immutable"
NAMES = ["small", "large"]


@pytest.mark.parametrize("name", NAMES)
async def test_a_content_addressed_crate_may_be_kept_for_ever(
    proxy: Proxy, stocked: Registry, name: str
) -> None:
    release = stocked.release(name, "1.0.0")
    url = crate_url(stocked, name)
    for how in ("miss", "hit"):
        answer = await proxy.ask(url)
        assert (answer.status, answer.how, answer.body) == (200, how, release.data)
        assert answer.headers["etag"] == f'"{release.cksum}"'
        assert answer.headers["cache-control"] == IMMUTABLE
        assert answer.headers["content-type"] == "application/gzip"
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["content-length"] == str(len(answer.body))
        # Cargo would unpack it once too often.
        assert "content-encoding" not in answer.headers
        await bring_in(proxy, url)


@pytest.mark.parametrize("last", ["download", "{sha256-checksum}", "%7Bsha256-checksum%7D"])
async def test_a_crate_without_a_digest_in_its_address_must_be_asked_for_again(
    proxy: Proxy, stocked: Registry, last: str
) -> None:
    answer = await proxy.ask(f"/crates-io/crates/large/1.0.0/{last}")
    assert answer.body == stocked.crate("large", "1.0.0")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["etag"] == f'"{stocked.release("large", "1.0.0").cksum}"'


async def test_the_api_download_is_answered_from_here_and_never_by_a_redirect(
    proxy: Proxy, stocked: Registry, upstream: RegistryServer
) -> None:
    answer = await proxy.ask("/crates-io/api/v1/crates/large/1.0.0/download")
    assert (answer.status, answer.body) == (200, stocked.crate("large", "1.0.0"))
    assert upstream.count("/api/*") == 0


async def test_every_address_of_a_crate_is_one_blob(
    proxy: Proxy, stocked: Registry, upstream: RegistryServer
) -> None:
    for url in (
        crate_url(stocked, "small"),
        "/crates-io/crates/small/1.0.0/download",
        "/crates-io/crates/small/1.0.0/{sha256-checksum}",
        "/crates-io/api/v1/crates/small/1.0.0/download",
        "/crates-io//crates/small//1.0.0/download",
    ):
        assert (await proxy.ask(url)).body == stocked.crate("small", "1.0.0")
    assert upstream.count("/crates/*") == 1


async def test_a_plus_in_a_version_comes_as_it_is_or_encoded(
    proxy: Proxy, stocked: Registry
) -> None:
    release = stocked.release("plus", "1.0.0+build.5")
    for vers in ("1.0.0+build.5", "1.0.0%2Bbuild.5", "1.0.0%2bbuild.5"):
        for last in (release.cksum, "download"):
            answer = await proxy.ask(f"/crates-io/crates/plus/{vers}/{last}")
            assert (answer.status, answer.body) == (200, release.data), (vers, last)
    # Cargo tells versions apart by their build numbers, and so do we.
    for vers in ("1.0.0", "1.0.0+build.6", "1.0.0 build.5", "1.0.0%20build.5"):
        encoded = vers.replace(" ", "%20")
        assert (await proxy.ask(f"/crates-io/crates/plus/{encoded}/download")).status == 404


async def test_a_crate_is_asked_for_in_its_own_case_while_its_index_path_is_lower_case(
    proxy: Proxy, stocked: Registry
) -> None:
    assert (await proxy.ask("/crates-io/index/mi/xe/mixed_case")).status == 200
    release = stocked.release("Mixed_Case", "1.0.0")
    answer = await proxy.ask(f"/crates-io/crates/Mixed_Case/1.0.0/{release.cksum}")
    assert (answer.status, answer.body) == (200, release.data)
    for name in ("mixed_case", "Mixed-Case"):
        assert (await proxy.ask(f"/crates-io/crates/{name}/1.0.0/download")).status == 404


@pytest.mark.parametrize("name", NAMES)
async def test_a_part_of_a_held_crate(proxy: Proxy, stocked: Registry, name: str) -> None:
    data = stocked.crate(name, "1.0.0")
    url, size = crate_url(stocked, name), len(data)
    await bring_in(proxy, url)
    for asked, start, stop in (
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=100-", 100, size),
        (f"bytes={size - 1}-", size - 1, size),
        ("bytes=-1", size - 1, size),
        ("bytes=-999999999", 0, size),
        ("bytes=5-999999999", 5, size),
        ("BYTES = 3 - 7", 3, 8),
    ):
        answer = await proxy.ask(url, {"Range": asked})
        assert (answer.status, answer.body) == (206, data[start:stop]), asked
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
        assert answer.headers["content-length"] == str(stop - start)
        assert answer.headers["etag"] == f'"{stocked.release(name, "1.0.0").cksum}"'
        assert answer.how == "hit"


async def test_a_part_in_the_middle_of_a_crate_of_many_blocks(
    proxy: Proxy, stocked: Registry
) -> None:
    stocked.publish(Package("huge", padding_bytes=1_500_000))
    data, url = stocked.crate("huge", "1.0.0"), crate_url(stocked, "huge")
    await bring_in(proxy, url)
    for start, stop in ((262_143, 262_145), (262_144, 524_288), (100, 1_400_000)):
        answer = await proxy.ask(url, {"Range": f"bytes={start}-{stop - 1}"})
        assert (answer.status, answer.body) == (206, data[start:stop])


async def test_a_part_that_lies_outside_is_416(proxy: Proxy, stocked: Registry) -> None:
    url, size = crate_url(stocked, "large"), len(stocked.crate("large", "1.0.0"))
    await bring_in(proxy, url)
    for asked in (f"bytes={size}-", f"bytes={size + 5}-{size + 9}", "bytes=-0"):
        answer = await proxy.ask(url, {"Range": asked})
        assert (answer.status, answer.body) == (416, b""), asked
        assert answer.headers["content-range"] == f"bytes */{size}"


async def test_what_is_no_single_range_gets_the_whole(proxy: Proxy, stocked: Registry) -> None:
    url, data = crate_url(stocked, "large"), stocked.crate("large", "1.0.0")
    await bring_in(proxy, url)
    for asked in ("bytes=0-1,5-6", "lines=1-2", "bytes=5-1", "bytes=-", "bytes=a-b", ""):
        answer = await proxy.ask(url, {"Range": asked})
        assert (answer.status, answer.body) == (200, data), asked
        assert "content-range" not in answer.headers


async def test_a_range_counts_only_while_the_bytes_are_the_ones_that_were_meant(
    proxy: Proxy, stocked: Registry
) -> None:
    url, data = crate_url(stocked, "large"), stocked.crate("large", "1.0.0")
    await bring_in(proxy, url)
    etag = f'"{stocked.release("large", "1.0.0").cksum}"'
    part = await proxy.ask(url, {"Range": "bytes=7-9", "If-Range": etag})
    assert (part.status, part.body) == (206, data[7:10])
    # RFC 9110 13.1.5: a weak tag never holds here, and a date we never gave.
    for other in ('"other"', f"W/{etag}", "Thu, 01 Jan 2026 00:00:01 GMT"):
        whole = await proxy.ask(url, {"Range": "bytes=7-9", "If-Range": other})
        assert (whole.status, whole.body) == (200, data), other


async def test_a_range_of_a_crate_that_is_only_arriving_gets_the_whole(
    proxy: Proxy, stocked: Registry
) -> None:
    answer = await proxy.ask(crate_url(stocked, "large"), {"Range": "bytes=0-9"})
    assert (answer.status, answer.how) == (200, "miss")
    assert answer.body == stocked.crate("large", "1.0.0")


async def test_a_range_is_no_matter_of_head(proxy: Proxy, stocked: Registry) -> None:
    url = crate_url(stocked, "large")
    await bring_in(proxy, url)
    answer = await proxy.ask(url, {"Range": "bytes=0-9"}, method="HEAD")
    assert answer.status == 200
    assert answer.headers["content-length"] == str(len(stocked.crate("large", "1.0.0")))


@pytest.mark.parametrize("name", NAMES)
async def test_who_has_the_crate_is_told_so_without_a_body(
    proxy: Proxy, stocked: Registry, name: str
) -> None:
    url, etag = crate_url(stocked, name), f'"{stocked.release(name, "1.0.0").cksum}"'
    await bring_in(proxy, url)
    for header in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = await proxy.ask(url, {"If-None-Match": header})
        assert answer.status == 304, header
        assert answer.headers["etag"] == etag
        assert answer.headers["cache-control"] == IMMUTABLE
    lines = [("If-None-Match", '"other"'), ("If-None-Match", etag)]
    assert (await http11.ask(proxy.port, url, headers=lines, tls=proxy.tls)).status == 304
    other = await proxy.ask(url, {"If-None-Match": '"other"'})
    assert (other.status, other.body) == (200, stocked.crate(name, "1.0.0"))


async def test_what_the_index_does_not_name_is_404(
    serve: Serve, proxy: Proxy, stocked: Registry, upstream: RegistryServer
) -> None:
    small, large = stocked.release("small", "1.0.0"), stocked.release("large", "1.0.0")
    # Both are held, so that only the index can keep them apart.
    for name in NAMES:
        await bring_in(proxy, crate_url(stocked, name))
    upstream.clear()
    for url in (
        f"/crates-io/crates/small/1.0.0/{large.cksum}",
        f"/crates-io/crates/small/1.0.1/{small.cksum}",
        f"/crates-io/crates/unknown/1.0.0/{small.cksum}",
        f"/crates-io/crates/small/1.0.0/{'0' * 64}",
        "/crates-io/crates/small/1.0.1/download",
        "/crates-io/crates/unknown/1.0.0/download",
    ):
        answer = await proxy.ask(url)
        assert (answer.status, answer.how) == (404, "negative"), url
        assert answer.headers["cache-control"] == "no-store"
        assert answer.body.startswith(b"the index of crates-io has no ")
    assert upstream.count("/crates/*") == 0


async def test_what_cannot_be_a_crate_is_404_and_nobody_is_asked(
    proxy: Proxy, stocked: Registry, upstream: RegistryServer
) -> None:
    cksum = stocked.release("small", "1.0.0").cksum
    for path in (
        f"small/1.0.0/{cksum.upper()}",
        f"small/1.0.0/{cksum[:-1]}",
        f"small/1.0.0/{cksum}0",
        "small/1.0/download",
        "small/v1.0.0/download",
        "small/1.0.0/upload",
        "sm%61ll%20/1.0.0/download",
        "-small/1.0.0/download",
        "../1.0.0/download",
        "%2e%2e/1.0.0/download",
        "small/1.0.0%2f..%2f/download",
        "small/1.0.0%00/download",
        "sm\u00e4ll/1.0.0/download".replace("\u00e4", "%C3%A4"),
    ):
        answer = await proxy.ask(f"/crates-io/crates/{path}")
        assert (answer.status, answer.how) == (404, "refused"), path
    assert upstream.requests() == ()


async def test_a_digest_of_another_registry_is_nobodys_here_though_its_blob_be_held(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    secrets = Registry()
    secrets.publish(Package("small", files={"SECRET": "of the company"}))
    with RegistryServer(secrets) as company:
        proxy = await serve(upstream, upstreams={"company": {"index": company.index_url}})
        cksum = secrets.release("small", "1.0.0").cksum
        held = await proxy.ask(f"/company/crates/small/1.0.0/{cksum}")
        assert (held.status, held.body) == (200, secrets.crate("small", "1.0.0"))
        answer = await proxy.ask(f"/crates-io/crates/small/1.0.0/{cksum}")
        assert (answer.status, answer.how) == (404, "negative")
        answer = await proxy.ask("/crates-io/crates/small/1.0.0/download")
        assert answer.body == stocked.crate("small", "1.0.0")


async def test_a_republished_version_keeps_both_of_its_bodies(
    serve: Serve, stocked: Registry, upstream: RegistryServer
) -> None:
    terms = {"fresh_for": "0s", "stale_while_revalidate": "0s"}
    proxy = await serve(upstream, crates_io=terms)
    old_url, old = crate_url(stocked, "small"), stocked.crate("small", "1.0.0")
    await bring_in(proxy, old_url)
    stocked.publish(Package("small", files={"NEWS": "other bytes"}))
    new_url, new = crate_url(stocked, "small"), stocked.crate("small", "1.0.0")
    assert (await proxy.ask(index_url("small"))).body == stocked.index("small")
    assert (await proxy.ask(new_url)).body == new != old
    assert (await proxy.ask(old_url)).body == old
    assert (await proxy.ask("/crates-io/crates/small/1.0.0/download")).body == new
