"""The web view of dead letters: what failed, what failed alike, and one letter in full."""

from __future__ import annotations

import struct
import time
from typing import Final, TypedDict

from aiohttp import web

from engine.declare.envelope import TimeText
from engine.declare.operation import Operation, Parameter
from engine.declare.partition import Partition
from engine.declare.service import Service
from engine.declare.times import format_ms
from engine.failures.dead_letters import DeadLetter, InvalidLetterId, parse_letter_id
from engine.failures.service import decisions
from engine.web.answers import ENGINE, SERVICES, Problem, invalid, json_response
from engine.web.cursors import InvalidCursor, decode_cursor, encode_cursor
from engine.web.dead_letters.details import LetterDetails, letter_details
from engine.web.dead_letters.filters import (
    AGE,
    AGES,
    FILTERS,
    STATES,
    InvalidFilter,
    LetterFilter,
    letter_filter,
    states_of,
)
from engine.web.dead_letters.gathering import letter_groups, newest_letters
from engine.web.dead_letters.queries import LetterGroup, LetterView, find_letter
from engine.web.freshness import FRESHNESS, Path, by_partition, catch_up
from engine.web.parameters import CURSOR, LIMIT

LETTER_PATH: Final[Path] = (decisions,)
_PLACE: Final = struct.Struct(">QH")  # number and partition

service = Service("dead-letter-views")


class LetterList(TypedDict):
    """A page of dead letters, newest first."""

    items: list[LetterView]
    next_cursor: str | None


class GroupView(TypedDict):
    """Dead letters that failed alike; `error` and the example are the newest one's."""

    fingerprint: str
    count: int
    waiting: int
    topic: str
    agent: str
    error_type: str
    error: str
    example_id: str
    first_failed_at: TimeText
    last_failed_at: TimeText


class GroupList(TypedDict):
    """Groups of dead letters, most letters first."""

    items: list[GroupView]


_TEXT: Final = {"type": "string", "minLength": 1}
_AGE: Final = {"type": "string", "pattern": f"^{AGE.pattern}$"}
PARAMETERS: Final = (
    *(Parameter(name, help, _AGE if name in AGES else _TEXT) for name, help in FILTERS.items()),
    Parameter("state", "how far they are", {"type": "string", "enum": list(STATES), "default": "open"}),
)


@service.route("GET", "/dead-letters", Operation({200: LetterList}, (*PARAMETERS, LIMIT, CURSOR, *FRESHNESS)))
async def list_letters(request: web.Request) -> web.StreamResponse:
    """Dead letters of all partitions, newest first: `{items, next_cursor}`; 503 when a partition cannot be read now.

    `?topic=&type=&error=&agent=&key=&fingerprint=&older_than=&newer_than=` all have to hold: `error` is the error's
    type, or a part of its text in whatever case; ages are like 90s, 15m, 2h or 3d. `?state=` is `open` (retrying ones
    included), `retrying`, `resolved`, `discarded` or `all`. `?limit=` is 20, at most 1000.
    """
    limit, wanted, place = LIMIT.read(request), filter_of(request), _place(request)
    await catch_up(request, LETTER_PATH, None)
    found = await newest_letters(request, wanted, limit + 1, place)
    items = found[:limit]
    return json_response(LetterList(items=items, next_cursor=_cursor(items[-1]) if len(found) > limit else None))


@service.route("GET", "/dead-letters/groups", Operation({200: GroupList}, (*PARAMETERS, LIMIT, *FRESHNESS)))
async def list_groups(request: web.Request) -> web.StreamResponse:
    """Dead letters by what failed alike, most first: `{items}`; filters and `?limit=` as for the list.

    An item is `{fingerprint, count, waiting, topic, agent, error_type, error, first_failed_at, last_failed_at,
    example_id}`; `error` and the example are the newest one's.
    """
    limit, wanted = LIMIT.read(request), filter_of(request)
    await catch_up(request, LETTER_PATH, None)
    groups = await letter_groups(request, wanted)
    return json_response(GroupList(items=[_group_view(group) for group in groups[:limit]]))


def partition_of_letter(request: web.Request) -> int:
    """The partition of the letter in the path; raises a 404 problem for what is no letter's id."""
    return _parse_id(request)[0]


@service.route("GET", "/dead-letters/{id}", Operation({200: LetterDetails}, problems=(404,)))
@by_partition(partition_of_letter, LETTER_PATH)
async def get_letter(request: web.Request, task: Partition) -> web.StreamResponse:
    """One letter in full; with `?after=TOKEN` never older than it.

    What lists show, and the record itself (`timestamp`, `headers`, `value`, or `value_base64` when that is not JSON;
    `complete` is false when it was too large to be kept), `trace`, `actions` (the audit trail;
    `refused` is `{reason, detail}` of a decision that was not carried out, or null), `closed_at`, `refusal`
    (`{reason, detail}` of why it may not be tried again as it is, or null), `waiting_records` (the first 20 of those
    that wait behind it, `{offset, event_id, event_type}`) and `recent_events` (the latest 10 of its aggregate,
    without fields that stay hidden; null when the log cannot be read now).
    """
    number, letter = letter_of(request, task)
    histories = [history for service in request.app[SERVICES] for history in service.histories]
    return json_response(await letter_details(request.app[ENGINE], histories, task, number, letter))


def letter_of(request: web.Request, task: Partition) -> tuple[int, DeadLetter]:
    """The letter in the path and its number; raises a 404 problem where there is none."""
    _, number = _parse_id(request)
    letter = find_letter(task, number)
    if letter is None:
        raise _no_letter(request)
    return number, letter


def _no_letter(request: web.Request) -> Problem:
    return Problem(404, f"there is no dead letter {request.match_info['id']}")


def filter_of(request: web.Request) -> LetterFilter:
    """The filter in the query; raises a 422 problem."""
    try:
        return letter_filter(request.query, states_of(request.query.get("state", "open")), int(time.time() * 1000))
    except InvalidFilter as error:
        raise invalid(error.field, str(error)) from error


def _parse_id(request: web.Request) -> tuple[int, int]:
    try:
        partition, number = parse_letter_id(request.match_info["id"])
    except InvalidLetterId as error:
        raise Problem(404, str(error)) from error
    if partition >= request.app[ENGINE].settings.partitions:
        raise _no_letter(request)
    return partition, number


def _cursor(letter: LetterView) -> str:
    return encode_cursor(_PLACE.pack(*letter.place))


def _place(request: web.Request) -> tuple[int, int] | None:
    cursor = request.query.get(CURSOR.name)
    if not cursor:
        return None
    try:
        number, partition = _PLACE.unpack(decode_cursor(cursor))
    except (InvalidCursor, struct.error) as error:
        raise invalid(CURSOR.name, "not a cursor of this list") from error
    if number >= 1 << 63:
        raise invalid(CURSOR.name, "not a cursor of this list")
    return number, partition


def _group_view(group: LetterGroup) -> GroupView:
    return {
        "fingerprint": group.fingerprint,
        "count": group.count,
        "waiting": group.waiting,
        "topic": group.topic,
        "agent": group.agent,
        "error_type": group.error_type,
        "error": group.error,
        "example_id": group.example_id,
        "first_failed_at": format_ms(group.first_failed_ms),
        "last_failed_at": format_ms(group.last_failed_ms),
    }
