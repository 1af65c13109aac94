"""Changes as they are committed: collected from commits for a moment, and told as a few events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final

from engine.declare.service import LiveTable
from engine.failures.dead_letters import CLOSED_DEAD_LETTERS, DEAD_LETTERS, DeadLetter, letter_id
from engine.work.commit_listeners import ChangedRows

FLUSH_S: Final = 0.1
ITEMS_MAX: Final = 100
"""Rows in one event. Of more only the last ones are told, and how many are left out: nobody can read them anyway."""


def _letter(number: int, key: int, letter: DeadLetter) -> dict[str, Any]:
    return {"id": letter_id(number, key), "state": letter.state, "topic": letter.topic, "error_type": letter.error_type}


LETTER_TABLES: Final = (
    LiveTable(DEAD_LETTERS, "dead-letters", _letter),
    LiveTable(CLOSED_DEAD_LETTERS, "dead-letters", _letter),
)


class Changes:
    """Takes note of changed rows at each commit, and tells of them at most every FLUSH_S: each row as it is then.

    `tables` are those that services declare; dead letters are told of as well.
    """

    def __init__(self, tell: Callable[[str, Any], None], tables: Iterable[LiveTable]) -> None:
        self._tell = tell
        self._tables = (*tables, *LETTER_TABLES)
        self._changed: dict[tuple[LiveTable, int], dict[Any, Any]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def committed(self, number: int, rows: ChangedRows) -> None:
        """Take note of what a commit of partition `number` changed."""
        for live in self._tables:
            changed = rows.get(live.table)
            if changed:
                self._changed.setdefault((live, number), {}).update(changed)
        if self._changed and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def close(self) -> None:
        """Tell nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        self._changed.clear()

    def _flush(self) -> None:
        self._timer = None
        changed, self._changed = self._changed, {}
        for (live, number), rows in changed.items():
            items = []
            for key, row in islice(reversed(rows.items()), ITEMS_MAX):
                if row is not None and (item := live.view(number, key, row)) is not None:
                    items.append(item)
            left_out = max(0, len(rows) - ITEMS_MAX)
            if items or left_out:
                self._tell(live.event, {"items": items[::-1], "left_out": left_out})
