"""The terms of freshness: when a copy is served, when the upstream is asked, what it changes."""

from dataclasses import replace
from typing import cast

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from proxy.core.answers import (
    NO_VALIDATORS,
    Absent,
    Answer,
    Found,
    Snapshot,
    Unchanged,
    Validators,
)
from proxy.core.freshness import (
    NEGATIVE_FRESH_S,
    Ask,
    Learned,
    Plan,
    Serve,
    Terms,
    Turn,
    UnaskedNotModified,
    is_fresh,
    is_usable,
    learn,
    needs_second_opinion,
    plan,
    to_be_asked,
    validators_for,
)
from tests.core import strategies as our

DAY = 86_400.0
T = 1_700_000_000.0
PUBLIC = Terms(fresh_for_s=60, stale_while_revalidate_s=60, stale_if_error_s=7 * DAY)
INTERNAL = Terms(fresh_for_s=10, stale_while_revalidate_s=0, stale_if_error_s=7 * DAY)
FOR_EVER = replace(PUBLIC, stale_if_error_s=float("inf"))

LATE = Validators('"late"', "Tue, 14 Nov 2023 12:00:00 GMT")
EARLY = Validators('"early"', "Tue, 14 Nov 2023 11:59:59 GMT")
HELD = Snapshot(b"held", LATE, learned_at=T, confirmed_at=T)
GONE = Snapshot(None, NO_VALIDATORS, learned_at=T, confirmed_at=T)
PURGED = to_be_asked(HELD)

HIT = Serve(stale=False, refresh=False)
STALE = Serve(stale=True, refresh=True)
ASK_PATIENTLY = Ask(LATE, patience_s=2.0)


@pytest.mark.parametrize(
    ("age", "terms", "unconditional", "conditional", "while_failing"),
    [
        (0, PUBLIC, HIT, HIT, HIT),
        (59.9, PUBLIC, HIT, HIT, HIT),
        (60, PUBLIC, STALE, ASK_PATIENTLY, STALE),
        (119.9, PUBLIC, STALE, ASK_PATIENTLY, STALE),
        (120, PUBLIC, ASK_PATIENTLY, ASK_PATIENTLY, STALE),
        (7 * DAY + 59, PUBLIC, ASK_PATIENTLY, ASK_PATIENTLY, STALE),
        (7 * DAY + 60, PUBLIC, Ask(LATE, None), Ask(LATE, None), Ask(LATE, None)),
        (9.9, INTERNAL, HIT, HIT, HIT),
        (10, INTERNAL, ASK_PATIENTLY, ASK_PATIENTLY, STALE),
        (9999 * DAY, FOR_EVER, ASK_PATIENTLY, ASK_PATIENTLY, STALE),
        (0, Terms(0, 60, 60), STALE, ASK_PATIENTLY, STALE),
        # A clock that jumped back: stale, and of use.
        (-1, PUBLIC, ASK_PATIENTLY, ASK_PATIENTLY, STALE),
        (-DAY, INTERNAL, ASK_PATIENTLY, ASK_PATIENTLY, STALE),
    ],
)
def test_what_a_copy_of_some_age_is_good_for(
    age: float, terms: Terms, unconditional: Plan, conditional: Plan, while_failing: Plan
) -> None:
    now = T + age
    assert plan(HELD, terms, now, insisting=False, upstream_failing=False) == unconditional
    assert plan(HELD, terms, now, insisting=True, upstream_failing=False) == conditional
    assert plan(HELD, terms, now, insisting=False, upstream_failing=True) == while_failing
    assert plan(HELD, terms, now, insisting=True, upstream_failing=True) == while_failing


@pytest.mark.parametrize("insisting", [False, True])
@pytest.mark.parametrize("failing", [False, True])
def test_what_is_not_held_is_asked_for_without_validators(insisting: bool, failing: bool) -> None:
    decision = plan(None, PUBLIC, T, insisting=insisting, upstream_failing=failing)
    assert decision == Ask(NO_VALIDATORS, None)


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize(
    ("age", "terms", "expected"),
    [
        (0, PUBLIC, HIT),
        (4.9, PUBLIC, HIT),
        (5, PUBLIC, Ask(NO_VALIDATORS, None)),
        (4.9, Terms(0, 0, 0), HIT),
        (-1, FOR_EVER, Ask(NO_VALIDATORS, None)),
        (5, FOR_EVER, Ask(NO_VALIDATORS, None)),
    ],
)
def test_a_tombstone_says_no_for_seconds_and_then_nothing(
    age: float, terms: Terms, expected: Plan, failing: bool
) -> None:
    assert plan(GONE, terms, T + age, insisting=False, upstream_failing=failing) == expected


@pytest.mark.parametrize("age", [0, 1, 60, DAY])
def test_a_soft_purge_asks_before_the_next_use_and_keeps_the_copy_for_an_outage(age: float) -> None:
    now = T + age
    assert plan(PURGED, PUBLIC, now, insisting=False, upstream_failing=False) == ASK_PATIENTLY
    assert plan(PURGED, PUBLIC, now, insisting=True, upstream_failing=False) == ASK_PATIENTLY
    assert plan(PURGED, PUBLIC, now, insisting=True, upstream_failing=True) == STALE


def test_a_soft_purge_lengthens_no_life_and_shortens_none() -> None:
    unchanged_for_long = replace(HELD, learned_at=T - 30 * DAY)
    purged = to_be_asked(to_be_asked(unchanged_for_long))
    end = PUBLIC.fresh_for_s + PUBLIC.stale_if_error_s
    for age, usable in ((0, True), (end - 1, True), (end, False)):
        assert is_usable(unchanged_for_long, PUBLIC, T + age) is usable
        assert is_usable(purged, PUBLIC, T + age) is usable
    assert not is_fresh(purged, PUBLIC, T)


any_plan = st.fixed_dictionaries({"insisting": st.booleans(), "upstream_failing": st.booleans()})
# Ages at which something changes, besides any other.
ages = our.durations | our.durations.map(lambda duration: -duration)


@st.composite
def held_and_now(draw: st.DrawFn) -> tuple[Snapshot, float]:
    held = draw(our.snapshots())
    return held, (held.confirmed_at or held.learned_at) + draw(ages)


@given(held_and_now(), our.terms(), any_plan)
def test_nothing_is_served_beyond_its_terms(
    when: tuple[Snapshot, float], terms: Terms, circumstances: dict[str, bool]
) -> None:
    held, now = when
    decision = plan(held, terms, now, **circumstances)
    confirmed_age = now - held.confirmed_at
    age = now - (held.confirmed_at or held.learned_at)
    match decision:
        case Serve(stale=False, refresh=refresh):
            fresh_for = NEGATIVE_FRESH_S if held.body is None else terms.fresh_for_s
            assert 0 <= confirmed_age < fresh_for
            assert not refresh
        case Serve(stale=True, refresh=refresh):
            assert held.body is not None
            assert refresh
            assert age < terms.fresh_for_s + terms.stale_if_error_s
            if not circumstances["upstream_failing"]:
                assert not circumstances["insisting"]
                assert 0 <= confirmed_age < terms.fresh_for_s + terms.stale_while_revalidate_s
        case Ask(patience_s=patience_s):
            assert not is_fresh(held, terms, now)
            assert (patience_s is not None) == is_usable(held, terms, now)


@given(held_and_now(), our.terms(), any_plan)
def test_whatever_is_fresh_is_served_without_asking(
    when: tuple[Snapshot, float], terms: Terms, circumstances: dict[str, bool]
) -> None:
    held, now = when
    age = now - held.confirmed_at
    if 0 <= age < (terms.fresh_for_s if held.body is not None else NEGATIVE_FRESH_S):
        assert plan(held, terms, now, **circumstances) == HIT


def reluctance(decision: Plan) -> int:
    """Order the plans by how much trust in the copy they show, the most trustful first."""
    match decision:
        case Serve(stale=stale):
            return int(stale)
        case Ask(patience_s=patience_s):
            return 2 if patience_s is not None else 3


@given(our.snapshots(), our.terms(), any_plan, our.durations, our.durations)
def test_the_older_a_copy_the_less_it_is_trusted(
    held: Snapshot, terms: Terms, circumstances: dict[str, bool], age: float, more: float
) -> None:
    now = (held.confirmed_at or held.learned_at) + age
    earlier = plan(held, terms, now, **circumstances)
    later = plan(held, terms, now + more, **circumstances)
    assert reluctance(earlier) <= reluctance(later)


@given(held_and_now(), our.terms())
def test_a_conditional_request_gets_no_stale_copy_unless_the_upstream_is_failing(
    when: tuple[Snapshot, float], terms: Terms
) -> None:
    held, now = when
    decision = plan(held, terms, now, insisting=True, upstream_failing=False)
    assert decision == HIT or isinstance(decision, Ask)


@given(our.snapshots(purged=False), our.terms(), our.durations)
def test_a_time_from_the_future_is_stale_and_not_useless(
    held: Snapshot, terms: Terms, jump: float
) -> None:
    now = held.learned_at - 1 - jump
    assert not is_fresh(held, terms, now)
    assert is_usable(held, terms, now) == (held.body is not None)


@given(held_and_now(), our.terms())
def test_a_tombstone_is_never_usable(when: tuple[Snapshot, float], terms: Terms) -> None:
    held, now = when
    tombstone = replace(held, body=None)
    assert not is_usable(tombstone, terms, now)
    assert not is_usable(None, terms, now)
    assert validators_for(tombstone) == NO_VALIDATORS


def test_what_is_held_is_asked_about_with_its_own_validators() -> None:
    assert validators_for(HELD) == LATE
    assert validators_for(None) == NO_VALIDATORS


@pytest.mark.parametrize(
    ("held", "answer", "expected"),
    [
        (HELD, Absent(404), True),
        (PURGED, Absent(451), True),
        (HELD, Unchanged(), False),
        (HELD, Found(b"other", EARLY), False),
        (GONE, Absent(404), False),
        (None, Absent(404), False),
    ],
)
def test_only_taking_away_what_is_held_needs_a_second_opinion(
    held: Snapshot | None, answer: Answer, expected: bool
) -> None:
    assert needs_second_opinion(held, answer) is expected


NOW = T + 100
NEW = Found(b"new", LATE)
LEARNED_NEW = Snapshot(b"new", LATE, NOW, NOW)


@pytest.mark.parametrize(
    ("held", "answer", "expected"),
    [
        (None, NEW, Learned(LEARNED_NEW, Turn.NONE)),
        (HELD, NEW, Learned(LEARNED_NEW, Turn.NONE)),
        (PURGED, NEW, Learned(LEARNED_NEW, Turn.NONE)),
        (GONE, NEW, Learned(LEARNED_NEW, Turn.RETURNED)),
        (HELD, Unchanged(), Learned(replace(HELD, confirmed_at=NOW), Turn.NONE)),
        (PURGED, Unchanged(), Learned(replace(HELD, confirmed_at=NOW), Turn.NONE)),
        (None, Absent(404), Learned(None, Turn.NONE)),
        (GONE, Absent(410), Learned(replace(GONE, confirmed_at=NOW), Turn.NONE)),
        (HELD, Absent(404), Learned(Snapshot(None, NO_VALIDATORS, NOW, NOW), Turn.REMOVED)),
        # The same body with another validator: confirmed, learned no later than it was.
        (
            HELD,
            Found(b"held", EARLY),
            Learned(Snapshot(b"held", EARLY, T, NOW), Turn.NONE),
        ),
        (
            replace(HELD, older_since=T),
            Found(b"held", LATE),
            Learned(Snapshot(b"held", LATE, T, NOW), Turn.NONE),
        ),
        (
            replace(HELD, older_since=T),
            Unchanged(),
            Learned(replace(HELD, confirmed_at=NOW), Turn.NONE),
        ),
        (replace(HELD, older_since=T), NEW, Learned(LEARNED_NEW, Turn.NONE)),
        (
            HELD,
            Found(b"old", EARLY),
            Learned(replace(HELD, confirmed_at=NOW, older_since=NOW), Turn.OLDER_REFUSED),
        ),
    ],
)
def test_what_an_answer_changes(held: Snapshot | None, answer: Answer, expected: Learned) -> None:
    assert learn(held, answer, NOW) == expected


@pytest.mark.parametrize("held", [None, GONE])
def test_unchanged_is_no_answer_about_what_is_not_held(held: Snapshot | None) -> None:
    with pytest.raises(UnaskedNotModified):
        learn(held, Unchanged(), NOW)


def test_what_is_no_answer_at_all_is_never_learned_from() -> None:
    with pytest.raises(AssertionError):
        learn(HELD, cast("Answer", None), NOW)


@pytest.mark.parametrize(
    ("offered", "held"),
    [
        (None, "Tue, 14 Nov 2023 12:00:00 GMT"),
        ("Tue, 14 Nov 2023 11:00:00 GMT", None),
        ("last week", "Tue, 14 Nov 2023 12:00:00 GMT"),
        ("Tue, 14 Nov 2023 11:00:00 GMT", "last week"),
        ("Tue, 14 Nov 2023 12:00:00 GMT", "Tue, 14 Nov 2023 12:00:00 GMT"),
        ("Tue, 14 Nov 2023 12:00:01 GMT", "Tue, 14 Nov 2023 12:00:00 GMT"),
    ],
)
def test_a_copy_that_cannot_be_told_to_be_older_replaces_what_is_held(
    offered: str | None, held: str | None
) -> None:
    answer = Found(b"new", Validators(None, offered))
    learned = learn(replace(HELD, validators=Validators(None, held)), answer, NOW)
    assert learned == Learned(Snapshot(b"new", answer.validators, NOW, NOW), Turn.NONE)


OLDER = Found(b"old", EARLY)
QUARTER_OF_AN_HOUR = 900.0


@given(st.lists(st.floats(0, 2 * QUARTER_OF_AN_HOUR), min_size=1, max_size=12).map(sorted))
@example([0.0, QUARTER_OF_AN_HOUR])
@example([0.0, QUARTER_OF_AN_HOUR - 0.5])
def test_an_older_copy_is_refused_for_a_quarter_of_an_hour_and_then_accepted(
    offers: list[float],
) -> None:
    held = HELD
    for offer in offers:
        learned = learn(held, OLDER, T + offer)
        assert learned.snapshot is not None
        if offer - offers[0] < QUARTER_OF_AN_HOUR:
            assert learned.turn is Turn.OLDER_REFUSED
            assert learned.snapshot.body == HELD.body
            assert learned.snapshot.validators == HELD.validators
            held = learned.snapshot
        else:
            assert learned == Learned(
                Snapshot(b"old", EARLY, T + offer, T + offer), Turn.OLDER_ACCEPTED
            )
            return


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12))
@example([0.0, -10.0, 800.0])
@example([0.0, -1e6, -1e6 + 899])
def test_a_jumping_clock_neither_hastens_nor_forbids_an_older_copy(offers: list[float]) -> None:
    held, refusals = HELD, list[float]()
    for offer in offers:
        learned = learn(held, OLDER, T + offer)
        assert learned.snapshot is not None
        if learned.turn is Turn.OLDER_ACCEPTED:
            assert offer - min(refusals) >= QUARTER_OF_AN_HOUR
            return
        held = learned.snapshot
        refusals.append(offer)
    # However the clock jumped, a quarter of an hour from now is enough.
    last = T + offers[-1] + QUARTER_OF_AN_HOUR
    assert learn(held, OLDER, last).turn is Turn.OLDER_ACCEPTED


@given(st.none() | our.snapshots(), our.answers(), our.moments, our.terms())
def test_what_was_just_learned_is_fresh_and_what_the_upstream_or_we_had(
    held: Snapshot | None, answer: Answer, now: float, terms: Terms
) -> None:
    assume(terms.fresh_for_s > 0)
    try:
        learned = learn(held, answer, now)
    except UnaskedNotModified:
        assert isinstance(answer, Unchanged)
        assert held is None or held.body is None
        return
    snapshot = learned.snapshot
    if snapshot is None:
        assert isinstance(answer, Absent)
        assert held is None
        return
    assert is_fresh(snapshot, terms, now)
    match answer:
        case Absent():
            assert snapshot.body is None
            assert snapshot.validators == NO_VALIDATORS
            assert (learned.turn is Turn.REMOVED) == (held is not None and held.body is not None)
        case Unchanged():
            assert held is not None
            assert snapshot == replace(held, confirmed_at=now, older_since=None)
        case Found(body, validators):
            kept = learned.turn is Turn.OLDER_REFUSED
            assert (snapshot.body, snapshot.validators) == (
                (held.body, held.validators) if kept and held is not None else (body, validators)
            )
            assert (learned.turn is Turn.RETURNED) == (held is not None and held.body is None)
