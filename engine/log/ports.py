"""What the engine needs of a transport: fenced transactions, a reader of changelogs, topics, and a way to publish."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from engine.log.embedded.layout import Record

Headers = Sequence[tuple[str, bytes]]
Outgoing = tuple[bytes | None, bytes | None, Headers]  # key, value, headers; a plain tuple, there are very many


__all__ = [
    "Broker",
    "ClientState",
    "Headers",
    "LogFacts",
    "OpenTransaction",
    "Outgoing",
    "PartitionsMismatch",
    "Position",
    "ProducerFenced",
    "Reader",
    "Record",
    "RecordsRefused",
    "RecordsTooLarge",
    "TopicFacts",
    "TopicSpec",
    "TransactionHangs",
    "TransactionalProducer",
    "TransportError",
    "TransportUnusable",
]


class Position(NamedTuple):
    """Where a published record is."""

    topic: str
    partition: int
    offset: int


# Far above what a consumer accepts, so that an oversize record becomes a dead letter instead of an error at its client.
TOPIC_RECORD_BYTES_MAX = 4 << 20
# A dead letter of the largest record has headers as well.
DEAD_LETTER_BYTES_MAX = TOPIC_RECORD_BYTES_MAX + (64 << 10)


class TopicSpec(NamedTuple):
    """A topic to create: `retention_ms` None keeps records for ever, `compacted` keeps the newest of each key.

    `is_read` says that agents of the group read it: a log that knows how far they are keeps what they have not read.
    """

    name: str
    partitions: int
    compacted: bool
    retention_ms: int | None
    record_bytes_max: int = TOPIC_RECORD_BYTES_MAX
    is_read: bool = False


class TopicFacts(NamedTuple):
    """How a topic is kept: the fewest replicas of its partitions, the fewest of them in sync, and its settings."""

    replicas: int
    in_sync: int
    settings: Mapping[str, str]


class ClientState(NamedTuple):
    """How a client of the log does that lasts as long as its worker."""

    name: str
    replaced: int
    """How often it was made anew."""
    failing_s: float
    """For how many seconds it has failed; 0 while it works."""
    reason: str
    """What its last failure was; empty when it never failed."""


class LogFacts(NamedTuple):
    """What a cluster says of itself: its brokers, the settings of one of them, and topics by name.

    Without a controller a broker tells what was so when there was one: then nothing else is said here.
    """

    brokers: int
    settings: Mapping[str, str]
    topics: Mapping[str, TopicFacts]
    has_controller: bool = True


class OpenTransaction(NamedTuple):
    """A transaction that has records in a partition and no marker yet; readers of committed records wait for it.

    `last_timestamp_ms` is when its producer wrote last, by the clock of the producer.
    """

    topic: str
    partition: int
    producer_id: int
    epoch: int
    start_offset: int
    last_timestamp_ms: int

    @property
    def key(self) -> tuple[str, int, int, int]:
        """The same for as long as this transaction is open."""
        return self.topic, self.partition, self.producer_id, self.start_offset

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.last_timestamp_ms / 1000, UTC)
        return (
            f"a transaction hangs in {self.topic}/{self.partition} "
            f"(producer id {self.producer_id}, epoch {self.epoch}, offset {self.start_offset}, since {since:%F %T}Z)"
        )


class TransportError(Exception):
    """The log cannot be reached or refuses; what was not acknowledged may or may not be there."""


class RecordsRefused(TransportError):
    """The log has refused the records: none of them is there."""


class RecordsTooLarge(RecordsRefused):
    """The log takes no records of this size."""


class ProducerFenced(TransportError):
    """A newer producer of the same partition exists: whoever holds this one no longer owns the partition."""


class TransportUnusable(TransportError):
    """Waiting does not help: a setting, a permission or a folder has to be changed first."""


class PartitionsMismatch(TransportUnusable):
    """A topic exists with another number of partitions than the application's."""


class TransactionHangs(TransportError):
    """Transactions without markers that this application cannot decide; `transactions` says which and where."""

    def __init__(self, transactions: Sequence[OpenTransaction]) -> None:
        super().__init__("; ".join(str(found) for found in transactions))
        self.transactions = tuple(transactions)


class TransactionalProducer(Protocol):
    """The one writer of a partition number; its start ends the transactions of every earlier one (fencing)."""

    markers: int
    """How many offsets the marker of a transaction takes, in each partition, behind its records."""

    async def settle(self, changelogs: Sequence[str], distrust: Callable[[], Awaitable[None]]) -> None:
        """Decide what an earlier writer left without markers as it was decided; to be called before `start`.

        Where that is not known any more, `distrust` is awaited first, and then everything of it is aborted: stores may
        hold what readers of committed records never see. Raises TransactionHangs when a transaction that only somebody
        else can decide holds up a changelog.
        """

    async def start(self) -> None:
        """Become the writer and fence the one before."""

    async def begin(self) -> None:
        """Open a transaction."""

    async def send(self, batches: Mapping[tuple[str, int], Sequence[Outgoing]]) -> None:
        """Send records of each topic and partition, once per transaction; `flush` waits for the acknowledgements."""

    async def send_offsets(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Let the group's offsets move with this transaction; `flush` waits for the acknowledgement."""

    async def flush(self) -> None:
        """Wait until the log has acknowledged everything that was sent; nothing of it is visible yet."""

    async def commit(self) -> Mapping[tuple[str, int], int]:
        """Make everything since `begin` visible at once; the offset behind the last record of each batch sent."""

    async def close(self) -> None:
        """Let go of connections; an open transaction is left to be aborted."""


class Reader(Protocol):
    """Reads committed records of one partition number of some topics."""

    async def start(self) -> None:
        """Connect."""

    async def bounds(self) -> Mapping[str, tuple[int, int]]:
        """First and next offset of each topic."""

    def seek(self, topic: str, offset: int) -> None:
        """Go on reading `topic` at `offset`."""

    async def fetch(self) -> Mapping[str, tuple[Sequence[Record], int]]:
        """The next records of each topic that has any, with the position behind them; transaction markers count."""

    async def close(self) -> None:
        """Let go of connections."""


class Broker(Protocol):
    """One log, embedded or Kafka, as the engine and the web view see it."""

    commits_in_loop: bool
    """Whether the event loop itself does the work of a commit, and nothing else meanwhile."""

    @property
    def lost_end_at(self) -> float:
        """When it was last accepted that records at the end of the log are lost, in seconds since 1970; 0 for never.

        A store that was written before that and is ahead of the log is no better copy.
        """

    async def start(self) -> None:
        """Connect; raises TransportError with what to do when there is nothing to connect to."""

    async def stop(self) -> None:
        """Let go of connections."""

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Create what is missing; raises PartitionsMismatch for a topic of another size."""

    async def topics(self) -> Mapping[str, int]:
        """All topics with their number of partitions."""

    async def topic_ids(self, names: Collection[str]) -> Mapping[str, str]:
        """Ids of those of these topics that exist: a topic that is deleted and made anew gets another one.

        The id is empty where the broker knows none (Kafka before 2.8).
        """

    async def bounds(self, partitions: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], tuple[int, int]]:
        """First and next offset of each of these partitions, given by topic and number.

        Records of transactions that are still open count.
        """

    def clients(self) -> Sequence[ClientState]:
        """How the clients do that last as long as the worker."""

    async def clock_ahead_s(self) -> float | None:
        """By how many seconds this machine's clock is ahead of the log's; None when the log has none of its own."""

    async def facts(self, topics: Sequence[str]) -> LogFacts | None:
        """How these topics are kept, as far as they exist; None where nothing can be set wrong."""

    def producer(self, partition: int) -> TransactionalProducer:
        """A producer for a partition number, not yet started."""

    def named_producer(self, transactional_id: str, partition: int = 0) -> TransactionalProducer:
        """A producer of this transactional id for a partition number, not yet started: not this application's own."""

    def reader(self, partition: int, topics: Sequence[str]) -> Reader:
        """A reader of a partition number, not yet started."""

    async def end_offset(self, topic: str, partition: int) -> int:
        """The next offset to be written; records of transactions that are still open count."""

    async def publish(self, topic: str, partition: int, records: Sequence[Outgoing]) -> list[Position]:
        """Write records outside of any partition task; returns when they are durable.

        Raises RecordsRefused when none of them is there, TransportError when that is not known.
        """

    async def members(self, group: str) -> Sequence[str]:
        """Where the members of a consumer group run now; empty where a log has one worker at most."""

    async def committed(self, offsets: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        """The group's committed offsets of these topics and partitions."""

    async def open_transactions(self, topics: Mapping[str, int]) -> Sequence[OpenTransaction]:
        """Transactions without markers in topics (name to number of partitions); busy ones have some all the time."""

    async def writers(self) -> Mapping[int, int]:
        """The partition number that each producer id writes for."""
