"""A dead letter has the original record, byte for byte, and everything needed to understand it, within bounds."""

from __future__ import annotations

from datetime import datetime

import msgspec

from engine.declare.unit_of_work import UnitOfWork
from engine.failures.burial import Failed, bury
from engine.failures.classify import ERROR_BYTES_MAX, TRACE_BYTES_MAX
from engine.failures.topics import DEAD_LETTERS
from engine.log.ports import Record
from streams.settings import Settings
from tests.unit.test_unit_of_work import Committed


def letter(record: Record, error: Exception) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]:
    """The dead letter that `record` becomes in partition 3."""
    work = UnitOfWork(3, Committed(), lambda key: 0, msgspec.json.encode, Settings(_env_file=None))
    try:
        raise error
    except Exception as raised:
        bury(work, Failed("decide-orders", "order-commands", record, raised, 0, None, None))
    ((topic, partition), ((key, value, headers),)) = next(iter(work.outputs.items()))
    assert (topic, partition) == (DEAD_LETTERS.name, 3)
    return key, value, list(headers)


def test_it_says_what_came_from_where_and_what_went_wrong() -> None:
    record = Record(42, 1, b"\xffkey", b"\x00value", (("trace_id", b"t"), ("trace_id", b"u"), ("bin", b"\xff")))
    key, value, headers = letter(record, ValueError("no such thing"))
    assert (key, value) == (record.key, record.value)
    assert headers[:3] == list(record.headers)
    own = dict(headers[3:])
    failed_at = datetime.fromisoformat(own.pop("failed_at").decode())
    assert failed_at.utcoffset() is not None
    trace = own.pop("trace").decode()
    assert "test_failures.py" in trace
    assert trace.endswith("ValueError: no such thing\n")
    assert own.pop("dead_letter_id").startswith(b"3-")
    assert own == {
        "original_topic": b"order-commands",
        "original_partition": b"3",
        "original_offset": b"42",
        "error_type": b"ValueError",
        "error": b"no such thing",
        "retry_count": b"0",
        "agent": b"decide-orders",
    }


def test_it_passes_on_what_has_no_key_or_value() -> None:
    assert letter(Record(0, 1, None, None, ()), ValueError())[:2] == (None, None)


def test_headers_are_bounded_and_still_text() -> None:
    _, _, headers = letter(Record(0, 1, b"k", b"v", ()), ValueError("\u00e9\u4e16" * 50_000))
    own = dict(headers)
    assert len(own["error"]) <= ERROR_BYTES_MAX
    assert len(own["trace"]) <= TRACE_BYTES_MAX
    assert own["error"].decode()
    assert own["trace"].decode()


def test_headers_of_the_same_names_are_ours() -> None:
    record = Record(0, 1, b"k", b"v", (("error", b"forged"), ("kept", b"1"), ("retry_count", b"9")))
    _, _, headers = letter(record, ValueError("real"))
    assert [value for name, value in headers if name == "error"] == [b"real"]
    assert [name for name, _ in headers].count("retry_count") == 1
    assert ("kept", b"1") in headers


class Mute(Exception):
    """An error that cannot even be put into words."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_error_without_words_does_not_stop_its_record() -> None:
    _, value, headers = letter(Record(0, 1, b"k", b"v", ()), Mute())
    assert value == b"v"
    assert dict(headers)["error_type"] == b"Mute"


def test_an_error_whose_text_is_no_utf_8_does_not_stop_its_record() -> None:
    _, _, headers = letter(Record(0, 1, b"k", b"v", ()), ValueError("half a pair: \ud800"))
    assert b"half a pair" in dict(headers)["error"]
