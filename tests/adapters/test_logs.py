"""What a log line looks like, and what nobody can make it look like."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from proxy.adapters import logs


@pytest.fixture(autouse=True)
def root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_json_line_carries_the_message_and_its_fields() -> None:
    out = io.StringIO()
    logs.configure("json", "info", out)
    logging.getLogger("holdfast.test").warning(
        "%s is down", "crates-io", extra={"fields": {"upstream": "crates-io", "level": "mine"}}
    )
    entry = json.loads(out.getvalue())
    assert entry["message"] == "crates-io is down"
    assert entry["level"] == "warning"
    assert entry["upstream"] == "crates-io"
    assert entry["at"].endswith("+00:00")


@pytest.mark.parametrize("form", ["json", "console"])
def test_what_comes_from_outside_cannot_begin_a_line(form: str) -> None:
    out = io.StringIO()
    logs.configure("json" if form == "json" else "console", "info", out)
    logging.getLogger("holdfast.test").warning("%s", "serde\n12:00:00 error forged\x1b[2J\u2028x")
    (line,) = out.getvalue().splitlines()
    assert "forged" in line
    assert "\x1b" not in line


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_exception_is_written_with_its_traceback(form: str) -> None:
    out = io.StringIO()
    logs.configure("json" if form == "json" else "console", "info", out)
    try:
        raise ValueError("the reason")
    except ValueError:
        logging.getLogger("holdfast.test").exception("it failed")
    assert "it failed" in out.getvalue()
    assert "ValueError: the reason" in out.getvalue()


def test_below_the_level_nothing_is_written() -> None:
    out = io.StringIO()
    logs.configure("console", "warning", out)
    logging.getLogger("holdfast.test").info("a detail")
    assert out.getvalue() == ""


def test_without_a_terminal_the_form_is_json() -> None:
    out = io.StringIO()
    logs.configure(None, "info", out)
    logging.getLogger("holdfast.test").info("hello")
    assert json.loads(out.getvalue())["message"] == "hello"
