"""An index file in the forms that clients get: made once, served many times.

Identity bytes are the upstream's own. The gzip form is ours (crates.io sends none: an index file
shrinks ten to forty times), made once and only where it is smaller. Each form has a strong ETag of
its own, from the digest of the identity bytes, so that replicas and restarts agree.
"""

import gzip
import hashlib
from dataclasses import dataclass, field, replace
from typing import Final

from proxy.core.answers import Snapshot
from proxy.core.conditional import format_http_date

_GZIP_LEVEL: Final = 6
_GZIP_WORTHWHILE_BYTES: Final = 200
# What the objects around the bytes weigh, roughly: for the memory tier's bookkeeping.
_OVERHEAD_BYTES: Final = 1200


@dataclass(frozen=True, slots=True)
class Rendered:
    """A believed index file, ready to be sent. `gzipped` is None where it would gain nothing."""

    snapshot: Snapshot
    identity: bytes
    gzipped: bytes | None
    etag: str
    gzip_etag: str
    last_modified: str
    # What the rim has made of it for the wire, by its own keys; goes when this does.
    wire: dict[str, object] = field(default_factory=dict, compare=False, repr=False)

    @property
    def cost_bytes(self) -> int:
        """What keeping it in memory costs."""
        gzipped = len(self.gzipped) if self.gzipped is not None else 0
        return len(self.identity) + gzipped + _OVERHEAD_BYTES


def render(snapshot: Snapshot) -> Rendered:
    """Make the forms of a snapshot that has a body. CPU work: off the loop for large bodies."""
    body = snapshot.body
    assert body is not None, "a tombstone has no form"
    digest = hashlib.sha256(body).hexdigest()
    gzipped: bytes | None = None
    if len(body) >= _GZIP_WORTHWHILE_BYTES:
        gzipped = gzip.compress(body, _GZIP_LEVEL, mtime=0)
        if len(gzipped) >= len(body):
            gzipped = None
    return Rendered(
        snapshot=snapshot,
        identity=body,
        gzipped=gzipped,
        etag=f'"{digest}"',
        gzip_etag=f'"{digest}-gzip"',
        last_modified=snapshot.validators.last_modified or format_http_date(snapshot.learned_at),
    )


def with_snapshot(rendered: Rendered, snapshot: Snapshot) -> Rendered:
    """Return the same forms for a snapshot with the same body."""
    return replace(
        rendered,
        snapshot=snapshot,
        last_modified=snapshot.validators.last_modified or format_http_date(snapshot.learned_at),
        wire={},
    )
