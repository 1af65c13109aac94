"""Dead letters of all partitions, wherever they are: each owner looks at its own, and here they become one."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, TypeVar

from aiohttp import web
from msgspec.structs import replace

from engine.declare.partition import Query
from engine.web.answers import ENGINE
from engine.web.dead_letters.filters import LetterFilter
from engine.web.dead_letters.queries import (
    REFUSED_MAX,
    Candidate,
    CandidatePage,
    LetterGroup,
    LetterQuery,
    LetterView,
    Refused,
    group_page,
    letter_page,
)
from engine.web.routes.queries import ask


class Page(Protocol):
    """A part of an answer; `items` is a list, `next` says where to go on."""

    @property
    def items(self) -> Any:
        """What was found."""

    @property
    def next(self) -> int | None:
        """The place behind which to go on, None at the end."""


P = TypeVar("P", bound=Page)


class Candidates(NamedTuple):
    """Letters that may be changed, oldest first, and those that were found and may not (the first REFUSED_MAX)."""

    chosen: list[Candidate]
    refused: list[Refused]
    refused_count: int


async def newest_letters(
    request: web.Request, wanted: LetterFilter, limit: int, before: tuple[int, int] | None
) -> list[LetterView]:
    """At most `limit` letters, newest first: by number, and by partition where numbers are the same.

    `before` is number and partition behind which to go on. Raises PartitionNotHere when a partition cannot be read.
    """

    async def of_partition(partition: int) -> list[LetterView]:
        place = None if before is None else before[0] + (partition < before[1])
        pages = await _pages(request, letter_page, partition, LetterQuery(wanted, limit, place))
        return [letter for page in pages for letter in page.items]

    found = await _of_all(request, of_partition)
    return list(heapq.merge(*found, key=attrgetter("place"), reverse=True))[:limit]


async def letter_groups(request: web.Request, wanted: LetterFilter) -> list[LetterGroup]:
    """What failed alike, most first. Raises as `newest_letters` does."""
    groups: dict[str, LetterGroup] = {}

    async def of_partition(partition: int) -> None:
        for page in await _pages(request, group_page, partition, LetterQuery(wanted)):
            for group in page.items:
                known = groups.get(group.fingerprint)
                groups[group.fingerprint] = group if known is None else known.plus(group)

    await _of_all(request, of_partition)
    return sorted(groups.values(), key=lambda group: (-group.count, -group.last_failed_ms, group.fingerprint))


async def candidates(
    request: web.Request, query: Query[LetterQuery, CandidatePage], wanted: LetterFilter, limit: int
) -> Candidates:
    """The oldest `limit` letters that may be changed, and those met on the way that may not."""

    async def of_partition(partition: int) -> list[CandidatePage]:
        return await _pages(request, query, partition, LetterQuery(wanted, limit))

    pages = [page for found in await _of_all(request, of_partition) for page in found]
    chosen = sorted(
        (found for page in pages for found in page.items), key=lambda found: (found.number, found.partition)
    )
    refused = [found for page in pages for found in page.refused]
    return Candidates(chosen[:limit], refused[:REFUSED_MAX], sum(page.refused_count for page in pages))


R = TypeVar("R")


async def _of_all(request: web.Request, of_partition: Callable[[int], Awaitable[R]]) -> list[R]:
    return await asyncio.gather(*(of_partition(number) for number in range(request.app[ENGINE].settings.partitions)))


async def _pages(request: web.Request, query: Query[LetterQuery, P], partition: int, asked: LetterQuery) -> list[P]:
    """Pages of one partition: until it has no more, or `asked.limit` items are there."""
    pages: list[P] = []
    while True:
        page = await ask(request, query, partition, asked)
        pages.append(page)
        left = asked.limit - len(page.items)
        if page.next is None or (asked.limit and left <= 0):
            return pages
        asked = replace(asked, place=page.next, limit=left if asked.limit else 0)
        await asyncio.sleep(0)
