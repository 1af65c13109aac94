"""What a partition task needs from the application around it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from engine.calls.circuit import Circuit
from engine.declare.agent import Projection
from engine.declare.handlers import Acceptance, RecordHandler, TimerHandler
from engine.declare.settings import Settings
from engine.declare.table import AnyTable
from engine.declare.topic import Topic
from engine.declare.unit_of_work import Reactions
from engine.health.faults import Faults
from engine.installation.ownership import Ownership
from engine.log.ports import Broker
from engine.observe.metrics import Metrics
from engine.store.cache import CacheBudget
from engine.store.repair_rows import Repairs
from engine.work.commit_listeners import CommitListeners
from engine.work.fetched import Fetched
from engine.work.loop_share import LoopShare
from engine.work.tracing import Untraced
from engine.work.waiters import WaitingRoom


class EngineContext(Protocol):
    """The engine, as its partition tasks see it."""

    settings: Settings
    broker: Broker
    numbers: frozenset[int]  # that this worker owns
    metrics: Metrics
    faults: Faults
    repairs: Repairs
    loop_share: LoopShare
    cache_budget: CacheBudget  # of all partitions together
    ownership: Ownership
    topics: Mapping[str, Topic]
    agents: Mapping[str, Topic]
    tables: Mapping[str, AnyTable]
    projections: Mapping[str, Projection]  # by agent
    reactions: Reactions
    waiting: WaitingRoom
    tracing: Untraced
    rebuild_turns: asyncio.Lock  # held by the rebuild that comes next in this worker
    commit_listeners: CommitListeners
    probe: Callable[[str], None]  # called around the steps of each commit; tests end the process there

    def agents_of(self, topic: str) -> tuple[str, ...]:
        """Names of the agents that consume `topic`."""

    def bind_apart(self, projection: Projection) -> RecordHandler:
        """The function that handles one record in a rebuild; it shares nothing with what the agents are handed."""

    def accept(self, topic: str) -> Acceptance:
        """The function that checks and decodes a record of `topic`."""

    def circuit(self, agent: str) -> Circuit:
        """The circuit of what `agent` calls, the same for all partitions."""

    def partition_for(self, key: bytes) -> int:
        """The partition number of `key`, as every Kafka client computes it."""

    def encode(self, message: Any) -> bytes:
        """Bytes of an envelope or another msgspec struct."""

    def timer_handler(self, kind: str) -> TimerHandler:
        """The handler of timers of `kind`; KeyError where there is none."""

    def store_path(self, number: int) -> Path:
        """Folder of the store of partition `number`."""

    def is_busy(self) -> bool:
        """Whether this worker has records to handle, or had some a moment ago."""

    def wake_transport(self) -> None:
        """An agent has finished a fetch: there is room for another."""

    def deliver(self, fetched: Fetched) -> None:
        """Hand a fetch that comes from the store to the agents of its topic."""

    def known_type(self, value: bytes | None) -> str:
        """The event type of a record for metrics: `unknown` for what is not registered or cannot be read."""
