"""When a snapshot may be served, when the upstream is asked, and what its answer changes.

The terms (RFC 9111 section 4.2 and RFC 5861, narrowed by what cargo does):

- Fresh: served at once. Past that only an *unconditional* request may get the stale copy while one
  flight asks in the background: cargo follows such a request with a conditional one when the copy
  does not suffice. A *conditional* request is answered 304 from a stale copy by nobody who wants a
  `--locked` build to succeed, so it waits for the flight; if that takes longer than `PATIENCE_S`,
  it gets the stale copy as a body. The client that sent it insists from then on: what it asks next
  without a validator it has only just discovered, and will not ask for again.
- When asking has failed, a stale copy is served for `stale_if_error`, and may be a 304: it is the
  best that anyone knows.
- Times from the future (a clock that jumped) make a copy stale, never unusable.
- An upstream's edge may be behind. A copy with an older Last-Modified than the one held does not
  replace it for `OLDER_COPY_REFUSED_S`; then it does, since the upstream seems to mean it.
- Absence is believed only from an authoritative answer; for a name that is held, only from two.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, assert_never

from proxy.core.answers import NO_VALIDATORS, Absent, Answer, Found, Snapshot, Unchanged, Validators
from proxy.core.conditional import parse_http_date

PATIENCE_S: Final = 2.0
OLDER_COPY_REFUSED_S: Final = 15 * 60.0
NEGATIVE_FRESH_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Terms:
    """An upstream's terms of freshness, in seconds; `stale_if_error` may be infinite."""

    fresh_for_s: float
    stale_while_revalidate_s: float
    stale_if_error_s: float


@dataclass(frozen=True, slots=True)
class Serve:
    """Serve what is held. `stale` says how; `refresh` asks for a flight in the background."""

    stale: bool
    refresh: bool


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the upstream. After `patience_s` serve what is held, if it is not None."""

    validators: Validators
    patience_s: float | None


Plan = Serve | Ask


def is_fresh(snapshot: Snapshot, terms: Terms, now: float) -> bool:
    """Tell whether `snapshot` may be served without asking; a tombstone's time is its own."""
    limit = terms.fresh_for_s if snapshot.body is not None else NEGATIVE_FRESH_S
    return 0 <= now - snapshot.confirmed_at < limit


def is_usable(snapshot: Snapshot | None, terms: Terms, now: float) -> bool:
    """Tell whether `snapshot` may be served though the upstream cannot be asked.

    Never a tombstone: while the upstream is away nobody knows that a name is still gone.
    """
    if snapshot is None or snapshot.body is None:
        return False
    return age_s(snapshot, now) < terms.fresh_for_s + terms.stale_if_error_s


def age_s(snapshot: Snapshot, now: float) -> float:
    """Return the age of the upstream's last word on a snapshot; negative if it is of the future."""
    return now - abs(snapshot.confirmed_at)


def to_be_asked(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot that is not fresh at any time, and as usable as before: a soft purge."""
    return replace(snapshot, confirmed_at=-abs(snapshot.confirmed_at))


def plan(
    held: Snapshot | None, terms: Terms, now: float, *, insisting: bool, upstream_failing: bool
) -> Plan:
    """Decide what to do for one request.

    `insisting`: it is conditional, or its client's requests were; no stale copy at once.
    `upstream_failing`: the upstream failed moments ago; do not wait for it.
    """
    if held is None:
        return Ask(NO_VALIDATORS, patience_s=None)
    if is_fresh(held, terms, now):
        return Serve(stale=False, refresh=False)
    usable = is_usable(held, terms, now)
    if usable and upstream_failing:
        return Serve(stale=True, refresh=True)
    lately = 0 <= now - held.confirmed_at < terms.fresh_for_s + terms.stale_while_revalidate_s
    if usable and lately and not insisting:
        return Serve(stale=True, refresh=True)
    return Ask(validators_for(held), patience_s=PATIENCE_S if usable else None)


def validators_for(held: Snapshot | None, mirror: str = "") -> Validators:
    """Return what to ask an address with: its own validators, for a file that is held.

    Nothing for a tombstone, whose return must come as a body.
    """
    if held is None or held.body is None or held.validators.mirror != mirror:
        return NO_VALIDATORS
    return Validators(held.validators.etag, held.validators.last_modified)


def needs_second_opinion(held: Snapshot | None, answer: Answer) -> bool:
    """Tell whether `answer` takes away a name that is held, and so is asked for twice."""
    return isinstance(answer, Absent) and held is not None and held.body is not None


class Turn(Enum):
    """What an answer changed, beyond a newer body: the things that someone should hear of."""

    NONE = "none"
    OLDER_REFUSED = "older_refused"
    OLDER_ACCEPTED = "older_accepted"
    REMOVED = "removed"
    RETURNED = "returned"


@dataclass(frozen=True, slots=True)
class Learned:
    """The new snapshot (None: absent and never held), and what it means."""

    snapshot: Snapshot | None
    turn: Turn


class UnaskedNotModified(ValueError):
    """The upstream said "unchanged" of something that we do not hold."""


def learn(held: Snapshot | None, answer: Answer, now: float) -> Learned:
    """Fold a believed answer into what is held. Raises UnaskedNotModified."""
    match answer:
        case Found():
            return _learn_found(held, answer, now)
        case Unchanged():
            if held is None or held.body is None:
                raise UnaskedNotModified
            return Learned(replace(held, confirmed_at=now, older_since=None), Turn.NONE)
        case Absent():
            if held is None:
                return Learned(None, Turn.NONE)
            if held.body is None:
                return Learned(replace(held, confirmed_at=now), Turn.NONE)
            return Learned(Snapshot(None, NO_VALIDATORS, now, now), Turn.REMOVED)
        case _ as never:
            assert_never(never)


def _learn_found(held: Snapshot | None, found: Found, now: float) -> Learned:
    if held is None:
        return Learned(Snapshot(found.body, found.validators, now, now), Turn.NONE)
    if held.body is None:
        return Learned(Snapshot(found.body, found.validators, now, now), Turn.RETURNED)
    if held.body == found.body:
        return Learned(
            replace(held, validators=found.validators, confirmed_at=now, older_since=None),
            Turn.NONE,
        )
    if not _is_older(found.validators, held.validators):
        return Learned(Snapshot(found.body, found.validators, now, now), Turn.NONE)
    # A time from the future (a clock that jumped back) starts anew.
    since = min(held.older_since, now) if held.older_since is not None else now
    if now - since < OLDER_COPY_REFUSED_S:
        return Learned(replace(held, confirmed_at=now, older_since=since), Turn.OLDER_REFUSED)
    return Learned(Snapshot(found.body, found.validators, now, now), Turn.OLDER_ACCEPTED)


def _is_older(offered: Validators, held: Validators) -> bool:
    if offered.last_modified is None or held.last_modified is None:
        return False
    if offered.mirror != held.mirror:
        # A mirror's time is that of its copying.
        return False
    offered_at, held_at = (
        parse_http_date(offered.last_modified),
        parse_http_date(held.last_modified),
    )
    return offered_at is not None and held_at is not None and offered_at < held_at
