"""Many clients at once, some of them slow, some of them gone: one request upstream serves them all.

The crowd is gathered before the upstream says its first word, so that nobody can be served from
what is held already; how many have come is read off the proxy's own gauge of connections.
"""

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Sequence

import pytest

from tests.conftest import Launch
from tests.web.http11 import PATIENCE_SECONDS, BrokenOff, ask, read_answer, read_head, request_head
from tests.world import faults
from tests.world.crates import Package
from tests.world.holdfast import Answer, Holdfast
from tests.world.registry import Registry, index_path
from tests.world.server import RegistryServer

CROWD = 64
LARGE_BYTES = 3_000_000
ALWAYS_ASK = {"crates-io": {"fresh_for": "0s", "stale_while_revalidate": "0s"}}


def index_url(name: str) -> str:
    """Return the path of a name's index file on the proxy."""
    return f"/crates-io/index/{index_path(name)}"


def crate_url(registry: Registry, name: str) -> str:
    """Return the content-addressed path of a crate on the proxy."""
    return f"/crates-io/crates/{name}/1.0.0/{registry.release(name, '1.0.0').cksum}"


async def gathered(proxy: Holdfast, count: int) -> None:
    """Return once so many clients are connected, besides the one that asks."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await connections(proxy) - 1 < count:
            await asyncio.sleep(0.02)


async def connections(proxy: Holdfast) -> float:
    """Return how many connections the proxy has."""
    return await asyncio.to_thread(proxy.metric, "connections")


async def brought_in(proxy: Holdfast, url: str) -> Answer:
    """Return the first answer that comes from what is held."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (answer := await ask(proxy.port, url)).how != "hit":
            await asyncio.sleep(0.02)
        return answer


def crowd(proxy: Holdfast, url: str, **headers: str) -> list["asyncio.Task[Answer]"]:
    """Let sixty-four clients ask."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return [asyncio.create_task(ask(proxy.port, url, headers=sent)) for _ in range(CROWD)]


def were_served_by_one(answers: Sequence[Answer]) -> bool:
    """Tell whether one client was served from the upstream, and the others with it or after it."""
    hows = Counter(answer.how for answer in answers)
    return hows["miss"] == 1 and hows["coalesced"] + hows["hit"] == len(answers) - 1


async def test_an_index_file_is_asked_for_once(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish_listed(*(Package("wanted", f"1.{minor}.0") for minor in range(200)))
    proxy = launch({"crates-io": upstream})
    with upstream.hold("/index/*") as gate:
        waiting = crowd(proxy, index_url("wanted"))
        await gate.arrived(1)
        await gathered(proxy, CROWD)
    answers = await asyncio.gather(*waiting)
    assert {answer.body for answer in answers} == {registry.index("wanted")}
    assert were_served_by_one(answers)
    assert upstream.counts() == {"/index/wa/nt/wanted": 1}


@pytest.mark.parametrize("padding_bytes", [0, LARGE_BYTES], ids=["small", "large"])
async def test_a_crate_of_which_nothing_is_known_is_asked_for_once_with_all_that_it_takes(
    registry: Registry, upstream: RegistryServer, launch: Launch, padding_bytes: int
) -> None:
    registry.publish(Package("wanted", padding_bytes=padding_bytes))
    proxy = launch({"crates-io": upstream})
    with upstream.hold("/crates/*") as gate:
        waiting = crowd(proxy, crate_url(registry, "wanted"))
        await gate.arrived(1)
        await gathered(proxy, CROWD)
    answers = await asyncio.gather(*waiting)
    assert {answer.body for answer in answers} == {registry.crate("wanted", "1.0.0")}
    assert were_served_by_one(answers)
    assert upstream.counts() == {
        "/index/config.json": 1,
        "/index/wa/nt/wanted": 1,
        registry.download_path("wanted", "1.0.0"): 1,
    }


async def test_many_clients_with_many_wishes_cause_one_request_for_each_wish(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    names = [f"wanted-{number}" for number in range(8)]
    registry.publish(
        *(Package(name, padding_bytes=number * 60_000) for number, name in enumerate(names))
    )
    proxy = launch({"crates-io": upstream})

    async def client(number: int) -> None:
        for step in range(len(names)):
            name = names[(number + step) % len(names)]
            index = await ask(proxy.port, index_url(name))
            assert index.body == registry.index(name)
            crate = await ask(proxy.port, crate_url(registry, name))
            assert crate.body == registry.crate(name, "1.0.0")

    await asyncio.gather(*(client(number) for number in range(CROWD)))
    assert upstream.counts() == dict.fromkeys(
        [
            "/index/config.json",
            *(f"/index/{index_path(name)}" for name in names),
            *(registry.download_path(name, "1.0.0") for name in names),
        ],
        1,
    )


async def test_a_stale_index_file_is_asked_for_once_by_all_who_have_it(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("wanted"))
    proxy = launch({"crates-io": upstream}, upstreams=ALWAYS_ASK)
    tag = (await ask(proxy.port, index_url("wanted"))).headers["etag"]
    registry.publish(Package("wanted", "1.1.0"))
    upstream.clear()
    with upstream.hold("/index/*") as gate:
        waiting = crowd(proxy, index_url("wanted"), If_None_Match=tag)
        await gate.arrived(1)
        await gathered(proxy, CROWD)
    answers = await asyncio.gather(*waiting)
    assert {answer.body for answer in answers} == {registry.index("wanted")}
    assert upstream.count() == 1


@pytest.mark.parametrize(
    ("fault", "status", "attempts"),
    [(faults.status(404), 404, 1), (faults.status(500), 503, 3), (faults.login_page(), 502, 1)],
    ids=str,
)
async def test_a_crowd_shares_a_failure_too(
    registry: Registry,
    upstream: RegistryServer,
    launch: Launch,
    fault: faults.Fault,
    status: int,
    attempts: int,
) -> None:
    proxy = launch({"crates-io": upstream})
    upstream.fail("/index/*", fault)
    with upstream.hold("/index/*") as gate:
        waiting = crowd(proxy, index_url("wanted"))
        await gate.arrived(1)
        await gathered(proxy, CROWD)
    answers = await asyncio.gather(*waiting)
    assert {answer.status for answer in answers} == {status}
    assert upstream.count() == attempts


class Client:
    """One client that reads at its own pace."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.received = b""

    @classmethod
    async def asking(cls, proxy: Holdfast, url: str) -> "Client":
        """Connect and ask, with room for little that is not read."""
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(narrow, ("127.0.0.1", proxy.port))
        reader, writer = await asyncio.open_connection(sock=narrow, limit=4096)
        writer.write(request_head(url, "GET", [("Host", "x")]))
        return cls(reader, writer)

    async def head(self) -> int:
        """Read the head; returns the status."""
        status, _ = await read_head(self._reader)
        return status

    async def read(self, length: int) -> None:
        """Read so many bytes of the body."""
        self.received += await self._reader.readexactly(length)

    async def leave(self) -> None:
        """Hang up in the rudest way; the other side's kernel knows when this returns."""
        self._writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self._writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


async def test_the_first_client_killed_half_way_changes_nothing_for_the_others(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("wanted", padding_bytes=LARGE_BYTES))
    proxy = launch({"crates-io": upstream})
    data, url = registry.crate("wanted", "1.0.0"), crate_url(registry, "wanted")
    tap = upstream.tap("/crates/*", slice_bytes=len(data) // 2)
    first = await Client.asking(proxy, url)
    tap.let(1)
    assert await first.head() == 200
    await first.read(len(data) // 4)
    waiting = crowd(proxy, url)
    await gathered(proxy, CROWD + 1)
    await first.leave()
    tap.open()
    answers = await asyncio.gather(*waiting)
    assert {answer.body for answer in answers} == {data}
    assert upstream.count("/crates/*") == 1


async def test_a_client_at_a_kilobyte_a_second_delays_nobody(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("wanted", padding_bytes=LARGE_BYTES))
    proxy = launch({"crates-io": upstream})
    data, url = registry.crate("wanted", "1.0.0"), crate_url(registry, "wanted")
    others_done = asyncio.Event()
    slow = await Client.asking(proxy, url)
    assert await slow.head() == 200

    async def crawl() -> None:
        while not others_done.is_set():
            await slow.read(1024)
            try:
                await asyncio.wait_for(others_done.wait(), 1.0)
            except TimeoutError:
                continue

    crawling = asyncio.create_task(crawl())
    async with asyncio.timeout(PATIENCE_SECONDS):
        answers = await asyncio.gather(*crowd(proxy, url))
    others_done.set()
    await crawling
    assert {answer.body for answer in answers} == {data}
    assert len(slow.received) < len(data) // 10
    assert upstream.count("/crates/*") == 1
    # It was not forgotten either: what it gets in the end is right.
    await slow.read(len(data) - len(slow.received))
    assert slow.received == data
    await slow.leave()


async def test_a_client_that_reads_nothing_does_not_keep_the_crate_from_being_stored(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("wanted", padding_bytes=LARGE_BYTES))
    proxy = launch({"crates-io": upstream})
    url = crate_url(registry, "wanted")
    mute = await Client.asking(proxy, url)
    answer = await brought_in(proxy, url)
    assert answer.body == registry.crate("wanted", "1.0.0")
    assert upstream.count("/crates/*") == 1
    await mute.leave()


async def test_a_client_that_leaves_a_slow_crate_does_not_cancel_it(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("wanted", padding_bytes=LARGE_BYTES))
    proxy = launch({"crates-io": upstream})
    data, url = registry.crate("wanted", "1.0.0"), crate_url(registry, "wanted")
    tap = upstream.tap("/crates/*", slice_bytes=len(data) // 4)
    only = await Client.asking(proxy, url)
    tap.let(2)
    assert await only.head() == 200
    await only.read(len(data) // 4)
    await only.leave()
    tap.open()
    answer = await brought_in(proxy, url)
    assert answer.body == data
    assert upstream.count("/crates/*") == 1


@pytest.mark.parametrize("what", ["index", "crate"])
async def test_a_client_that_leaves_before_the_first_word_does_not_cancel_the_question(
    registry: Registry, upstream: RegistryServer, launch: Launch, what: str
) -> None:
    registry.publish(Package("wanted"))
    proxy = launch({"crates-io": upstream})
    url = index_url("wanted") if what == "index" else crate_url(registry, "wanted")
    pattern = "/index/wa/*" if what == "index" else "/crates/*"
    with upstream.hold(pattern) as gate:
        only = await Client.asking(proxy, url)
        await gate.arrived(1)
        await only.leave()
    answer = await brought_in(proxy, url)
    assert answer.status == 200
    assert upstream.count(pattern) == 1


async def test_when_the_upstream_breaks_off_for_good_all_clients_are_cut_and_none_is_misled(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("wanted", padding_bytes=LARGE_BYTES))
    proxy = launch({"crates-io": upstream})
    upstream.fail("/crates/*", faults.cut())
    url = crate_url(registry, "wanted")
    with upstream.hold("/crates/*") as gate:
        waiting = crowd(proxy, url)
        await gate.arrived(1)
        await gathered(proxy, CROWD)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {BrokenOff}
    assert upstream.count("/crates/*") == 3
    upstream.heal()
    assert (await brought_in(proxy, url)).body == registry.crate("wanted", "1.0.0")


async def test_a_crowd_on_one_connection_each_keeps_its_connections(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("wanted"))
    proxy = launch({"crates-io": upstream})

    async def client() -> set[bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        bodies = set()
        for _ in range(10):
            writer.write(request_head(index_url("wanted"), "GET", [("Host", "x")]))
            bodies.add((await read_answer(reader, until_close=False)).body)
        writer.close()
        return bodies

    async with asyncio.timeout(PATIENCE_SECONDS):
        seen = await asyncio.gather(*(client() for _ in range(CROWD)))
    assert seen == [{registry.index("wanted")}] * CROWD
    assert upstream.count() == 1
