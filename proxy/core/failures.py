"""What can go wrong, by whose fault it is. None of these means "does not exist".

`UpstreamFailure` is the upstream's trouble, or the network's before it, in four kinds that the rim
turns into 503, 502 and 504 by one table. `StoreFailure` is our disk's. `TooMany` is our own word to
the client. Messages are one line, name the upstream, and carry neither tokens nor query strings:
cargo prints the first 512 bytes of them to a developer.
"""

from dataclasses import dataclass


class UpstreamFailure(Exception):
    """The upstream could not answer. `transient`: the same request may succeed in a moment.

    `outcome` is the word for metrics. `failing` says whether this tells of an upstream in trouble
    (and so counts for its health) or only of this one request. `received_bytes` came before it.
    `noted` is set once it has been told of.
    """

    outcome: str = "error"
    transient: bool = True
    failing: bool = True
    received_bytes: int = 0
    noted: bool = False

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unreachable(UpstreamFailure):
    """No connection, a reset, a truncated body: the network or the server broke off.

    Not transient where the way is barred rather than broken: a forward proxy that says no.
    """

    outcome = "unreachable"

    def __init__(
        self, message: str, *, transient: bool = True, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.transient = transient


class TimedOut(UpstreamFailure):
    """It did not answer in time, or stopped in the middle."""

    outcome = "timeout"


class Troubled(UpstreamFailure):
    """It answered with a status that is about itself: 5xx, 429, 401, 403 and their like."""

    outcome = "status"

    def __init__(
        self, message: str, *, status: int, transient: bool, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.status = status
        self.transient = transient
        # A 403 for one name says nothing of the next: some registries give it for unknown names.
        self.failing = status >= 500 or status == 429  # noqa: PLR2004


class Misbehaved(UpstreamFailure):
    """It answered with something that cannot be the truth: HTML, garbage, a bomb, a loop."""

    outcome = "invalid"
    transient = False
    failing = False


class ForbiddenAddress(Misbehaved):
    """Its `dl`, `api` or redirect leads to an address that it must not send us to."""

    outcome = "forbidden"


class ChecksumMismatch(Misbehaved):
    """A crate's bytes are not those that the index names. Carries both digests."""

    outcome = "mismatch"

    def __init__(self, message: str, *, expected: str, actual: str) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class Offline(UpstreamFailure):
    """We are told not to ask this upstream at all."""

    outcome = "offline"
    transient = False
    failing = False


class Spared(UpstreamFailure):
    """It failed a moment ago, and is not asked again so soon.

    `last` is what it failed with; clients are told that, for nothing else is known.
    """

    transient = False
    failing = False
    noted = True

    def __init__(self, upstream: str, last: UpstreamFailure | None, wait_s: float) -> None:
        why = str(last) if last is not None else f"{upstream} could not answer"
        super().__init__(why, retry_after_s=wait_s)
        self.last = last


class Crowded(TimedOut):
    """All connections that we allow ourselves to it are in use: our limit, not its trouble."""

    transient = False
    failing = False


class Busy(UpstreamFailure):
    """Its web API is asked slowly, and too many wait for their turn already."""

    transient = False
    failing = False
    noted = True


class StoreFailure(Exception):
    """Our own disk cannot take or give something: full, read-only, failing."""


class TooMany(Exception):
    """One client or one registry asks for more than the operator lets it. Becomes 429.

    `key` is the limit's key in the configuration.
    """

    def __init__(self, key: str, reason: str, *, retry_after_s: float) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class NoSuchCrate:
    """There is no such crate, version or file, and an upstream said so. Becomes 404."""

    message: str
