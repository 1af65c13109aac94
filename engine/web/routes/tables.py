"""Routes that show tables as they are stored, from whichever workers own their partitions."""

from __future__ import annotations

import asyncio
import struct
from itertools import islice
from typing import Any, TypedDict

import msgspec
from aiohttp import web

from engine.declare.operation import Operation, Parameter
from engine.declare.partition import Partition
from engine.declare.table import TEXT_KEY, AnyTable
from engine.partition.engine import Engine, PartitionNotHere
from engine.web.answers import ENGINE, Problem, int_parameter, invalid, json_response
from engine.web.cursors import InvalidCursor, decode_cursor, encode_cursor
from engine.web.gathering import RowsAsked, TablePage, TableRow, service, table_named, table_page
from engine.web.parameters import CURSOR, LIMIT
from engine.web.routes.queries import ask
from engine.web.routing import partition_of

ROWS_COUNTED_MAX = 10_000
ROWS_PER_SLICE = 500


class PartitionView(msgspec.Struct, frozen=True):
    """One partition: rows by table (counted to 10,000), and the bytes of its store; null while nobody has it."""

    partition: int
    rows: dict[str, int] | None = None
    store_bytes: int | None = None


PARTITION = Parameter("partition", "only this partition", {"type": "integer", "minimum": 0})


class RowCount(TypedDict):
    """Rows of a table in one partition, counted to 10,000; null while nobody can show them."""

    partition: int
    rows: int | None


class TableView(TypedDict):
    """A table and its size."""

    name: str
    help: str
    changelog_topic: str
    rows: int
    rows_are_more: bool
    partitions: list[RowCount]


class StoreView(TypedDict):
    """The store of one partition; null while nobody can show it."""

    partition: int
    store_bytes: int | None


class TableList(TypedDict):
    """All tables, and the stores that they are in."""

    items: list[TableView]
    stores: list[StoreView]


class RowList(TypedDict):
    """A page of rows as they are stored."""

    items: list[TableRow]
    next_cursor: str | None


@service.route("GET", "/tables", Operation({200: TableList}))
async def list_tables(request: web.Request) -> web.StreamResponse:
    """Every table, `{items, stores}`, with its size and partitions.

    An item is `{name, help, changelog_topic, rows, rows_are_more, partitions: [{partition, rows}]}`. Rows are counted
    up to 10,000 per partition; `rows_are_more` says that there are more. The rows of a partition that nobody can show
    now are null. A store is `{partition, store_bytes}`.
    """
    engine = request.app[ENGINE]
    views = await asyncio.gather(*(_sizes(request, number) for number in range(engine.settings.partitions)))
    items: list[TableView] = []
    for table in sorted(engine.tables.values(), key=lambda table: table.name):
        counts = [None if view.rows is None else view.rows.get(table.name, 0) for view in views]
        item: TableView = {
            "name": table.name,
            "help": table.help,
            "changelog_topic": table.changelog_topic(engine.settings.app_id),
            "rows": sum(count or 0 for count in counts),
            "rows_are_more": any(count is None or count >= ROWS_COUNTED_MAX for count in counts),
            "partitions": [{"partition": number, "rows": count} for number, count in enumerate(counts)],
        }
        items.append(item)
    stores: list[StoreView] = [{"partition": view.partition, "store_bytes": view.store_bytes} for view in views]
    return json_response(TableList(items=items, stores=stores))


@service.route("GET", "/tables/{name}", Operation({200: RowList}, (LIMIT, CURSOR), problems=(404,)))
async def list_rows(request: web.Request) -> web.StreamResponse:
    """Rows of a table, `{items: [{partition, key, row}], next_cursor}`, partition after partition in the order of keys.

    A key that is not a text is a list, and `key_id` stands for it in URLs. `?limit=` is 20, at most 1000. 503 when a
    partition cannot be read now: nothing is left out silently.
    """
    items, next_cursor = await rows_of(request, _table(request))
    return json_response(RowList(items=items, next_cursor=next_cursor))


async def rows_of(request: web.Request, table: AnyTable) -> tuple[list[TableRow], str | None]:
    """The page of a table's rows that `?limit=` and `?cursor=` ask for, and the cursor of the next one; see above."""
    limit = LIMIT.read(request)
    number, start = _decode_place(request)
    items: list[TableRow] = []
    next_cursor: str | None = None
    while number < request.app[ENGINE].settings.partitions:
        page = await _page(request, table, number, start, limit - len(items))
        items += page.items
        if page.next is not None:
            next_cursor = encode_cursor(struct.pack(">H", number) + decode_cursor(page.next))
            break
        number, start = number + 1, b""
    return items, next_cursor


@service.route("GET", "/tables/{name}/{key}", Operation({200: Any}, (PARTITION,), problems=(404,)))
async def get_row(request: web.Request) -> web.StreamResponse:
    """One row as it is stored. `key` is the key itself, or its `key_id` when it is not a text.

    A row is looked for in every partition (or in `?partition=`), first in the one its key belongs to: some tables are
    partitioned by another key. 404 only when all of them have answered.
    """
    table, key = _table(request), request.match_info["key"]
    partitions = request.app[ENGINE].settings.partitions
    if PARTITION.name in request.query:
        numbers = [int_parameter(request, PARTITION.name, 0, 0, partitions - 1)]
    else:
        likely = partition_of(request, key)
        numbers = [likely, *(number for number in range(partitions) if number != likely)]
    missing: PartitionNotHere | None = None
    for number in numbers:
        try:
            rows = await ask(request, table_row, number, RowAsked(table.name, key))
        except PartitionNotHere as error:
            missing = error
            continue
        for row in rows:
            return web.Response(body=bytes(row), content_type="application/json")
    if missing is not None:
        raise missing
    raise Problem(404, f"table {table.name} has no row {key}")


# ---- one partition


class RowAsked(msgspec.Struct, frozen=True):
    """A row of a table, by its key as it stands in URLs."""

    table: str
    key: str


@service.query("row")
async def table_row(engine: Engine, partition: Partition, asked: RowAsked) -> list[msgspec.Raw]:
    """The stored row of a key, nothing where there is none; raises a 404 problem for a table that is not there."""
    table, key = table_named(engine, asked.table), asked.key
    try:
        found = key if table.key is TEXT_KEY else table.key.decode(decode_cursor(key))
        row = partition.read(table, found)
    except (InvalidCursor, struct.error, ValueError):
        return []  # no key of this table looks so
    return [] if row is None else [msgspec.Raw(table.encode_row(row))]


class SizesAsked(msgspec.Struct, frozen=True):
    """The sizes of all tables."""


@service.query("sizes")
async def partition_sizes(engine: Engine, partition: Partition, asked: SizesAsked) -> PartitionView:
    """Rows by table, and the bytes of the store."""
    rows = {table.name: await _count(partition, table) for table in engine.tables.values()}
    return PartitionView(partition.number, rows, partition.store_size_bytes())


async def _count(task: Partition, table: AnyTable) -> int:
    """Rows of a table, at most ROWS_COUNTED_MAX; gives the loop back in between."""
    count, start = 0, b""
    while count < ROWS_COUNTED_MAX:
        keys = [key for key, _ in islice(task.scan(table, start=start), ROWS_PER_SLICE)]
        count += len(keys)
        if len(keys) < ROWS_PER_SLICE:
            break
        start = table.key.encode(keys[-1]) + b"\0"
        await asyncio.sleep(0)
    return count


# ---- any partition


async def _sizes(request: web.Request, number: int) -> PartitionView:
    try:
        return await ask(request, partition_sizes, number, SizesAsked())
    except PartitionNotHere:
        return PartitionView(number)


async def _page(request: web.Request, table: AnyTable, number: int, start: bytes, limit: int) -> TablePage:
    if limit == 0:  # the page is full at the end of a partition: all that is to be known is whether there are more
        page = await _page(request, table, number, start, 1)
        return TablePage([], encode_cursor(start)) if page.items else page
    return await ask(request, table_page, number, RowsAsked(table.name, start, limit))


def _table(request: web.Request) -> AnyTable:
    return table_named(request.app[ENGINE], request.match_info["name"])


def _decode_place(request: web.Request) -> tuple[int, bytes]:
    cursor = request.query.get(CURSOR.name)
    if not cursor:
        return 0, b""
    try:
        raw = decode_cursor(cursor)
        return struct.unpack(">H", raw[:2])[0], raw[2:]
    except (InvalidCursor, struct.error) as error:
        raise invalid(CURSOR.name, "not a cursor of this list") from error
