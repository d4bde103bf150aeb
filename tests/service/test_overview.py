"""An overview tells what is known, and asks nobody."""

from proxy.core.savings import Served
from proxy.service.overview import CacheState, Known, Overviews
from tests.service.scene import Scene

NOTHING = Known({}, None, 0, None, 5.0, {}, {})


def test_times_are_told_from_now(scene: Scene) -> None:
    source = scene.source
    at = scene.clock.now()
    source.first.index.failed(scene.clock.monotonic())
    known = Known(
        {source.name: at}, (4, 100, 1000), 5, at + 10, 5.0, {"a": Served(1)}, {"a": Served(2)}
    )
    overviews = Overviews([source], lambda: known, scene.clock)
    scene.clock.advance(30)
    overview = overviews.now()
    (upstream,) = overview.upstreams
    assert (upstream.failing_for_s, upstream.answered_ago_s) == (30.0, 30.0)
    assert overview.cache == CacheState(4, 100, 1000, 5, 20.0)
    (saved,) = overview.saved
    assert (saved.name, saved.today, saved.ever) == ("a", Served(1), Served(2))


def test_trouble_with_crates_alone_is_trouble_too(scene: Scene) -> None:
    scene.source.first.crates.failed(scene.clock.monotonic())
    (upstream,) = Overviews([scene.source], lambda: NOTHING, scene.clock).now().upstreams
    assert upstream.failing_for_s == 0.0
    assert upstream.answered_ago_s is None


def test_before_anything_is_counted_there_is_no_cache_to_tell_of(scene: Scene) -> None:
    assert Overviews([scene.source], lambda: NOTHING, scene.clock).now().cache is None


def test_a_success_from_the_future_is_now(scene: Scene) -> None:
    known = Known({scene.source.name: scene.clock.now() + 60}, None, 0, None, 5.0, {}, {})
    (upstream,) = Overviews([scene.source], lambda: known, scene.clock).now().upstreams
    assert upstream.answered_ago_s == 0.0
