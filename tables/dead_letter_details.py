"""One dead letter in full: its record, what was done about it, what waits behind it, and what happened before."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any, Final

import msgspec

from streams.engine.dead_letters import DeadLetter, why_not_retry
from streams.engine.engine import Engine
from streams.engine.failures import names_in
from streams.engine.lanes import LANES, WAITING, LaneKey
from streams.engine.partition_task import PartitionTask
from streams.engine.table import encode_prefix
from streams.records import read_page, record_view
from streams.topics import INVENTORY_COMMANDS, INVENTORY_EVENTS
from streams.transport.base import Record, TransportError
from tables.dead_letter_queries import format_ms, lane_behind, letter_view, text_of
from tables.orders import ORDER_HISTORY
from tables.queries import event_views

WAITING_SHOWN: Final = 20
EVENTS_SHOWN: Final = 10
LOOK_BACK_RECORDS: Final = 1000


async def letter_details(engine: Engine, task: PartitionTask, number: int, letter: DeadLetter) -> dict[str, Any]:
    """A letter in full, see `GET /dead-letters/{id}`."""
    shown: dict[str, Any] = msgspec.to_builtins(letter_view(task, number, letter))
    shown |= _record(letter)
    shown["trace"] = letter.trace
    shown["closed_at"] = None if letter.closed_ms is None else format_ms(letter.closed_ms)
    shown["actions"] = [
        {"at": format_ms(action.at_ms), "action": action.action, "by": action.by, "detail": action.detail}
        for action in letter.actions
    ]
    refusal = why_not_retry(letter, False, int(time.time() * 1000), engine.settings)
    shown["refusal"] = None if refusal is None else {"reason": refusal[0], "detail": refusal[1]}
    shown["waiting_records"] = _waiting_records(task, letter)
    shown["recent_events"] = await _recent_events(engine, task, letter)
    return shown


def _record(letter: DeadLetter) -> dict[str, Any]:
    headers = tuple([(name, value or b"") for name, value in letter.headers])
    record = Record(letter.offset, letter.timestamp_ms, letter.key, letter.value, headers)
    return {"complete": letter.complete, **record_view(letter.partition, record)}


def _waiting_records(task: PartitionTask, letter: DeadLetter) -> list[dict[str, Any]]:
    """The first ones behind the letter. What is in them is the business of their own aggregate's views."""
    lane = lane_behind(task, letter)
    if lane is None:
        return []
    key = LANES.key.encode(LaneKey(letter.agent, letter.key or b""))
    behind = (found for found in task.scan(WAITING, key) if found[0].number > lane.first)
    items = []
    for _, waiting in islice(behind, WAITING_SHOWN):
        names = names_in(waiting.value)
        items.append({"offset": waiting.offset, "event_id": names.event_id, "event_type": names.event_type})
    return items


async def _recent_events(engine: Engine, task: PartitionTask, letter: DeadLetter) -> list[Any] | None:
    """The latest events of the letter's aggregate, oldest first; null when the log cannot be read now."""
    key = text_of(letter.key)
    if not key:
        return []
    history = islice(task.scan(ORDER_HISTORY, encode_prefix(key), reverse=True), EVENTS_SHOWN)
    events = [bytes(value) for _, value in history][::-1]
    if not events and letter.topic in (INVENTORY_COMMANDS.name, INVENTORY_EVENTS.name):
        try:
            events = await _stock_events(engine, letter)
        except TransportError:
            return None
    return event_views(events)


async def _stock_events(engine: Engine, letter: DeadLetter) -> list[bytes]:
    """Events of a product among the newest ones of its partition: products have no history of their own."""
    if INVENTORY_EVENTS.name not in engine.topics:
        return []
    newest, _, _ = await read_page(engine.broker, INVENTORY_EVENTS.name, letter.partition, None, LOOK_BACK_RECORDS)
    return [record.value or b"" for record in newest if record.key == letter.key][-EVENTS_SHOWN:]
