"""The unit of work of a rebuild: what handlers of a projection see and do there, without any effect elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from engine.declare.agent import Projection
from engine.declare.envelope import Envelope
from engine.declare.settings import Settings
from engine.declare.table import AnyTable, Table
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Headers
from engine.rebuilds.rows import REBUILT_ROWS, Rebuild, RebuiltKey, plus
from engine.store.cache import ABSENT, CacheBudget, RowCache

K = TypeVar("K")
V = TypeVar("V")

ROWS_MAX = 30_000  # decoded ones


class WritesAnotherTable(Exception):
    """A handler of a projection changes a table that its projection does not name."""


class _RebuiltRows:
    """Where a row comes from: the projection's own tables are those beside the running ones, all others are as now."""

    def __init__(self, projection: Projection, live: Callable[[], UnitOfWork]) -> None:
        self._own = frozenset(projection.tables)
        self._live = live
        budget = CacheBudget(ROWS_MAX)
        self.decoded: defaultdict[AnyTable, RowCache] = defaultdict(lambda: RowCache(budget))

    def committed_or_committing(self, table: Table[K, V], key: K) -> V | None:
        """The row as the records so far have left it."""
        if table not in self._own:
            return self._live().get(table, key)
        row: Any = self.decoded[table].get(key)
        if row is ABSENT:
            raw = self._live().get(REBUILT_ROWS, RebuiltKey(table.name, table.key.encode(key)))
            row = None if raw is None else table.decode_row(raw)
            self.decoded[table].put(key, row)
        return row  # type: ignore[no-any-return]


class RebuildWork(UnitOfWork):
    """Handlers read and write the rows beside the running ones; what they send or schedule is counted, and dropped.

    `flush` hands the rows to the partition's own unit of work, `live`, with which they are committed.
    """

    __slots__ = ("_live", "_own", "_rebuilt", "suppressed")

    def __init__(
        self,
        partition: int,
        projection: Projection,
        live: Callable[[], UnitOfWork],
        encode: Callable[[Any], bytes],
        settings: Settings,
    ) -> None:
        self._rebuilt = _RebuiltRows(projection, live)
        super().__init__(partition, self._rebuilt, lambda key: partition, encode, settings)
        self._own = frozenset(projection.tables)
        self._live = live
        self.suppressed = 0

    def put(self, table: Table[K, V], key: K, row: V | None) -> None:
        """Replace the row beside the running one; raises WritesAnotherTable."""
        if table not in self._own:
            raise WritesAnotherTable(f"table {table.name} is changed by a handler, but not named by its projection")
        super().put(table, key, row)

    def send_raw(self, topic: Topic, key: bytes, value: bytes, headers: Headers = ()) -> None:
        """Send nothing."""
        self.suppressed += 1

    def send_here(self, topic: Topic, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        """Send nothing."""
        self.suppressed += 1

    def deliver(self, envelope: Envelope[Any]) -> None:
        """Tell nobody."""
        self.suppressed += 1

    def schedule(self, kind: str, key: str, due_ms: int, payload: bytes = b"") -> None:
        """Set no timer."""
        self.suppressed += 1

    def cancel(self, kind: str, key: str, due_ms: int) -> None:
        """End no timer: there is none of a rebuild."""

    def flush(self) -> None:
        """Hand over what the records since the last time have changed."""
        work = self._live()
        for table, rows in self.rows.items():
            for key, row in rows.items():
                raw = None if row is None else msgspec.Raw(table.encode_row(row))
                work.put(REBUILT_ROWS, RebuiltKey(table.name, table.key.encode(key)), raw)
            self._rebuilt.decoded[table].update(rows)
        self.rows.clear()
        work.records += self.records
        self.records = 0


class Counts:
    """What became of the records of one slice."""

    def __init__(self) -> None:
        self.applied = self.waiting = self.waiting_sum = self.discarded = self.unreadable = 0

    def added_to(self, rebuild: Rebuild, reached: int, work: RebuildWork) -> Rebuild:
        """The rebuild with these counts, at `reached`."""
        suppressed, work.suppressed = work.suppressed, 0
        return replace(
            rebuild,
            next=reached,
            applied=rebuild.applied + self.applied,
            waiting=rebuild.waiting + self.waiting,
            waiting_sum=plus(rebuild.waiting_sum, self.waiting_sum),
            discarded=rebuild.discarded + self.discarded,
            unreadable=rebuild.unreadable + self.unreadable,
            suppressed=rebuild.suppressed + suppressed,
        )
