"""Dead letters of one partition as they are committed: pages, groups of what failed alike, and what may be changed.

Each function looks at as many letters as it can in a moment and says where to go on, so that an answer never takes
long, however many letters there are and however few of them are meant. The loop is given back in between.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from engine.declare.envelope import TimeText
from engine.declare.partition import Partition
from engine.declare.service import Service
from engine.declare.times import format_ms
from engine.failures.dead_letters import (
    CLOSED_DEAD_LETTERS,
    DEAD_LETTERS,
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
from engine.failures.lanes import LANES, Lane, LaneKey
from engine.partition.engine import Engine
from engine.web.dead_letters.filters import LetterFilter

SLICE_S: Final = 0.005
SCAN_S: Final = 1.0
REFUSED_MAX: Final = 100

service = Service("dead-letter-queries")

Take = Callable[[int, DeadLetter], bool]
"""Takes note of a letter and its number; False when it wants no more."""


class LetterQuery(msgspec.Struct, frozen=True):
    """What a partition is asked for; `place` is the number behind which to go on, None at the beginning."""

    wanted: LetterFilter
    limit: int = 0
    place: int | None = None


class LetterView(msgspec.Struct, frozen=True, gc=False):
    """A dead letter in a list. `waiting` counts the records of its aggregate that wait behind it.

    `size_bytes` is the size of the value, null when the record is too large to be kept here.
    """

    id: str
    state: LetterState
    topic: str
    partition: int
    offset: int
    agent: str
    key: str | None
    event_id: str | None
    event_type: str | None
    correlation_id: str | None
    error_type: str
    error: str
    fingerprint: str
    failed_at: TimeText
    retry_count: int
    replays: int
    waiting: int
    size_bytes: int | None

    @property
    def place(self) -> tuple[int, int]:
        """Number and partition, by which lists of several partitions are sorted."""
        partition, number = parse_letter_id(self.id)
        return number, partition


class LetterPage(msgspec.Struct, frozen=True):
    """Letters, newest first."""

    items: list[LetterView]
    next: int | None


class LetterGroup(msgspec.Struct, frozen=True):
    """Letters that failed alike; the texts are those of the newest one. Times are production time, epoch ms."""

    fingerprint: str
    count: int
    waiting: int
    topic: str
    agent: str
    error_type: str
    error: str
    first_failed_ms: int
    last_failed_ms: int
    example_id: str

    def plus(self, other: LetterGroup) -> LetterGroup:
        """Both together."""
        newest = self if self.last_failed_ms >= other.last_failed_ms else other
        return msgspec.structs.replace(
            newest,
            count=self.count + other.count,
            waiting=self.waiting + other.waiting,
            first_failed_ms=min(self.first_failed_ms, other.first_failed_ms),
        )


class GroupPage(msgspec.Struct, frozen=True):
    """What the letters that were looked at come to; the same group may come again with the next page."""

    items: list[LetterGroup]
    next: int | None


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A letter that may be changed, and how often it had been tried again by then."""

    partition: int
    number: int
    replays: int


class Refused(msgspec.Struct, frozen=True, gc=False):
    """A letter that may not be tried again, and why (see `why_not_retry`)."""

    id: str
    reason: str


class CandidatePage(msgspec.Struct, frozen=True):
    """Letters that may be changed, oldest first, and those that may not (the first REFUSED_MAX)."""

    items: list[Candidate]
    refused: list[Refused]
    refused_count: int
    next: int | None


@service.query("dead-letters-list")
async def letter_page(engine: Engine, task: Partition, query: LetterQuery) -> LetterPage:
    """At most `query.limit` letters that are older than `query.place`."""
    items: list[LetterView] = []

    def take(number: int, letter: DeadLetter) -> bool:
        items.append(letter_view(task, number, letter))
        return len(items) < query.limit

    following = await _look(task, query, take)
    return LetterPage(items, following)


@service.query("dead-letters-groups")
async def group_page(engine: Engine, task: Partition, query: LetterQuery) -> GroupPage:
    """Groups of letters that are older than `query.place`."""
    groups: dict[str, LetterGroup] = {}

    def take(number: int, letter: DeadLetter) -> bool:
        known, group = groups.get(letter.fingerprint), _group(task, number, letter)
        groups[letter.fingerprint] = group if known is None else known.plus(group)
        return True

    following = await _look(task, query, take)
    return GroupPage(list(groups.values()), following)


@service.query("dead-letters-to-retry")
async def retry_page(engine: Engine, task: Partition, query: LetterQuery) -> CandidatePage:
    """At most `query.limit` letters, newer than `query.place`, that may be tried again."""
    items: list[Candidate] = []
    refused: list[Refused] = []
    refused_count, now_ms = 0, int(time.time() * 1000)

    def take(number: int, letter: DeadLetter) -> bool:
        nonlocal refused_count
        reason = why_not_retry(letter, False, now_ms, engine.settings)
        if reason is None:
            items.append(Candidate(task.number, number, letter.replays))
            return len(items) < query.limit
        refused_count += 1
        if len(refused) < REFUSED_MAX:
            refused.append(Refused(letter_id(task.number, number), reason[0]))
        return True

    following = await _look(task, query, take, oldest_first=True)
    return CandidatePage(items, refused, refused_count, following)


@service.query("dead-letters-to-discard")
async def discard_page(engine: Engine, task: Partition, query: LetterQuery) -> CandidatePage:
    """At most `query.limit` letters that are newer than `query.place`."""
    items: list[Candidate] = []

    def take(number: int, letter: DeadLetter) -> bool:
        items.append(Candidate(task.number, number, letter.replays))
        return len(items) < query.limit

    following = await _look(task, query, take, oldest_first=True)
    return CandidatePage(items, [], 0, following)


def find_letter(task: Partition, number: int) -> DeadLetter | None:
    """The letter, open or closed."""
    return task.read(DEAD_LETTERS, number) or task.read(CLOSED_DEAD_LETTERS, number)


def lane_behind(task: Partition, letter: DeadLetter) -> Lane | None:
    """The lane whose first record is this letter's; all others in it wait for the letter."""
    if letter.lane is None or letter.state not in (OPEN, RETRYING):
        return None
    lane = task.read(LANES, LaneKey(letter.agent, letter.key or b""))
    return lane if lane is not None and lane.first == letter.lane else None


def letter_view(task: Partition, number: int, letter: DeadLetter) -> LetterView:
    """A letter as lists show it."""
    return LetterView(
        id=letter_id(task.number, number),
        state=letter.state,
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        agent=letter.agent,
        key=text_of(letter.key),
        event_id=letter.event_id,
        event_type=letter.event_type,
        correlation_id=letter.correlation_id,
        error_type=letter.error_type,
        error=letter.error,
        fingerprint=letter.fingerprint,
        failed_at=format_ms(letter.failed_ms),
        retry_count=letter.retry_count,
        replays=letter.replays,
        waiting=_waiting(task, letter),
        size_bytes=len(letter.value or b"") if letter.complete else None,
    )


def text_of(key: bytes | None) -> str | None:
    """A key for people; what is not UTF-8 is replaced."""
    return None if key is None else key.decode(errors="replace")


def _group(task: Partition, number: int, letter: DeadLetter) -> LetterGroup:
    return LetterGroup(
        letter.fingerprint,
        1,
        _waiting(task, letter),
        letter.topic,
        letter.agent,
        letter.error_type,
        letter.error,
        letter.failed_ms,
        letter.failed_ms,
        letter_id(task.number, number),
    )


def _waiting(task: Partition, letter: DeadLetter) -> int:
    lane = lane_behind(task, letter)
    return 0 if lane is None else len(lane) - 1


async def _look(task: Partition, query: LetterQuery, take: Take, oldest_first: bool = False) -> int | None:
    """Show the letters that are meant to `take`; the number to go on behind, None when all have been looked at."""
    place, ends_at = query.place, time.monotonic() + SCAN_S
    while True:
        slice_ends_at = time.perf_counter() + SLICE_S
        for number, letter in _rows(task, query.wanted, place, oldest_first):
            place = number
            if query.wanted.matches(letter) and not take(number, letter):
                return place
            if time.perf_counter() >= slice_ends_at:
                break
        else:
            return None
        if time.monotonic() >= ends_at:
            return place
        await asyncio.sleep(0)


def _rows(
    task: Partition, wanted: LetterFilter, place: int | None, oldest_first: bool
) -> Iterator[tuple[int, DeadLetter]]:
    """Letters behind `place`, in the order of their numbers; a letter keeps its number when it is closed."""
    start = b""
    if place is not None:
        start = DEAD_LETTERS.key.encode(place + 1 if oldest_first else max(1, place) - 1)
    tables = []
    if not {OPEN, RETRYING}.isdisjoint(wanted.states):
        tables.append(DEAD_LETTERS)
    if not {RESOLVED, DISCARDED}.isdisjoint(wanted.states):
        tables.append(CLOSED_DEAD_LETTERS)
    scans = [task.scan(table, start=start, reverse=not oldest_first) for table in tables]
    return heapq.merge(*scans, key=lambda row: row[0], reverse=not oldest_first)
