"""A blob store on a disk that is full, read-only, or will not let its files grow.

The scenes are played in a process of their own: on a file system of 4 MiB that is mounted for that
process alone, or, where mounting is not permitted, under a limit on the size of files. What every
scene must show is the same: a draft that cannot be written fails and can be read on, what was
stored before is served, nothing is left behind, and all is well again when the disk is.
"""

import asyncio
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.core.events import Evicted, StoreFailed
from proxy.core.failures import StoreFailure
from proxy.core.room import Limits
from tests.world.blobs import (
    BLOCK,
    ROOMY,
    SERDE,
    BlobDisk,
    held,
    listed,
    put,
    sha256,
    some_bytes,
    until,
)
from tests.world.scratch import scratch_directory

ROOT = Path(__file__).parents[2]
LITTLE = Limits(max_size_bytes=8 << 20, min_free_bytes=0)
MOUNTED = 'mount -t tmpfs -o size=4m,mode=700 holdfast-test "$0" && exec "$@"'


def fill(disk: BlobDisk) -> None:
    """Leave not one block free."""
    with (disk.directory / "filler").open("ab", buffering=0) as filler:
        for size in (BLOCK, 4096):
            try:
                while filler.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def drain(disk: BlobDisk) -> None:
    (disk.directory / "filler").unlink()


def drafts_of(disk: BlobDisk) -> list[Path]:
    return list((disk.directory / "drafts").iterdir())


async def the_disk_fills_up_under_drafts(disk: BlobDisk) -> None:
    store = await disk.open(limits=LITTLE, memory_bytes=1 << 20)
    old = await put(store, some_bytes(100_000, 1))
    small, large = some_bytes(50_000, 2), some_bytes(4 * BLOCK, 3)
    small_draft, large_draft = await store.draft(len(small)), await store.draft(len(large))
    await large_draft.write(large[: BLOCK + 100])
    await small_draft.write(small)
    fill(disk)
    with pytest.raises(StoreFailure, match="No space left"):
        await large_draft.write(large[BLOCK + 100 :])
    assert await large_draft.read(BLOCK, BLOCK + 100) == large[BLOCK : BLOCK + 100]
    assert await large_draft.read(0, BLOCK) == large[:BLOCK]
    with pytest.raises(StoreFailure):
        await large_draft.write(b"more")
    with pytest.raises(StoreFailure, match="No space left"):
        await small_draft.commit(SERDE)
    assert await small_draft.read(0, len(small)) == small
    assert await held(store, sha256(small)) == small
    assert await held(store, old) == some_bytes(100_000, 1)
    await large_draft.discard()
    small_draft.close()
    large_draft.close()
    assert drafts_of(disk) == []
    assert await listed(store) == {old}
    usage = await store.usage()
    assert (usage.blobs, usage.reserved_bytes, usage.drafts) == (1, 0, 0)
    drain(disk)
    assert await held(store, await put(store, large)) == large
    await disk.close()
    store = await disk.open(limits=LITTLE)
    assert await held(store, old) == some_bytes(100_000, 1)
    assert await store.open(sha256(small)) is None


async def a_store_starts_on_a_full_disk(disk: BlobDisk) -> None:
    fill(disk)
    store = await disk.open(limits=LITTLE)
    assert await store.open(sha256(b"anything")) is None
    with pytest.raises(StoreFailure):
        await put(store, b"anything")
    drain(disk)
    digest = await put(store, some_bytes(100_000))
    assert await held(store, digest) == some_bytes(100_000)
    await disk.close()
    fill(disk)
    store = await disk.open(limits=LITTLE)
    assert await held(store, digest) == some_bytes(100_000)
    await until(store, lambda usage: usage.blobs == 1)
    await disk.close()
    drain(disk)
    store = await disk.open(limits=LITTLE)
    assert await held(store, digest) == some_bytes(100_000)


async def free_space_is_kept(disk: BlobDisk) -> None:
    store = await disk.open(limits=Limits(8 << 20, 2 << 20))
    digests = [await put(store, some_bytes(200_000, seed)) for seed in range(12)]
    assert {event.reason for event in disk.recorder.of(Evicted)} == {"min_free"}
    left = await listed(store)
    assert 5 <= len(left) <= 10
    assert left == set(digests[-len(left) :])
    usage = await store.usage()
    assert usage.stored_bytes == len(left) * 200_704
    # Space that a draft has taken already is not asked for twice.
    draft = await store.draft(4 * BLOCK)
    await draft.write(some_bytes(4 * BLOCK))
    disk.recorder.take()
    await (await store.draft(4096)).discard()
    assert disk.recorder.events == []
    await draft.discard()
    # Others have taken so much that evicting everything would not help: nothing is evicted.
    left = await listed(store)
    (disk.directory / "filler").write_bytes(bytes(4 * 1024 * 1024 - 3 * BLOCK - usage.stored_bytes))
    with pytest.raises(StoreFailure, match="whatever is evicted"):
        await store.draft(1 << 20)
    assert await listed(store) == left


async def the_disk_becomes_read_only(disk: BlobDisk) -> None:
    store = await disk.open(limits=Limits(500_000, 0), memory_bytes=1 << 20)
    old = await put(store, some_bytes(200_000, 1))
    newer = await put(store, some_bytes(200_000, 2))
    bad = await put(store, some_bytes(2000, 3))
    await disk.close()
    disk.plant(bytes(2000), bad)
    (disk.directory / "clean").unlink()
    await remount(disk, "ro")
    store = await disk.open(limits=Limits(500_000, 0), memory_bytes=1 << 20)
    assert await held(store, old) == some_bytes(200_000, 1)
    assert await held(store, newer) == some_bytes(200_000, 2)
    await until(store, lambda usage: usage.blobs == 3)
    for _ in range(2):
        assert await store.open(bad) is None
    assert (await store.usage()).quarantined == 0
    with pytest.raises(StoreFailure, match="Read-only"):
        await store.remove([old])
    with pytest.raises(StoreFailure):
        await store.draft(200_000)
    with pytest.raises(StoreFailure, match="Read-only"):
        await put(store, b"new")
    assert await held(store, sha256(b"new")) == b"new"
    assert await listed(store) == {old, newer, bad}
    await disk.close()
    await remount(disk, "rw")
    store = await disk.open()
    assert await held(store, old) == some_bytes(200_000, 1)
    assert await store.open(bad) is None
    assert (await store.usage()).quarantined == 1


async def the_clean_marker_cannot_be_removed(disk: BlobDisk) -> None:
    store = await disk.open(limits=LITTLE)
    old = await put(store, some_bytes(5000, 1))
    await disk.close()
    marker = str(disk.directory / "clean")
    await run("mount", "--bind", marker, marker)
    store = await disk.open(limits=LITTLE)
    assert await held(store, old) == some_bytes(5000, 1)
    new = await put(store, some_bytes(5000, 2))
    await disk.close()
    # The marker now lies about what was written since.
    disk.plant(bytes(5000), new)
    store = await disk.open(limits=LITTLE)
    assert await store.open(new) is None
    assert await held(store, old) == some_bytes(5000, 1)
    await disk.close()
    await run("umount", marker)


async def remount(disk: BlobDisk, how: str) -> None:
    await run("mount", "-o", f"remount,{how}", str(disk.directory))


async def run(*command: str) -> None:
    assert (await (await asyncio.create_subprocess_exec(*command)).wait()) == 0


async def files_may_not_grow(disk: BlobDisk) -> None:
    store = await disk.open(limits=ROOMY, memory_bytes=1 << 20)
    old = await put(store, some_bytes(100_000, 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK + 4096, resource.RLIM_INFINITY))
    large, small = some_bytes(3 * BLOCK, 2), some_bytes(50_000, 3)
    draft = await store.draft(len(large))
    with pytest.raises(StoreFailure, match="too large"):
        await draft.write(large)
    assert await draft.read(0, BLOCK) == large[:BLOCK]
    with pytest.raises(StoreFailure):
        await draft.commit(SERDE)
    draft.close()
    assert drafts_of(disk) == []
    assert await held(store, old) == some_bytes(100_000, 1)
    assert await held(store, await put(store, small)) == small
    draft = await store.draft(None)
    await draft.write(large[: BLOCK + 100])
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK, resource.RLIM_INFINITY))
    with pytest.raises(StoreFailure, match="too large"):
        await draft.commit(SERDE)
    assert await draft.read(BLOCK, BLOCK + 100) == large[BLOCK : BLOCK + 100]
    assert drafts_of(disk) == []
    draft.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    with pytest.raises(StoreFailure, match="too large"):
        await put(store, some_bytes(2000, 4))
    assert await held(store, sha256(some_bytes(2000, 4))) == some_bytes(2000, 4)
    assert drafts_of(disk) == []
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert await held(store, await put(store, large)) == large


async def no_more_files_may_be_open(disk: BlobDisk) -> None:
    store = await disk.open(memory_bytes=1 << 20)
    small, large = await put(store, b"small"), await put(store, some_bytes(3 * BLOCK))
    blob = await store.open(large)
    assert blob is not None
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    assert await store.open(large) is None
    assert StoreFailed("opening a blob", "Too many open files") in disk.recorder.take()
    assert await held(store, small) == b"small"
    assert await blob.read(0) == some_bytes(3 * BLOCK)[:BLOCK]
    assert await listed(store) == set()
    with pytest.raises(StoreFailure, match="Too many open files"):
        await store.check(large)
    with pytest.raises(StoreFailure, match="Too many open files"):
        await put(store, some_bytes(2 * BLOCK, 2))
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert await listed(store) == {small, large}
    assert await held(store, large) == some_bytes(3 * BLOCK)
    blob.close()


ON_A_LITTLE_DISK = {
    scene.__name__: scene
    for scene in (
        the_disk_fills_up_under_drafts,
        a_store_starts_on_a_full_disk,
        free_space_is_kept,
        the_disk_becomes_read_only,
        the_clean_marker_cannot_be_removed,
    )
}
ANYWHERE = {scene.__name__: scene for scene in (files_may_not_grow, no_more_files_may_be_open)}


async def play(scene: str, root: Path) -> None:
    disk = BlobDisk(root)
    disk.directory.mkdir(exist_ok=True)
    try:
        await (ON_A_LITTLE_DISK | ANYWHERE)[scene](disk)
    finally:
        await disk.close()


def mounting() -> list[str] | None:
    """Return the command that lets a process mount for itself alone, if there is one."""
    for command in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        with scratch_directory() as directory:
            probe = [*command, "sh", "-c", MOUNTED, str(directory), "true"]
            if subprocess.run(probe, check=False, capture_output=True).returncode == 0:
                return command
    return None


@pytest.mark.parametrize("scene", [*ON_A_LITTLE_DISK, *ANYWHERE])
def test_a_disk_that_fails_fails_writers_alone(scene: str) -> None:
    command = [sys.executable, "-m", "tests.adapters.test_blob_store_full_disk", scene]
    with scratch_directory() as directory:
        command.append(str(directory))
        if scene in ON_A_LITTLE_DISK:
            (directory / "cache").mkdir()
            prefix = mounting()
            if prefix is None:
                command[3] = files_may_not_grow.__name__
            else:
                mount = ["sh", "-c", MOUNTED, str(directory / "cache")]
                command = [*prefix, *mount, *command]
        played = subprocess.run(
            command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60
        )
    assert played.returncode == 0, played.stderr


if __name__ == "__main__":
    asyncio.run(play(sys.argv[1], Path(sys.argv[2])))
