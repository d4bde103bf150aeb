"""Laws of what gets on and what does not."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.pace import LeastPace, Pace

LEAST = LeastPace(100, 60.0)


@given(st.lists(st.tuples(st.floats(0.1, 60), st.integers(100, 10_000)), max_size=50))
def test_who_always_does_enough_by_the_next_look_is_never_too_slow(
    looks: list[tuple[float, int]],
) -> None:
    pace, now, done = Pace(), 0.0, 0
    for passed, more in looks:
        now, done = now + passed, done + more
        assert not pace.is_too_slow(now, done, LEAST)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 3), min_size=30, max_size=30))
def test_who_does_less_is_found_at_the_first_look_after_the_time(
    begun: int, bytes_per_look: list[int]
) -> None:
    pace, done, found = Pace(), begun, []
    for look, more in enumerate(bytes_per_look):
        done += more
        found.append(pace.is_too_slow(look * 5.0, done, LEAST))
    assert found.index(True) == 60 / 5


def test_a_rest_gives_all_the_time_again() -> None:
    pace = Pace()
    assert not pace.is_too_slow(0.0, 0, LEAST)
    pace.rest()
    assert not pace.is_too_slow(70.0, 0, LEAST)
    assert not pace.is_too_slow(129.0, 99, LEAST)
    assert pace.is_too_slow(130.0, 99, LEAST)
