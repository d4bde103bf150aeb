"""The memory tier, against a list that is kept in order by hand."""

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from proxy.core.memory_tier import MemoryTier

keys = st.integers(0, 7)
costs = st.integers(0, 12)


def test_the_least_recently_used_go_first() -> None:
    tier: MemoryTier[str, bytes] = MemoryTier(30)
    for key in "abc":
        tier.put(key, key.encode(), 10)
    assert tier.get("a") == b"a"
    tier.put("d", b"d", 10)
    assert [tier.get(key) for key in "abcd"] == [b"a", None, b"c", b"d"]
    assert (len(tier), tier.used_bytes) == (3, 30)


def test_what_is_too_large_is_not_kept_and_neither_is_what_it_replaces() -> None:
    tier: MemoryTier[str, str] = MemoryTier(10)
    tier.put("a", "old", 10)
    tier.put("b", "new", 11)
    assert tier.get("a") == "old"
    tier.put("a", "new", 11)
    assert tier.get("a") is None
    assert (len(tier), tier.used_bytes) == (0, 0)


def test_a_limit_that_was_lowered_holds_from_the_next_entry_on() -> None:
    tier: MemoryTier[str, str] = MemoryTier(30)
    for key in "abc":
        tier.put(key, key, 10)
    tier.limit_bytes = 10
    tier.put("d", "d", 5)
    assert [tier.get(key) for key in "abcd"] == [None, None, None, "d"]
    assert tier.used_bytes == 5


class TierBesideItsModel(RuleBasedStateMachine):
    """Whatever is done to both, the tier and the model hold the same entries."""

    def __init__(self) -> None:
        super().__init__()
        self.tier: MemoryTier[int, int] = MemoryTier(0)
        # Least recently used first: key, value, cost.
        self.model: list[tuple[int, int, int]] = []
        self.values = 0

    @initialize(limit=st.integers(0, 30))
    def set_up(self, limit: int) -> None:
        self.tier = MemoryTier(limit)

    def _without(self, key: int) -> list[tuple[int, int, int]]:
        return [entry for entry in self.model if entry[0] != key]

    @rule(key=keys, cost=costs)
    def put(self, key: int, cost: int) -> None:
        self.values += 1
        self.tier.put(key, self.values, cost)
        self.model = [*self._without(key), (key, self.values, cost)]
        if cost > self.tier.limit_bytes:
            self.model.pop()
        while sum(entry[2] for entry in self.model) > self.tier.limit_bytes:
            self.model.pop(0)

    @rule(key=keys)
    def get(self, key: int) -> None:
        found = [entry for entry in self.model if entry[0] == key]
        assert self.tier.get(key) == (found[0][1] if found else None)
        self.model = self._without(key) + found

    @rule(key=keys)
    def discard(self, key: int) -> None:
        self.tier.discard(key)
        self.model = self._without(key)

    @precondition(lambda self: len(self.model) > 1)
    @rule(divisor=st.integers(1, 3))
    def discard_where(self, divisor: int) -> None:
        self.tier.discard_where(lambda key: key % divisor == 0)
        self.model = [entry for entry in self.model if entry[0] % divisor]

    @invariant()
    def they_hold_as_much(self) -> None:
        assert len(self.tier) == len(self.model)
        assert self.tier.used_bytes == sum(entry[2] for entry in self.model)
        assert self.tier.used_bytes <= self.tier.limit_bytes

    def teardown(self) -> None:
        for key, value, _ in list(self.model):
            assert self.tier.get(key) == value


TestTierBesideItsModel = TierBesideItsModel.TestCase
