"""Gathering: rows of which each partition has a part, added up over all partitions, whoever owns them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlencode

import msgspec
from aiohttp import web

from engine.declare.partition import Partition
from engine.declare.table import TEXT_KEY, Table
from engine.partition.engine import PartitionNotHere
from engine.web.answers import ENGINE, Problem
from engine.web.cursors import decode_cursor, encode_cursor
from engine.web.routing import ROUTER, task_here

ROWS_PER_SLICE = 500
ASK_TIMEOUT_S = 5.0

K = TypeVar("K")
V = TypeVar("V")
S = TypeVar("S", bound="Sums")
P = TypeVar("P")


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


async def every_partition(
    request: web.Request,
    here: Callable[[Partition], Awaitable[P]],
    path: str,
    asked: Mapping[str, str],
    answer: type[P],
) -> list[P]:
    """What every partition answers: here by a function, elsewhere by the route `path/{number}` and the query `asked`.

    Raises PartitionNotHere (503) when a partition cannot be read now: nothing is left out silently.
    """

    async def of(number: int) -> P:
        task = task_here(request, number)
        if task is not None:
            return await here(task)
        body = await ask_owner(request, number, f"{path}/{number}?{urlencode(asked)}")
        if body is None:
            raise PartitionNotHere(f"partition {number} is at a worker of another version; try again")
        return msgspec.json.decode(body, type=answer)

    return await asyncio.gather(*(of(number) for number in range(request.app[ENGINE].settings.partitions)))


def own_partition(request: web.Request) -> Partition:
    """The task of the partition `{number}` in the path; raises a problem where it is none, or not here."""
    number = request.match_info["number"]
    if not (number.isascii() and number.isdecimal()):
        raise Problem(404, f"there is no partition {number}")
    return request.app[ENGINE].task(int(number))


async def ask_owner(request: web.Request, number: int, path: str) -> bytes | None:
    """What the owner of a partition answers to an (encoded) path, None for a 404; raises PartitionNotHere when it
    cannot.
    """
    status, body = await request.app[ROUTER].ask(number, path, ASK_TIMEOUT_S)
    if status == 404:
        return None
    if status != 200:
        raise PartitionNotHere(f"partition {number} is moving to another worker; try again")
    return body


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
    query = urlencode({"limit": ROWS_PER_SLICE, "start": encode_cursor(after)})
    body = await ask_owner(request, number, f"/internal/tables/{quote(table.name, safe='')}/{number}?{query}")
    page = msgspec.json.decode(body or b"", type=TablePage)
    return [(_key(table, item), table.decode_row(item.row)) for item in page.items]


def _key(table: Table[K, V], item: TableRow) -> K:
    return item.key if table.key is TEXT_KEY else key_of(table, item)


def key_of(table: Table[K, V], item: TableRow) -> K:
    """The key of a row, in a table whose keys are not texts."""
    return table.key.decode(decode_cursor(item.key_id or ""))
