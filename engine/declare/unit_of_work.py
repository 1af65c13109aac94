"""Unit of work: what handlers changed, emitted and scheduled in one partition since its last commit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from engine.declare.envelope import Envelope
from engine.declare.errors import OversizeRecord
from engine.declare.settings import Settings
from engine.declare.table import AnyTable, Table
from engine.declare.timers import TIMERS, Timer, TimerKey
from engine.declare.topic import Topic
from engine.log.ports import TOPIC_RECORD_BYTES_MAX, Headers, Outgoing, Record

K = TypeVar("K")
V = TypeVar("V")

Changes = dict[AnyTable, list[Outgoing]]  # rows of a table as they go to changelog and store

OUTPUT_BYTES_MAX: Final = TOPIC_RECORD_BYTES_MAX - (64 << 10)  # leaves room for headers
Reactions = Mapping[type, Sequence[Callable[[Envelope[Any], Any], None]]]
NO_REACTIONS: Final[Reactions] = {}
MISSING: Final = object()
DELETED: Final = None
NO_RECORD: Final = Record(-1, 0, None, None, ())


class RowSource(Protocol):
    """Where rows that this unit of work has not touched come from."""

    def committed_or_committing(self, table: Table[K, V], key: K) -> V | None:
        """The newest row that an earlier unit of work left, None where there is none."""


class UnitOfWork:
    """Changes of many records, committed together; each record can take back its own (a savepoint per record).

    Rows are immutable: `put` replaces. Everything is synchronous, so that nothing can interleave with a record.
    `record` is the one being handled; its timestamp is when it was produced, which may be long ago. `now_ms` is when
    what is sent now is produced (both epoch ms): deadlines for answers count from it. `outcome` is what the call to the
    outside for this record came to, where its agent makes such calls (see outside.py). `retry_count` is how often the
    record was tried before.
    """

    __slots__ = (
        "_partition_for",
        "_reactions",
        "_sent",
        "_source",
        "_undo",
        "encode",
        "now_ms",
        "outcome",
        "outputs",
        "partition",
        "record",
        "records",
        "retry_count",
        "rows",
        "settings",
    )

    def __init__(
        self,
        partition: int,
        source: RowSource,
        partition_for: Callable[[bytes], int],
        encode: Callable[[Any], bytes],
        settings: Settings,
        reactions: Reactions = NO_REACTIONS,
    ) -> None:
        self.partition = partition
        self.encode = encode
        self.settings = settings
        self.record = NO_RECORD
        self.now_ms = 0
        self.outcome: Any = None
        self.retry_count = 0
        self._reactions = reactions
        self.records = 0
        self.rows: dict[AnyTable, dict[Any, Any]] = {}
        self.outputs: dict[tuple[str, int], list[Outgoing]] = {}
        self._source = source
        self._partition_for = partition_for
        self._undo: list[tuple[dict[Any, Any], Any, Any]] = []  # rows of a table, key, the row before
        self._sent: list[list[Outgoing]] = []  # where the record's outputs were appended

    @property
    def trace_id(self) -> str | None:
        """The trace of the record at hand, None where tracing is off."""
        return None

    def get(self, table: Table[K, V], key: K) -> V | None:
        """The row of `key` as of this record, None where there is none."""
        rows = self.rows.get(table)
        if rows is not None:
            row = rows.get(key, MISSING)
            if row is not MISSING:
                return row  # type: ignore[no-any-return]
        return self._source.committed_or_committing(table, key)

    def put(self, table: Table[K, V], key: K, row: V | None) -> None:
        """Replace the row of `key`; None removes it."""
        rows = self.rows.get(table)
        if rows is None:
            rows = self.rows[table] = {}
        self._undo.append((rows, key, rows.get(key, MISSING)))
        rows[key] = row

    def delete(self, table: Table[K, V], key: K) -> None:
        """Remove the row of `key`; removing what is not there changes nothing."""
        self.put(table, key, DELETED)

    def send(self, topic: Topic, key: str, message: Any, headers: Headers = ()) -> None:
        """Emit `message` (an envelope or another msgspec struct, encoded now) under `key`, visible with the commit."""
        self.send_raw(topic, key.encode(), self.encode(message), headers)

    def send_raw(self, topic: Topic, key: bytes, value: bytes, headers: Headers = ()) -> None:
        """Emit bytes as they are under `key`; raises OversizeRecord for more than any consumer would accept."""
        if len(value) > OUTPUT_BYTES_MAX:
            raise OversizeRecord(f"{len(value)} bytes for {topic.name}; at most {OUTPUT_BYTES_MAX} can be sent")
        # The key of the record at hand is in this partition already: hashing it again would cost 5 µs.
        to = topic.name, self.partition if key == self.record.key else self._partition_for(key)
        outputs = self.outputs.get(to)
        if outputs is None:
            outputs = self.outputs[to] = []
        outputs.append((key, value, headers))
        self._sent.append(outputs)

    def send_here(self, topic: Topic, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        """Emit into this partition's number whatever the key; for records that stay with their source."""
        outputs = self.outputs.setdefault((topic.name, self.partition), [])
        outputs.append((key, value, headers))
        self._sent.append(outputs)

    def deliver(self, envelope: Envelope[Any]) -> None:
        """Hand a message to the services that react to its type, at once: they share its key and this unit of work."""
        for react in self._reactions.get(type(envelope.payload), ()):
            react(envelope, self)

    def schedule(self, kind: str, key: str, due_ms: int, payload: bytes = b"") -> None:
        """Call the timer handler of `kind` once, at `due_ms` (epoch, production time) or as soon after as possible."""
        self.put(TIMERS, TimerKey(due_ms, kind, key), Timer(kind=kind, key=key, due_ms=due_ms, payload=payload))

    def cancel(self, kind: str, key: str, due_ms: int) -> None:
        """Forget a timer; one that has fired or never was is no error."""
        self.put(TIMERS, TimerKey(due_ms, kind, key), DELETED)

    def release(self) -> None:
        """Keep what the record did: it can no longer be taken back on its own."""
        self.records += 1
        self._undo.clear()
        self._sent.clear()

    def rollback(self) -> None:
        """Take back what was done since the last `release`, newest first, and nothing else."""
        for rows, key, previous in reversed(self._undo):
            if previous is MISSING:
                del rows[key]
            else:
                rows[key] = previous
        for outputs in self._sent:
            outputs.pop()
        self._undo.clear()
        self._sent.clear()

    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not any(self.rows.values()) and not any(self.outputs.values())
