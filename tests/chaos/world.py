"""The picture that the verifier looks at: every committed record of every topic, read from outside of the services."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from rocksdict import AccessType, Options, Rdict

from engine.log.embedded.log import Log, RocksStorage
from tests.chaos.orders import Order

READ_TIMEOUT_S = 60.0
IDENTITY_KEY = b"\xffidentity"  # tells a changelog from a recreated one; not a row
HEALTH, DOCTOR, LOG = "/healthz", "the doctor", "the log"
PLACES = (HEALTH, DOCTOR, LOG)
"""Where people read what is lost."""
Rows = dict[bytes, bytes]
Place = tuple[str, int, int]
"""Topic, partition and offset of a record."""


class Record(NamedTuple):
    """A committed record; `body` decodes it."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object, numbers with a point as decimals."""
        decoded: dict[str, Any] = json.loads(self.value or b"{}", parse_float=Decimal)
        return decoded

    @property
    def place(self) -> Place:
        """Where it stands."""
        return self.topic, self.partition, self.offset


class Named(NamedTuple):
    """Records that the system calls lost for an agent: offsets `first` to `end` - 1, without end all from `first`."""

    topic: str
    partition: int
    agent: str
    first: int
    end: int | None

    def is_part_of(self, other: Named) -> bool:
        """Whether another one names these records as well: a worker that loses its partition may have been further."""
        return self[:3] == other[:3] and self.first >= other.first and self.end == other.end

    def covers(self, record: Record) -> bool:
        """Whether it names this record."""
        is_place = (record.topic, record.partition) == (self.topic, self.partition)
        return is_place and self.first <= record.offset and (self.end is None or record.offset < self.end)


@dataclass(frozen=True)
class Loss:
    """What was taken out of a topic, and what the system said of it until people had followed its advice.

    `gone` are the records that the topic has no more since then; `begins_at` is where a partition has begun since, none
    is in it when the topic was made anew. `said` is what was named, by where it was.
    """

    topic: str
    gone: Sequence[Record]
    begins_at: Mapping[int, int]
    said: Mapping[str, set[Named]]

    def named(self) -> set[Named]:
        """Everything that was named where it can be seen; the log also has what was replaced before anybody saw it."""
        return self.said[HEALTH] | self.said[DOCTOR]


class Source(Protocol):
    """Where a world's records come from."""

    async def more(self) -> tuple[Sequence[Record], Mapping[tuple[str, int], int]]:
        """Records committed since the last call, each partition's in order, and the end of every partition."""

    async def close(self) -> None:
        """Let go of it."""


class World:
    """Everything there is or was (`losses`), beside what the clients were promised (`orders`)."""

    def __init__(self, orders: Sequence[Order], app_id: str = "orders") -> None:
        self.orders = orders
        self.app_id = app_id
        self.losses: list[Loss] = []
        self.ends: dict[tuple[str, int], int] = {}
        self._records: defaultdict[str, list[Record]] = defaultdict(list)

    @classmethod
    async def read(
        cls, source: Source, orders: Sequence[Order], app_id: str = "orders", losses: Sequence[Loss] = ()
    ) -> Self:
        """Read everything from the beginning; `losses` were there before."""
        world = cls(orders, app_id)
        world.lose(losses)
        await world.update(source)
        return world

    async def update(self, source: Source) -> None:
        """Read what came since."""
        self.add(*await source.more())

    def add(self, records: Iterable[Record], ends: Mapping[tuple[str, int], int]) -> None:
        """Take in records, each partition's in order, and the ends of partitions."""
        for record in records:
            self._records[record.topic].append(record)
        self.ends |= ends

    def records(self, topic: str) -> Sequence[Record]:
        """All records of a topic; those of one partition are in order."""
        return self._records.get(topic, ())

    def without(self, orders: Sequence[Order], dropped: Callable[[Record], bool]) -> World:
        """The same world with other orders, and without some of its records."""
        world = World(orders, self.app_id)
        kept = (record for records in self._records.values() for record in records if not dropped(record))
        world.add(kept, self.ends)
        world.losses = self.losses
        return world

    def lose(self, losses: Iterable[Loss]) -> None:
        """Take in what was there before everything that is read from now on."""
        for loss in losses:
            self.losses.append(loss)
            self.add(loss.gone, {})

    def remaining(self, topic: str) -> list[Record]:
        """The records of a topic that were never taken out of it."""
        gone = {record for loss in self.losses if loss.topic == topic for record in loss.gone}
        return [record for record in self.records(topic) if record not in gone]

    def last_offsets(self, topic: str) -> dict[int, int]:
        """The offset of the last record of each partition that has any."""
        return {record.partition: record.offset for record in self.remaining(topic)}

    def positions(self) -> dict[tuple[str, str, int], int]:
        """The next offset by topic, agent and partition, as the changelog says."""
        return {
            (row["topic"], row["agent"], number): row["offset"]
            for number in self.partitions()
            for row in map(json.loads, self.rows("positions", number).values())
        }

    def changelog(self, table: str) -> str:
        """The name of a table's changelog."""
        return f"{self.app_id}-{table}-changelog"

    def partitions(self) -> list[int]:
        """The partition numbers there are."""
        return sorted({number for _, number in self.ends})

    def tables(self) -> list[str]:
        """Every table that has a changelog."""
        names = {topic for topic, _ in self.ends}
        prefix, suffix = f"{self.app_id}-", "-changelog"
        return sorted(n[len(prefix) : -len(suffix)] for n in names if n.startswith(prefix) and n.endswith(suffix))

    def rows(self, table: str, partition: int | None = None) -> Rows:
        """A table as its changelog tells: the last value of each key."""
        rows: Rows = {}
        for record in self.records(self.changelog(table)):
            if partition not in (None, record.partition) or record.key == IDENTITY_KEY:
                continue
            if record.value is None:
                rows.pop(record.key, None)
            else:
                rows[record.key] = record.value
        return rows

    def table(self, name: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Keys and decoded rows of a table."""
        for key, value in self.rows(name).items():
            yield key, json.loads(value, parse_float=Decimal)


class KafkaSource:
    """A Kafka read with `read_committed`."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=None,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=8 << 20,
            fetch_max_wait_ms=50,
        )
        self._started = False

    async def more(self) -> tuple[Sequence[Record], Mapping[tuple[str, int], int]]:
        """See Source."""
        consumer = self._consumer
        if not self._started:
            await consumer.start()
            consumer.assign(await self._partitions())
            self._started = True
        ends = await consumer.end_offsets(consumer.assignment())
        behind = {tp for tp, end in ends.items() if end > 0}
        records: list[Record] = []
        deadline = time.monotonic() + READ_TIMEOUT_S
        while behind := {tp for tp in behind if await consumer.position(tp) < ends[tp]}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not readable to the end: {sorted(behind)}")
            for tp, found in (await consumer.getmany(timeout_ms=200)).items():
                records += [
                    Record(tp.topic, tp.partition, r.offset, r.timestamp, r.key or b"", r.value, tuple(r.headers))
                    for r in found
                ]
        return records, {(tp.topic, tp.partition): end for tp, end in ends.items()}

    async def start_over(self, topic: str) -> None:
        """Read a topic from its beginning: it was made anew, and everything of the one before was read."""
        await self._consumer._client.force_metadata_update()
        for tp in self._consumer.assignment():
            if tp.topic == topic:
                self._consumer.seek(tp, 0)

    async def _partitions(self) -> list[TopicPartition]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        await admin.start()
        try:
            names = [name for name in await admin.list_topics() if not name.startswith("__")]
            described = await admin.describe_topics(names)
        finally:
            await admin.close()
        return [TopicPartition(topic["topic"], p["partition"]) for topic in described for p in topic["partitions"]]

    async def close(self) -> None:
        """Disconnect."""
        await stop_consumer(self._consumer)


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Disconnect, also while the broker is away: then `stop` ends with the cancellation of its own fetch."""
    stopping = asyncio.create_task(consumer.stop())
    await asyncio.wait([stopping])
    if stopping.cancelled():
        await consumer._client.close()
    else:
        stopping.result()


class EmbeddedSource:
    """The embedded log in a data folder that no process is using."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "log"

    async def more(self) -> tuple[Sequence[Record], Mapping[tuple[str, int], int]]:
        """All there is; to be called once."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> tuple[Sequence[Record], Mapping[tuple[str, int], int]]:
        log = Log(RocksStorage(self._folder))
        try:
            return read_log(log)
        finally:
            log.close()

    async def close(self) -> None:
        """Nothing to let go of."""


def read_log(log: Log) -> tuple[Sequence[Record], Mapping[tuple[str, int], int]]:
    """All records of an embedded log, and its ends."""
    places = [(name, n) for name, config in log.topics().items() for n in range(config.partitions)]
    ends = {place: log.end_offset(*place) for place in places}
    return [record for place in places for record in _read_partition(log, *place)], ends


def _read_partition(log: Log, topic: str, partition: int) -> Iterable[Record]:
    offset = log.start_offset(topic, partition)
    while True:
        found, offset = log.read(topic, partition, offset)
        if not found:
            return
        for r in found:
            headers = tuple((name, value or b"") for name, value in r.headers)
            yield Record(topic, partition, r.offset, r.timestamp_ms, r.key or b"", r.value, headers)


def store_rows(data_dir: Path, partition: int, tables: Iterable[str]) -> dict[str, Rows]:
    """The rows of every table in the store of a partition that no process is using."""
    store = Rdict(str(data_dir / "stores" / str(partition)), Options(raw_mode=True), access_type=AccessType.read_only())
    try:
        rows: dict[str, Rows] = {name: {} for name in tables}
        found = store.iter()
        found.seek_to_first()
        while found.valid():
            table, _, row_key = found.key().partition(b"\0")
            if table:  # what begins with the separator is the store's own
                rows.setdefault(table.decode(), {})[row_key] = found.value()
            found.next()
        found.status()  # raises for damage, which ends the rows as well
        return rows
    finally:
        store.close()
