"""Whatever an upstream does wrong, the client gets an honest answer and the cache stays right.

The expectations are `table.CASES`; the experiment is `observing`. Around it stand the laws that
know no exception.
"""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import Launch
from tests.faults import mischief
from tests.faults.observing import (
    LONGEST_WAIT_SECONDS,
    Experiment,
    Got,
    Seen,
    Situation,
)
from tests.faults.table import CASES, Case, cases_for, document, kept
from tests.web.http11 import ask
from tests.world import faults
from tests.world.crates import Package
from tests.world.holdfast import Answer
from tests.world.registry import Registry, index_path
from tests.world.server import RegistryServer, bound_socket

DOCUMENT = Path(__file__).parents[2] / "docs" / "fault-table.md"


@pytest.fixture
def refusing(registry: Registry) -> Iterator[RegistryServer]:
    """A second server of the same registry, which will be stopped."""
    with RegistryServer(registry) as server:
        yield server


def observe(
    tmp_path: Path,
    situation: Situation,
    cases: list[Case],
    servers: tuple[RegistryServer, RegistryServer],
    registry: Registry,
) -> dict[str, Seen]:
    trials = [case.trial(situation) for case in cases]
    experiment = Experiment(tmp_path / "holdfast", situation, trials, *servers, registry)
    return {case.title: seen for case, seen in zip(cases, experiment.run(), strict=True)}


@pytest.mark.parametrize("situation", Situation, ids=lambda situation: situation.name.lower())
def test_the_table_of_faults_holds(
    tmp_path: Path,
    registry: Registry,
    upstream: RegistryServer,
    refusing: RegistryServer,
    situation: Situation,
) -> None:
    cases = list(cases_for(situation, slow=False))
    seen = observe(tmp_path, situation, cases, (upstream, refusing), registry)
    expected = {case.title: case.expected(situation) for case in cases}
    assert {title: each.got for title, each in seen.items()} == expected
    assert {title: each.kept for title, each in seen.items()} == {
        title: kept(got) for title, got in expected.items() if got is not None
    }
    assert {title: each.heals for title, each in seen.items()} == {
        case.title: not case.is_remembered(situation) for case in cases
    }
    assert {title for title, each in seen.items() if each.seconds > LONGEST_WAIT_SECONDS} == set()


def test_a_client_is_answered_in_time_though_the_upstream_never_comes_to_an_end(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("serde"), Package("other"))
    proxy = launch({"crates-io": upstream})
    crate = f"/crates-io/crates/serde/1.0.0/{registry.release('serde', '1.0.0').cksum}"
    index = f"/crates-io/index/{index_path('other')}"
    assert proxy.get(f"/crates-io/index/{index_path('serde')}").status == 200
    (case,) = cases_for(Situation.INDEX_COLD, slow=True)
    assert case.fault is not None
    upstream.fail("/crates/*", case.fault)
    upstream.fail("/index/ot/*", case.fault)
    begun = time.monotonic()

    async def ask_both() -> list[Answer]:
        return list(await asyncio.gather(ask(proxy.port, index), ask(proxy.port, crate)))

    answers = asyncio.run(ask_both())
    assert time.monotonic() - begun < LONGEST_WAIT_SECONDS
    expected = [case.expected(Situation.INDEX_COLD), case.expected(Situation.SMALL_CRATE)]
    assert [
        Got(answer.status, answer.how or "", answer.body.decode().strip()) for answer in answers
    ] == expected
    proxy.kill()
    upstream.stop()
    proxy.start()
    assert [proxy.get(url).status for url in (index, crate)] == [503, 503]


def test_an_upstream_that_takes_no_connection_is_given_up_in_time(
    tmp_path: Path, registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    with bound_socket(0) as full, ExitStack() as queue:
        full.listen(0)
        # Once a queue of no length is full, the kernel does not even answer.
        for _ in range(2):
            client = queue.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        settings = {
            "index": f"sparse+http://127.0.0.1:{port}/index/",
            "connect_timeout": "500ms",
        }
        proxy = launch({"mute": upstream}, upstreams={"mute": settings})
        begun = time.monotonic()
        answer = proxy.get(f"/mute/index/{index_path('serde')}")
    assert (answer.status, answer.how) == (504, "error")
    assert answer.body == b"mute did not answer in time\n"
    assert time.monotonic() - begun < 5


TRANSIENT = [
    faults.reset("before the head"),
    faults.reset("in the head"),
    faults.reset("in the body"),
    faults.cut(),
    faults.cut_chunked(),
    mischief.hung_up(),
    faults.status(429, retry_after="1"),
    faults.status(500),
    faults.status(503),
]


def test_what_passes_by_itself_is_no_trouble_of_the_clients(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    """Each fault is played twice to each path, and what is tried three times succeeds."""
    urls: dict[str, bytes] = {}
    for number, fault in enumerate(TRANSIENT):
        for name, padding_bytes in ((f"small-{number}", 0), (f"large-{number}", 300_000)):
            registry.publish(Package(name, padding_bytes=padding_bytes))
            upstream.fail(f"*/{name}*", fault, times_per_path=2)
            urls[f"/up-{number}/index/{index_path(name)}"] = registry.index(name)
            urls[f"/up-{number}/crates/{name}/1.0.0/download"] = registry.crate(name, "1.0.0")
    # One upstream each: retries are rationed by upstream.
    proxy = launch({f"up-{number}": upstream for number in range(len(TRANSIENT))})

    async def ask_all() -> list[Answer]:
        return list(await asyncio.gather(*(ask(proxy.port, url) for url in urls)))

    answers = asyncio.run(ask_all())
    assert [answer.status for answer in answers] == [200] * len(urls)
    assert [answer.body for answer in answers] == list(urls.values())
    assert upstream.count("/index/??/*") + upstream.count("/crates/*") == 3 * len(urls)


def test_nothing_becomes_404_that_is_not_absence() -> None:
    for case in CASES:
        for situation in Situation:
            got = case.expected(situation)
            if got is not None and got.status not in (200, 502, 503, 504):
                assert got.status == 404
                assert case.settings or case.title in ("answers 404", "answers 410", "answers 451")


def test_the_document_says_what_the_table_says() -> None:
    assert DOCUMENT.read_text() == document(), "python -m tests.faults.table > docs/fault-table.md"
