"""Deduplication marks are removed once they are older than the window, and not before."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from engine.declare.service import Service
from engine.declare.table import Table
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Record
from tests.apps import caught_up, make_settings, publish, running, unique, wait_until

WINDOW_S = 0.1
LONG_AGO_MS = 1
FAR_AHEAD_MS = 1 << 42


class Mark(msgspec.Struct, frozen=True):
    """A mark set at a time."""

    marked_at_ms: int


class Marks:
    """A service that sets a mark at the time (ms) that a record tells."""

    def __init__(self) -> None:
        self.source = Topic(unique("marks"), "times in milliseconds")
        self.table: Table[str, Mark] = Table("marks", Mark, marked_at_ms=lambda row: row.marked_at_ms)
        self.service = Service("marks", tables=(self.table,))
        self.service.agent("set-marks", self.source, help="Set a mark for each record.").on_record(self.set_mark)

    def set_mark(self, record: Record, work: UnitOfWork) -> str:
        """Set one mark."""
        work.put(self.table, (record.key or b"").decode(), Mark(int(record.value or b"")))
        return "mark"


async def test_old_marks_are_removed_for_good_and_young_ones_stay(tmp_path: Path) -> None:
    settings = make_settings("embedded://", tmp_path, partitions=1, dedupe_window=WINDOW_S, replay_max_age=WINDOW_S / 2)
    marks = Marks()
    old, young = [f"old-{number}" for number in range(1200)], [f"young-{number}" for number in range(7)]
    async with running(settings, [marks.service]) as app:
        for key in old:
            await publish(app, marks.source, key, b"%d" % LONG_AGO_MS)
        for key in young:
            await publish(app, marks.source, key, b"%d" % FAR_AHEAD_MS)
        await caught_up(app)
        task = app.engine.task(0)
        await wait_until(lambda: not any(key in old for key, _ in task.scan(marks.table)), "old marks are gone")
        assert sorted(key for key, _ in task.scan(marks.table)) == sorted(young)
    shutil.rmtree(settings.data_dir / "stores")
    async with running(settings.model_copy(update={"dedupe_window": 3600.0}), [marks.service]) as app:
        restored = sorted(key for key, _ in app.engine.task(0).scan(marks.table))
        assert restored == sorted(young), "the changelog knows of the removals"
