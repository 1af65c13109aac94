"""Comparing the rows that a rebuild has made with the running ones, while both go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import msgspec

from engine.declare.partition import Partition
from engine.declare.table import AnyTable, encode_prefix
from engine.declare.unit_of_work import UnitOfWork
from engine.rebuilds.rows import REBUILT_ROWS, RebuiltKey

ROWS_PER_SLICE = 500


class Comparison:
    """One walk through all rows of some tables, in the order of their keys.

    Rows are committed ones of the moment at which they are looked at. So what differs has to be looked at again when
    both sides are equally far, and with it what was changed since the walk began.
    """

    def __init__(self, partition: Partition, tables: Sequence[AnyTable]) -> None:
        self.rows = 0
        self.differing: set[RebuiltKey] = set()
        self._changed: set[RebuiltKey] = set()
        self._partition = partition
        self._names = {table.name for table in tables}
        self._tables = list(tables)
        self._start = b""

    @property
    def is_over(self) -> bool:
        """Whether all rows were looked at."""
        return not self._tables

    def step(self) -> None:
        """Look at the next rows."""
        table = self._tables[0]
        made = encode_prefix(table.name)
        live = list(islice(self._partition.scan_raw(table, start=self._start), ROWS_PER_SLICE))
        rebuilt = list(islice(self._partition.scan_raw(REBUILT_ROWS, made, made + self._start), ROWS_PER_SLICE))
        rebuilt = [(key[len(made) :], row) for key, row in rebuilt]
        # Beyond the last row of a side that has more, the other one must not be looked at yet.
        ends = [rows[-1][0] for rows in (live, rebuilt) if len(rows) == ROWS_PER_SLICE]
        if ends:
            end = min(ends)
            self._start = end + b"\0"
            live, rebuilt = ([(key, row) for key, row in rows if key <= end] for rows in (live, rebuilt))
        else:
            self._tables.pop(0)
            self._start = b""
        self._compare(table, dict(live), dict(rebuilt))

    def _compare(self, table: AnyTable, live: Mapping[bytes, bytes], rebuilt: Mapping[bytes, bytes]) -> None:
        keys = live.keys() | rebuilt.keys()
        self.rows += len(keys)
        self.differing |= {
            RebuiltKey(table.name, key) for key in keys if not is_same(table, live.get(key), rebuilt.get(key))
        }

    def changed(self, work: UnitOfWork) -> None:
        """This unit of work has changed rows on either side."""
        for table, rows in work.rows.items():
            if table is REBUILT_ROWS:
                self._changed |= {key for key in rows if key.table in self._names}
            elif table.name in self._names:
                self._changed |= {RebuiltKey(table.name, table.key.encode(key)) for key in rows}

    def take(self) -> set[RebuiltKey]:
        """All keys to be looked at again, which are done with then."""
        taken = self.differing | self._changed
        self.differing, self._changed = set(), set()
        return taken


def is_same(table: AnyTable, one: bytes | None, other: bytes | None) -> bool:
    """Whether two stored rows mean the same; an earlier version may have written one of them in other bytes."""
    if one == other:
        return True
    if one is None or other is None:
        return False
    try:
        return bool(table.decode_row(one) == table.decode_row(other))
    except msgspec.MsgspecError:
        return False
