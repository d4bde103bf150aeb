"""What one HTTP/2 connection may cost: bounds, and the counting of what is free to send.

A peer pays nothing for control frames, resets and empty frames, and we pay for each
(CVE-2023-44487, CVE-2025-8671, CVE-2019-9512 and its kin). So each costs it a token, tokens come
back with time and with honest requests, and who has none left is told ENHANCE_YOUR_CALM and
goodbye.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from jh2 import events

# What each event costs its peer, in nuisances.
COSTS: Final[Mapping[type[Any], float]] = MappingProxyType(
    {
        events.WindowUpdated: 0.02,
        events.StreamReset: 2.0,
        events.RemoteSettingsChanged: 10.0,
        events.SettingsAcknowledged: 10.0,
        events.PingReceived: 1.0,
        events.PingAckReceived: 1.0,
        events.PriorityUpdated: 1.0,
        events.UnknownFrameReceived: 1.0,
    }
)
# No frame that leads to something is larger than this.
_BYTES_PER_EVENT: Final = 20_000
_COST_OF_A_SILENT_BYTE: Final = 0.001


def cost_of_silence(received_bytes: int, happened: int) -> float:
    """Return what bytes cost that led to so few events.

    Frames that lead to nothing, as those for streams that have ended, are counted by their size.
    """
    return max(0, received_bytes - _BYTES_PER_EVENT * happened) * _COST_OF_A_SILENT_BYTE


@dataclass(frozen=True, slots=True)
class Http2Limits:
    """The bounds of one connection. Windows are for what clients send, that is, for publishing."""

    max_streams: int = 256
    header_list_bytes: int = 32 * 1024
    stream_window_bytes: int = 256 * 1024
    connection_window_bytes: int = 1024 * 1024
    nuisances_burst: int = 1000
    nuisances_per_s: float = 50.0
    stall_timeout_s: float = 60.0
    stall_least_bytes: int = 16 * 1024
    idle_timeout_s: float = 180.0


class Nuisances:
    """A leaky bucket of what a peer may do for free. Times come from the loop's clock."""

    __slots__ = ("_at", "_burst", "_per_s", "_tokens")

    def __init__(self, limits: Http2Limits, now: float) -> None:
        self._burst = float(limits.nuisances_burst)
        self._per_s = limits.nuisances_per_s
        self._tokens = self._burst
        self._at = now

    def too_many(self, now: float, count: float = 1) -> bool:
        """Count `count` nuisances; tells whether that is too many."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s) - count
        self._at = now
        return self._tokens < 0

    def excuse(self) -> None:
        """Give one back, for an honest request."""
        self._tokens = min(self._burst, self._tokens + 1)
