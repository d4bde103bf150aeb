"""The web API, read through us: passed on, never kept."""

import pytest

from proxy.core.events import How
from proxy.core.failures import Misbehaved, Unreachable
from proxy.ports import ApiAnswer
from proxy.service.api import Api, ApiServed
from tests.service.scene import Scene
from tests.world.crates import Package
from tests.world.wire import Reply

SEARCH = "/api/v1/crates"


async def test_what_it_says_is_passed_on_whatever_the_status(scene: Scene) -> None:
    scene.publish(Package("serde"))
    api = Api(scene.configs, scene.clock)
    found = await api.get(scene.source, "/crates", "q=ser&per_page=10")
    assert found is not None
    assert (found.answer.status, found.answer.content_type) == (200, "application/json")
    assert b'"name": "serde"' in found.answer.body
    scene.upstream.reply(SEARCH, Reply(404, b"{}", (("Content-Type", "application/json"),)))
    refused = ApiAnswer(404, "application/json", b"{}")
    assert await api.get(scene.source, "/crates", "") == ApiServed(refused, How.BYPASS)
    assert scene.upstream.paths() == ["/index/config.json", SEARCH, SEARCH]


async def test_without_an_api_there_is_none(scene: Scene) -> None:
    scene.registry.api = None
    assert await Api(scene.configs, scene.clock).get(scene.source, "/crates", "q=ser") is None
    assert scene.upstream.paths() == ["/index/config.json"]


async def test_an_api_that_is_away_is_a_failure_and_makes_no_index_stale(scene: Scene) -> None:
    scene.upstream.fail(SEARCH, lambda: Unreachable("crates-io cannot be reached"))
    with pytest.raises(Unreachable):
        await Api(scene.configs, scene.clock).get(scene.source, "/crates", "q=ser")
    assert scene.upstream.paths(SEARCH) == [SEARCH] * 3
    assert not scene.source.is_failing()


async def test_without_a_configuration_nobody_knows_where_it_is(scene: Scene) -> None:
    scene.upstream.reply("/index/config.json", Reply(404))
    with pytest.raises(Misbehaved):
        await Api(scene.configs, scene.clock).get(scene.source, "/crates", "q=ser")
