"""After kill -9, and after whatever was done to the files meanwhile: nothing wrong is ever served.

The ground rules: a stop without a farewell makes every blob unproven until it is hashed again;
sizes are looked at always; drafts are nobody's; files that are not ours are left alone.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Launch
from tests.faults.killing import Killing, blob_path
from tests.web.http11 import ask
from tests.world.crates import Package
from tests.world.holdfast import Answer, Holdfast
from tests.world.registry import Registry
from tests.world.server import RegistryServer

ROUNDS = 3
SIZES = {"small": 0, "large": 700_000}


def crate_url(registry: Registry, name: str) -> str:
    return f"/crates-io/crates/{name}/1.0.0/{registry.release(name, '1.0.0').cksum}"


def test_killed_under_load_it_serves_what_it_has_and_nothing_wrong(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    killing = Killing(proxy, upstream, registry)
    tallies = [killing.round(number) for number in range(ROUNDS)]
    assert all(tally.right for tally in tallies), "nothing outlived a kill"
    killing.finish()
    # A process that dies leaves no half of a file where a whole one should be.
    assert proxy.metric("integrity_failures_total", where="disk") == 0
    assert proxy.metric("integrity_failures_total", where="index") == 0


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped_at_the_end(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def extended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def removed(path: Path) -> None:
    path.unlink()


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def made_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def made_a_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    target.write_bytes(b"not what it should be")
    path.unlink()
    path.symlink_to(target)


Damage = Callable[[Path], None]
AT_ONCE_SEEN: tuple[Damage, ...] = (
    truncated,
    emptied,
    extended,
    removed,
    made_a_folder,
    made_a_pipe,
    made_a_link,
)
DAMAGES: tuple[Damage, ...] = (zeroed, flipped_at_the_end, *AT_ONCE_SEEN)


def damage_all(proxy: Holdfast, registry: Registry, damages: tuple[Damage, ...]) -> None:
    """Do to a small crate and to a large one whatever can be done."""
    for damage in damages:
        for size in SIZES:
            digest = registry.release(f"{damage.__name__}-{size}", "1.0.0").cksum
            damage(blob_path(proxy.cache_dir, digest))


def stock(proxy: Holdfast, registry: Registry) -> list[str]:
    """Publish and bring in a small crate and a large one for each kind of damage."""
    names = [f"{damage.__name__}-{size}" for damage in DAMAGES for size in SIZES]
    registry.publish(
        *(Package(name, padding_bytes=SIZES[name.rpartition("-")[2]]) for name in names)
    )
    for name in names:
        bring_in(proxy, crate_url(registry, name))
    return names


def bring_in(proxy: Holdfast, url: str) -> None:
    """Return once a crate is held: its last byte is sent a moment before it is stored."""
    for _ in range(1000):
        if proxy.get(url).how == "hit":
            return
    raise AssertionError(f"{url} is never stored")


def ask_all(proxy: Holdfast, urls: list[str]) -> list[Answer]:
    """Ask for all of these at once."""

    async def asked() -> list[Answer]:
        return list(await asyncio.gather(*(ask(proxy.port, url) for url in urls)))

    return asyncio.run(asked())


@pytest.mark.parametrize("upstream_is", ["up", "down"])
@pytest.mark.parametrize("stop", ["killed", "stopped"])
def test_damaged_blobs_are_never_served(
    registry: Registry, upstream: RegistryServer, launch: Launch, stop: str, upstream_is: str
) -> None:
    proxy = launch({"crates-io": upstream})
    names = stock(proxy, registry)
    urls = [crate_url(registry, name) for name in names]
    right = [registry.crate(name, "1.0.0") for name in names]
    if stop == "killed":
        proxy.kill()
        damages = DAMAGES
    else:
        proxy.stop()
        # What a graceful stop has vouched for is hashed by `verify`; its size is looked at always.
        damages = AT_ONCE_SEEN
    damage_all(proxy, registry, damages)
    if upstream_is == "down":
        upstream.stop()
    proxy.start()
    damaged = {f"{damage.__name__}-{size}" for damage in damages for size in SIZES}
    gone = (200, "miss") if upstream_is == "up" else (503, "error")
    expected = [gone if name in damaged else (200, "hit") for name in names]
    answers = ask_all(proxy, urls)
    assert [(answer.status, answer.how) for answer in answers] == expected
    for answer, data in zip(answers, right, strict=True):
        assert answer.status != 200 or answer.body == data
    if upstream_is == "down":
        upstream.start()
    assert [answer.body for answer in ask_all(proxy, urls)] == right


def test_what_was_found_bad_is_set_aside_and_counted(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("wanted"))
    proxy = launch({"crates-io": upstream})
    bring_in(proxy, crate_url(registry, "wanted"))
    proxy.kill()
    digest = registry.release("wanted", "1.0.0").cksum
    path = blob_path(proxy.cache_dir, digest)
    zeroed(path)
    zeros = path.read_bytes()
    proxy.start()
    assert proxy.get(crate_url(registry, "wanted")).body == registry.crate("wanted", "1.0.0")
    assert proxy.metric("integrity_failures_total", where="disk") == 1
    assert (proxy.cache_dir / "quarantine" / digest).read_bytes() == zeros
    proxy.stop()
    errors = [line for line in proxy.log() if line["level"] == "error"]
    assert [(line["where"], line["expected"]) for line in errors] == [("disk", digest)]


def test_the_marker_of_a_clean_stop_is_there_between_stop_and_start_and_at_no_other_time(
    upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    marker = proxy.cache_dir / "clean"
    assert not marker.exists()
    proxy.stop()
    assert marker.exists()
    proxy.start()
    assert not marker.exists()
    proxy.kill()
    assert not marker.exists()
    proxy.start()
    proxy.stop()
    assert marker.exists()


def test_drafts_are_emptied_at_the_start_and_strangers_are_left_alone(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("wanted", padding_bytes=2_000_000))
    proxy = launch({"crates-io": upstream})
    drafts = proxy.cache_dir / "drafts"
    data = registry.crate("wanted", "1.0.0")
    tap = upstream.tap("/crates/*", slice_bytes=len(data) // 2)
    with proxy.connect() as client:
        client.sendall(f"GET {crate_url(registry, 'wanted')} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        tap.let(1)
        received = b""
        while len(received) < len(data) // 4:
            received += client.recv(65_536)
        assert list(drafts.iterdir()) != []
        proxy.kill()
    strangers = [
        proxy.cache_dir / "README",
        proxy.cache_dir / "blobs" / "notes.txt",
        proxy.cache_dir / "blobs" / "sha256" / "zz",
        proxy.cache_dir / "blobs" / "sha256" / "ab" / "cd" / "not-a-digest",
        proxy.cache_dir / "blobs" / "sha256" / "ab" / "cd" / ("ef" * 32),
        proxy.state_dir / "mine",
    ]
    for stranger in strangers:
        stranger.parent.mkdir(parents=True, exist_ok=True)
        stranger.write_text("somebody else's")
    (drafts / "folder").mkdir()
    (drafts / "folder" / "file").write_text("left behind")
    (drafts / "link").symlink_to(strangers[0])
    tap.open()
    proxy.start()
    assert list(drafts.iterdir()) == []
    assert proxy.get(crate_url(registry, "wanted")).body == data
    proxy.restart()
    assert [stranger.read_text() for stranger in strangers] == ["somebody else's"] * len(strangers)


@pytest.mark.parametrize(
    ("lost", "how"),
    [
        ("ledger", zeroed),
        ("ledger", removed),
        ("index/cache.db", zeroed),
        ("index/cache.db", removed),
        ("clean", removed),
        ("format", removed),
    ],
)
def test_a_broken_book_costs_its_memory_and_no_truth(
    registry: Registry,
    upstream: RegistryServer,
    launch: Launch,
    lost: str,
    how: Damage,
) -> None:
    registry.publish(Package("wanted"), Package("heavy", padding_bytes=700_000))
    proxy = launch({"crates-io": upstream})
    urls = [crate_url(registry, name) for name in registry.names()]
    for url in urls:
        bring_in(proxy, url)
    proxy.stop()
    how(proxy.cache_dir / lost)
    proxy.start()
    answers = ask_all(proxy, urls)
    assert [answer.body for answer in answers] == [
        registry.crate(name, "1.0.0") for name in registry.names()
    ]
    # The blobs are there, whatever was forgotten about them.
    assert upstream.count("/crates/*") == len(urls)


def test_a_cache_of_an_unreadable_format_is_left_as_it_is(
    upstream: RegistryServer, launch: Launch
) -> None:
    proxy = launch({"crates-io": upstream})
    proxy.stop()
    path = proxy.cache_dir / "format"
    was = path.read_bytes()
    for content in (bytes(2), b"999999\n"):
        path.write_bytes(content)
        before = sorted(proxy.cache_dir.rglob("*"))
        refusal = proxy.command("serve")
        assert refusal.code == 3
        assert "nothing was touched" in refusal.stderr
        assert sorted(proxy.cache_dir.rglob("*")) == before
        assert path.read_bytes() == content
    path.write_bytes(was)
    proxy.start()
