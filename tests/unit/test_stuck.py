"""Marks of stuck records outlive the process, and go when their records are passed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.declare.errors import HandlerTimeout
from engine.declare.timers import TIMERS, Timer, TimerKey
from engine.declare.unit_of_work import NO_RECORD
from engine.failures.lanes import LANES, Lane, LaneKey
from engine.log.ports import Record
from engine.watchdog.stuck import STACK_BYTES_MAX, StuckRecords
from streams.settings import Settings

RECORD = Record(7, 1_000, b"k\xff", b"v", ())
DUE = Record(-1, 5_000, b"order-1", b"", ())


class Task:
    """As much of a partition task as marks look at."""

    def __init__(
        self, reached: int, timers: tuple[TimerKey, ...] = (), lanes: Mapping[LaneKey, Lane] | None = None
    ) -> None:
        self._reached = reached
        self._lanes = lanes or {}
        self._timers = timers

    def reached(self, agent: str, topic: str) -> int:
        return self._reached if (agent, topic) == ("agent", "topic") else 0

    def read(self, table: Any, key: Any) -> Timer | Lane | None:
        if table is LANES:
            return self._lanes.get(key)
        assert table is TIMERS
        return Timer(kind=key.kind, key=key.key, due_ms=key.due_ms) if key in self._timers else None


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path)


def is_marked(marks: StuckRecords, record: Record, agent: str = "agent", topic: str = "topic") -> bool:
    try:
        marks.check(agent, topic, record)
    except HandlerTimeout:
        return True
    return False


def test_a_mark_is_found_by_the_next_process_and_means_that_record_of_that_agent_only(settings: Settings) -> None:
    StuckRecords(settings, 3).add("agent", "topic", RECORD, "it hung", "here")
    marks = StuckRecords(settings, 3)
    assert marks
    assert is_marked(marks, RECORD)
    assert not StuckRecords(settings, 2)
    assert not is_marked(marks, RECORD, agent="other")
    assert not is_marked(marks, RECORD, topic="other")
    assert not is_marked(marks, Record(8, 1_000, b"k\xff", b"v", ()))
    assert not is_marked(marks, Record(7, 9, b"k\xff", b"v", ()))
    assert not is_marked(marks, Record(7, 1_000, None, b"", ()))


def test_its_file_says_what_happened(settings: Settings) -> None:
    StuckRecords(settings, 3).add("agent", "topic", RECORD, "it hung", "x" * 2 * STACK_BYTES_MAX)
    text = (settings.data_dir / "stuck" / "3.json").read_text()
    for part in ('"agent": "agent"', '"topic": "topic"', '"partition": 3', '"offset": 7', '"what": "it hung"'):
        assert part in text
    assert len(text) < STACK_BYTES_MAX + 1000
    assert [path.name for path in (settings.data_dir / "stuck").iterdir()] == ["3.json"]


def test_the_handler_of_a_marked_record_is_not_run(settings: Settings) -> None:
    marks, handled = StuckRecords(settings, 0), list[Record]()
    marks.add("agent", "topic", RECORD, "it hung", "here")

    def handle(record: Record, work: Any) -> str:
        handled.append(record)
        return "value"

    checking = marks.checking(handle, ("agent", "topic"))
    with pytest.raises(HandlerTimeout, match="it hung") as raised:
        checking(RECORD, None)  # type: ignore[arg-type]
    assert not raised.value.retryable
    assert checking(NO_RECORD, None) == "value"  # type: ignore[arg-type]
    assert handled == [NO_RECORD]


def test_a_mark_stays_until_its_record_is_passed_and_others_stay_longer(settings: Settings) -> None:
    timer = TimerKey(5_000, "ring", "order-1")
    marks = StuckRecords(settings, 0)
    marks.add("agent", "topic", RECORD, "it hung", "")
    marks = StuckRecords(settings, 0)
    marks.add("timers", "timer ring", DUE, "it hung too", "")
    marks.forget_passed(Task(7, (timer,)))  # type: ignore[arg-type]
    assert is_marked(StuckRecords(settings, 0), RECORD)
    marks.forget_passed(Task(8, (timer,)))  # type: ignore[arg-type]
    left = StuckRecords(settings, 0)
    assert not is_marked(left, RECORD)
    assert is_marked(left, DUE, "timers", "timer ring")
    left.forget_passed(Task(8))  # type: ignore[arg-type]
    assert not left
    assert not (settings.data_dir / "stuck" / "0.json").exists()


def test_a_mark_stays_while_its_record_waits_for_another_try_and_goes_when_it_is_a_dead_letter(
    settings: Settings,
) -> None:
    record = Record(7, 1_000, b"k", b"v", ())
    marks = StuckRecords(settings, 0)
    marks.add("agent", "topic", record, "it hung", "")
    retrying, parked = Lane("topic", 1, 3, 5_000, None, 1_000), Lane("topic", 1, 3, None, 17, 1_000)
    key = LaneKey("agent", b"k")
    marks.forget_passed(Task(9, lanes={key: retrying}))  # type: ignore[arg-type]
    assert is_marked(marks, record)
    marks.forget_passed(Task(9, lanes={key: parked}))  # type: ignore[arg-type]
    assert not is_marked(marks, record)


@pytest.mark.parametrize("content", [b"", b"{}", b"[{]", b"\xff\xfe", b'[{"agent": 1}]'])
def test_a_file_that_holds_no_marks_is_passed_over(settings: Settings, content: bytes) -> None:
    path = settings.data_dir / "stuck" / "0.json"
    path.parent.mkdir()
    path.write_bytes(content)
    assert not StuckRecords(settings, 0)


def test_nothing_is_kept_where_records_are_not_kept(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, broker="memory://", data_dir=tmp_path)
    StuckRecords(settings, 0).add("agent", "topic", RECORD, "it hung", "")
    assert list(tmp_path.iterdir()) == []
    assert not StuckRecords(settings, 0)
