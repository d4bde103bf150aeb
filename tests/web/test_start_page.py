"""The start page as text and as HTML, from overviews that are made up."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from proxy.core.savings import Served
from proxy.service.overview import CacheState, Overview, RegistrySavings, UpstreamState
from proxy.web.start_page import StartPage

HOSTILE = "</pre><script>alert('x')</script>&\"'"
CACHE = CacheState(4, 3 * 2**20, 50 * 2**30, 5, None)
WELL = UpstreamState("crates-io", offline=False, failing_for_s=None, answered_ago_s=12.0)
OVERVIEW = Overview(
    upstreams=(WELL,),
    cache=CACHE,
    saved=(RegistrySavings("crates-io", Served(9, 5, 0, 4, 1536), Served(900, 0, 0, 800, 2**31)),),
    saved_since=0.0,
)
BASE = "http://127.0.0.1:8080"


def page(overview: Overview = OVERVIEW, lines: Mapping[str, str] | None = None) -> StartPage:
    given = {"crates-io": "[source.crates-io]"} if lines is None else lines
    return StartPage(("all", "crates-io"), lambda _: given, lambda: overview)


def told(overview: Overview) -> dict[str, str]:
    text = page(overview).text(BASE, "")
    below = text.partition("# How it does\n")[2].partition("\n\n")[0]
    rows = (line.removeprefix("#   ").partition(": ") for line in below.splitlines())
    return {name: what for name, _, what in rows}


class Tags(HTMLParser):
    """Collects what tags there are, and insists that they are closed."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_nothing_that_comes_from_outside_becomes_a_tag() -> None:
    upstream = replace(WELL, name=HOSTILE)
    saved = (RegistrySavings(HOSTILE, Served(), Served()),)
    overview = replace(OVERVIEW, upstreams=(upstream,), saved=saved)
    hostile = StartPage((HOSTILE, "b"), lambda _: {"b": HOSTILE}, lambda: overview)
    written = hostile.html(f"http://{HOSTILE}", HOSTILE)
    tags = Tags()
    tags.feed(written)
    assert tags.open == []
    assert "script" not in tags.seen
    assert "alert('x')" not in written
    assert written.count("&lt;script&gt;") >= 6


def test_what_is_all_right_is_not_marked() -> None:
    assert "class=bad" not in page().html(BASE, "")


@pytest.mark.parametrize(
    ("state", "expected", "is_bad"),
    [
        ({}, "last answer 12 seconds ago", False),
        ({"answered_ago_s": None}, "not asked since the start", False),
        ({"answered_ago_s": 0.4}, "last answer a moment ago", False),
        ({"answered_ago_s": 60.0}, "last answer 1 minute ago", False),
        ({"answered_ago_s": 7300.0}, "last answer 2 hours ago", False),
        ({"answered_ago_s": 3 * 86400.0}, "last answer 3 days ago", False),
        (
            {"failing_for_s": 300.0},
            "failing for 5 minutes; last answer 12 seconds ago; what is held is served",
            True,
        ),
        (
            {"failing_for_s": 1.0, "answered_ago_s": None},
            "failing for 1 second; it has not answered since the start; what is held is served",
            True,
        ),
        ({"offline": True}, "offline, as configured; what is held is served", False),
    ],
)
def test_how_an_upstream_does(state: dict[str, object], expected: str, is_bad: bool) -> None:
    overview = replace(OVERVIEW, upstreams=(replace(WELL, **state),))  # type: ignore[arg-type]
    assert told(overview)["crates-io"] == expected
    assert ("class=bad" in page(overview).html(BASE, "")) is is_bad


def test_how_the_cache_does() -> None:
    held = "4 crates, 3.0 MiB of 50.0 GiB; 5 index files"
    assert told(OVERVIEW)["cache"] == held
    refusing = replace(OVERVIEW, cache=replace(CACHE, refused_ago_s=61.0))
    assert told(refusing)["cache"] == f"{held}; the disk refused something 1 minute ago"
    assert "class=bad" in page(refusing).html(BASE, "")
    assert "cache" not in told(replace(OVERVIEW, cache=None))


def test_what_was_saved() -> None:
    today, ever = "today 4 of 9 requests, 1.5 KiB", "since 1970-01-01 800 of 900 requests, 2.0 GiB"
    assert f"#   crates-io: {today}; {ever}\n" in page().text(BASE, "")


def test_the_text_is_a_configuration_of_the_lines_and_nothing_else() -> None:
    text = page(lines={"crates-io": "[source.crates-io]\nreplace-with = 'x'"}).text(
        BASE, "starting"
    )
    assert tomllib.loads(text) == {"source": {"crates-io": {"replace-with": "x"}}}
    assert f"# all is at sparse+{BASE}/all/index/\n" in text
    assert "#   proxy: starting\n" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_a_page_for_people_says_what_to_do_and_how_to_undo_it() -> None:
    words = re.sub(r"<[^>]*>", " ", page().html(BASE, ""))
    for wanted in (
        "caching proxy for Cargo",
        "~/.cargo/config.toml",
        "To undo it",
        "What it saved",
    ):
        assert wanted in words
