"""A crate handed through without a disk: the same law, for one client."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.answers import Absent
from proxy.core.events import Kind, UpstreamReceived
from proxy.core.failures import (
    ChecksumMismatch,
    Misbehaved,
    StoreFailure,
    Unreachable,
    UpstreamFailure,
)
from proxy.service.download import HOLD_BACK_BYTES
from proxy.service.passthrough import Passage
from tests.service.scene import Scene, always, one_scene
from tests.world import faults
from tests.world.crates import sha256
from tests.world.loop import play
from tests.world.upstream import Shipment
from tests.world.wire import Reply

PATH = "/crates/serde/serde-1.0.0.crate"
TRUTH = bytes(range(251)) * 1200
SMALL = TRUTH[:1000]


def forget(failure: UpstreamFailure) -> None:
    """Take a mismatch for nothing."""


def passing(
    scene: Scene,
    body: bytes,
    digest: str | None = None,
    disproved: Callable[[UpstreamFailure], None] = forget,
) -> Passage:
    """Make a passage for `body`, which is not begun yet."""
    scene.upstream.reply(PATH, Reply(200, body, (("Content-Type", "application/gzip"),)))
    return Passage(
        scene.source,
        scene.observer,
        address=always(scene.upstream.url + PATH),
        digest=sha256(body) if digest is None else digest,
        subject="serde 1.0.0",
        vouched_by="",
        disproved=disproved,
    )


async def read_out(passage: Passage) -> tuple[bytes, Exception | None]:
    """Read to the end, or to what it breaks off with."""
    got = b""
    try:
        while chunk := await passage.read(len(got)):
            got += chunk
    except (UpstreamFailure, StoreFailure) as failure:
        return got, failure
    return got, None


@pytest.mark.parametrize("body", [b"", SMALL, TRUTH], ids=len)
@pytest.mark.parametrize("announces", [False, True])
async def test_the_bytes_pass(scene: Scene, body: bytes, announces: bool) -> None:
    scene.upstream.announces = announces
    passage = passing(scene, body)
    await passage.begin()
    assert passage.size_bytes == (len(body) if announces else None)
    assert await read_out(passage) == (body, None)
    assert await passage.read(len(body)) == b""
    await passage.aclose()
    assert scene.upstream.open_bodies == 0
    assert scene.blobs.all_drafts == []


@pytest.mark.parametrize("digest", [None, "0" * 64])
@pytest.mark.parametrize("cut_after", [None, 100_000])
async def test_what_came_is_counted_once_however_it_ended(
    scene: Scene, digest: str | None, cut_after: int | None
) -> None:
    scene.upstream.ship(PATH, Shipment(cut_after=cut_after))
    passage = passing(scene, TRUTH, digest)
    await passage.begin()
    await read_out(passage)
    for _ in range(2):
        await passage.aclose()
    came = len(TRUTH) if cut_after is None else cut_after
    assert scene.observer.of(UpstreamReceived) == [UpstreamReceived("crates-io", Kind.CRATE, came)]


async def test_whoever_began_it_hears_of_wrong_bytes(scene: Scene) -> None:
    heard: list[UpstreamFailure] = []
    passage = passing(scene, TRUTH, "0" * 64, heard.append)
    await passage.begin()
    _, failure = await read_out(passage)
    await passage.aclose()
    assert heard == [failure]


async def test_wrong_bytes_that_fit_into_what_is_withheld_are_a_failure_at_once(
    scene: Scene,
) -> None:
    passage = passing(scene, SMALL, digest="0" * 64)
    with pytest.raises(ChecksumMismatch):
        await passage.begin()
    await passage.aclose()
    assert scene.upstream.open_bodies == 0


async def test_wrong_bytes_beyond_that_are_cut_short(scene: Scene) -> None:
    passage = passing(scene, TRUTH, digest="0" * 64)
    await passage.begin()
    got, failure = await read_out(passage)
    assert isinstance(failure, ChecksumMismatch)
    assert len(got) <= len(TRUTH) - HOLD_BACK_BYTES
    assert isinstance((await read_out(passage))[1], UpstreamFailure), "and stay so"
    await passage.aclose()


@pytest.mark.parametrize("cut_after", [0, 1000, 100_000, 300_000])
async def test_what_breaks_off_breaks_off(scene: Scene, cut_after: int) -> None:
    scene.upstream.ship(PATH, Shipment(cut_after=cut_after))
    passage = passing(scene, TRUTH)
    got, failure = b"", None
    try:
        await passage.begin()
        got, failure = await read_out(passage)
    except Unreachable as early:
        failure = early
    assert isinstance(failure, Unreachable)
    assert scene.tell() == ["asked for crate: found", "gave up on serde 1.0.0"]
    assert TRUTH.startswith(got)
    assert len(got) + HOLD_BACK_BYTES <= max(cut_after, HOLD_BACK_BYTES)
    assert isinstance((await read_out(passage))[1], UpstreamFailure), "and is not taken up again"
    await passage.aclose()


async def test_the_beginning_is_tried_again(scene: Scene) -> None:
    scene.upstream.fail(PATH, lambda: Unreachable("crates-io broke off"), times=2)
    passage = passing(scene, TRUTH)
    await passage.begin()
    assert await read_out(passage) == (TRUTH, None)
    assert scene.upstream.open_bodies == 1, "those that failed are given back already"
    await passage.aclose()


async def test_what_is_not_there_is_absent(scene: Scene) -> None:
    scene.upstream.reply(PATH, Reply(404))
    passage = passing(scene, TRUTH)
    await passage.begin()
    assert passage.absent == Absent(404)
    assert passage.size_bytes is None
    await passage.aclose()


async def test_a_web_page_is_called_one(scene: Scene) -> None:
    scene.upstream.reply(PATH, Reply(200, faults.LOGIN_PAGE, (("Content-Type", "text/html"),)))
    passage = passing(scene, TRUTH)
    with pytest.raises(Misbehaved, match="web page"):
        await passage.begin()
    await passage.aclose()


async def test_it_may_be_left_at_any_time(scene: Scene) -> None:
    unbegun = passing(scene, TRUTH)
    await unbegun.aclose()
    half_way = passing(scene, TRUTH)
    await half_way.begin()
    assert await half_way.read(0)
    await half_way.aclose()
    assert scene.upstream.open_bodies == 0


async def test_a_client_that_leaves_while_it_waits_gives_the_connection_back(
    scene: Scene,
) -> None:
    tap = scene.upstream.tap(PATH)
    passage = passing(scene, TRUTH)
    waiting = asyncio.ensure_future(passage.begin())
    await tap.is_dry()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await passage.aclose()
    assert scene.upstream.open_bodies == 0


async def test_what_is_withheld_is_not_sent_before_the_end_has_come(scene: Scene) -> None:
    tap = scene.upstream.tap(PATH, chunk_bytes=10_000)
    passage = passing(scene, TRUTH)
    tap.let(20)
    await passage.begin()
    got = b""
    while True:
        reading = asyncio.ensure_future(passage.read(len(got)))
        done, _ = await asyncio.wait({reading}, timeout=1.0)
        if not done:
            break
        got += reading.result()
    assert len(got) == 130_000, "the last whole chunks that leave enough behind them"
    tap.open()
    got += await reading
    rest, failure = await read_out(passage)
    assert (got + rest, failure) == (TRUTH, None)
    await passage.aclose()


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    size=st.integers(0, 4 * HOLD_BACK_BYTES),
    chunk_bytes=st.integers(500, 2 * HOLD_BACK_BYTES),
    is_true=st.booleans(),
    cut_after=st.none() | st.integers(0, 4 * HOLD_BACK_BYTES),
)
def test_it_ends_with_the_truth_or_is_cut_short_before_the_end(
    size: int, chunk_bytes: int, is_true: bool, cut_after: int | None
) -> None:
    truth = TRUTH[:size]

    async def scene_of_it() -> None:
        async with one_scene() as scene:
            scene.upstream.chunk_bytes = chunk_bytes
            scene.upstream.ship(PATH, Shipment(cut_after=cut_after))
            passage = passing(scene, truth, None if is_true else "0" * 64)
            got = b""
            try:
                await passage.begin()
                got, failure = await read_out(passage)
            except UpstreamFailure as early:
                failure = early
            await passage.aclose()
            assert truth.startswith(got)
            if failure is None:
                assert is_true
                assert got == truth
            else:
                assert len(got) + HOLD_BACK_BYTES <= max(size, HOLD_BACK_BYTES)
            assert (failure is None) is (is_true and cut_after is None)

    play(scene_of_it())
