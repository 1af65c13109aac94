"""The lanes of one partition: lets records wait behind one that failed, and gives them back when their time has come.

A record whose turn it is goes to its agent as one more fetch, so the agent handles it as it handles all others, calls
to the outside included.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence, Set
from itertools import islice
from typing import Any, TypeVar

from msgspec.structs import replace

from engine.declare.handlers import RecordHandler
from engine.declare.table import Table
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.burial import Failed, bury
from engine.failures.classify import (
    INFRASTRUCTURE_ERRORS,
    InfrastructureError,
    RetryPolicy,
    is_retryable,
    parks,
)
from engine.failures.dead_letters import DEAD_LETTERS, RESOLVED, close_letter, letter_id
from engine.failures.lane_index import LaneIndex
from engine.failures.lane_log import LaneLog
from engine.failures.lane_offsets import WaitingOffsets
from engine.failures.lanes import (
    LANES,
    WAITING,
    Ended,
    Lane,
    LaneKey,
    NotNow,
    WaitingKey,
    WaitingRecord,
    advance,
    append,
    is_next,
    park,
    try_later,
    waiting_record,
)
from engine.log.ports import Record
from engine.observe.about import told
from engine.watchdog.watch import Handling, watched
from engine.work.context import EngineContext
from engine.work.fetched import Fetched
from engine.work.open_work import OpenWork

K = TypeVar("K")
V = TypeVar("V")

# Hands records of a topic to an agent, each with its place in a lane.
GiveBack = Callable[[str, Sequence[Record], str, Sequence[WaitingKey]], None]

SLICE_S = 0.005
ROWS_PER_SLICE = 500
TURNS_MAX = 500  # records of one agent that are given back and not handled yet
TURNS_PER_LANE_MAX = 100


class LaneLoop:
    """Lanes of one life of a partition; `load` reads what earlier lives have left."""

    def __init__(self, work: OpenWork, context: EngineContext, give_back: GiveBack) -> None:
        settings = context.settings
        self.index = LaneIndex(settings.waiting_per_aggregate_max, settings.waiting_max, self._is_handled)
        self.offsets = WaitingOffsets(self.index)
        self.room = asyncio.Event()  # set when there is more of it
        self.on_room: Callable[[], None] = lambda: None
        self._work = work
        self._life = work.life
        self._give_back = give_back
        self._context = context
        self._turns: defaultdict[str, dict[LaneKey, int]] = defaultdict(dict)  # by agent: turns not handled yet
        self.turns_taken: Counter[str] = Counter()  # by agent: records of lanes that were handled in this life
        self._handle: asyncio.TimerHandle | None = None
        self._unparked: set[bytes] = set()  # keys of lanes in topics which have none any more, until they have ended
        self._log = LaneLog(work.partition.number, context.settings)

    # ---- life

    async def load(self) -> None:
        """Take note of all lanes in the store, and of what waits in them."""
        async for key, lane in self._rows(LANES):
            self.index.note(key, lane)
        async for place, record in self._rows(WAITING):
            self.offsets.note(place, record)

    async def _rows(self, table: Table[K, V]) -> AsyncIterator[tuple[K, V]]:
        """All committed rows of a table; gives the loop back in between."""
        start = b""
        while rows := list(islice(self._work.partition.scan(table, start=start), ROWS_PER_SLICE)):
            for row in rows:
                yield row
            start = table.key.encode(rows[-1][0]) + b"\0"
            await asyncio.sleep(0)

    def plan(self) -> None:
        """Wake up when the next lane is due."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        due_ms = self.index.next_due_ms()
        if due_ms is not None and self._life.is_running():
            delay_s = max(0.0, due_ms / 1000 - time.time())
            self._handle = self._life.background.later(delay_s, self._give_turns)

    def cancel(self) -> None:
        """Give nothing back any more; what was given back and not handled is due again in the next epoch."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        for turns in self._turns.values():
            for key in turns:
                self.index.due_again(key)
        self._turns.clear()

    def committed(self, keys: Iterable[LaneKey], records: Mapping[WaitingKey, WaitingRecord | None]) -> None:
        """These lanes and records were changed by the unit of work that was just committed."""
        for place, record in records.items():
            self.offsets.note(place, record)
        work = self._work.current
        for key in keys:
            self._note(key, work.get(LANES, key))
        self.plan()

    def has_waiting(self, agent: str, key: bytes) -> bool:
        """Whether records of this key wait in a lane, as far as readers can know; a dead letter alone does not."""
        lane = self._work.partition.read(LANES, LaneKey(agent, key))
        return lane is not None and (lane.parked is None or len(lane) > 1)

    def unpark(self) -> None:
        """Let lanes go on that an earlier release has parked in topics which have none any more."""
        for key, lane in list(self.index.items()):
            if lane.parked is not None and not self._has_lanes(lane.topic):
                work = self._work.open()
                work.now_ms = int(time.time() * 1000)
                letter = work.get(DEAD_LETTERS, lane.parked)
                if letter is not None:
                    work.put(DEAD_LETTERS, lane.parked, replace(letter, lane=None))
                advance(work, key)
                work.release()
                self._unparked.add(key.key)
                self._note(key, work.get(LANES, key))
                self._work.commit_soon()

    def _is_handled(self, agent: str, topic: str) -> bool:
        """Whether this agent is there: a service may have gone, and its lanes have stayed."""
        return agent in self._context.agents_of(topic)

    def _has_lanes(self, topic: str) -> bool:
        """Whether records of this topic wait behind one of their key that failed."""
        known = self._context.topics.get(topic)
        return known is None or known.lanes

    def _note(self, key: LaneKey, lane: Lane | None) -> None:
        if lane is None:
            self._unparked.discard(key.key)
        if self.index.note(key, lane):
            self.room.set()
            self.on_room()

    # ---- records that fail, and those behind them

    def blocked(self, source: tuple[str, str]) -> Set[bytes]:
        """Keys of which records of this agent and topic may have to wait; as of any later moment, too."""
        return self.index.blocked[source[0]] if self._has_lanes(source[1]) else self._unparked

    def hold(self, work: UnitOfWork, source: tuple[str, str], record: Record) -> bool:
        """Let a record wait if its aggregate does; whether it does. Raises NotNow."""
        key = LaneKey(source[0], record.key or b"")
        lane = work.get(LANES, key)
        if lane is None:
            return False
        if not self.index.has_room(key):
            self._log.full(source, record, lane, self.index.waiting.total())
            raise NotNow
        append(work, key, source[1], waiting_record(record), work.now_ms)
        self._note(key, work.get(LANES, key))
        return True

    def fail(self, work: UnitOfWork, source: tuple[str, str], record: Record, error: BaseException) -> Ended:
        """Take back what a record did, and let it wait for another try or make it a dead letter.

        Returns how it ended, for metrics: `retry` or `dead_letter`. Raises NotNow.
        """
        work.rollback()
        key = LaneKey(source[0], record.key or b"")
        if record.key and self._has_lanes(source[1]) and (is_retryable(error) or parks(error)):
            # A letter may have been put back in this very commit: the index does not know its lane yet.
            if self.hold(work, source, record):
                return "retry"
            if not self.index.has_room(key):
                self._log.full(source, record, None, self.index.waiting.total())
                raise NotNow
        return self._fail(work, key, source[1], record, error, None)

    def _fail(
        self,
        work: UnitOfWork,
        key: LaneKey,
        topic: str,
        record: Record,
        error: BaseException,
        waiting: WaitingRecord | None,
    ) -> Ended:
        ended: Ended
        retry_count = waiting.retry_count if waiting is not None else 0
        policy = RetryPolicy.of(self._context.settings, topic)
        if record.key and self._has_lanes(topic) and is_retryable(error) and retry_count < policy.retries:
            pause_ms = policy.pause_ms(retry_count)
            letter = waiting.letter if waiting is not None else None
            again = waiting_record(record, retry_count + 1, letter)
            try_later(work, key, topic, again, work.now_ms + pause_ms)
            ended = "retry"
            self._context.metrics.retries[key.agent] += 1
            said = f"failed, {retry_count + 1}. retry of {policy.retries} in {pause_ms / 1000:.1f} s: {told(error)}"
            more: dict[str, Any] = {"retry_count": retry_count + 1, "trace_id": work.trace_id}
            self._log.failed(key.agent, topic, record, said, error, **more)
        else:
            is_parked = self._bury(work, key, topic, record, error, waiting)
            ended = "dead_letter"
            if waiting is None and not is_parked:
                return ended  # no lane was touched
        self._note(key, work.get(LANES, key))
        self.plan()
        return ended

    def _bury(
        self,
        work: UnitOfWork,
        key: LaneKey,
        topic: str,
        record: Record,
        error: BaseException,
        waiting: WaitingRecord | None,
    ) -> bool:
        """Make a record a dead letter; whether its aggregate waits behind it, as error and topic say."""
        retry_count, letter = (waiting.retry_count, waiting.letter) if waiting is not None else (0, None)
        place: int | None = None
        if record.key and parks(error) and self._has_lanes(topic):
            lane = work.get(LANES, key)
            place = lane.first if lane is not None else 1
        number = bury(work, Failed(key.agent, topic, record, error, retry_count, letter, place))
        if place is not None:
            park(work, key, topic, number)
        elif waiting is not None:
            advance(work, key)
        self._context.metrics.dead_letters += 1
        letter_text = letter_id(self._work.partition.number, number)
        more: dict[str, Any] = {"dead_letter_id": letter_text, "retry_count": retry_count, "trace_id": work.trace_id}
        self._log.failed(key.agent, topic, record, f"is dead letter {letter_text}: {told(error)}", error, **more)
        return place is not None

    # ---- turns

    def _give_turns(self) -> None:
        """Hand records whose turn it is to their agents."""
        self._handle = None
        now_ms = int(time.time() * 1000)
        fetches: defaultdict[tuple[str, str], list[tuple[WaitingKey, Record]]] = defaultdict(list)
        later = []
        for key, lane in self.index.take_due(now_ms):
            turns = self._turns[key.agent]
            if key in turns or not self._is_handled(key.agent, lane.topic):
                continue  # it is noted again when they are over; a service that is no longer there has no turn
            if sum(turns.values()) >= TURNS_MAX:
                later.append(key)
                continue
            records = self._records(key, lane)
            turns[key] = len(records)
            fetches[key.agent, lane.topic] += records
        for key in later:
            self.index.due_again(key)
        for (agent, topic), records in fetches.items():
            turns_of = [waiting_key for waiting_key, _ in records]
            self._give_back(topic, [record for _, record in records], agent, turns_of)
        if not later:
            self.plan()

    def _records(self, key: LaneKey, lane: Lane) -> list[tuple[WaitingKey, Record]]:
        """The first records of a lane."""
        found, work = [], self._work.current
        for number in range(lane.first, min(lane.end, lane.first + TURNS_PER_LANE_MAX)):
            waiting_key = WaitingKey(*key, number)
            waiting = work.get(WAITING, waiting_key)
            if waiting is None:
                raise InfrastructureError(f"record {number} of {key.key!r} for {key.agent} is not in the store")
            found.append((waiting_key, waiting.record(key.key)))
        return found

    async def take_turns(self, source: tuple[str, str], fetched: Fetched, handle: RecordHandler) -> None:
        """Handle records whose turn it is, in slices."""
        deadline = time.perf_counter() + SLICE_S
        for key, record in zip(fetched.turns, fetched.records, strict=True):
            await self._work.wait_for_room()
            self._life.check(fetched.epoch, source[1])
            self.take_turn(source, key, record, handle)
            if time.perf_counter() >= deadline:
                await asyncio.sleep(0)
                deadline = time.perf_counter() + SLICE_S
        self._life.check(fetched.epoch, source[1])

    def take_turn(self, source: tuple[str, str], key: WaitingKey, record: Record, handle: RecordHandler) -> None:
        """Handle one record, if it is its turn (still): the next one of its lane is due when it went well."""
        work = self._work.open()
        work.now_ms = int(time.time() * 1000)
        lane_key, waiting = LaneKey(key.agent, key.key), work.get(WAITING, key)
        if waiting is not None and is_next(work, key) and is_given_up(work, waiting):
            advance(work, lane_key)
            work.release()
            self._note(lane_key, work.get(LANES, lane_key))
        elif waiting is not None and is_next(work, key):
            began = time.perf_counter()
            ended: Ended | None
            work.record, work.retry_count = record, waiting.retry_count
            try:
                event_type, ended = watched(Handling(*source, self._life.stuck), record, handle, record, work), None
            except INFRASTRUCTURE_ERRORS as error:
                raise InfrastructureError(f"{type(error).__name__}: {error}") from error
            except BaseException as error:
                work.rollback()
                event_type = self._context.known_type(record.value)
                ended = self._fail(work, lane_key, source[1], record, error, waiting)
            else:
                advance(work, lane_key)
                if waiting.letter is not None:
                    close_letter(work, waiting.letter, RESOLVED)
            work.release()
            work.retry_count = 0
            counts = self._context.metrics.event(event_type)
            counts.seconds.observe(time.perf_counter() - began)
            if ended is not None:
                counts.failed(ended)
            self._note(lane_key, work.get(LANES, lane_key))
            self.turns_taken[key.agent] += 1
        self.turn_over(key)

    def has_turns(self, agent: str) -> bool:
        """Whether records were given back to this agent that it has not handled yet."""
        return bool(self._turns[agent])

    def is_turn(self, key: WaitingKey) -> bool:
        """Whether it is this record's turn (still)."""
        work = self._work.current
        work.now_ms = max(work.now_ms, int(time.time() * 1000))
        return is_next(work, key)

    def is_blocked(self, source: tuple[str, str], key: bytes | None) -> bool:
        """Whether records of this key have to wait."""
        if key is None or key not in self.blocked(source):
            return False
        return self._work.current.get(LANES, LaneKey(source[0], key)) is not None

    def turn_over(self, key: WaitingKey) -> None:
        """A record that was given back is handled, or it was not its turn: what is left of its lane may be due."""
        lane_key, turns = LaneKey(key.agent, key.key), self._turns[key.agent]
        left = turns.get(lane_key, 0) - 1
        if left > 0:
            turns[lane_key] = left
            return
        turns.pop(lane_key, None)
        self.index.due_again(lane_key)
        self.plan()


def is_given_up(work: UnitOfWork, waiting: WaitingRecord) -> bool:
    """Whether the dead letter that is tried again with this record was discarded meanwhile."""
    return waiting.letter is not None and work.get(DEAD_LETTERS, waiting.letter) is None
