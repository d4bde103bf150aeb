"""Credentials that are renewed from their file, or replaced, also while they are being renewed."""

import asyncio
import os
from pathlib import Path

import pytest

from proxy.adapters.credentials import Credentials

OLD, NEW, NEWEST = "Bearer old", "Bearer new", "Bearer newest"


async def test_what_was_refused_is_renewed_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{NEW}\n")
    credentials = Credentials(OLD, file)
    assert await credentials.renew(OLD)
    assert credentials.value == NEW
    assert not await credentials.renew(NEW)


@pytest.mark.parametrize("with_file", [False, True])
async def test_what_replaces_them_is_what_is_renewed(tmp_path: Path, with_file: bool) -> None:
    (tmp_path / "token").write_text(NEWEST)
    credentials = Credentials(OLD, tmp_path / "nothing")
    credentials.replace(NEW, tmp_path / "token" if with_file else None, str.upper)
    assert credentials.value == NEW
    assert await credentials.renew(OLD)
    assert await credentials.renew(NEW) == with_file
    assert credentials.value == (NEWEST.upper() if with_file else NEW)


async def test_a_file_that_was_being_read_does_not_undo_a_replacement(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    credentials = Credentials(OLD, pipe)
    renewal = asyncio.create_task(credentials.renew(OLD))
    # Opening a pipe waits for its reader, so the renewal is under way.
    writing = await asyncio.to_thread(pipe.open, "w")
    credentials.replace(NEWEST)
    with writing:
        writing.write(NEW)
    assert await renewal
    assert credentials.value == NEWEST
