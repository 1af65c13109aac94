"""HTTP commands of dead letters: try again, as it is or edited, or give up; one by one, or many by filter.

What makes a repeated request harmless: a retry says how often the letter had been tried again when it was asked for,
and counts only as long as that is so. Of decisions that exclude each other the first one counts: the others are told so
with `?wait=`, and in the letter's audit trail in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict
from urllib.parse import quote

import msgspec
from aiohttp import web
from pydantic import Field

from engine.declare.envelope import Metadata
from engine.declare.operation import LOCATION, Answer, Operation
from engine.declare.partition import Partition
from engine.declare.service import Service
from engine.failures.classify import names_in
from engine.failures.dead_letters import (
    DISCARDED,
    OPEN,
    RESOLVED,
    RETRYING,
    DeadLetter,
    LetterState,
    letter_id,
    parse_letter_id,
    why_not_retry,
)
from engine.failures.decisions import REASON_CHARACTERS_MAX, DeadLetterCommand, DiscardDeadLetter, RetryDeadLetter
from engine.failures.rules import CannotEdit, edited_value
from engine.failures.topics import DEAD_LETTER_COMMANDS
from engine.log.ports import Outgoing, Position
from engine.web.answers import ENGINE, PASSING, Problem, invalid, json_response
from engine.web.bodies import Body, read_body
from engine.web.dead_letters.bulk import LETTERS_PER_CHUNK, Decisions, decision_id, verdict, what_became_of
from engine.web.dead_letters.filters import STATES, Filters, InvalidFilter, LetterFilter
from engine.web.dead_letters.gathering import Candidates, candidates
from engine.web.dead_letters.queries import Candidate, Refused, discard_page, retry_page
from engine.web.dead_letters.views import LETTER_PATH, letter_of, partition_of_letter
from engine.web.freshness import by_partition
from engine.web.parameters import duration
from engine.web.publish import CORRELATION_ID, encode, envelope, metadata, publish_to, token_of

EDITED_BYTES_MAX: Final = 512 << 10
LETTERS_MAX: Final = 10_000

service = Service("gateway-dead-letters", topics=(DEAD_LETTER_COMMANDS,))

Reason = Annotated[str, Field(min_length=1, max_length=REASON_CHARACTERS_MAX)]


class RetryBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What retrying a letter takes: nothing, another payload, or another record as a whole.

    Not a pydantic model, so that the numbers in it stay as they are.
    """

    payload: dict[str, Any] | None = None
    value: dict[str, Any] | None = None


class DiscardBody(Body):
    """What discarding a letter takes."""

    reason: Reason


class FilterBody(Filters):
    """Which letters are meant; an unknown field is refused, as a misspelt filter must not mean more letters."""

    limit: Annotated[int, Field(ge=1, le=LETTERS_MAX)] = 1000
    dry_run: bool = False

    def wanted(self, states: tuple[LetterState, ...]) -> LetterFilter:
        """The filter; raises a 422 problem."""
        try:
            return self.of(states, int(time.time() * 1000))
        except InvalidFilter as error:
            raise invalid(error.field, str(error)) from error


class RetryManyBody(FilterBody):
    """What `POST /dead-letters/retry` takes; `rate` is letters per second."""

    rate: Annotated[float, Field(gt=0, le=100_000)] = 100.0


class DiscardManyBody(FilterBody):
    """What `POST /dead-letters/discard` takes; without any filter `all` has to say that all letters are meant."""

    reason: Reason
    all: bool = False


class LetterAccepted(TypedDict):
    """A decision that is on its way, or was carried out; `state` is the letter's before the request, or after it.

    It is the one after it when the decision was waited for and is done.
    """

    id: str
    status: Literal["processing", "done"]
    state: LetterState
    token: str


class ManyAccepted(TypedDict):
    """Which letters are meant, and those of them that are refused (the first 100).

    `decisions` is there when the decisions were waited for.
    """

    dry_run: bool
    matched: int
    skipped: list[Refused]
    skipped_count: int
    token: str | None
    decisions: NotRequired[Decisions]


class ManyRetried(ManyAccepted):
    """Letters that are tried again, or would be."""

    retried: int


class ManyDiscarded(ManyAccepted):
    """Letters that are given up, or would be."""

    discarded: int


WAIT = duration("wait", "how long to wait until decisions are carried out, such as 2s or 500ms, at most 30s", 0.0)


def _one(body: Any, *problems: int) -> Operation:
    answer = Answer(LetterAccepted, (LOCATION,))
    return Operation({200: answer, 202: answer}, (WAIT, CORRELATION_ID), body, problems)


def _many(answer: Any, body: Any) -> Operation:
    return Operation({200: answer, 202: answer}, (WAIT, CORRELATION_ID), body)


# ---- one letter


@service.route("POST", "/dead-letters/{id}/retry", _one(RetryBody, 404, 409))
@by_partition(partition_of_letter, LETTER_PATH)
async def retry_letter(request: web.Request, task: Partition) -> web.StreamResponse:
    """Try a letter's record again: 202 `{id, status: "processing", state, token}`; `state` is that before the request.

    With `{"payload": {...}}` the record gets another payload and a new event id, which the original one causes;
    `{"value": {...}}` replaces the whole record, whose `eventId` must be a new one. A letter that is being tried
    already is left alone (202), so is one that was processed meanwhile (200). Problems: 409 with `reason` when the
    letter may not be tried again, was discarded, or is beyond being edited; 413 over 512 KiB; 422. With `?wait=2s` 200
    `{id, status: "done", state, token}` once the decision is carried out, 409 when another one came first, 202 when
    that takes longer.
    """
    origin, edit = metadata(request), _retry_body(await request.read())
    number, letter = letter_of(request, task)
    id = letter_id(task.number, number)
    value = _edited(request, id, letter, edit)
    if letter.state != OPEN:
        return _retried_before(request, task, id, letter, value)
    refusal = why_not_retry(letter, value is not None, int(time.time() * 1000), request.app[ENGINE].settings)
    if refusal is not None:
        raise Problem(409, refusal[1], reason=refusal[0])
    command = RetryDeadLetter(id, value=None if value is None else value.decode(), replays=letter.replays)
    return await _submit(request, task, letter, command, origin)


@service.route("POST", "/dead-letters/{id}/discard", _one(DiscardBody, 404, 409))
@by_partition(partition_of_letter, LETTER_PATH)
async def discard_letter(request: web.Request, task: Partition) -> web.StreamResponse:
    """Give a letter's record up for a `{reason}`: 202 as for a retry; what waits behind it goes on.

    200 when it was discarded before, 409 when its record was processed after all. `?wait=` as for a retry.
    """
    origin, body = metadata(request), await read_body(request, DiscardBody)
    number, letter = letter_of(request, task)
    id = letter_id(task.number, number)
    if letter.state == RESOLVED:
        raise Problem(409, f"dead letter {id} was processed after all", reason=RESOLVED)
    if letter.state == DISCARDED:
        return _answer(request, id, letter, _seen(task))
    return await _submit(request, task, letter, DiscardDeadLetter(id, body.reason), origin)


def _retry_body(raw: bytes) -> RetryBody:
    try:
        body = msgspec.json.decode(raw or b"{}", type=RetryBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid("body", str(error)) from error
    if body.payload is not None and body.value is not None:
        raise invalid("value", "give a payload or a whole value, not both")
    return body


def _edited(request: web.Request, id: str, letter: DeadLetter, edit: RetryBody) -> bytes | None:
    """The record to try instead, None when it stays as it is; raises 413 and 422 problems."""
    if edit.payload is not None:
        try:
            value = edited_value(id, letter.value, edit.payload)
        except CannotEdit as error:
            raise invalid("payload", str(error)) from error
    elif edit.value is not None:
        value = msgspec.json.encode(edit.value)
        event_id = names_in(value).event_id
        if letter.state == OPEN and letter.event_id is not None and event_id in (None, letter.event_id):
            raise invalid("value", "eventId: a record that was edited is another one and needs a new id")
    else:
        return None
    bytes_max = min(EDITED_BYTES_MAX, request.app[ENGINE].settings.record_bytes_max)
    if len(value) > bytes_max:
        raise Problem(413, f"the edited record has {len(value)} bytes, at most {bytes_max} are taken")
    return value


def _retried_before(
    request: web.Request, task: Partition, id: str, letter: DeadLetter, value: bytes | None
) -> web.Response:
    """The answer for a letter that is not open; the same request again is no mistake, another one is."""
    if letter.state == DISCARDED:
        raise Problem(409, f"dead letter {id} was discarded", reason=DISCARDED)
    if value is not None and value != letter.value:
        said = "is being tried again" if letter.state == RETRYING else "was processed after all"
        raise Problem(409, f"dead letter {id} {said}: it cannot be edited", reason=letter.state)
    return _answer(request, id, letter, _seen(task))


def _seen(task: Partition) -> Position:
    """The last command that the letter shows for sure."""
    (hop,) = LETTER_PATH
    return Position(hop.topic.name, task.number, max(0, task.reached(hop.name, hop.topic.name) - 1))


async def _submit(
    request: web.Request, task: Partition, letter: DeadLetter, command: DeadLetterCommand, origin: Metadata
) -> web.Response:
    """Publish a decision, and wait until it is carried out as long as `?wait=` says."""
    wait_s, decision = WAIT.read(request), str(uuid.uuid4())
    record = _record(request, command, origin, decision)
    (position,) = await publish_to(request, DEAD_LETTER_COMMANDS, {task.number: [record]})
    decided = None
    if wait_s > 0:
        with contextlib.suppress(*PASSING):
            decided = await _decided(request, task.number, command, decision, position, wait_s)
    return _answer(request, command.dead_letter_id, decided or letter, position, decided is not None)


async def _decided(
    request: web.Request, partition: int, command: DeadLetterCommand, decision: str, position: Position, wait_s: float
) -> DeadLetter | None:
    """The letter once the decision is carried out, None when that takes longer; raises a 409 problem when it is not."""
    (hop,) = LETTER_PATH
    engine, id = request.app[ENGINE], command.dead_letter_id
    waiters = engine.task(partition).waiters
    if not await waiters.wait(hop.name, hop.topic.name, position.offset + 1, wait_s, is_exact=True):
        return None
    found = verdict(engine.task(partition), parse_letter_id(id)[1], decision)
    if found is not None and found.refused is not None:
        reason, detail = found.refused
        raise Problem(409, f"dead letter {id} is left as it was: {detail}", reason=reason)
    return found.letter if found is not None else None


def _answer(
    request: web.Request, id: str, letter: DeadLetter, position: Position, is_decided: bool = False
) -> web.Response:
    is_done = is_decided or letter.state in (RESOLVED, DISCARDED)
    answer: LetterAccepted = {
        "id": id,
        "status": "done" if is_done else "processing",
        "state": letter.state,
        "token": token_of(request, [position]),
    }
    return json_response(answer, 200 if is_done else 202, {"Location": f"/dead-letters/{quote(id, safe='')}"})


# ---- many letters


@service.route("POST", "/dead-letters/retry", _many(ManyRetried, RetryManyBody))
async def retry_letters(request: web.Request) -> web.StreamResponse:
    """Try all open letters again that a filter means: `{dry_run, matched, retried, skipped, skipped_count, token}`.

    The filter is that of the list, without `state`; letters that are being tried already are not meant. At most `limit`
    (1000, up to 10,000) are tried, the oldest first, `rate` (100) a second. `matched` are those and the ones that may
    not be tried again: `skipped` has the first 100 of them, `{id, reason}`. With `dry_run` nothing happens.

    With `?wait=2s` also `decisions`: `{applied, refused, refused_count, undecided}`; `refused` are the first 100 of
    those that were not carried out, as another decision came first, `{id, reason, detail}`. 200 when all are decided.
    """
    origin = metadata(request)
    body = await read_body(request, RetryManyBody)
    found = await candidates(request, retry_page, body.wanted((OPEN,)), body.limit)
    begins_ms = int(time.time() * 1000)

    def command(index: int, candidate: Candidate, id: str) -> DeadLetterCommand:
        not_before_ms = begins_ms + int(index * 1000 / body.rate)
        return RetryDeadLetter(id, not_before_ms, replays=candidate.replays)

    answer, status = await _change_many(request, found, body, origin, command)
    return json_response(ManyRetried(**answer, retried=len(found.chosen)), status)


@service.route("POST", "/dead-letters/discard", _many(ManyDiscarded, DiscardManyBody))
async def discard_letters(request: web.Request) -> web.StreamResponse:
    """Give up all open letters that a filter means, for a `reason`: as for retries, with `discarded` for `retried`.

    Retrying ones are meant too. At least one filter has to be given, or `"all": true`. `?wait=` as for retries.
    """
    origin = metadata(request)
    body = await read_body(request, DiscardManyBody)
    if body.all == bool(body.given()):
        raise invalid("all", "give at least one filter, or true to discard all letters")
    found = await candidates(request, discard_page, body.wanted(STATES["open"]), body.limit)

    def command(index: int, candidate: Candidate, id: str) -> DeadLetterCommand:
        return DiscardDeadLetter(id, body.reason)

    answer, status = await _change_many(request, found, body, origin, command)
    return json_response(ManyDiscarded(**answer, discarded=len(found.chosen)), status)


async def _change_many(
    request: web.Request,
    found: Candidates,
    body: FilterBody,
    origin: Metadata,
    command_of: Callable[[int, Candidate, str], DeadLetterCommand],
) -> tuple[ManyAccepted, int]:
    """Publish a command for each chosen letter, unless that is only to be tried out; answer and status."""
    wait_s, decisions = WAIT.read(request), str(uuid.uuid4())
    positions: Sequence[Position] = ()
    if found.chosen and not body.dry_run:
        positions = await _publish_all(request, found.chosen, decisions, origin, command_of)
    answer: ManyAccepted = {
        "dry_run": body.dry_run,
        "matched": len(found.chosen) + found.refused_count,
        "skipped": found.refused,
        "skipped_count": found.refused_count,
        "token": token_of(request, positions) if positions else None,
    }
    if positions and wait_s > 0:
        answer["decisions"] = await what_became_of(request, decisions, found.chosen, positions, wait_s)
        return answer, 202 if answer["decisions"].undecided else 200
    return answer, 202 if positions else 200


async def _publish_all(
    request: web.Request,
    chosen: Sequence[Candidate],
    decisions: str,
    origin: Metadata,
    command_of: Callable[[int, Candidate, str], DeadLetterCommand],
) -> Sequence[Position]:
    """Publish in chunks, between which the loop is given back; where the last ones are."""
    positions: list[Position] = []
    for first in range(0, len(chosen), LETTERS_PER_CHUNK):
        grouped: defaultdict[int, list[Outgoing]] = defaultdict(list)
        for index, candidate in enumerate(chosen[first : first + LETTERS_PER_CHUNK], start=first):
            command = command_of(index, candidate, letter_id(candidate.partition, candidate.number))
            id = decision_id(decisions, candidate.partition, candidate.number)
            grouped[candidate.partition].append(_record(request, command, origin, id))
        positions += await publish_to(request, DEAD_LETTER_COMMANDS, grouped)
        await asyncio.sleep(0)
    return positions


def _record(request: web.Request, command: DeadLetterCommand, origin: Metadata, id: str) -> Outgoing:
    value = encode(request, envelope(command, id, None, origin))
    return command.dead_letter_id.encode(), value, ()
