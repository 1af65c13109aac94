"""Changes as they are committed: collected from commits for a moment, and told as a few events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import Any, Final, NamedTuple

from engine.declare.envelope import format_timestamp
from engine.declare.table import AnyTable
from engine.failures.dead_letters import CLOSED_DEAD_LETTERS, DEAD_LETTERS, DeadLetter, letter_id
from engine.partition.commit_listeners import ChangedRows
from tables.orders import ORDERS, UNKNOWN, Order
from tables.sagas import SAGAS, Saga

FLUSH_S: Final = 0.1
ITEMS_MAX: Final = 100
"""Rows in one event. Of more only the last ones are told, and how many are left out: nobody can read them anyway."""

View = dict[str, Any]


class LiveTable(NamedTuple):
    """A table whose changes are told as `event`; `view` makes an item of partition number, key and row, or None."""

    table: AnyTable
    event: str
    view: Callable[[int, Any, Any], View | None]


def _order(_number: int, order_id: str, order: Order) -> View | None:
    if order.status == UNKNOWN:
        return None
    return {
        "order_id": order_id,
        "customer_id": order.customer_id,
        "status": order.status,
        "item_count": order.item_count,
        "total": order.total,
        "created_at": None if order.created_at is None else format_timestamp(order.created_at),
        "version": order.version,
    }


def _saga(_number: int, order_id: str, saga: Saga) -> View:
    return {"order_id": order_id, "state": saga.state}


def _letter(number: int, key: int, letter: DeadLetter) -> View:
    return {"id": letter_id(number, key), "state": letter.state, "topic": letter.topic, "error_type": letter.error_type}


LIVE_TABLES: Final = (
    LiveTable(ORDERS, "orders", _order),
    LiveTable(SAGAS, "sagas", _saga),
    LiveTable(DEAD_LETTERS, "dead-letters", _letter),
    LiveTable(CLOSED_DEAD_LETTERS, "dead-letters", _letter),
)


class Changes:
    """Takes note of changed rows at each commit, and tells of them at most every FLUSH_S: each row as it is then."""

    def __init__(self, tell: Callable[[str, Any], None]) -> None:
        self._tell = tell
        self._changed: dict[tuple[LiveTable, int], dict[Any, Any]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def committed(self, number: int, rows: ChangedRows) -> None:
        """Take note of what a commit of partition `number` changed."""
        for live in LIVE_TABLES:
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
