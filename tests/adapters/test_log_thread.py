"""Whoever logs does not wait, and whoever reads is told what is missing."""

import errno
import fcntl
import logging
import os
import threading
from collections.abc import Iterator

import pytest

from proxy.adapters import logs
from proxy.adapters.log_thread import LogThread, to_descriptor

PATIENCE_S = 10


class Reader:
    """What a handler writes to. `open` lets it through; `failing` makes every write fail."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.open = threading.Event()
        if is_open:
            self.open.set()
        self.failing = False
        self.begun = threading.Event()
        self.text = ""
        self._changed = threading.Condition()

    def write(self, data: bytes) -> None:
        self.begun.set()
        assert self.open.wait(PATIENCE_S)
        if self.failing:
            raise OSError(errno.ENOSPC, "no space")
        with self._changed:
            self.text += data.decode()
            self._changed.notify_all()

    def until(self, wanted: str) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: wanted in self.text, PATIENCE_S), self.text
            return self.text


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("test", logging.INFO, __file__, 1, message, arguments, None)


@pytest.fixture
def stuck() -> Iterator[Reader]:
    """A reader that does not read until `open` is set."""
    reader = Reader(is_open=False)
    yield reader
    reader.open.set()


def test_lines_come_out_whole_and_in_order_and_the_last_ones_on_closing() -> None:
    reader = Reader()
    handler = LogThread(reader.write)
    for number in range(1000):
        handler.handle(record("line %d", number))
    handler.close()
    assert reader.text.splitlines() == [f"line {number}" for number in range(1000)]
    assert handler.dropped == 0


def test_a_reader_that_is_stuck_costs_lines_and_no_time_and_is_told_how_many(
    stuck: Reader,
) -> None:
    handler = LogThread(stuck.write, waiting_max_bytes=100)
    handler.handle(record("first"))
    assert stuck.begun.wait(PATIENCE_S)
    for number in range(50):
        handler.handle(record("%09d", number))
    # Of those, 94 bytes hold nine: what is being written waits too.
    assert handler.dropped == 41
    stuck.open.set()
    assert "41 log lines are missing here" in stuck.until("missing")
    handler.handle(record("last"))
    handler.close()
    lines = stuck.text.splitlines()
    assert lines[:10] == ["first", *(f"{number:09d}" for number in range(9))]
    assert lines[-1] == "last"
    assert sum("missing" in line for line in lines) == 1


def test_lines_that_cannot_be_written_are_counted_and_told_once_they_can() -> None:
    reader = Reader()
    reader.failing = True
    handler = LogThread(reader.write)
    handler.handle(record("lost"))
    assert reader.begun.wait(PATIENCE_S)
    handler.close()
    assert (handler.dropped, reader.text) == (1, "")


def test_closing_does_not_wait_for_a_reader_that_is_stuck(
    stuck: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.adapters.log_thread._LAST_WORDS_S", 0.01)
    handler = LogThread(stuck.write)
    handler.handle(record("never read"))
    closing = threading.Thread(target=handler.close)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert stuck.text == ""


def test_a_record_that_cannot_be_formatted_is_dropped_and_harms_nobody() -> None:
    reader = Reader()
    handler = LogThread(reader.write)
    handler.handle(record("%d", "no number"))
    handler.handle(record("the next"))
    handler.close()
    assert handler.dropped == 1
    assert "the next\n" in reader.text


def test_a_pipe_that_does_not_block_gets_every_byte() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    data = os.urandom(100_000)
    writing = threading.Thread(target=to_descriptor(write), args=(data,))
    writing.start()
    with os.fdopen(read, "rb") as out:
        assert out.read(len(data)) == data
    writing.join(PATIENCE_S)
    os.close(write)


def test_what_is_dropped_is_counted_where_the_metrics_look(
    capfd: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with logs.configured_apart("json", "info"):
            logging.getLogger("holdfast.test").warning("%d", "no number")
            logging.getLogger("holdfast.test").warning("hello")
            assert logs.dropped_lines() == 1
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert '"message": "hello"' in capfd.readouterr().err
