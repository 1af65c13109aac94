"""Gathering: rows of which each partition has a part, added up over all partitions, whoever owns them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

import msgspec
from aiohttp import web

from engine.declare.partition import Partition
from engine.declare.service import Service
from engine.declare.table import TEXT_KEY, AnyTable, Table
from engine.partition.engine import Engine
from engine.web.answers import ENGINE, Problem
from engine.web.cursors import decode_cursor, encode_cursor
from engine.web.routes.queries import ask
from engine.web.routing import task_here

ROWS_PER_SLICE = 500

K = TypeVar("K")
V = TypeVar("V")
S = TypeVar("S", bound="Sums")

service = Service("table-views")


class Sums(Protocol):
    """Rows of several partitions that make one row together."""

    def plus(self, other: Any, /) -> Any:
        """The sum of both."""


class TableRow(msgspec.Struct, frozen=True):
    """A row as it is stored; a key that is not a text has a `key_id` for URLs."""

    partition: int
    key: Any
    row: msgspec.Raw
    key_id: str | msgspec.UnsetType = msgspec.UNSET


class TablePage(msgspec.Struct, frozen=True):
    """Rows of one partition, and where to go on when there are more."""

    items: list[TableRow]
    next: str | None


class RowsAsked(msgspec.Struct, frozen=True):
    """At most `limit` rows of a table whose key bytes come after `start`."""

    table: str
    start: bytes
    limit: int


@service.query("rows")
async def table_page(engine: Engine, partition: Partition, asked: RowsAsked) -> TablePage:
    """Rows of a table in the order of their keys; raises a 404 problem for a table that is not there."""
    table, start, limit = table_named(engine, asked.table), asked.start, asked.limit
    found = list(islice(partition.scan(table, start=start + b"\0" if start else b""), limit + 1))
    items = []
    for key, row in found[:limit]:
        key_id = msgspec.UNSET if table.key is TEXT_KEY else encode_cursor(table.key.encode(key))
        items.append(TableRow(partition.number, key, msgspec.Raw(table.encode_row(row)), key_id))
    return TablePage(items, encode_cursor(table.key.encode(found[limit - 1][0])) if len(found) > limit else None)


def table_named(engine: Engine, name: str) -> AnyTable:
    """The table of this name; raises a 404 problem."""
    table = engine.tables.get(name)
    if table is None:
        raise Problem(404, f"there is no table {name}")
    return table


def add_up(sums: dict[K, S], rows: Iterable[tuple[K, S]]) -> None:
    """Add rows to the sums so far."""
    for key, row in rows:
        before = sums.get(key)
        sums[key] = row if before is None else before.plus(row)


async def gather(
    request: web.Request, table: Table[K, S], *, after: bytes = b"", before: bytes | None = None
) -> dict[K, S]:
    """The sum of every partition's row, by key; only of keys whose bytes lie between `after` and `before`.

    Each row is the committed one of some moment while this runs. Raises PartitionNotHere (503) when a partition cannot
    be read now: nothing is left out silently.
    """
    sums: dict[K, S] = {}

    async def add(number: int) -> None:
        async for rows in _slices(request, table, number, after):
            inside = rows if before is None else [row for row in rows if table.key.encode(row[0]) < before]
            add_up(sums, inside)
            if len(inside) < len(rows):
                return

    await asyncio.gather(*(add(number) for number in range(request.app[ENGINE].settings.partitions)))
    return sums


async def every_row(request: web.Request, table: Table[K, V]) -> AsyncIterator[V]:
    """All rows of a table, partition after partition, each the committed one of some moment; raises like `gather`."""
    for number in range(request.app[ENGINE].settings.partitions):
        async for rows in _slices(request, table, number, b""):
            for _, row in rows:
                yield row


async def _slices(
    request: web.Request, table: Table[K, V], number: int, after: bytes
) -> AsyncIterator[Sequence[tuple[K, V]]]:
    """A partition's rows from the key bytes behind `after` on; gives the loop back in between."""
    while True:
        task = task_here(request, number)
        rows = _read(task, table, after) if task is not None else await _ask(request, table, number, after)
        yield rows
        if len(rows) < ROWS_PER_SLICE:
            return
        after = table.key.encode(rows[-1][0])
        await asyncio.sleep(0)


def _read(task: Partition, table: Table[K, V], after: bytes) -> list[tuple[K, V]]:
    return list(islice(task.scan(table, start=after + b"\0" if after else b""), ROWS_PER_SLICE))


async def _ask(request: web.Request, table: Table[K, V], number: int, after: bytes) -> list[tuple[K, V]]:
    page = await ask(request, table_page, number, RowsAsked(table.name, after, ROWS_PER_SLICE))
    return [(_key(table, item), table.decode_row(item.row)) for item in page.items]


def _key(table: Table[K, V], item: TableRow) -> K:
    return item.key if table.key is TEXT_KEY else key_of(table, item)


def key_of(table: Table[K, V], item: TableRow) -> K:
    """The key of a row, in a table whose keys are not texts."""
    return table.key.decode(decode_cursor(item.key_id or ""))
