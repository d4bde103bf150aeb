"""Sums since the start, for the command `stats`: what an operator asks before any dashboard exists.

Plain numbers beside the metrics, because a counter of prometheus_client is not made to be read.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class RegistryTotals:
    """What one registry has done since the start."""

    requests: int = 0
    served_from_here: int = 0
    sent_bytes: int = 0


@dataclass(slots=True)
class Totals:
    """What has been done since the start, for `stats`."""

    registries: dict[str, RegistryTotals] = field(default_factory=dict)
    upstream_received_bytes: dict[str, int] = field(default_factory=dict)
    upstream_requests: dict[str, int] = field(default_factory=dict)
