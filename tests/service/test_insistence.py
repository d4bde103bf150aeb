"""Who is on a second pass: for how long it is believed, and of how many."""

from proxy.service.insistence import INSISTING_FOR_S, Insistence
from tests.world.clock import ManualClock


def test_a_client_that_asked_conditionally_insists_for_a_while() -> None:
    clock = ManualClock()
    insistence = Insistence(clock)
    assert not insistence.insists("10.0.0.1")
    insistence.note("10.0.0.1")
    clock.advance(INSISTING_FOR_S - 0.1)
    assert insistence.insists("10.0.0.1")
    assert not insistence.insists("10.0.0.2"), "and nobody else does"
    clock.advance(0.1)
    assert not insistence.insists("10.0.0.1")


def test_each_conditional_request_begins_the_while_anew() -> None:
    clock = ManualClock()
    insistence = Insistence(clock)
    for _ in range(3):
        insistence.note("10.0.0.1")
        clock.advance(INSISTING_FOR_S * 0.9)
        assert insistence.insists("10.0.0.1")


def test_a_wall_clock_that_jumps_changes_nothing() -> None:
    clock = ManualClock()
    insistence = Insistence(clock)
    insistence.note("10.0.0.1")
    clock.jump(86400.0)
    assert insistence.insists("10.0.0.1")
    clock.jump(-2 * 86400.0)
    assert insistence.insists("10.0.0.1")


def test_of_very_many_the_latest_are_remembered() -> None:
    insistence = Insistence(ManualClock())
    for number in range(30_000):
        insistence.note(f"client {number}")
    assert insistence.insists("client 29999")
    assert not insistence.insists("client 0")
