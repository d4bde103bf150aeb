"""What follows when a crate's bytes are not those that the index names."""

from proxy.core.events import IntegrityFailed, Kind
from proxy.core.failures import ChecksumMismatch, Misbehaved, UpstreamFailure
from proxy.ports import Observer
from proxy.service.endpoint import Endpoint
from proxy.service.source import Source


def disproven(
    source: Source,
    observer: Observer,
    *,
    sender: Endpoint,
    subject: str,
    expected: str,
    actual: str,
    content_type: str,
) -> UpstreamFailure:
    """Report a digest that does not match, and return the failure to raise.

    A web page in the crate's place (a captive portal, a login) says nothing of the crate and may be
    gone in a moment; any other mismatch is a ChecksumMismatch, which is worth remembering.
    """
    observer.observe(
        IntegrityFailed("upstream", f"{sender.upstream.name} {subject}", expected, actual)
    )
    name = sender.upstream.name
    failure: UpstreamFailure
    if content_type == "text/html":
        failure = Misbehaved(f"{name} sent a web page in place of {subject}")
    else:
        failure = ChecksumMismatch(
            f"{name} sent {subject} with sha256 {actual}, its index says {expected}",
            expected=expected,
            actual=actual,
        )
    source.note_failure(Kind.CRATE, subject, failure, news=False, endpoint=sender)
    return failure


def accuse(source: Source, sender: Endpoint, vouched_by: str) -> bool:
    """Set aside whoever is contradicted by a digest; tells whether another one can be asked.

    `vouched_by` is who gave the index file: a mirror's address, or empty for the upstream. Where
    the bytes came from one and their digest from another, the later in the order is accused; nobody
    is for the word of a mirror that is configured no more.
    """
    witness = source.endpoint(vouched_by)
    if witness is None:
        return False
    accused = max(sender, witness, key=source.endpoints.index)
    failure = Misbehaved(f"{accused.upstream.name} was contradicted by a digest")
    return source.set_aside(accused, failure) and accused is sender
