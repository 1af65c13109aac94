"""One dead letter in full: its record, what was done about it, what waits behind it, and what happened before."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final, TypedDict

import msgspec

from engine.declare.envelope import TimeText
from engine.declare.partition import Partition
from engine.declare.service import History
from engine.declare.table import encode_prefix
from engine.declare.times import format_ms
from engine.declare.topic import Topic
from engine.failures.classify import names_in
from engine.failures.dead_letters import Action, ActionName, DeadLetter, why_not_retry
from engine.failures.lanes import LANES, WAITING, LaneKey
from engine.log.ports import Record, TransportError
from engine.observe.records import RecordView, read_page, record_view
from engine.partition.engine import Engine
from engine.web.dead_letters.queries import LetterView, lane_behind, letter_view, text_of
from engine.web.events import EventView, event_views

WAITING_SHOWN: Final = 20
EVENTS_SHOWN: Final = 10
LOOK_BACK_RECORDS: Final = 1000


class Refusal(TypedDict):
    """Why a letter may not be tried again as it is, or why a decision about it was not carried out."""

    reason: str
    detail: str


class ActionView(TypedDict):
    """One line of a letter's audit trail; `decision` is the id of the command that asked for it."""

    at: TimeText
    action: ActionName
    by: str | None
    detail: str | None
    decision: str | None
    refused: Refusal | None


class WaitingRecordView(TypedDict):
    """A record that waits behind a letter."""

    offset: int
    event_id: str | None
    event_type: str | None


class LetterDetails(LetterView, frozen=True, kw_only=True, gc=True):
    """A letter in full: what lists show, its record, what was done about it, what waits behind it, and what was before.

    `complete` is false when the record was too large to be kept here. `refusal` says why it may not be tried again as
    it is. `recent_events` are null when the log cannot be read now.
    """

    timestamp: TimeText
    value: Any
    headers: dict[str, str]
    value_base64: str | msgspec.UnsetType = msgspec.UNSET
    complete: bool
    trace: str
    closed_at: TimeText | None
    actions: list[ActionView]
    refusal: Refusal | None
    waiting_records: list[WaitingRecordView]
    recent_events: list[EventView] | None


async def letter_details(
    engine: Engine, histories: Iterable[History], task: Partition, number: int, letter: DeadLetter
) -> LetterDetails:
    """A letter in full, see `GET /dead-letters/{id}`."""
    refusal = why_not_retry(letter, False, int(time.time() * 1000), engine.settings)
    shown: dict[str, Any] = {**msgspec.structs.asdict(letter_view(task, number, letter)), **_record(letter)}
    return LetterDetails(
        **shown,
        complete=letter.complete,
        trace=letter.trace,
        closed_at=None if letter.closed_ms is None else format_ms(letter.closed_ms),
        actions=[_action_view(action) for action in letter.actions],
        refusal=_refusal(refusal),
        waiting_records=_waiting_records(task, letter),
        recent_events=await _recent_events(engine, histories, task, letter),
    )


def _action_view(action: Action) -> ActionView:
    return {
        "at": format_ms(action.at_ms),
        "action": action.action,
        "by": action.by,
        "detail": action.detail,
        "decision": action.decision,
        "refused": _refusal(action.refused),
    }


def _refusal(refused: tuple[str, str] | None) -> Refusal | None:
    return None if refused is None else {"reason": refused[0], "detail": refused[1]}


def _record(letter: DeadLetter) -> RecordView:
    headers = tuple([(name, value or b"") for name, value in letter.headers])
    record = Record(letter.offset, letter.timestamp_ms, letter.key, letter.value, headers)
    return record_view(letter.partition, record)


def _waiting_records(task: Partition, letter: DeadLetter) -> list[WaitingRecordView]:
    """The first ones behind the letter. What is in them is the business of their own aggregate's views."""
    lane = lane_behind(task, letter)
    if lane is None:
        return []
    key = LANES.key.encode(LaneKey(letter.agent, letter.key or b""))
    behind = (found for found in task.scan(WAITING, key) if found[0].number > lane.first)
    items: list[WaitingRecordView] = []
    for _, waiting in islice(behind, WAITING_SHOWN):
        names = names_in(waiting.value)
        items.append({"offset": waiting.offset, "event_id": names.event_id, "event_type": names.event_type})
    return items


async def _recent_events(
    engine: Engine, histories: Iterable[History], task: Partition, letter: DeadLetter
) -> list[EventView] | None:
    """The latest events of the letter's aggregate, oldest first; null when the log cannot be read now."""
    key = text_of(letter.key)
    if not key:
        return []
    for history in histories:
        try:
            events = await _events_in(engine, history, task, letter, key)
        except TransportError:
            return None
        if events:
            return event_views(events, engine.registry)
    return []


async def _events_in(engine: Engine, history: History, task: Partition, letter: DeadLetter, key: str) -> list[bytes]:
    """The latest events that a history has of an aggregate, oldest first."""
    if not isinstance(history.where, Topic):
        newest = islice(task.scan(history.where, encode_prefix(key), reverse=True), EVENTS_SHOWN)
        return [bytes(value) for _, value in newest][::-1]
    topic = history.where.name
    if topic not in engine.topics or letter.topic not in {topic.name for topic in history.topics}:
        return []
    records, _, _ = await read_page(engine.broker, topic, letter.partition, None, LOOK_BACK_RECORDS)
    return [record.value or b"" for record in records if record.key == letter.key][-EVENTS_SHOWN:]
