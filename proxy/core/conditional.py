"""Conditional requests and HTTP dates, as RFC 9110 sections 5.6.7, 8.8 and 13 have them.

Two decisions are ours. `If-None-Match` compares weakly (13.1.2) and takes either representation's
tag, identity or gzip, for what the client holds decodes to the same bytes. `If-Modified-Since` says
"unchanged" for the very date that we gave and no other: an upstream's copy can go back in time, and
then a later date in the client's hand proves nothing.
"""

import re
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import Final

# Empty members of a list are skipped: RFC 9110 section 5.6.1.2.
_ENTITY_TAG: Final = re.compile(r'[\s,]*(?:W/)?("[^"]*")\s*(?:,|$)')
_BARE_TAG: Final = re.compile(r'[\s,]*([^\s,"]+)\s*(?:,|$)')


def if_none_match_holds(header: str, *etags: str) -> bool:
    """Tell whether `header` names one of our strong `etags` (each with its quotes), or is `*`.

    A header that cannot be read to its end counts up to where it can.
    """
    if header.strip() == "*":
        return True
    at = 0
    while at < len(header):
        match = _ENTITY_TAG.match(header, at)
        if match is not None:
            if match[1] in etags:
                return True
        else:
            # Some caches replay a tag without its quotes; it can still name only one thing.
            match = _BARE_TAG.match(header, at)
            if match is None:
                return False
            if f'"{match[1].removeprefix("W/")}"' in etags:
                return True
        at = match.end()
    return False


def if_modified_since_holds(header: str, last_modified: str) -> bool:
    """Tell whether `header` carries the date that we gave out as Last-Modified."""
    asked, ours = parse_http_date(header), parse_http_date(last_modified)
    return asked is not None and asked == ours


def parse_http_date(text: str) -> float | None:
    """Return an HTTP date as seconds since the epoch, or None if it is no date."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()


def format_http_date(seconds: float) -> str:
    """Write seconds since the epoch as an HTTP date (IMF-fixdate)."""
    return format_datetime(datetime.fromtimestamp(int(seconds), UTC), usegmt=True)
