"""How much one address, or one registry, may ask for: a rate of misses, a number of requests.

A rate is a bucket of tokens: so many at once, and as many again over its time. One number says all
of a bucket, the time at which it is full again; so a bucket that nobody has touched for that long
is the same as none, and only those used last are kept. Whoever changes addresses faster than
that many buckets are used gets more than the rate, but not more memory.

An IPv6 client has a network of its own: its addresses count as one by their first 64 bits.

Not here: what a miss is (`proxy.service`), and who asks (`proxy.core.forwarded`).
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_IPV6_SHARED_BITS: Final = 64
_KEYS_MAX: Final = 20_000
# Sums of times are off by less.
_ROUNDING_S: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` at once, and as many again over `period_s` seconds."""

    count: int
    period_s: float


class Allowances(Generic[K]):
    """A bucket for each key, at most `keys_max` of them. Times are of one clock that only rises."""

    __slots__ = ("_full_at", "_keys_max", "_rate")

    def __init__(self, rate: Rate, *, keys_max: int = _KEYS_MAX) -> None:
        self._rate = rate
        self._keys_max = keys_max
        self._full_at: OrderedDict[K, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def wait_s(self, key: K, now: float) -> float:
        """Return after how many seconds there is a token for `key`; 0 if there is one."""
        interval = self._rate.period_s / self._rate.count
        until_full = self._full_at.get(key, now) - now
        wait_s = until_full + interval - self._rate.period_s
        return wait_s if wait_s > _ROUNDING_S else 0.0

    def take(self, key: K, now: float) -> None:
        """Take a token, there being one."""
        interval = self._rate.period_s / self._rate.count
        self._full_at[key] = max(now, self._full_at.get(key, now)) + interval
        self._full_at.move_to_end(key)
        if len(self._full_at) > self._keys_max:
            self._full_at.popitem(last=False)


class Places(Generic[K]):
    """How many are there for each key, of at most `each`. Holds nothing for who has none there."""

    __slots__ = ("_each", "_taken")

    def __init__(self, each: int) -> None:
        self._each = each
        self._taken: dict[K, int] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def is_free(self, key: K) -> bool:
        """Whether one more may come in."""
        return self._taken.get(key, 0) < self._each

    def enter(self, key: K) -> None:
        """Take a place."""
        self._taken[key] = self._taken.get(key, 0) + 1

    def leave(self, key: K) -> None:
        """Give a place back."""
        left = self._taken[key] - 1
        if left:
            self._taken[key] = left
        else:
            del self._taken[key]


@lru_cache(maxsize=4096)
def counted_as(client: str) -> str:
    """Return what a client's address counts as: itself, or its network of IPv6."""
    try:
        address = ip_address(client)
    except ValueError:
        return client
    if not isinstance(address, IPv6Address):
        return client
    bits = address.max_prefixlen - _IPV6_SHARED_BITS
    return f"{IPv6Address(int(address) >> bits << bits)}/{_IPV6_SHARED_BITS}"
