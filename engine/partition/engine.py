"""The engine of one worker: a partition task for each number it owns, from assignment to revocation."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.calls.circuit import Circuit, Pause
from engine.declare.agent import Projection
from engine.declare.envelope import Envelope
from engine.declare.handlers import Acceptance, RecordHandler, SharedAcceptance, TimerHandler, acceptance
from engine.declare.registry import EventRegistry
from engine.declare.settings import Settings
from engine.declare.table import AnyTable
from engine.declare.timers import timer_topic
from engine.declare.topic import Topic
from engine.declare.unit_of_work import NO_REACTIONS, Reactions
from engine.failures.classify import names_in
from engine.failures.dead_letters import TIMERS_AGENT
from engine.health.broker_watch import BrokerWatch
from engine.health.disk_watch import DiskWatch
from engine.health.faults import Faults
from engine.health.standstill import StandstillWatch
from engine.installation.folder import StoresFolder
from engine.installation.ownership import Ownership
from engine.log.partitioner import partition_for
from engine.log.ports import Broker, ClientState, TopicSpec, TransportError, TransportUnusable
from engine.observe.loop_delay import LoopDelay
from engine.observe.metrics import Metrics
from engine.partition.keeper import PartitionKeeper
from engine.partition.own_tables import OWN_TABLES
from engine.partition.task import PartitionTask
from engine.partition.transport_control import TransportControl
from engine.positions.hanging import HangingWatch
from engine.positions.source_watch import SourceWatch
from engine.store.cache import CacheBudget
from engine.store.repair_rows import Repair, RepairAsked, Repairs
from engine.work.background import outcome
from engine.work.commit_listeners import CommitListeners
from engine.work.fetched import Fetched
from engine.work.life import TaskState
from engine.work.loop_share import LoopShare
from engine.work.tracing import Untraced
from engine.work.waiters import WaitingRoom

log = logging.getLogger(__name__)

UNKNOWN_TYPE = "unknown"
_encode_struct = msgspec.json.Encoder().encode


BUSY_FOR_S = 0.02  # after the last record


class PartitionNotHere(Exception):
    """This worker does not own the partition, or is still restoring it."""


class Engine:
    """Keeps a partition task alive for each owned number, each in the background, so that others flow meanwhile."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        registry: EventRegistry,
        topics: Iterable[Topic],
        tables: Iterable[AnyTable],
        agents: Mapping[str, Topic],
        timers: Mapping[str, TimerHandler],
        stores_dir: Path,
        reactions: Reactions = NO_REACTIONS,
        projections: Iterable[Projection] = (),
        owned: Iterable[str] = (),
    ) -> None:
        self.settings = settings
        self.broker = broker
        self.registry = registry
        self.metrics = Metrics((*registry.types, UNKNOWN_TYPE), (*agents, TIMERS_AGENT))
        self.loop_share = LoopShare(broker.commits_in_loop)
        self.cache_budget = CacheBudget(settings.cache_rows_max)
        self.waiting = WaitingRoom()
        self.topics: Mapping[str, Topic] = {topic.name: topic for topic in topics}
        self.tables: Mapping[str, AnyTable] = {table.name: table for table in (*OWN_TABLES, *tables)}
        self.agents: Mapping[str, Topic] = dict(agents)
        self.circuits: dict[str, Circuit] = {}  # by agent, from its first call to the outside on
        self.tasks: dict[int, PartitionTask] = {}
        self.numbers: frozenset[int] = frozenset()
        self.fatal: str | None = None
        self.faults = Faults()
        self.broker_watch = BrokerWatch(broker, self.clients, self.faults, settings.application)
        self.repairs = Repairs()
        self.standstills = StandstillWatch(self)
        self.on_fatal: Callable[[], None] = lambda: None
        self.probe: Callable[[str], None] = lambda step: None
        self.reactions = reactions
        self.tracing = Untraced()
        self.projections: Mapping[str, Projection] = {made.name: made for made in projections}
        self.rebuild_turns = asyncio.Lock()
        self.commit_listeners = CommitListeners()
        self.ownership = Ownership(settings, broker, owned, stores_dir, on_loss=self.die)
        self._timers = dict(timers)
        self._stores_dir = stores_dir
        self.disk = DiskWatch(settings, self.faults, self._suspend_all, self._resume_all)
        self._loop_delay = LoopDelay(self.metrics.loop_delay_seconds)
        self._hanging = HangingWatch(self)
        self.source_watch = SourceWatch(self)
        self._control: TransportControl | None = None
        self._keepers: dict[int, PartitionKeeper] = {}
        self._generation = -1
        self._is_revoked = True
        self._agents_of = {
            name: tuple(agent for agent, topic in self.agents.items() if topic.name == name) for name in self.topics
        }
        self._acceptances: dict[str, Acceptance] = {}

    def clients(self) -> Sequence[ClientState]:
        """How the clients of the log do that last as long as this worker."""
        return (*self.broker.clients(), *(self._control.clients() if self._control is not None else ()))

    # ---- what partition tasks ask (EngineContext)

    def agents_of(self, topic: str) -> tuple[str, ...]:
        """Names of the agents that consume `topic`."""
        return self._agents_of.get(topic, ())

    def accept(self, topic: str) -> Acceptance:
        """The function that checks and decodes a record of `topic`, the same one for all agents of the topic."""
        known = self._acceptances.get(topic)
        if known is None:
            known = self._acceptance(self.topics[topic])
            if (agents := len(self.agents_of(topic))) > 1:
                known = SharedAcceptance(known, agents)
            known = self._acceptances[topic] = self.tracing.accept(known)
        return known

    def _acceptance(self, topic: Topic) -> Acceptance:
        return acceptance(self.registry, topic, self.settings.record_bytes_max, self.partition_for)

    def bind_apart(self, projection: Projection) -> RecordHandler:
        """The function that handles one record in a rebuild; it shares nothing with what the agents are handed."""
        return projection.bind(self._acceptance(projection.topic))

    def projection_of(self, table: str) -> Projection | None:
        """The projection that makes a table, None where the table is none."""
        for projection in self.projections.values():
            if any(made.name == table for made in projection.tables):
                return projection
        return None

    def circuit(self, agent: str) -> Circuit:
        """The circuit of what `agent` calls, the same for all partitions."""
        circuit = self.circuits.get(agent)
        if circuit is None:
            settings, call_later = self.settings, asyncio.get_running_loop().call_later
            circuit = Circuit(agent, settings.circuit_pause, settings.circuit_pause_max, call_later, time.time)
            self.circuits[agent] = circuit
        return circuit

    def partition_for(self, key: bytes) -> int:
        """The partition number of `key`, as every Kafka client computes it."""
        return partition_for(key, self.settings.partitions)

    def encode(self, message: Any) -> bytes:
        """Bytes of an envelope or another msgspec struct."""
        return self.registry.encode(message) if type(message) is Envelope else _encode_struct(message)

    def timer_handler(self, kind: str) -> TimerHandler:
        """The handler of timers of `kind`."""
        return self.tracing.timer_handler(self._timers[kind], kind)

    def store_path(self, number: int) -> Path:
        """Folder of the store of partition `number`."""
        return self._stores_dir / str(number)

    def is_busy(self) -> bool:
        """Whether this worker has records to handle, or had some a moment ago."""
        since = time.monotonic() - BUSY_FOR_S
        return any(task.backlog.busy_at > since or task.backlog.queued.total() for task in self.tasks.values())

    def stored_numbers(self) -> list[int]:
        """Numbers that this worker has a store of, the one that was used last first."""
        return StoresFolder(self._stores_dir, self.settings.application, True).numbers()

    def wake_transport(self) -> None:
        """There is room for another fetch."""
        if self._control is not None:
            self._control.wake()

    def deliver(self, fetched: Fetched) -> None:
        """Hand a fetch that comes from the store to the agents of its topic."""
        if self._control is not None:
            self._control.deliver(fetched)

    def retried_topics(self) -> set[str]:
        """Topics whose records are tried again when they fail, and what stands for the topic of a timer."""
        return {*(topic.name for topic in self.agents.values()), *map(timer_topic, self._timers)}

    def known_type(self, value: bytes | None) -> str:
        """The event type of a record for metrics: `unknown` for what is not registered or cannot be read."""
        event_type = names_in(value).event_type
        return event_type if event_type is not None and self.registry.knows(event_type) else UNKNOWN_TYPE

    # ---- life

    async def start(self, control: TransportControl) -> None:
        """Reach the broker, however long it takes, and create the topics.

        A problem that waiting does not solve ends the worker with a message (`fatal`).
        """
        self._control = control
        self._loop_delay.start()
        self.standstills.start()
        backoff_s = self.settings.restart_backoff
        while True:
            try:
                await self.broker.start()
                await self.ownership.start()
                await self.broker.create_topics(self.topic_specs())
                self.broker_watch.start()
                self._hanging.start()
                self.disk.start()
                self.source_watch.start()
                return
            except TransportUnusable as error:
                self.die(str(error))
                raise
            except TransportError as error:
                log.error("%s; trying again in %.1f s", error, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, self.settings.restart_backoff_max)

    def topic_specs(self) -> Sequence[TopicSpec]:
        """Every topic of the application and a changelog for each table."""
        count, app_id = self.settings.partitions, self.settings.app_id
        specs = [
            TopicSpec(
                topic.name,
                count,
                topic.compacted,
                topic.retention_ms,
                topic.record_bytes_max,
                bool(self.agents_of(topic.name)),
            )
            for topic in self.topics.values()
        ]
        return specs + [TopicSpec(table.changelog_topic(app_id), count, True, None) for table in self.tables.values()]

    async def assigned(self, numbers: Iterable[int], generation: int) -> None:
        """Own exactly `numbers` from now on; new ones are restored in the background. Partitions added later are none.

        A task survives only from one generation to the very next: otherwise somebody else may have owned its partition
        in between, and what it holds in memory is old.
        """
        self.numbers, self._is_revoked = frozenset(numbers) & frozenset(range(self.settings.partitions)), False
        next_of_kin = generation == self._generation + 1
        self._generation = generation
        self.source_watch.soon()
        log.info("generation %d owns partitions %s", generation, sorted(self.numbers))
        gone = [n for n in self._keepers if n not in self.numbers or not next_of_kin or not self._is_healthy(n)]
        await asyncio.gather(*(self._drop(number) for number in gone))
        for number in self.numbers:
            if number not in self._keepers:
                self._keepers[number] = PartitionKeeper(number, self)
            elif (task := self.tasks.get(number)) is not None:
                task.life.background.call(self.resume, task)

    def _is_healthy(self, number: int) -> bool:
        task = self.tasks.get(number)
        return task is not None and task.life.state is not TaskState.CLOSED and not task.life.failed.done()

    async def revoked(self) -> None:
        """Take nothing more and commit what is open, before another worker may own it."""
        self._is_revoked = True
        await self._suspend_all()

    async def _suspend_all(self) -> None:
        await asyncio.gather(*map(self._suspend, tuple(self.tasks.values())))

    async def _suspend(self, task: PartitionTask) -> None:
        """What one partition raises is no reason not to commit the others."""
        if (error := await outcome(task.suspend(), f"commit of partition {task.number} before it may go")) is not None:
            task.life.fail(error)

    def _resume_all(self) -> None:
        for task in self.tasks.values():
            self.resume(task)

    async def stop(self) -> None:
        """Commit what is open and let go of everything; in memory nothing is kept."""
        self._loop_delay.stop()
        await self.broker_watch.stop()
        await self.disk.stop()
        self._hanging.stop()
        await self.source_watch.stop()
        self.standstills.stop()
        await self.revoked()
        await asyncio.gather(*(self._drop(number) for number in list(self._keepers)))
        await self.ownership.stop()
        await self.broker.stop()
        if self.settings.transport == "memory":
            shutil.rmtree(self._stores_dir, ignore_errors=True)

    async def _drop(self, number: int) -> None:
        await self._keepers.pop(number).stop()
        self.faults.forget_partition(number)

    def repair(self, asked: Repair) -> None:
        """Let an owned partition start again with a repair; raises PartitionNotHere where it is not owned."""
        keeper = self._keepers.get(asked.partition)
        if keeper is None:
            raise PartitionNotHere(f"partition {asked.partition} is not (yet) on this worker")
        self.repairs.ask(asked)
        keeper.start_again(RepairAsked(f"a repair from the {asked.source} was asked for"))

    def new_task(self, number: int) -> PartitionTask:
        """The next life of partition `number`, not yet started."""
        task = self.tasks[number] = PartitionTask(number, self)
        return task

    def forget(self, task: PartitionTask) -> None:
        """The task's life is over."""
        if self.tasks.get(task.number) is task:
            del self.tasks[task.number]

    def request_rejoin(self) -> bool:
        """Join the group anew, because this worker may own less than it believes; False where there is no group."""
        return self._control is not None and self._control.request_rejoin()

    def resume(self, task: PartitionTask) -> None:
        """Let the records flow from where the agents are, unless a rebalance is on or something else is in the way."""
        if self._control is None or self._is_revoked or task.life.state is not TaskState.SUSPENDED or self.disk.refusal:
            return
        task.resume()
        for topic in {topic.name for topic in self.agents.values()}:
            self._control.seek(topic, task.number, task.dispatch.fetch_offset(topic))
        self._control.wake()

    def die(self, message: str) -> None:
        """End the worker with a message: going on would need what only a new start gives."""
        self.fatal = message
        log.critical("%s", message)
        self.on_fatal()

    # ---- what the transport tells

    def task_for(self, topic: str, number: int) -> PartitionTask | None:
        """The running task that may take records of `topic`, None while there is none or it has enough."""
        task = self.tasks.get(number)
        if task is None or not task.life.is_running() or not self.agents_of(topic):
            return None
        if task.losses and task.losses.stop(topic):
            return None
        waiting = task.backlog.queued[topic] + task.backlog.held[topic]
        return task if waiting < 2 * len(self.agents_of(topic)) else None

    def out_of_range(self, topic: str, number: int) -> None:
        """The log has not got what is to be read next of a partition: records are missing, or it is another topic."""
        task = self.tasks.get(number)
        if task is not None:
            task.losses.suspect(topic)

    def polled(self, with_records: Iterable[int]) -> None:
        """One look at the transport is over: these numbers had records, all others ran dry."""
        busy = set(with_records)
        for number, task in self.tasks.items():
            if number not in busy and task.life.is_running():
                task.life.background.call(task.work.ran_dry)

    # ---- reads

    def pauses(self) -> list[Pause]:
        """Agents whose calls to the outside are paused while records wait for them.

        A circuit may stay open after its last record has moved to another worker; then nothing is paused here.
        """
        waiting = {agent for task in self.tasks.values() for agent in task.calls.agents()}
        pauses = (self.circuits[agent].pause() for agent in sorted(waiting & self.circuits.keys()))
        return [pause for pause in pauses if pause is not None]

    def task(self, number: int) -> PartitionTask:
        """The restored task of `number`; raises PartitionNotHere otherwise."""
        task = self.tasks.get(number)
        if task is None or not task.life.is_restored():
            raise PartitionNotHere(f"partition {number} is not (yet) on this worker")
        return task

    def is_ready(self) -> bool:
        """Whether every owned partition is restored."""
        return self._generation >= 0 and all(
            number in self.tasks and self.tasks[number].life.is_running() for number in self.numbers
        )
