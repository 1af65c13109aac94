"""Agents that have records to handle and get no further: since when, and why, as far as that is known."""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from engine.declare.settings import Settings
from engine.failures.dead_letters import letter_id
from engine.health.faults import Fault
from engine.log.ports import TransportError
from engine.partition.live_engine import LiveEngine
from engine.partition.task import PartitionTask

log = logging.getLogger(__name__)

KIND: Final = "standstill"
LOOK_EVERY_S: Final = 5.0
LOOK_TIMEOUT_S: Final = 5.0
LETTERS_NAMED_MAX: Final = 3
RESTART: Final = (
    "restart the worker, and keep its log: nothing is lost, and it goes on where it was. "
    "What stands still again after that needs those who maintain the agent"
)

Source = tuple[str, str]  # agent and topic


class Place(NamedTuple):
    """An agent in one partition of its topic."""

    agent: str
    topic: str
    partition: int


class _Mark(NamedTuple):
    """How far an agent was when it was seen to get further last, and when that was (monotonic and wall clock)."""

    task: PartitionTask
    reached: int
    turns: int
    since: float
    since_text: str


class StandstillWatch:
    """Looks at all agents of a worker every few seconds, and reports a fault for those that get no further.

    An agent has records to handle while it has not reached the end of its topic, or has not handled all that its lanes
    have given back. It gets further with every offset that it commits and every record of a lane that it handles. One
    whose calls are paused by a circuit, and a partition that is being restored, do not count. `clock` is monotonic
    seconds.
    """

    def __init__(self, engine: LiveEngine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._marks: dict[Place, _Mark] = {}
        self._runner: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the running loop; a second call changes nothing."""
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run(), name="standstill watch")

    def stop(self) -> None:
        """Look no more."""
        if self._runner is not None:
            self._runner.cancel()
            self._runner = None

    def seconds(self) -> Mapping[Place, float]:
        """How long agents have got no further that have records to handle, as of now."""
        now = self._clock()
        return {
            place: max(0.0, now - mark.since)
            for place, mark in self._marks.items()
            if _how_far(mark.task, place) == (mark.reached, mark.turns)
        }

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK_EVERY_S, self._engine.settings.stalled_after / 4))
            try:
                await self.look()
            except Exception:
                log.exception("it cannot be told which agents stand still")

    async def look(self) -> None:
        """Compare where agents are with where they were, and with the ends of their topics."""
        engine = self._engine
        tasks = [task for task in engine.tasks.values() if task.life.is_running()]
        topics = {topic.name for topic in engine.agents.values()}
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                bounds = await engine.broker.bounds([(topic, task.number) for topic in topics for task in tasks])
        except (TransportError, TimeoutError):
            self._marks.clear()  # while the broker is away nobody can get further, and others say that it is
            return
        paused = {pause.agent for pause in engine.pauses()}
        marks: dict[Place, _Mark] = {}
        for task in tasks:
            for agent, topic in engine.agents.items():
                place, (_, end) = Place(agent, topic.name, task.number), bounds[topic.name, task.number]
                behind = end - task.reached(agent, topic.name)
                if agent not in paused and (behind > 0 or task.lanes.has_turns(agent)):
                    marks[place] = self._mark(place, task)
        gone = [place for place in self._marks if place not in marks]
        self._marks = marks
        for place in gone:
            engine.faults.clear((KIND, *place))
        for place, mark in marks.items():
            self._judge(place, mark)

    def _mark(self, place: Place, task: PartitionTask) -> _Mark:
        reached, turns = _how_far(task, place)
        known = self._marks.get(place)
        if known is not None and (known.task, known.reached, known.turns) == (task, reached, turns):
            return known
        return _Mark(task, reached, turns, self._clock(), f"{datetime.now(UTC):%F %T}Z")

    def _judge(self, place: Place, mark: _Mark) -> None:
        faults, key = self._engine.faults, (KIND, *place)
        if self._clock() - mark.since < self._engine.settings.stalled_after or not mark.task.life.is_running():
            faults.clear(key)
            return
        if any(fault.partition == place.partition and fault.kind != KIND for fault in faults.open()):
            faults.clear(key)  # another fault of this partition names the cause already
            return
        cause, advice = why(mark.task, (place.agent, place.topic), self._engine.settings)
        detail = f"{place.topic}/{place.partition} stands still for {place.agent} since {mark.since_text}: {cause}"
        faults.report(key, Fault(KIND, detail, advice, place.partition))


def _how_far(task: PartitionTask, place: Place) -> tuple[int, int]:
    """The offset that an agent has committed, and how many records of lanes it has handled in this life."""
    return task.reached(place.agent, place.topic), task.lanes.turns_taken[place.agent]


def without_room(task: PartitionTask) -> Sequence[Source]:
    """Agents and topics whose next record has to wait in its lane, and finds no room there."""
    return sorted({*task.stalled.sources(), *task.calls.stalled()})


def room_settings(settings: Settings) -> str:
    """The settings that say how many records may wait."""
    return f"{settings.variable('waiting_per_aggregate_max')} and {settings.variable('waiting_max')}"


def why(task: PartitionTask, source: Source, settings: Settings) -> tuple[str, str]:
    """Why an agent gets no further, as far as that is known, and what to do about it."""
    if source in without_room(task):
        return _no_room(task, source[0], settings)
    if (offset := task.calls.first_offset(source)) is not None:
        return (
            f"the record at offset {offset} waits for an answer from outside",
            "see that what the agent calls is up, and what the worker's log says of it"
            f"{settings.application.addresses}; it is asked again by itself",
        )
    if task.work.is_committing:
        return "the commit of its partition does not end", f"see that the broker and the disk are well, or {RESTART}"
    if task.backlog.queued[source[1]]:
        return "it was handed records, and does not finish them", RESTART
    return (
        "its records are not read",
        f"see what {settings.application.command('doctor')} says of the broker, or {RESTART}",
    )


def _no_room(task: PartitionTask, agent: str, settings: Settings) -> tuple[str, str]:
    """What the lanes of a partition wait for that have no room left."""
    lanes = list(task.lanes.index.items())
    parked = [(len(lane), lane.parked) for key, lane in lanes if lane.parked is not None and key.agent == agent]
    if not parked:
        parked = [(len(lane), lane.parked) for _, lane in lanes if lane.parked is not None]
    if not parked:
        due_ms = task.lanes.index.next_due_ms()
        at = "soon" if due_ms is None else f"at {datetime.fromtimestamp(due_ms / 1000, UTC):%F %T}Z"
        return (
            f"no more records may wait behind those that are tried again, the next one {at}",
            f"wait until then, or discard it; or raise {room_settings(settings)}",
        )
    letters = ", ".join(letter_id(task.number, letter) for _, letter in heapq.nlargest(LETTERS_NAMED_MAX, parked))
    return (
        f"no more records may wait behind {len(parked)} dead letters, most of them behind {letters}",
        f"retry or discard these ({settings.application.command('dead-letters show ID')}), and what waits behind them "
        f"goes on in order; or raise {room_settings(settings)}",
    )
