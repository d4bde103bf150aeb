"""Whatever an upstream does wrong, the client gets an honest answer and the cache stays right.

The expectations are `table.CASES`; the experiment is `observing`. Around it stand the laws that
know no exception.
"""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Launch
from tests.faults import mischief
from tests.faults.observing import (
    LONGEST_WAIT_SECONDS,
    Experiment,
    Got,
    Situation,
)
from tests.faults.table import CASES, document, kept
from tests.web.http11 import ask
from tests.world import faults
from tests.world.crates import Package
from tests.world.holdfast import Answer
from tests.world.registry import Registry, index_path
from tests.world.server import RegistryServer, bound_socket
from tests.world.wire import Reply, Request

DOCUMENT = Path(__file__).parents[2] / "docs" / "fault-table.md"


@pytest.fixture
def refusing(registry: Registry) -> Iterator[RegistryServer]:
    """A second server of the same registry, which will be stopped."""
    with RegistryServer(registry) as server:
        yield server


@pytest.mark.timeout(240)
def test_the_table_of_faults_holds(
    tmp_path: Path, registry: Registry, upstream: RegistryServer, refusing: RegistryServer
) -> None:
    cases = [case for case in CASES if not case.slow]
    suspects = [case.suspect() for case in cases]
    experiment = Experiment(tmp_path / "holdfast", suspects, upstream, refusing, registry)
    tried = [(case, trial) for case in cases for trial in case.suspect().trials]
    seen = {
        (case.title, trial.situation): came
        for (case, trial), came in zip(tried, experiment.run(), strict=True)
    }
    expected = {
        (case.title, trial.situation): case.expected(trial.situation) for case, trial in tried
    }
    assert {which: came.got for which, came in seen.items()} == expected
    assert {which: came.kept for which, came in seen.items()} == {
        which: kept(got) for which, got in expected.items() if got is not None
    }
    assert {which: came.heals for which, came in seen.items()} == {
        (case.title, trial.situation): not trial.remembered for case, trial in tried
    }
    assert [which for which, came in seen.items() if came.seconds > LONGEST_WAIT_SECONDS] == []


def test_a_crate_that_is_held_is_served_whatever_the_upstream_does(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("serde"))
    terms = {"fresh_for": "0s", "stale_while_revalidate": "0s"}
    proxy = launch({"crates-io": upstream}, upstreams={"crates-io": terms})
    url = f"/crates-io/crates/serde/1.0.0/{registry.release('serde', '1.0.0').cksum}"
    while proxy.get(url).how != "hit":
        pass
    upstream.clear()
    for case in CASES:
        upstream.heal()
        fault = case.fault_in(Situation.SMALL_CRATE)
        if fault is not None:
            upstream.fail("*", fault)
        answer = proxy.get(url)
        assert (answer.status, answer.how) == (200, "hit"), case.title
        assert answer.body == registry.crate("serde", "1.0.0")
    assert upstream.requests() == ()


def test_a_client_is_answered_in_time_though_the_upstream_never_comes_to_an_end(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("serde"), Package("other"))
    proxy = launch({"crates-io": upstream})
    crate = f"/crates-io/crates/serde/1.0.0/{registry.release('serde', '1.0.0').cksum}"
    index = f"/crates-io/index/{index_path('other')}"
    assert proxy.get(f"/crates-io/index/{index_path('serde')}").status == 200
    (case,) = [case for case in CASES if case.slow]
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
            "idle_timeout": "1s",
        }
        proxy = launch({"mute": upstream}, upstreams={"mute": settings})
        begun = time.monotonic()
        answer = proxy.get(f"/mute/index/{index_path('serde')}")
    assert (answer.status, answer.how) == (504, "error")
    assert answer.body == b"mute did not answer in time\n"
    assert time.monotonic() - begun < LONGEST_WAIT_SECONDS


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


class Street:
    """Many houses with one registry in each: the first segment of an index path is forgotten."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def answer(self, request: Request) -> Reply:
        house, _, rest = request.target.removeprefix("/").partition("/")
        if house.isdigit():
            request = replace(request, target=f"/{rest}")
        return self._registry.answer(request)


def test_without_its_config_an_upstreams_crates_wait_and_its_index_files_do_not(
    registry: Registry, upstream: RegistryServer, launch: Launch
) -> None:
    registry.publish(Package("serde"))
    upstream.site = Street(registry)
    bad_documents = (
        b"",
        b"{}",
        b"[]",
        b"not JSON",
        b'{"dl": "/crates"}',
        b'{"dl": "file:///etc/passwd"}',
        b'{"dl": 7}',
    )
    expected = [
        (faults.status(404), 502),
        (faults.status(403), 503),
        (faults.status(500), 503),
        (faults.hang(), 504),
        (faults.cut(), 503),
        (faults.login_page(), 502),
        (faults.login_page("application/json"), 502),
        (faults.unasked_304(), 502),
        (faults.redirect(faults.LINK_LOCAL_URL), 502),
        *((faults.instead("bad document", Reply(200, body)), 502) for body in bad_documents),
    ]
    numbers = range(len(expected))
    names = [f"up-{number}" for number in numbers]
    settings = {
        name: {"index": f"sparse+{upstream.url}/{number}/index/", "idle_timeout": "1s"}
        for number, name in zip(numbers, names, strict=True)
    }
    proxy = launch(dict.fromkeys(names, upstream), upstreams=settings)
    for number, (fault, _) in enumerate(expected):
        upstream.fail(f"/{number}/index/config.json", fault)

    async def ask_all(path: str) -> list[Answer]:
        return list(await asyncio.gather(*(ask(proxy.port, f"/{name}{path}") for name in names)))

    index, crate = f"/index/{index_path('serde')}", "/crates/serde/1.0.0/download"
    assert {answer.body for answer in asyncio.run(ask_all(index))} == {registry.index("serde")}
    statuses = [answer.status for answer in asyncio.run(ask_all(crate))]
    assert statuses == [status for _, status in expected]
    upstream.heal()
    bodies = {answer.body for answer in asyncio.run(ask_all(crate))}
    assert bodies == {registry.crate("serde", "1.0.0")}


@pytest.mark.parametrize(
    "dl", [faults.LINK_LOCAL_URL, f"{mischief.PRIVATE_URL}crates", "http://[::ffff:10.0.0.1]/x"]
)
def test_a_dl_that_leads_where_it_must_not_is_followed_by_nobody(
    registry: Registry, upstream: RegistryServer, launch: Launch, dl: str
) -> None:
    registry.publish(Package("serde"))
    registry.dl = dl
    proxy = launch({"crates-io": upstream})
    answer = proxy.get("/crates-io/crates/serde/1.0.0/download")
    assert (answer.status, answer.how) == (502, "error")
    assert b" address" in answer.body


def test_nothing_becomes_404_that_is_not_absence() -> None:
    for case in CASES:
        for situation in Situation:
            got = case.expected(situation)
            if got is not None and got.status not in (200, 502, 503, 504):
                assert got.status == 404
                assert case.settings or case.title in ("answers 404", "answers 410", "answers 451")


def test_the_document_says_what_the_table_says() -> None:
    assert DOCUMENT.read_text() == document(), "python -m tests.faults.table > docs/fault-table.md"
