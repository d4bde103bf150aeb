"""The journeys are told in a loop in which waiting takes no time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest

from tests.service.scene import Scene, one_scene
from tests.world.loop import TimelessLoop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"timeless": TimelessLoop}


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with one_scene() as played:
        yield played
