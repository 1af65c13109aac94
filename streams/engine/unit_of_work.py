"""Unit of work: what handlers changed, emitted and scheduled in one partition since its last commit."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypeVar

from streams.engine.table import AnyTable, Table
from streams.engine.timers import TIMERS, Timer, TimerKey
from streams.topics import Topic
from streams.transport.base import Headers, Outgoing, Record

K = TypeVar("K")
V = TypeVar("V")

Output = tuple[str, int, bytes | None, bytes | None, Headers]  # topic, partition, key, value, headers
Changes = dict[AnyTable, list[tuple[bytes, bytes | None]]]  # rows of a table as they go to changelog and store

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
    `record` is the one being handled; its timestamp is production time.
    """

    __slots__ = (
        "_partition_for",
        "_savepoint",
        "_source",
        "_undo",
        "encode",
        "outputs",
        "partition",
        "record",
        "records",
        "rows",
    )

    def __init__(
        self,
        partition: int,
        source: RowSource,
        partition_for: Callable[[bytes], int],
        encode: Callable[[Any], bytes],
    ) -> None:
        self.partition = partition
        self.rows: dict[AnyTable, dict[Any, Any]] = {}
        self.outputs: list[Output] = []
        self.records = 0
        self.record = NO_RECORD
        self._source = source
        self._partition_for = partition_for
        self.encode = encode
        self._undo: list[tuple[dict[Any, Any], Any, Any]] = []
        self._savepoint = 0

    def get(self, table: Table[K, V], key: K) -> V | None:
        """The row of `key` as of this record, None where there is none."""
        rows = self.rows.get(table)
        if rows is not None:
            row = rows.get(key, MISSING)
            if row is not MISSING:
                return row  # type: ignore[no-any-return]
        return self._source.committed_or_committing(table, key)

    def put(self, table: Table[K, V], key: K, row: V) -> None:
        """Replace the row of `key`."""
        self._write(table, key, row)

    def delete(self, table: Table[K, V], key: K) -> None:
        """Remove the row of `key`; removing what is not there changes nothing."""
        self._write(table, key, DELETED)

    def _write(self, table: AnyTable, key: Any, row: Any) -> None:
        rows = self.rows.get(table)
        if rows is None:
            rows = self.rows[table] = {}
        self._undo.append((rows, key, rows.get(key, MISSING)))
        rows[key] = row

    def send(self, topic: Topic, key: str, message: Any, headers: Headers = ()) -> None:
        """Emit `message` (an envelope or another msgspec struct, encoded now) under `key`, visible with the commit."""
        self.send_raw(topic, key.encode(), self.encode(message), headers)

    def send_raw(self, topic: Topic, key: bytes, value: bytes, headers: Headers = ()) -> None:
        """Emit bytes as they are under `key`."""
        self.outputs.append((topic.name, self._partition_for(key), key, value, headers))

    def send_here(self, topic: Topic, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        """Emit into this partition's number whatever the key; for records that stay with their source."""
        self.outputs.append((topic.name, self.partition, key, value, headers))

    def schedule(self, kind: str, key: str, due_ms: int, payload: bytes = b"") -> None:
        """Call the timer handler of `kind` once, at `due_ms` (epoch, production time) or as soon after as it can run."""
        self._write(TIMERS, TimerKey(due_ms, kind, key), Timer(kind=kind, key=key, due_ms=due_ms, payload=payload))

    def cancel(self, kind: str, key: str, due_ms: int) -> None:
        """Forget a timer; one that has fired or never was is no error."""
        self._write(TIMERS, TimerKey(due_ms, kind, key), DELETED)

    def release(self) -> None:
        """Keep what the record did: it can no longer be taken back on its own."""
        self.records += 1
        self._undo.clear()
        self._savepoint = len(self.outputs)

    def rollback(self) -> None:
        """Take back what was done since the last `release`, newest first, and nothing else."""
        for rows, key, previous in reversed(self._undo):
            if previous is MISSING:
                del rows[key]
            else:
                rows[key] = previous
        self._undo.clear()
        del self.outputs[self._savepoint :]

    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not self.rows and not self.outputs

    def encoded_rows(self, table: AnyTable) -> list[tuple[bytes, bytes | None]]:
        """Every dirty row of `table` once, however often it changed, as changelog key and value (None: deleted)."""
        encode_key, encode_row = table.key.encode, table.encode_row
        return [(encode_key(key), None if row is DELETED else encode_row(row)) for key, row in self.rows[table].items()]

    def outputs_by_partition(self) -> Mapping[tuple[str, int], list[Outgoing]]:
        """What is to be sent, grouped by topic and partition, in the order it was emitted."""
        grouped: dict[tuple[str, int], list[Outgoing]] = {}
        for topic, partition, key, value, headers in self.outputs:
            records = grouped.get((topic, partition))
            if records is None:
                records = grouped[topic, partition] = []
            records.append((key, value, headers))
        return grouped
