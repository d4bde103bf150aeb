"""The one who reloads: all of a configuration or nothing of it, and never the end of reloading."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.config import ConfigError, Settings, load
from proxy.config_changes import Change, Reading
from proxy.reload import Reloader

PATIENCE_S = 10


class Part:
    """A part of a program that takes on what it is told, or refuses to."""

    def __init__(self) -> None:
        self.took: list[tuple[str, ...]] = []
        self.refuses = False

    async def adopt(self, change: Change) -> Callable[[], None]:
        if self.refuses:
            raise ConfigError((("limits.crate", "not now"),))
        return lambda: self.took.append(change.taken)


@pytest.fixture
def parts() -> tuple[Part, Part]:
    return Part(), Part()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "holdfast.toml"
    path.write_text("")
    return path


def reloader(
    file: Path,
    parts: tuple[Part, ...],
    tell: Callable[[bool], None] = lambda _: None,
    reread: Callable[[], Settings] | None = None,
) -> Reloader:
    def read() -> Settings:
        return load(file, {})

    adoptions = [part.adopt for part in parts]
    return Reloader(Reading.of(read()), reread or read, adoptions, tell)


async def test_a_part_that_refuses_keeps_all_others_from_taking_anything_on(
    file: Path, parts: tuple[Part, Part], caplog: pytest.LogCaptureFixture
) -> None:
    ours = reloader(file, parts)
    file.write_text('[limits]\ncrate = "1MiB"')
    parts[1].refuses = True
    assert not await ours.reload()
    assert (parts[0].took, parts[1].took) == ([], [])
    assert "not reloaded: limits.crate: not now" in caplog.text
    # What was refused is still a change the next time.
    parts[1].refuses = False
    assert await ours.reload()
    assert (parts[0].took, parts[1].took) == ([("limits.crate",)], [("limits.crate",)])
    assert await ours.reload()
    assert parts[0].took[-1] == ()


async def test_what_needs_a_restart_is_not_even_prepared(
    file: Path, parts: tuple[Part, Part]
) -> None:
    ours = reloader(file, parts)
    file.write_text('[limits]\ncrate = "1MiB"\n[server]\nh2c = false')
    parts[0].refuses = True
    assert not await ours.reload()
    assert parts[1].took == []


async def test_what_nobody_foresaw_is_not_the_last_reload(
    file: Path, parts: tuple[Part, Part], caplog: pytest.LogCaptureFixture
) -> None:
    readings: Iterator[Settings | Exception] = iter([RuntimeError("odd"), load(file, {})])
    told, heard = asyncio.Event(), asyncio.Queue[bool]()

    def reread() -> Settings:
        settings = next(readings)
        if isinstance(settings, Exception):
            raise settings
        return settings

    ours = reloader(file, parts, heard.put_nowait, reread)
    running = asyncio.create_task(ours.reload_when(told))
    async with asyncio.timeout(PATIENCE_S):
        for is_done in (False, True):
            told.set()
            assert await heard.get() is is_done
    running.cancel()
    await asyncio.wait([running])
    assert "not reloaded: unexpected" in caplog.text
    assert parts[0].took == [()]
