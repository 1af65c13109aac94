"""The web view of aggregates that stand still: which records wait, behind what, and since when."""

from __future__ import annotations

from typing import TypedDict

from aiohttp import web

from engine.declare.envelope import TimeText
from engine.declare.operation import Operation
from engine.declare.service import Service
from engine.declare.times import format_ms
from engine.failures.dead_letters import letter_id
from engine.failures.lanes import LANES
from engine.web.answers import json_response
from engine.web.dead_letters.queries import text_of
from engine.web.dead_letters.views import LETTER_PATH
from engine.web.freshness import FRESHNESS, catch_up
from engine.web.gathering import TableRow, key_of
from engine.web.parameters import CURSOR, LIMIT
from engine.web.routes.tables import rows_of

service = Service("waiting-views")


class WaitingView(TypedDict):
    """An aggregate that stands still at an agent."""

    partition: int
    agent: str
    key: str | None
    topic: str
    waiting: int
    since: TimeText
    next_retry_at: TimeText | None
    dead_letter_id: str | None


class WaitingList(TypedDict):
    """A page of aggregates that stand still."""

    items: list[WaitingView]
    next_cursor: str | None


@service.route("GET", "/aggregates/waiting", Operation({200: WaitingList}, (LIMIT, CURSOR, *FRESHNESS)))
async def list_waiting(request: web.Request) -> web.StreamResponse:
    """Aggregates that stand still, `{items, next_cursor}`, partition after partition, by agent and key.

    An item is `{partition, agent, key, topic, waiting, since, next_retry_at, dead_letter_id}`: `waiting` counts the
    records behind the one that failed; that one is tried again at `next_retry_at`, or is the dead letter, and the
    other of the two is null. `?limit=` is 20, at most 1000. 503 when a partition cannot be read now.
    """
    await catch_up(request, LETTER_PATH, None)
    items, next_cursor = await rows_of(request, LANES)
    return json_response(WaitingList(items=[_waiting_view(item) for item in items], next_cursor=next_cursor))


def _waiting_view(item: TableRow) -> WaitingView:
    key, lane = key_of(LANES, item), LANES.decode_row(item.row)
    return {
        "partition": item.partition,
        "agent": key.agent,
        "key": text_of(key.key),
        "topic": lane.topic,
        "waiting": len(lane) - 1,
        "since": format_ms(lane.since_ms),
        "next_retry_at": None if lane.due_ms is None else format_ms(lane.due_ms),
        "dead_letter_id": None if lane.parked is None else letter_id(item.partition, lane.parked),
    }
