"""The table of faults: what an upstream may do wrong, and what a client of the proxy then gets.

These are expectations; `test_fault_table` holds a proxy to each of them and `docs/fault-table.md`
shows them, written by `python -m tests.faults.table > docs/fault-table.md`.

What is kept follows from what was sent: a complete 200 is kept, and nothing else ever is. All heals
at once when the upstream does, save for a wrong digest, which is remembered for a minute.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.faults import mischief
from tests.faults.observing import (
    CUT_SHORT,
    NOTHING,
    THE_FILE,
    THE_OLD_FILE,
    Got,
    Situation,
    Suspect,
    Trial,
)
from tests.world import faults
from tests.world.faults import Fault
from tests.world.wire import Reply

FOUND: Final = Got(200, "miss", THE_FILE)
STALE: Final = Got(200, "stale", THE_OLD_FILE)
BROKEN_OFF: Final = Got(200, "miss", CUT_SHORT)

_INDEX_PATH: Final = "se/rd/serde"
_VERSION: Final = "serde 1.0.0"
_SMALL_TIMES, _LARGE_TIMES, _INDEX_TIMES = 6000, 4, 500


def outage(said: str) -> Got:
    """Expect 503, which tells cargo to come again."""
    return Got(503, "error", f"crates-io {said}")


def nonsense(said: str) -> Got:
    """Expect 502."""
    return Got(502, "error", f"crates-io{said}")


def disbelieved(reason: str) -> Got:
    """Expect 502 for an index file that cannot be one."""
    return nonsense(f" sent something else than the index file of serde: {reason}")


LATE: Final = Got(504, "error", "crates-io did not answer in time")
MISMATCH: Final = nonsense(
    f" sent {_VERSION} with sha256 <another digest>, its index says <digest>"
)


@dataclass(frozen=True, slots=True)
class Case:
    """One fault, and what is expected of it in each situation; None where it has no meaning.

    `stale` is what a client gets that could be served a stale copy. `faults` is the fault where it
    is not the same for all situations. `mismatch` says that the bytes of a crate are wrong.
    """

    title: str
    fault: Fault | None
    cold: Got | None
    small: Got | None
    large: Got | None
    stale: Got | None = STALE
    settings: Mapping[str, object] = field(default_factory=dict)
    faults: Mapping[Situation, Fault] = field(default_factory=dict)
    mismatch: bool = False
    slow: bool = False

    def expected(self, situation: Situation) -> Got | None:
        """Return what a client gets."""
        match situation:
            case Situation.INDEX_COLD:
                return self.cold
            case Situation.INDEX_STALE:
                return self.stale
            case Situation.SMALL_CRATE:
                return self.small
            case Situation.LARGE_CRATE:
                return self.large

    def fault_in(self, situation: Situation) -> Fault | None:
        """Return what the upstream does; None: it refuses connections."""
        return self.faults.get(situation, self.fault)

    def suspect(self) -> Suspect:
        """Return an upstream to be tried with this, in every situation in which it has meaning."""
        trials = [
            Trial(situation, self.fault_in(situation), self.is_remembered(situation))
            for situation in Situation
            if self.expected(situation) is not None
        ]
        return Suspect(trials, self.settings)

    def is_remembered(self, situation: Situation) -> bool:
        """Tell whether the proxy goes on refusing for a while after the upstream has healed."""
        return self.mismatch and situation in (Situation.SMALL_CRATE, Situation.LARGE_CRATE)


def kept(got: Got) -> str:
    """Return what is kept after an answer: all that was sent whole, and nothing else."""
    return got.said if got.status == 200 and got.said != CUT_SHORT else NOTHING


def _everywhere(
    title: str, fault: Fault | None, got: Got, settings: Mapping[str, object] | None = None
) -> Case:
    """Expect the same of index files and crates, and a stale copy where there is one."""
    return Case(title, fault, cold=got, small=got, large=got, settings=settings or {})


def _in_the_body(title: str, fault: Fault, got: Got) -> Case:
    """Expect a status while nothing was sent, and a broken transfer of a longer crate."""
    return Case(title, fault, cold=got, small=got, large=BROKEN_OFF)


def _absent(title: str, status: int, settings: Mapping[str, object] | None = None) -> Case:
    """Expect 404, and nothing else: an answer that is none of a fault."""
    no_file = f"the index of crates-io lists {_VERSION}, but the file is not there ({status})"
    no_crate = Got(404, "miss", "crates-io has no crate serde")
    no_version = Got(404, "negative", no_file)
    return Case(
        title,
        faults.status(status),
        cold=no_crate,
        stale=no_crate,
        small=no_version,
        large=no_version,
        settings=settings or {},
    )


def _wrong(title: str, fault: Fault, reason: str, *, large: Got = BROKEN_OFF) -> Case:
    """Expect that a body is not believed; `reason` is why, for an index file."""
    return Case(title, fault, cold=disbelieved(reason), small=MISMATCH, large=large, mismatch=True)


def _connections() -> Iterator[Case]:
    gone = outage("broke off: [Errno 104] Connection reset by peer")
    half = outage("broke off in the middle of a body")
    yield _everywhere(
        "refuses connections",
        None,
        outage("cannot be reached: [Errno 111] Connect call failed ('127.0.0.1', <port>)"),
    )
    yield _everywhere("takes the request and says nothing", faults.hang(), LATE)
    yield _everywhere(
        "takes the request and hangs up",
        mischief.hung_up(),
        outage("broke off: Server disconnected"),
    )
    yield _everywhere("resets before the head", faults.reset("before the head"), gone)
    yield _everywhere("resets in the head", faults.reset("in the head"), gone)
    yield _in_the_body("resets in the body", faults.reset("in the body"), half)
    yield _in_the_body("ends before its Content-Length", faults.cut(), half)
    yield _in_the_body("ends before its last chunk", faults.cut_chunked(), half)
    yield _in_the_body("stops in the body and says no more", faults.stall(), LATE)
    yield _everywhere("sends its head byte by byte", faults.drip(), LATE)
    yield Case(
        "sends its body byte by byte, for minutes",
        mischief.drip_body(0.5),
        cold=Got(504, "error", "crates-io did not answer in time; try again"),
        small=Got(504, "error", "crates-io did not answer in time; try again"),
        large=None,
        slow=True,
    )
    yield _everywhere(
        "speaks another protocol", mischief.not_http(), nonsense(" does not speak HTTP: ...")
    )
    yield _everywhere(
        "sends a head of a mebibyte",
        faults.oversized_head(1 << 20),
        nonsense(" does not speak HTTP: ..."),
    )


def _statuses() -> Iterator[Case]:
    credentials = " (is upstreams.crates-io.token right?)"
    for code in (400, 401, 403, 405, 407, 408, 418, 429, 500, 501, 502, 503, 504, 507):
        hint = credentials if code in (401, 403) else ""
        yield _everywhere(f"answers {code}", faults.status(code), outage(f"answered {code}{hint}"))
    yield _everywhere(
        "answers 429 with `Retry-After: 1`",
        faults.status(429, retry_after="1"),
        outage("answered 429"),
    )
    yield _everywhere(
        "answers 503 with `Retry-After: 3600`",
        faults.status(503, retry_after="3600"),
        outage("answered 503"),
    )
    yield _everywhere("answers 204", faults.instead("204", Reply(204)), outage("answered 204"))
    yield _everywhere(
        "answers 206 to a request for all", faults.partial_content(), outage("answered 206")
    )
    not_asked = outage("answered 304")
    yield Case(
        "answers 304, whatever it is asked",
        faults.unasked_304(),
        cold=nonsense(f" said 304 for {_INDEX_PATH} to no validator"),
        stale=Got(200, "revalidated", THE_OLD_FILE),
        small=not_asked,
        large=not_asked,
    )
    for code in (404, 410, 451):
        yield _absent(f"answers {code}", code)
    for code in (400, 403):
        yield _absent(
            f"answers {code}, which is in its `absent_statuses`",
            code,
            {"absent_statuses": [code, 404]},
        )
    yield _everywhere(
        "answers 404, which is not in its `absent_statuses`",
        faults.status(404),
        outage("answered 404"),
        {"absent_statuses": [410]},
    )


def _redirects() -> Iterator[Case]:
    yield _everywhere(
        "redirects to itself", faults.redirect_loop(), nonsense(": more than 5 redirects")
    )
    yield _everywhere(
        "redirects to a metadata address",
        faults.redirect(faults.LINK_LOCAL_URL),
        nonsense(
            ": 169.254.169.254 (169.254.169.254) is a link-local, metadata or otherwise forbidden "
            "address"
        ),
    )
    yield _everywhere(
        "redirects into the private network",
        faults.redirect(mischief.PRIVATE_URL),
        nonsense(": 127.0.0.2 (127.0.0.2) is a private address; allow_hosts may list it"),
    )
    yield _everywhere(
        "redirects to a file",
        faults.redirect("file:///etc/passwd"),
        nonsense(": it leads to what is no http(s) address"),
    )
    yield _everywhere(
        "redirects to nowhere",
        mischief.moved_nowhere(),
        nonsense(": a redirect without a Location"),
    )


def _bodies() -> Iterator[Case]:
    page = nonsense(f" sent a web page in place of {_VERSION}")
    line = """line 1 is not JSON: '{"name":"serde","vers":"1.0.0","deps":[],"cksum":"...'"""
    yield Case(
        "sends a login page",
        faults.login_page(),
        cold=nonsense(f" sent a web page in place of {_INDEX_PATH}"),
        small=page,
        large=page,
    )
    yield _wrong(
        "sends a login page and calls it text",
        faults.login_page("text/plain"),
        "line 1 is not JSON: '<!DOCTYPE html>'",
        large=MISMATCH,
    )
    yield _wrong("sends nothing", faults.empty(), "it has no version in it", large=MISMATCH)
    yield _wrong(
        "sends garbage",
        faults.garbage(),
        r"line 1 is not JSON: '\x00\x01\x02\x03\x04\x05\x06\x07\x08'",
        large=MISMATCH,
    )
    yield Case(
        "sends another crate's index file",
        mischief.another_crates_file(),
        cold=disbelieved("line 1 is about 'not-serde', not 'serde'"),
        small=None,
        large=None,
    )
    yield _wrong(
        "changes the first byte",
        faults.wrong_bytes("same length"),
        line.replace("'{", "'\N{REPLACEMENT CHARACTER}"),
    )
    yield _wrong("changes the last byte", faults.wrong_tail(), line)
    yield _wrong("leaves out the last bytes", faults.wrong_bytes("shorter"), line)
    yield _wrong(
        "adds some bytes",
        faults.wrong_bytes("longer"),
        "line 2 is not JSON: 'more than was published'",
    )
    endless = nonsense(f" sent {_INDEX_PATH} without saying how long it is")
    yield Case(
        "sends half, to the end of the connection and without a length",
        mischief.half_until_close(),
        cold=endless,
        small=MISMATCH,
        large=BROKEN_OFF,
        mismatch=True,
    )
    yield Case(
        "sends all, to the end of the connection and without a length",
        faults.unframed(),
        cold=endless,
        small=FOUND,
        large=FOUND,
    )


def _sizes() -> Iterator[Case]:
    over = nonsense(" sent more than the 65536 bytes allowed")

    def too_many(*, chunked: bool) -> Mapping[Situation, Fault]:
        return {
            Situation.INDEX_COLD: mischief.repeated(_INDEX_TIMES, chunked=chunked),
            Situation.INDEX_STALE: mischief.repeated(_INDEX_TIMES, chunked=chunked),
            Situation.SMALL_CRATE: mischief.repeated(_SMALL_TIMES, chunked=chunked),
            Situation.LARGE_CRATE: mischief.repeated(_LARGE_TIMES, chunked=chunked),
        }

    announced = nonsense(": a crate of <many> bytes is over limits.crate (1048576)")
    yield Case(
        "sends more than `limits` allow",
        None,
        cold=over,
        small=announced,
        large=announced,
        faults=too_many(chunked=False),
    )
    yield Case(
        "sends more than `limits` allow, in chunks",
        None,
        cold=over,
        small=BROKEN_OFF,
        large=BROKEN_OFF,
        faults=too_many(chunked=True),
    )
    yield Case(
        "sends a gzip bomb", faults.gzip_bomb(), cold=over, small=BROKEN_OFF, large=BROKEN_OFF
    )
    truncated = nonsense(": a compressed body is cut short")
    yield _in_the_body("sends half a gzip stream", faults.gzip_truncated(), truncated)
    yield Case(
        "sends the right bytes in gzip, which nobody asked for",
        faults.gzipped(),
        cold=FOUND,
        stale=FOUND,
        small=FOUND,
        large=FOUND,
    )
    yield Case(
        "sends the right bytes and calls them gzip",
        mischief.coded("gzip"),
        cold=nonsense(
            ": a compressed body is damaged "
            "(Error -3 while decompressing data: incorrect header check)"
        ),
        small=MISMATCH,
        large=BROKEN_OFF,
        mismatch=True,
    )
    brotli = nonsense(": a content coding that was not asked for: 'br'")
    yield _everywhere("sends the right bytes and calls them br", mischief.coded("br"), brotli)


CASES: Final[tuple[Case, ...]] = (
    *_connections(),
    *_statuses(),
    *_redirects(),
    *_bodies(),
    *_sizes(),
)

_HEAD: Final = """\
# What clients get when an upstream fails

Every row is tried against a running proxy by `tests/faults/test_fault_table.py`, and this page is
written from the same table: `python -m tests.faults.table > docs/fault-table.md`. The upstream is
called `crates-io` here and the crate `serde` 1.0.0. Its times are short (`connect_timeout` and
`idle_timeout` of two seconds), so that what takes long is over soon; whatever they are, a client
has its answer within 20 seconds.

- Nothing becomes 404 that is not absence: only the upstream's own word does, with a status that is
  in its `absent_statuses`.
- Nothing is kept but what was sent whole and right. After an answer other than a whole 200 nothing
  is held that was not held before; a name that is held and goes absent is asked for a second time,
  and is then gone, while its crates stay.
- 503 carries `Retry-After: 5`. What failed in a way that may pass was tried three times before.
- All of it heals with the upstream: at the next request, within seconds where a copy is served
  meanwhile or an absence was learned. Rows with a dagger (†) take up to a minute: a crate with a
  wrong digest is not fetched again at each of cargo's retries.
- A crate that is held is served in every one of these cases, and no upstream is asked.
"""


def document() -> str:
    """Write the table as Markdown."""
    parts = [_HEAD.rstrip("\n")]
    for situation in Situation:
        parts += ["", f"## Asked for {situation.value}", "", *_section(situation)]
    return "\n".join(parts) + "\n"


def _section(situation: Situation) -> Iterator[str]:
    yield "| The upstream | Status | `X-Cache` | The client gets | Kept |"
    yield "|---|---|---|---|---|"
    for case in CASES:
        got = case.expected(situation)
        if got is None:
            continue
        is_error = got.status != 200
        said = f"`{got.said}`" if is_error else got.said
        dagger = " †" if case.is_remembered(situation) else ""
        yield f"| {case.title}{dagger} | {got.status} | `{got.how}` | {said} | {kept(got)} |"


if __name__ == "__main__":
    sys.stdout.write(document())
