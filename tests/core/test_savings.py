"""What counts as saved, and for which day."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.events import How
from proxy.core.savings import Savings, Served, day_of, in_all, saves_bytes, saves_request

NOON = 1_780_000_000.0 // 86400 * 86400 + 43200
DAY = 86400.0
ONE = Served(1, 1, 100, 1, 100)
TWO = ONE + ONE


def test_an_answer_saves_what_no_upstream_had_to_send_for_it() -> None:
    table = {how: (saves_request(how), saves_bytes(how)) for how in How}
    assert table == {
        How.HIT: (True, True),
        How.STALE: (True, True),
        How.COALESCED: (True, True),
        How.REVALIDATED: (False, True),
        How.NEGATIVE: (True, False),
        How.MISS: (False, False),
        How.REFUSED: (False, False),
        How.BYPASS: (False, False),
        How.ERROR: (False, False),
    }


def test_a_day_is_one_of_utc() -> None:
    assert day_of(0.0) == "1970-01-01"
    assert day_of(86399.999) == "1970-01-01"
    assert day_of(86400.0) == "1970-01-02"


def test_counts_of_one_day_add_up_and_the_next_day_begins_with_what_is_new() -> None:
    savings = Savings.begun(NOON).settled({"a": ONE}, NOON).settled({"a": TWO}, NOON + 1)
    assert savings.today == savings.ever == {"a": ONE + TWO}
    tomorrow = savings.settled({"a": ONE}, NOON + DAY)
    assert (tomorrow.today, tomorrow.ever) == ({"a": ONE}, {"a": TWO + TWO})
    assert (tomorrow.since, tomorrow.day) == (NOON, day_of(NOON + DAY))


def test_a_clock_that_is_set_back_loses_a_day_and_nothing_else() -> None:
    savings = Savings.begun(NOON).settled({"a": ONE}, NOON)
    back = savings.settled({"a": ONE}, NOON - 7 * DAY)
    assert (back.today, back.ever) == ({"a": ONE}, {"a": TWO})


def test_a_registry_that_is_gone_is_forgotten() -> None:
    savings = Savings.begun(NOON).settled({"a": ONE, "b": ONE}, NOON)
    assert savings.settled({"a": ONE}, NOON).ever == {"a": TWO}


counts = st.builds(Served, *[st.integers(0, 2**40)] * 5)


@given(st.lists(counts, max_size=5), counts)
def test_what_is_added_can_be_taken_away(several: list[Served], one: Served) -> None:
    assert in_all([*several, one]) - one == in_all(several)
