"""Laws of what one address may ask for."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.allowance import Allowances, Places, Rate, counted_as

RATES = st.builds(
    Rate, st.integers(1, 50), st.sampled_from([1.0, 60.0, 3600.0]) | st.floats(0.5, 100)
)
PAUSES = st.lists(st.floats(0, 30), max_size=200)
A_LITTLE = 1e-4


def granted(allowances: Allowances[str], key: str, now: float) -> bool:
    if allowances.wait_s(key, now) > 0:
        return False
    allowances.take(key, now)
    return True


@given(RATES, PAUSES)
def test_in_no_stretch_of_time_are_there_more_than_the_rate_and_the_bucket(
    rate: Rate, pauses: list[float]
) -> None:
    allowances: Allowances[str] = Allowances(rate)
    now, times = 0.0, []
    for pause in pauses:
        now += pause
        if granted(allowances, "a", now):
            times.append(now)
    per_s = rate.count / rate.period_s
    for first, begun in enumerate(times):
        for last in range(first, len(times)):
            most = rate.count + (times[last] - begun) * per_s
            assert last - first + 1 <= most + A_LITTLE


@given(RATES, PAUSES)
def test_who_waits_as_long_as_told_is_granted_and_who_waits_less_is_not(
    rate: Rate, pauses: list[float]
) -> None:
    allowances: Allowances[str] = Allowances(rate)
    now = 0.0
    for pause in pauses:
        now += pause
        wait_s = allowances.wait_s("a", now)
        if wait_s > A_LITTLE:
            assert allowances.wait_s("a", now + wait_s / 2) > 0
            now += wait_s + A_LITTLE
        assert granted(allowances, "a", now)


@given(RATES)
def test_a_bucket_is_full_at_first_and_again_after_its_time(rate: Rate) -> None:
    allowances: Allowances[str] = Allowances(rate)
    for now in (0.0, rate.period_s * 1.001):
        assert all(granted(allowances, "a", now) for _ in range(rate.count))
        assert not granted(allowances, "a", now)


@given(RATES, st.lists(st.sampled_from("abc"), max_size=100))
def test_nobody_uses_up_what_is_anothers(rate: Rate, asking: list[str]) -> None:
    together: Allowances[str] = Allowances(rate)
    apart = {key: Allowances[str](rate) for key in "abc"}
    for now, key in enumerate(asking):
        assert granted(together, key, now / 10) == granted(apart[key], key, now / 10)


@given(st.lists(st.integers(0, 100), max_size=300), st.integers(1, 10))
def test_no_more_buckets_are_kept_than_were_allowed_and_those_used_last(
    asking: list[int], keys_max: int
) -> None:
    allowances: Allowances[int] = Allowances(Rate(1, 1000.0), keys_max=keys_max)
    for key in asking:
        allowances.take(key, 0.0)
        assert len(allowances) <= keys_max
    for key in set(asking[-keys_max:]):
        assert allowances.wait_s(key, 0.0) > 0


@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=60))
def test_places_are_as_many_as_were_given_and_nothing_is_kept_of_who_left(
    each: int, moves: list[tuple[str, bool]]
) -> None:
    places: Places[str] = Places(each)
    there = {"a": 0, "b": 0}
    for key, coming in moves:
        if coming:
            assert places.is_free(key) == (there[key] < each)
            if places.is_free(key):
                places.enter(key)
                there[key] += 1
        elif there[key]:
            places.leave(key)
            there[key] -= 1
    assert len(places) == sum(count > 0 for count in there.values())


def test_an_address_counts_for_itself_and_a_network_of_ipv6_as_one() -> None:
    assert counted_as("192.0.2.1") == "192.0.2.1"
    assert counted_as("local") == "local"
    assert counted_as("2001:db8:1:2::9") == "2001:db8:1:2::/64"
    assert counted_as("2001:db8:1:2:ffff::1") == counted_as("2001:db8:1:2::9")
    assert counted_as("2001:db8:1:3::9") != counted_as("2001:db8:1:2::9")
