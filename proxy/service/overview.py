"""How things stand, at a glance: what the start page shows.

Nothing is asked for it: no upstream, no disk. It tells what is known already, so that it costs
nothing and cannot hang, whoever looks at it and however often.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from proxy.core.savings import Served
from proxy.ports import Clock
from proxy.service.source import Source


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """How an upstream does; times are seconds ago, None for never or not."""

    name: str
    offline: bool
    failing_for_s: float | None
    answered_ago_s: float | None


@dataclass(frozen=True, slots=True)
class CacheState:
    """What the cache holds on its disk, by the last count, and when the disk last refused."""

    blobs: int
    blob_bytes: int
    limit_bytes: int
    index_files: int
    refused_ago_s: float | None


@dataclass(frozen=True, slots=True)
class RegistrySavings:
    """What was saved for the clients of one registry."""

    name: str
    today: Served
    ever: Served


@dataclass(frozen=True, slots=True)
class Overview:
    """How things stand. `cache` is None until it has been counted for the first time.

    `saved_since` is the Unix time at which counting the savings began.
    """

    upstreams: tuple[UpstreamState, ...]
    cache: CacheState | None
    saved: tuple[RegistrySavings, ...]
    saved_since: float


@dataclass(frozen=True, slots=True)
class Known:
    """What has been counted so far, elsewhere; times are Unix times, None for never."""

    last_success: Mapping[str, float | None]
    blobs: tuple[int, int, int] | None
    index_files: int
    disk_refused_at: float | None
    saved_since: float
    saved_today: Mapping[str, Served]
    saved_ever: Mapping[str, Served]


class Overviews:
    """Makes an overview of sources and counts. For one event loop."""

    def __init__(self, sources: Iterable[Source], known: Callable[[], Known], clock: Clock) -> None:
        self._sources = tuple(sources)
        self._known = known
        self._clock = clock

    def now(self) -> Overview:
        """Tell how things stand."""
        known = self._known()
        cache = None
        if known.blobs is not None:
            refused = self._ago_s(known.disk_refused_at)
            cache = CacheState(*known.blobs, known.index_files, refused)
        return Overview(
            upstreams=tuple(self._state(source, known) for source in self._sources),
            cache=cache,
            saved=tuple(
                RegistrySavings(name, known.saved_today.get(name, Served()), ever)
                for name, ever in known.saved_ever.items()
            ),
            saved_since=known.saved_since,
        )

    def _state(self, source: Source, known: Known) -> UpstreamState:
        troubles = (source.first.index.failing_since, source.first.crates.failing_since)
        since = min((trouble for trouble in troubles if trouble is not None), default=None)
        return UpstreamState(
            name=source.name,
            offline=source.offline,
            failing_for_s=None if since is None else self._clock.monotonic() - since,
            answered_ago_s=self._ago_s(known.last_success.get(source.name)),
        )

    def _ago_s(self, at: float | None) -> float | None:
        return None if at is None else max(0.0, self._clock.now() - at)
