"""Sums since the start, for the command `stats`: what an operator asks before any dashboard exists.

Plain numbers beside the metrics, because a counter of prometheus_client is not made to be read.
"""

from dataclasses import dataclass, field

from proxy.core.savings import Served


@dataclass(slots=True)
class Totals:
    """What has been done since the start, for `stats`. Times are Unix times."""

    registries: dict[str, Served] = field(default_factory=dict)
    upstream_received_bytes: dict[str, int] = field(default_factory=dict)
    upstream_requests: dict[str, int] = field(default_factory=dict)
    upstream_last_success: dict[str, float | None] = field(default_factory=dict)
    store_failures: int = 0
    last_store_failure: float | None = None
