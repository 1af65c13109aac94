"""What an audit finds: differences between topics and rows, and what cannot be proven."""

from __future__ import annotations

from typing import Final

import msgspec

DIFFERENCES_MAX: Final = 200
"""The most differences of a partition that are told one by one; all of them are counted."""

ROW_DIFFERS: Final = "row_differs"
ROW_MISSING: Final = "row_missing"
ROW_UNFOUNDED: Final = "row_unfounded"
"""A row without its events."""
ROW_UNREADABLE: Final = "row_unreadable"
VERSION_GAP: Final = "version_gap"
EVENT_REPEATED: Final = "event_repeated"
EVENT_IMPOSSIBLE: Final = "event_impossible"
"""An event that cannot follow those before it, or does not add up in itself."""
EVENT_MISSING: Final = "event_missing"
EVENT_UNFOUNDED: Final = "event_unfounded"
"""An event that follows from none."""
EVENT_UNREADABLE: Final = "event_unreadable"
EVENT_MISPLACED: Final = "event_misplaced"
"""An event under another key than its aggregate's, or in another partition than its key's."""
ID_DIFFERS: Final = "id_differs"
SUM_DIFFERS: Final = "sum_differs"
POSITION_BEYOND_END: Final = "position_beyond_end"


class Difference(msgspec.Struct, frozen=True):
    """One thing that does not agree.

    `topic`, `partition` and `offset` say which event it is about, or which one a row follows from last; the offset is
    null where there is no such event. `table` and `key` name the row, null where no row is concerned.
    """

    kind: str
    detail: str
    topic: str
    partition: int
    offset: int | None = None
    table: str | None = None
    key: str | None = None

    @property
    def sentence(self) -> str:
        """The difference as one line."""
        place = f"{self.topic}/{self.partition}" + (f"@{self.offset}" if self.offset is not None else "")
        row = f" {self.table}[{self.key}]" if self.table is not None else ""
        return f"{place}{row}: {self.detail}"


class Findings:
    """Everything one audit of a partition has found so far."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.differences: list[Difference] = []
        self.count = 0
        self.unproven: list[str] = []
        self.records = 0
        self.rows = 0

    def add(
        self,
        kind: str,
        detail: str,
        topic: str,
        offset: int | None = None,
        table: str | None = None,
        key: str | None = None,
        partition: int | None = None,
    ) -> None:
        """Note a difference; in the partition that is audited, if no other is named."""
        self.count += 1
        if len(self.differences) < DIFFERENCES_MAX:
            number = self.partition if partition is None else partition
            self.differences.append(Difference(kind, detail, topic, number, offset, table, key))

    def cannot_prove(self, why: str) -> None:
        """Note what the log can no longer tell."""
        self.unproven.append(why)
