"""The benchmarks' reading of reports, their arithmetic, their registry and their relay."""

import contextlib
import hashlib
import json
import socket
import socketserver
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from benchmarks.figures import Cell, Figure, Row, Sample, Target, figure, judge, ratio
from benchmarks.load import LoadFailed, Relay, Told, parse_h2load, parse_wrk
from benchmarks.measures import Head, Results, installed
from benchmarks.peers import tally
from benchmarks.registry import Sources, crate_path, find, index_path, lay_out
from benchmarks.report import Run, as_json, as_markdown, as_svg, as_text, number, said
from benchmarks.targets import TARGETS

_WRK: Final = """Running 1s test @ http://127.0.0.1:8080/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.02ms  110.00us   4.90ms   95.00%
    Req/Sec    30.10k     1.20k   31.00k    90.00%
  30123 requests in 1.10s, 120.00MB read
Requests/sec:  27384.55
Transfer/sec:    109.09MB
"""
_H2LOAD: Final = """starting benchmark...
Application protocol: h2c

finished in 503.10ms, 40250.00 req/s, 160.11MB/s
requests: 20125 total, 20225 started, 20125 done, 20125 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 20125 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 80.05MB (83938560) total, 200.00KB (204800) headers (space savings 90%)
"""


def test_wrks_report_gives_requests_rate_and_time() -> None:
    told = parse_wrk(_WRK)
    assert (told.requests, told.per_second, told.took_s, told.failed) == (30123, 27384.55, 1.1, 0)


def test_wrks_error_pages_and_socket_errors_are_failures() -> None:
    more = (
        "  Socket errors: connect 1, read 2, write 0, timeout 4\n  Non-2xx or 3xx responses: 10\n"
    )
    assert parse_wrk(_WRK + more).failed == 17


def test_h2loads_report_gives_requests_rate_and_time_in_any_unit() -> None:
    told = parse_h2load(_H2LOAD)
    assert (told.requests, told.per_second, told.failed) == (20125, 40250.0, 0)
    assert told.took_s == pytest.approx(0.5031)


def test_h2loads_not_modified_is_no_failure_but_error_pages_are() -> None:
    assert parse_h2load(_H2LOAD.replace("20125 2xx, 0 3xx", "0 2xx, 20125 3xx")).failed == 0
    assert parse_h2load(_H2LOAD.replace("0 4xx, 0 5xx", "3 4xx, 4 5xx")).failed == 7
    assert parse_h2load(_H2LOAD.replace("0 failed", "5 failed")).failed == 5


@pytest.mark.parametrize("parse", [parse_wrk, parse_h2load])
def test_a_report_that_says_nothing_is_a_failed_run(
    parse: Callable[[str], Told],
) -> None:
    with pytest.raises(LoadFailed, match="connection refused"):
        parse("connection refused")


def test_a_figure_is_the_median_with_the_extremes_and_nothing_of_nothing() -> None:
    assert figure([3.0, 1.0, 10.0]) == Figure(3.0, 1.0, 10.0, 3)
    assert figure([]) is None


def _cell(contender: str, *values: float | None, generator: float | None = None) -> Cell:
    samples = tuple(
        None if value is None else Sample(value, generator=generator) for value in values
    )
    return Cell(contender, samples)


def test_a_ratio_is_taken_round_by_round_and_leaves_failed_rounds_out() -> None:
    ours = _cell("ours", 10.0, None, 30.0, 8.0)
    theirs = _cell("theirs", 20.0, 5.0, 30.0, 2.0)
    assert ratio(ours, theirs) == Figure(1.0, 0.5, 4.0, 3)
    assert ratio(ours, theirs, inverted=True) == Figure(1.0, 0.25, 2.0, 3)
    assert ratio(_cell("ours", None), theirs) is None


def test_cpu_seconds_are_per_thousand_requests() -> None:
    cell = Cell("ours", (Sample(1.0, server_s=0.5, requests=10_000), None))
    assert cell.server_s_per_thousand == Figure(0.05, 0.05, 0.05, 1)


def test_a_generator_above_nine_tenths_of_its_core_marks_the_cell() -> None:
    assert _cell("ours", 1.0, generator=0.91).is_saturated
    assert not _cell("ours", 1.0, generator=0.9).is_saturated
    assert not _cell("ours", 1.0).is_saturated


def _row(*cells: Cell) -> Row:
    return Row("row", "hot", "a row of `this`", "requests/s", "higher", cells)


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        (Target("share", "row", "ours", "theirs", 0.5), True),
        (Target("share", "row", "ours", "theirs", 0.51), False),
        (Target("time", "row", "ours", "theirs", 0.5, direction="at most"), True),
        (Target("time", "row", "ours", "theirs", 0.49, direction="at most"), False),
        (Target("times", "row", "ours", "theirs", 2, inverted=True), True),
        (Target("times", "row", "ours", "theirs", 2.1, inverted=True), False),
        (Target("count", "row", "ours", None, 5, direction="at most"), True),
        (Target("count", "row", "ours", None, 4, direction="at most"), False),
        (Target("share", "other", "ours", "theirs", 0), None),
        (Target("share", "row", "ours", "nobody", 0), None),
    ],
)
def test_a_target_is_reached_missed_or_was_not_measured(
    target: Target, reached: bool | None
) -> None:
    rows = [_row(_cell("ours", 5.0, 5.0), _cell("theirs", 10.0, 10.0))]
    assert judge(target, rows).is_reached is reached


def test_a_verdict_tells_if_either_sides_generator_was_saturated() -> None:
    target = Target("share", "row", "ours", "theirs", 0.5)
    rows = [_row(_cell("ours", 5.0), _cell("theirs", 10.0, generator=0.95))]
    assert judge(target, rows).is_saturated


def test_results_keep_the_order_and_put_a_failure_in_its_round() -> None:
    results = Results()
    head = Head("row", "hot", "title", "s", "lower")
    results.add(head, "ours", Sample(1.0))
    results.add(head, "ours", LoadFailed("went away"))
    results.add(head, "theirs", Sample(2.0))
    (row,) = results.rows()
    assert [cell.contender for cell in row.cells] == ["ours", "theirs"]
    assert row.cells[0].samples == (Sample(1.0), None)
    assert row.cells[0].failures == ("went away",)


def test_the_registrys_log_is_counted_by_path_and_in_bytes() -> None:
    counted = tally("/a 200 100\n/b 404 20\n/a 304 3\n")
    assert (counted.requests, counted.sent_bytes) == (3, 123)
    assert counted.by_path == {"/a": 2, "/b": 1}


def test_the_servers_that_are_always_there_are_the_proxys_own() -> None:
    here, _ = installed()
    assert {"h2c", "http1", "tls"} <= {
        spoken for peer in here if peer.name == "holdfast" for spoken in peer.protocols
    }


@pytest.mark.parametrize(
    ("value", "words"),
    [(28417.2, "28,400"), (1234.0, "1,230"), (999.0, "999"), (0.01234, "0.0123"), (0.0, "0")],
)
def test_numbers_have_three_digits_that_count(value: float, words: str) -> None:
    assert number(value) == words


def test_the_spread_is_said_where_there_is_one() -> None:
    assert said(Figure(2.0, 1.0, 3.0, 3)) == "2 (1..3)"
    assert said(Figure(2.0, 2.0, 2.0, 1)) == "2"
    assert said(None) == "failed"


_RUN: Final = Run(
    date="2026-01-02",
    command="python -m benchmarks --quick",
    mode="quick",
    took_s=1.0,
    machine={"processor": "one"},
    versions={"nginx": "1.2.3"},
    registry={"registry": "3 crates"},
    left_out=("varnish",),
    load_average=(0.1, 0.2),
)


def test_the_reports_have_every_row_target_version_and_what_was_left_out() -> None:
    rows = [_row(_cell("holdfast h2c", 5.0, 7.0, generator=0.99), _cell("nginx <h2>", 10.0, 12.0))]
    data = json.loads(as_json(_RUN, rows))
    assert [len(each["samples"]) for each in data["rows"][0]["contenders"]] == [2, 2]
    assert data["rows"][0]["ratios"][0]["median"] == pytest.approx((0.5 + 7 / 12) / 2)
    assert len(data["targets"]) == len(TARGETS)
    document = as_markdown(_RUN, rows, {"hot": "hot.svg"})
    for word in ("1.2.3", "left out: varnish", "6 (5..7) †", "hot.svg", "--quick", "2026-01-02"):
        assert word in document
    assert "6 (5..7) †" in as_text(rows)
    drawing = ET.fromstring(as_svg(rows))
    texts = ["".join(each.itertext()) for each in drawing if each.tag.endswith("text")]
    assert "nginx <h2>" in texts


def test_a_registry_that_is_made_is_the_same_every_time_and_its_digests_are_right(
    tmp_path: Path,
) -> None:
    first = lay_out(tmp_path / "first", Sources(None, None))
    second = lay_out(tmp_path / "second", Sources(None, None))
    assert first.crates == 164
    for crate, digest in first.digests.items():
        data = (first.root / crate_path(crate)).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest == second.digests[crate]
        lines = (first.root / "index" / index_path(crate)).read_text().splitlines()
        assert json.loads(lines[-1])["cksum"] == digest
    sizes = {crate: (first.root / crate_path(crate)).stat().st_size for crate in first.digests}
    assert sizes["bench-crate-middle"] == 200_000
    small = (first.root / "index" / index_path("bench-index-small")).stat().st_size
    assert 3_500 < small <= 4_000


def test_a_corpus_without_a_workload_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="belong together"):
        find(tmp_path, None)


@pytest.fixture
def echo() -> Iterator[int]:
    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(65536):
                self.request.sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("rtt_ms", [0, 30])
def test_a_relay_delivers_every_byte_in_order_counts_it_and_takes_its_time(
    echo: int, rtt_ms: int
) -> None:
    sent = bytes(range(256)) * 2048
    with Relay(None) as relay:
        port = relay.route(echo, rtt_ms)
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            sender = threading.Thread(target=client.sendall, args=(sent,))
            sender.start()
            received = b""
            while len(received) < len(sent):
                received += client.recv(65536)
            took_ms = (time.monotonic() - began) * 1000
            sender.join()
        assert received == sent
        assert took_ms >= 2 * rtt_ms * 0.99, "the handshake's round trip and the request's"
        assert relay.sent_to_client(port) == len(sent)


def test_a_relay_passes_the_end_of_a_connection_on(echo: int) -> None:
    with Relay(None) as relay:
        port = relay.route(echo, 0)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(b"last words")
            client.shutdown(socket.SHUT_WR)
            received = b""
            while data := client.recv(65536):
                received += data
        assert received == b"last words"


def test_a_relay_to_nowhere_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nowhere = taken.getsockname()[1]
    with Relay(None) as relay:
        port = relay.route(nowhere, 0)
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as client,
            contextlib.suppress(ConnectionResetError),
        ):
            assert client.recv(1) == b""
