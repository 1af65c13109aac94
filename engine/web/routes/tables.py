"""Routes that show tables as they are stored, from whichever workers own their partitions."""

from __future__ import annotations

import asyncio
import struct
from itertools import islice
from typing import Any, TypedDict
from urllib.parse import quote, urlencode

import msgspec
from aiohttp import web

from engine.declare.operation import Operation, Parameter
from engine.declare.partition import Partition
from engine.declare.service import Service
from engine.declare.table import TEXT_KEY, AnyTable
from engine.partition.engine import PartitionNotHere
from engine.web.answers import ENGINE, Problem, int_parameter, invalid, json_response
from engine.web.cursors import InvalidCursor, decode_cursor, encode_cursor
from engine.web.gathering import TablePage, TableRow, ask_owner, own_partition
from engine.web.parameters import CURSOR, LIMIT
from engine.web.routing import partition_of, task_here

ROWS_COUNTED_MAX = 10_000
ROWS_PER_SLICE = 500

service = Service("table-views")


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
    views = await asyncio.gather(*(_partition(request, number) for number in range(engine.settings.partitions)))
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
            row = await _row(request, table, number, key)
        except PartitionNotHere as error:
            missing = error
            continue
        if row is not None:
            return web.Response(body=row, content_type="application/json")
    if missing is not None:
        raise missing
    raise Problem(404, f"table {table.name} has no row {key}")


# ---- what workers ask each other


@service.route("GET", "/internal/partitions/{number}")
async def get_partition(request: web.Request) -> web.StreamResponse:
    """For other workers: rows by table and bytes of an owned partition."""
    return json_response(await _describe(request, own_partition(request)))


@service.route("GET", "/internal/tables/{name}/{number}")
async def get_page(request: web.Request) -> web.StreamResponse:
    """For other workers: rows of a table in an owned partition."""
    table = _table(request)
    limit = int_parameter(request, "limit", 20, 1, 1000)
    start = decode_cursor(request.query.get("start", ""))
    return json_response(table_page(own_partition(request), table, start, limit))


@service.route("GET", "/internal/tables/{name}/{number}/{key}")
async def get_row_here(request: web.Request) -> web.StreamResponse:
    """For other workers: a row of an owned partition."""
    table, key = _table(request), request.match_info["key"]
    row = table_row(own_partition(request), table, key)
    if row is None:
        raise Problem(404, f"table {table.name} has no row {key} in this partition")
    return web.Response(body=row, content_type="application/json")


# ---- one partition


def table_page(task: Partition, table: AnyTable, start: bytes, limit: int) -> TablePage:
    """At most `limit` rows whose keys come after `start`."""
    found = list(islice(task.scan(table, start=start + b"\0" if start else b""), limit + 1))
    items = []
    for key, row in found[:limit]:
        key_id = msgspec.UNSET if table.key is TEXT_KEY else encode_cursor(table.key.encode(key))
        items.append(TableRow(task.number, key, msgspec.Raw(table.encode_row(row)), key_id))
    return TablePage(items, encode_cursor(table.key.encode(found[limit - 1][0])) if len(found) > limit else None)


def table_row(task: Partition, table: AnyTable, key: str) -> bytes | None:
    """The stored row of a key as it stands in URLs, None where there is none."""
    try:
        found = key if table.key is TEXT_KEY else table.key.decode(decode_cursor(key))
        row = task.read(table, found)
    except (InvalidCursor, struct.error, ValueError):
        return None  # no key of this table looks so
    return None if row is None else table.encode_row(row)


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


async def _describe(request: web.Request, task: Partition) -> PartitionView:
    tables = request.app[ENGINE].tables.values()
    rows = {table.name: await _count(task, table) for table in tables}
    return PartitionView(task.number, rows, task.store_size_bytes())


# ---- any partition


async def _partition(request: web.Request, number: int) -> PartitionView:
    try:
        task = task_here(request, number)
        if task is not None:
            return await _describe(request, task)
        body = await ask_owner(request, number, f"/internal/partitions/{number}")
    except PartitionNotHere:
        return PartitionView(number)
    return msgspec.json.decode(body, type=PartitionView) if body else PartitionView(number)


async def _page(request: web.Request, table: AnyTable, number: int, start: bytes, limit: int) -> TablePage:
    if limit == 0:  # the page is full at the end of a partition: all that is to be known is whether there are more
        page = await _page(request, table, number, start, 1)
        return TablePage([], encode_cursor(start)) if page.items else page
    task = task_here(request, number)
    if task is not None:
        return table_page(task, table, start, limit)
    query = urlencode({"limit": limit, "start": encode_cursor(start)})
    body = await ask_owner(request, number, f"/internal/tables/{quote(table.name, safe='')}/{number}?{query}")
    return msgspec.json.decode(body, type=TablePage) if body else TablePage([], None)


async def _row(request: web.Request, table: AnyTable, number: int, key: str) -> bytes | None:
    task = task_here(request, number)
    if task is not None:
        return table_row(task, table, key)
    path = f"/internal/tables/{quote(table.name, safe='')}/{number}/{quote(key, safe='')}"
    return await ask_owner(request, number, path)


def _table(request: web.Request) -> AnyTable:
    name = request.match_info["name"]
    table = request.app[ENGINE].tables.get(name)
    if table is None:
        raise Problem(404, f"there is no table {name}")
    return table


def _decode_place(request: web.Request) -> tuple[int, bytes]:
    cursor = request.query.get(CURSOR.name)
    if not cursor:
        return 0, b""
    try:
        raw = decode_cursor(cursor)
        return struct.unpack(">H", raw[:2])[0], raw[2:]
    except (InvalidCursor, struct.error) as error:
        raise invalid(CURSOR.name, "not a cursor of this list") from error
