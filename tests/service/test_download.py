"""One transfer and its readers: what they may see, when, and what they never see.

The journeys around it are in `test_crates`; here it is alone, and held to its laws.
"""

import asyncio
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.failures import ChecksumMismatch, StoreFailure, Unreachable, UpstreamFailure
from proxy.ports import Named
from proxy.service.download import HOLD_BACK_BYTES, Download, DownloadReader
from tests.service.scene import Scene, always, one_scene, turns
from tests.world.crates import sha256
from tests.world.loop import play
from tests.world.upstream import Shipment
from tests.world.wire import Reply

PATH = "/crates/serde/serde-1.0.0.crate"
NAMED = Named("crates-io", "serde", "1.0.0")
TRUTH = bytes(range(251)) * 1200


def offering(scene: Scene, body: bytes, digest: str | None = None) -> Download:
    """Make a download of `body`, which is not begun yet."""
    scene.upstream.reply(PATH, Reply(200, body, (("Content-Type", "application/gzip"),)))
    return Download(
        scene.source,
        scene.blobs,
        scene.observer,
        address=always(scene.upstream.url + PATH),
        digest=sha256(body) if digest is None else digest,
        named=NAMED,
        vouched_by="",
    )


async def flown(download: Download) -> None:
    """Run a download from beginning to landing."""
    try:
        await download.run()
    finally:
        await download.land()


async def read_out(reader: DownloadReader) -> tuple[bytes, Exception | None]:
    """Read to the end, or to what it breaks off with."""
    got = b""
    try:
        while chunk := await reader.read(len(got)):
            got += chunk
    except (UpstreamFailure, StoreFailure) as failure:
        return got, failure
    finally:
        reader.close()
    return got, None


async def test_a_reader_may_begin_before_within_and_after(scene: Scene) -> None:
    download = offering(scene, TRUTH)
    before = asyncio.ensure_future(read_out(download.attach()))
    tap = scene.upstream.tap(PATH, chunk_bytes=50_000)
    flight = asyncio.ensure_future(flown(download))
    tap.let(3)
    await tap.is_dry()
    within = asyncio.ensure_future(read_out(download.attach()))
    after = download.attach()
    tap.open()
    await flight
    assert await before == await within == await read_out(after) == (TRUTH, None)


async def test_bytes_can_be_read_from_anywhere_once_they_are_released(scene: Scene) -> None:
    download = offering(scene, TRUTH)
    reader = download.attach()
    await flown(download)
    for offset in (0, 1, 100_000, len(TRUTH) - 1):
        assert TRUTH[offset:].startswith(await reader.read(offset))
    assert await reader.read(len(TRUTH)) == b""
    reader.close()


async def test_the_draft_is_held_for_the_last_reader_and_no_longer(scene: Scene) -> None:
    download = offering(scene, TRUTH)
    first, last = download.attach(), download.attach()
    await flown(download)
    first.close()
    first.close()
    assert await last.read(0)
    assert scene.blobs.leaks() == ["reading draft 0"]
    last.close()
    assert scene.blobs.leaks() == []


async def test_a_draft_that_nobody_reads_is_let_go_at_the_landing(scene: Scene) -> None:
    download = offering(scene, TRUTH)
    await flown(download)
    assert scene.blobs.leaks() == []
    assert scene.blobs.blobs == {sha256(TRUTH): TRUTH}


async def test_nothing_is_to_be_seen_before_there_is_more_than_is_withheld(scene: Scene) -> None:
    download = offering(scene, TRUTH)
    reader = download.attach()
    tap = scene.upstream.tap(PATH, chunk_bytes=HOLD_BACK_BYTES // 16)
    scene.upstream.ship(PATH, Shipment(announces=False))
    flight = asyncio.ensure_future(flown(download))
    flows = []
    for number, chunks in enumerate((15, 1, 1), start=1):
        tap.let(chunks)
        await tap.is_dry(number)
        await turns()
        flows.append(download.flows)
    assert flows == [False, False, True]
    assert await reader.read(0) == TRUTH[: HOLD_BACK_BYTES // 16]
    tap.open()
    reader.close()
    await flight


async def test_the_length_is_the_announced_one_until_it_is_known(scene: Scene) -> None:
    download = offering(scene, TRUTH)
    reader = download.attach()
    told = [reader.size_bytes]
    tap = scene.upstream.tap(PATH)
    flight = asyncio.ensure_future(flown(download))
    tap.let(1)
    await tap.is_dry()
    told.append(reader.size_bytes)
    tap.open()
    await flight
    told.append(reader.size_bytes)
    assert told == [None, len(TRUTH), len(TRUTH)]
    reader.close()


async def test_an_empty_crate_is_proven_like_any_other(scene: Scene) -> None:
    download = offering(scene, b"")
    reader = download.attach()
    await flown(download)
    assert await read_out(reader) == (b"", None)
    assert scene.blobs.blobs == {sha256(b""): b""}


async def test_giving_up_twice_leaves_no_reader_waiting(scene: Scene) -> None:
    download = offering(scene, TRUTH)
    tap = scene.upstream.tap(PATH, chunk_bytes=100_000)
    scene.blobs.points.hang("discard")
    tap.let(2)
    flight = asyncio.ensure_future(flown(download))
    await tap.is_dry()
    waiting = asyncio.ensure_future(read_out(download.attach()))
    await turns()
    for _ in range(2):
        flight.cancel()
        await turns()
    got, failure = await waiting
    assert len(got) < len(TRUTH)
    assert isinstance(failure, Unreachable)
    assert flight.done()
    scene.blobs.points.heal()
    await turns()
    assert scene.blobs.leaks() == []


@dataclass(frozen=True, slots=True)
class Transfer:
    """How one of the transfers goes: which bytes, how many of them, whether announced."""

    is_true: bool
    cut_after: int | None
    announces: bool


sizes = st.sampled_from([0, 1, 100, HOLD_BACK_BYTES - 1, HOLD_BACK_BYTES, HOLD_BACK_BYTES + 1]) | (
    st.integers(0, 3 * HOLD_BACK_BYTES)
)
transfers = st.builds(Transfer, st.booleans(), st.none() | sizes, st.booleans())


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    size=sizes,
    script=st.lists(transfers, min_size=3, max_size=3),
    chunk_bytes=st.sampled_from([1000, 16_384, 65_536, 1 << 20]),
    readers=st.lists(st.integers(0, 30), min_size=1, max_size=4),
)
def test_a_reader_ends_with_the_truth_or_is_cut_short_before_the_end(
    size: int, script: list[Transfer], chunk_bytes: int, readers: list[int]
) -> None:
    truth = TRUTH[:size]
    lie = truth[: size // 2] + b"a lie" + truth[size // 2 :]

    async def scene_of_it() -> None:
        async with one_scene() as scene:
            scene.upstream.chunk_bytes = chunk_bytes
            download = offering(scene, truth)
            for transfer in script:
                shipment = Shipment(
                    bend=bytes if transfer.is_true else lambda _: lie,
                    cut_after=transfer.cut_after,
                    announces=transfer.announces,
                )
                scene.upstream.ship(PATH, shipment, times=1)

            async def client(after: int) -> tuple[bytes, Exception | None, int | None]:
                await turns(after)
                reader = download.attach()
                await download.settled_or_flowing()
                told = reader.size_bytes
                return *(await read_out(reader)), told

            clients = [asyncio.ensure_future(client(after)) for after in readers]
            await flown(download)
            outcomes = await asyncio.gather(*clients)
            for got, failure, told in outcomes:
                if failure is None:
                    assert got == truth
                    assert told in (None, len(truth))
                else:
                    assert len(got) + HOLD_BACK_BYTES <= max(len(lie), HOLD_BACK_BYTES)
                    assert told is None or len(got) < told or got == b""
            proven = download.failure is None
            assert (sha256(truth) in scene.blobs.blobs) is proven
            assert all(sha256(data) == digest for digest, data in scene.blobs.blobs.items())
            assert scene.blobs.leaks() == []

    play(scene_of_it())


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    size=st.integers(HOLD_BACK_BYTES, 4 * HOLD_BACK_BYTES),
    cuts=st.lists(st.integers(0, 4 * HOLD_BACK_BYTES), max_size=2),
)
def test_whatever_breaks_off_twice_comes_in_the_end_and_in_order(
    size: int, cuts: list[int]
) -> None:
    truth = TRUTH[:size]

    async def scene_of_it() -> None:
        async with one_scene() as scene:
            download = offering(scene, truth)
            for cut in cuts:
                scene.upstream.ship(PATH, Shipment(cut_after=cut), times=1)
            reader = download.attach()
            flight = asyncio.ensure_future(flown(download))
            seen = [0]
            got = b""
            while chunk := await reader.read(len(got)):
                got += chunk
                seen.append(len(got))
            reader.close()
            await flight
            assert got == truth
            assert all(a < b for a, b in pairwise(seen))

    play(scene_of_it())


async def test_a_mismatch_names_both_digests(scene: Scene) -> None:
    download = offering(scene, TRUTH, digest="0" * 64)
    await flown(download)
    assert isinstance(download.failure, ChecksumMismatch)
    assert (download.failure.expected, download.failure.actual) == ("0" * 64, sha256(TRUTH))


@pytest.mark.parametrize("point", ["draft", "write"])
async def test_what_the_disk_refuses_is_told_once(scene: Scene, point: str) -> None:
    download = offering(scene, TRUTH)
    scene.blobs.points.fail(point)
    await flown(download)
    assert (download.store_failed, download.failure, download.flows) == (True, None, False)
    assert scene.tell() == ["store failed: storing serde 1.0.0"]
