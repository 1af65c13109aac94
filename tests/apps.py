"""Applications in this process for tests: start, stop, crash, and wait for what must come."""

from __future__ import annotations

import asyncio
import gc
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from engine.declare.agent import Agent
from engine.declare.handlers import RecordHandler
from engine.declare.registry import EventRegistry
from engine.declare.service import Service
from engine.declare.table import Table
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.topics import DEAD_LETTERS
from engine.faust.app import EngineApp
from engine.log.ports import Broker, ClientState, Outgoing, Position, Record, TopicSpec, TransactionalProducer
from engine.partition.engine import Engine
from engine.work.fetched import Fetched
from streams.app import create_app
from streams.settings import Settings
from tests.kafka import unused_port

V = TypeVar("V")

DEADLINE_S = 30.0  # far beyond what anything here takes: reaching it is a failure, not slowness

KAFKA = pytest.param("kafka", marks=pytest.mark.kafka)
TRANSPORTS = ("memory", "embedded", KAFKA)
DURABLE_TRANSPORTS = ("embedded", KAFKA)

# Applications of a shared broker read each other's orders, one after the other: they own no topics.
UNOWNED = "app-"


def broker_url(request: pytest.FixtureRequest) -> str:
    """Turn a fixture's parameter, one of TRANSPORTS, into ORDERS_BROKER; starts the shared Kafka where it is wanted."""
    if request.param != "kafka":
        return f"{request.param}://"
    return f"kafka://{request.getfixturevalue('kafka_broker').bootstrap}"


def unique(prefix: str) -> str:
    """Return a name that nobody else uses on a shared broker."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def make_settings(broker: str, data_dir: Path, **changes: Any) -> Settings:
    """Settings of a small application of its own: a random name, a free web port and few partitions.

    On Kafka it is four, the default: all applications of a shared broker have a topic `dead-letters` in common.
    """
    values: dict[str, Any] = {
        "app_id": unique(UNOWNED.rstrip("-")),
        "broker": broker,
        "data_dir": data_dir,
        "partitions": 4 if broker.startswith("kafka") else 2,
        "web_port": unused_port(),
        "restart_backoff": 0.05,
        "retry_backoff": 0.01,
        "circuit_pause": 0.02,
        "circuit_pause_max": 0.1,
        "session_timeout": 6.0,
        "saga": "none",
    }
    return Settings(_env_file=None, **values | changes)


async def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Return when `condition` holds; fails the test with `what` when it does not in time."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {deadline_s:.0f} s in vain until {what}")
        await asyncio.sleep(0.005)


# ---- a whole application


async def start(
    settings: Settings,
    services: Iterable[Service] | None = None,
    registry: EventRegistry | None = None,
    probe: Callable[[str], None] | None = None,
) -> EngineApp:
    """Start an application and wait until all of its partitions are restored."""
    return await started(create_app(settings, services=services, registry=registry), probe)


async def started(app: EngineApp, probe: Callable[[str], None] | None = None) -> EngineApp:
    """Start an application that is made already, and wait until all of its partitions are restored."""
    if app.engine.settings.app_id.startswith(UNOWNED):
        app.engine.ownership.topics = frozenset()
    if probe is not None:
        app.engine.probe = probe
    app.finalize()
    await app.start()
    await wait_until(app.engine.is_ready, "the application is ready")
    return app


async def stop(app: EngineApp) -> None:
    """Stop an application as SIGTERM would."""
    await app.stop()


async def stop_cut_off(app: EngineApp) -> None:
    """Stop an application whose broker was away."""
    await app.stop()
    gc.collect()  # clients cut off leave cycles behind that warn when they are found; not in somebody else's test


async def crash(app: EngineApp) -> None:
    """End an application without a last commit: what is open is lost, as if its process had died."""
    engine = app.engine
    for number in list(engine._keepers):
        await engine._drop(number)
    await app.stop()


@asynccontextmanager
async def running(
    settings: Settings,
    services: Iterable[Service] | None = None,
    registry: EventRegistry | None = None,
    probe: Callable[[str], None] | None = None,
) -> AsyncIterator[EngineApp]:
    """Run an application while the block lasts."""
    app = await start(settings, services, registry, probe)
    try:
        yield app
    finally:
        await stop(app)


async def publish(app: EngineApp, topic: Topic, key: str, *values: bytes) -> list[Position]:
    """Write records as any client would, each on the partition of its key."""
    raw = key.encode()
    return await app.engine.broker.publish(
        topic.name, app.engine.partition_for(raw), [(raw, value, ()) for value in values]
    )


async def publish_keyed(app: EngineApp, topic: Topic, *keyed: tuple[str, str]) -> None:
    """Write (key, value) pairs as one batch, all into the partition of the first key."""
    number = app.engine.partition_for(keyed[0][0].encode())
    records = [(key.encode(), value.encode(), ()) for key, value in keyed]
    await app.engine.broker.publish(topic.name, number, records)


def keys_beside(app: EngineApp, key: str, count: int) -> list[str]:
    """Return so many other keys of the partition of `key`."""
    partition_for = app.engine.partition_for
    number = partition_for(key.encode())
    return [other for other in map("beside-{}".format, range(500)) if partition_for(other.encode()) == number][:count]


async def caught_up(app: EngineApp, *agents: str) -> None:
    """Wait until these agents (all, if none is named) have committed everything that is in their topics now."""
    engine = app.engine
    for agent in agents or tuple(engine.agents):
        topic = engine.agents[agent].name
        for number in range(engine.settings.partitions):
            end = await engine.broker.end_offset(topic, number)
            await wait_until(
                lambda agent=agent, topic=topic, number=number, end=end: (  # type: ignore[misc]
                    number in engine.tasks and engine.tasks[number].reached(agent, topic) >= end
                ),
                f"{agent} has reached {end} of {topic}/{number}",
            )


async def at_rest(app: EngineApp) -> None:
    """Wait until everything that is in the topics now is committed, and nothing waits for another try."""
    ends: dict[tuple[str, int], int] = {}
    while True:
        await caught_up(app)
        await wait_until(lambda: not _tries_to_come(app), "no record waits for another try")
        before, ends = ends, await _ends(app)
        # What one agent has written for another that was looked at before is not fetched yet.
        if not _is_open(app) and ends == before:
            return
        await asyncio.sleep(0.005)


async def _ends(app: EngineApp) -> dict[tuple[str, int], int]:
    engine = app.engine
    places = {(topic.name, number) for topic in engine.agents.values() for number in range(engine.settings.partitions)}
    return {place: await engine.broker.end_offset(*place) for place in places}


def _tries_to_come(app: EngineApp) -> bool:
    lanes = [lane for task in app.engine.tasks.values() for _, lane in task.lanes.index.items()]
    return any(lane.due_ms is not None for lane in lanes) or _is_open(app)


def _is_open(app: EngineApp) -> bool:
    return any(task.work.is_committing or not task.work.is_empty() for task in app.engine.tasks.values())


def row(app: EngineApp, table: Table[str, V], key: str) -> V | None:
    """The committed row of `key`."""
    return app.engine.task(app.engine.partition_for(key.encode())).read(table, key)


# ---- what is in the log


async def read_committed(broker: Broker, topic: str, partition: int, end: int | None = None) -> list[Record]:
    """Every committed record of a partition before `end`; without it, before the first open transaction.

    A transaction stays open to readers for a moment after its commit, until its markers are written.
    """
    reader = broker.reader(partition, [topic])
    await reader.start()
    try:
        start, stable_end = (await reader.bounds())[topic]
        end = stable_end if end is None else end
        reader.seek(topic, start)
        records: list[Record] = []
        position, deadline = start, time.monotonic() + DEADLINE_S
        while position < end:
            assert time.monotonic() < deadline, f"{topic}/{partition} could not be read to its end {end}"
            for found, reached in (await reader.fetch()).values():
                records += found
                position = reached
        return [record for record in records if record.offset < end]
    finally:
        await reader.close()


async def read_topic(app: EngineApp, topic: Topic) -> list[Record]:
    """Every record of a topic, partition after partition, once all transactions that are in it now have ended."""
    broker, records = app.engine.broker, []
    for number in range(app.engine.settings.partitions):
        records += await read_committed(broker, topic.name, number, await broker.end_offset(topic.name, number))
    return records


async def dead_letters(app: EngineApp, topic: Topic) -> list[Record]:
    """The dead letters that came from `topic`."""
    origin = ("original_topic", topic.name.encode())
    return [record for record in await read_topic(app, DEAD_LETTERS) if origin in record.headers]


# ---- a tiny service


class Seen(msgspec.Struct, frozen=True):
    """What has come under one key, in the order it came."""

    values: tuple[str, ...] = ()


class HandlerFailed(Exception):
    """A handler was told to fail."""


class Tally:
    """A service of its own: adds each record's value to its key's row and sends it on, once.

    A value that is in `poison` makes its handler fail after it has done all of its work.
    """

    AGENT = "tally"

    def __init__(self, prefix: str = "tally", agent: str = AGENT) -> None:
        name = unique(prefix)
        self.source = Topic(f"{name}-in", "values of keys")
        self.output = Topic(f"{name}-out", "the same values again")
        self.table: Table[str, Seen] = Table(f"{name}-seen", Seen)
        self.service = Service(name, tables=(self.table,), topics=(self.output,))
        self.poison: set[bytes] = set()
        adding = self.service.agent(agent, self.source, help="Add up what comes.")
        adding.on_record(lambda record, work: self.handle(record, work))  # as it is then: tests replace it

    def handle(self, record: Record, work: UnitOfWork) -> str:
        """Handle one record as the engine asks for it."""
        key, value = (record.key or b"").decode(), record.value or b""
        seen = work.get(self.table, key) or Seen()
        work.put(self.table, key, Seen((*seen.values, value.decode())))
        work.send_raw(self.output, key.encode(), value)
        if value in self.poison:
            raise HandlerFailed(value.decode())
        return "value"

    async def check(self, app: EngineApp, expected: Mapping[str, Sequence[str]]) -> None:
        """Check that state and output hold exactly these values for each key, each once and in order."""
        assert {key: row(app, self.table, key) for key in expected} == {
            key: Seen(tuple(values)) for key, values in expected.items()
        }
        sent: dict[str, list[str]] = {}
        for record in await read_topic(app, self.output):
            sent.setdefault((record.key or b"").decode(), []).append((record.value or b"").decode())
        assert sent == {key: list(values) for key, values in expected.items()}


# ---- an engine without Faust


class Hand:
    """The engine's hand on a consumer that does not exist: notes what it was asked for."""

    def __init__(self) -> None:
        self.positions: dict[tuple[str, int], int] = {}
        self.rejoins = 0
        self.delivered: list[Fetched] = []

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Note where to go on."""
        self.positions[topic, partition] = offset

    def clients(self) -> Sequence[ClientState]:
        """None."""
        return ()

    def wake(self) -> None:
        """Nothing: the test decides when to fetch."""

    def request_rejoin(self) -> bool:
        """Note it."""
        self.rejoins += 1
        return True

    def deliver(self, fetched: Fetched) -> None:
        """Note what is to be handed to agents."""
        self.delivered.append(fetched)


async def process(fetched: Fetched, agent: str, handler: RecordHandler) -> None:
    """Hand a fetch on as the Faust agent of that name does."""
    await fetched.dispatch.process(fetched, agent, handler)


class HandFed:
    """An engine that is fed by hand: the test decides what arrives when."""

    def __init__(self, settings: Settings, services: Iterable[Service]) -> None:
        self.engine: Engine = create_app(settings, services=services).engine
        self.hand = Hand()

    async def start(self, numbers: Iterable[int], generation: int = 1) -> None:
        """Start the engine and own these partition numbers."""
        await self.engine.start(self.hand)
        await self.assign(numbers, generation)

    async def assign(self, numbers: Iterable[int], generation: int) -> None:
        """Own exactly these numbers and wait until they are restored."""
        await self.engine.assigned(numbers, generation)
        await wait_until(self.engine.is_ready, "the engine is ready")

    def fetch(self, number: int, topic: Topic, records: Sequence[Record]) -> Fetched:
        """Hand records to the partition task as the transport does."""
        return self.engine.tasks[number].dispatch.fetched(topic.name, records, records[-1].offset + 1)

    async def handle(self, number: int, topic: Topic, agent: str, handler: RecordHandler, *values: Outgoing) -> None:
        """Write records to the log and let `agent` handle them as one fetch."""
        records = await self.write(topic, number, values)
        await process(self.fetch(number, topic, records), agent, handler)

    def bound(self, agent: Agent[Any]) -> RecordHandler:
        """The function that handles a record for a declared agent."""
        return agent.bind(self.engine.accept(agent.topic.name))

    async def write(self, topic: Topic, number: int, values: Sequence[Outgoing]) -> list[Record]:
        """Write records to the log and read them back."""
        first = (await self.engine.broker.publish(topic.name, number, values))[0].offset
        return [r for r in await read_committed(self.engine.broker, topic.name, number) if r.offset >= first]


class HeldProducer:
    """A partition's real producer, whose commit waits until the test lets it through."""

    def __init__(self, producer: TransactionalProducer, gate: asyncio.Event) -> None:
        self._producer = producer
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    async def commit(self) -> Mapping[tuple[str, int], int]:
        """Commit once the gate is open."""
        await self._gate.wait()
        return await self._producer.commit()


@asynccontextmanager
async def hand_fed(
    settings: Settings, services: Iterable[Service], numbers: Iterable[int] = (0,), gate: asyncio.Event | None = None
) -> AsyncIterator[HandFed]:
    """Give an engine that owns `numbers` and is fed by hand; it commits only while `gate` is set."""
    fed = HandFed(settings, services)
    if gate is not None:
        make_producer = fed.engine.broker.producer
        fed.engine.broker.producer = lambda number: HeldProducer(make_producer(number), gate)  # type: ignore
    await fed.start(numbers)
    try:
        yield fed
    finally:
        await fed.engine.stop()


@asynccontextmanager
async def connected(settings: Settings, topics: Iterable[TopicSpec] = ()) -> AsyncIterator[Broker]:
    """Give a broker, with these topics created."""
    broker: Broker = create_app(settings, services=()).engine.broker
    await broker.start()
    try:
        await broker.create_topics(list(topics))
        yield broker
    finally:
        await broker.stop()
