"""Who asked conditionally of late."""

from proxy.service.insistence import INSISTING_FOR_S, Insistence
from tests.world.clock import ManualClock


def test_a_client_insists_for_a_while_after_a_conditional_request() -> None:
    clock = ManualClock()
    insistence = Insistence(clock)
    assert not insistence.insists("10.0.0.1")
    insistence.note("10.0.0.1")
    assert insistence.insists("10.0.0.1")
    assert not insistence.insists("10.0.0.2")
    clock.advance(INSISTING_FOR_S - 1)
    assert insistence.insists("10.0.0.1")
    clock.advance(1)
    assert not insistence.insists("10.0.0.1")


def test_the_number_of_clients_remembered_is_bounded() -> None:
    insistence = Insistence(ManualClock())
    for number in range(30_000):
        insistence.note(f"client {number}")
    assert insistence.insists("client 29999")
    assert not insistence.insists("client 0")
