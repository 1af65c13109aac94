"""Data that is shown to people moves no cursor and begins no line of its own."""

from __future__ import annotations

import json
import logging

import pytest

from engine.cli.console import Failure, columns
from engine.observe.logs import configure_logging
from engine.observe.plain_text import plain, plain_line
from streams.settings import Settings

HOSTILE = "a\x1b[2J\x9b31m\x07\x00\x7f\r\u202e\u2066\ud800b"


def test_what_would_not_be_seen_is_shown_as_json_writes_it() -> None:
    assert plain(HOSTILE) == (r"a\u001b[2J\u009b31m\u0007\u0000\u007f\u000d\u202e\u2066\ud800b")
    assert plain("żółć 🛒 \t two\nlines") == "żółć 🛒 \t two\nlines"
    assert plain_line("two\nlines") == r"two\u000alines"


def test_json_stays_the_same_json() -> None:
    text = json.dumps({"key": HOSTILE}, ensure_ascii=False)
    assert json.loads(plain(text)) == {"key": HOSTILE}


def test_a_cell_stays_in_its_line_and_column() -> None:
    assert columns([("a\nb", "c"), ("d", "e")]) == [r"a\u000ab  c", "d         e"]


def test_a_failure_says_nothing_to_the_terminal() -> None:
    assert Failure("no \x1b]0;x\x07 worker").format_message() == r"no \u001b]0;x\u0007 worker"


def test_no_data_begins_a_line_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        configure_logging(Settings(_env_file=None))
        logging.getLogger("streams.any").error("failed: %s", "x\n12:00:00 CRITICAL forged\x1b[2J")
        try:
            raise ValueError("bad\x1b[2J")
        except ValueError:
            logging.getLogger("streams.any").exception("failed")
    finally:
        root.handlers[:], root.level = handlers, level
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"x\u000a12:00:00 CRITICAL forged\u001b[2J" in said
    assert "Traceback" in said
