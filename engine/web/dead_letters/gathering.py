"""Dead letters of all partitions, wherever they are: each owner looks at its own, and here they become one."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from operator import attrgetter
from typing import Any, Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import urlencode

import msgspec
from aiohttp import web
from msgspec.structs import replace

from engine.declare.partition import Partition
from engine.declare.service import Service
from engine.partition.engine import PartitionNotHere
from engine.web.answers import ENGINE, Problem, json_response
from engine.web.dead_letters.filters import LetterFilter
from engine.web.dead_letters.queries import (
    REFUSED_MAX,
    Candidate,
    CandidatePage,
    GroupPage,
    LetterGroup,
    LetterPage,
    LetterQuery,
    LetterView,
    Refused,
    discard_page,
    group_page,
    letter_page,
    retry_page,
)
from engine.web.gathering import ask_owner
from engine.web.routing import task_here

service = Service("dead-letter-gathering")


class Page(Protocol):
    """A part of an answer; `items` is a list, `next` says where to go on."""

    @property
    def items(self) -> Any:
        """What was found."""

    @property
    def next(self) -> int | None:
        """The place behind which to go on, None at the end."""


P = TypeVar("P", bound=Page)


class Question(NamedTuple, Generic[P]):
    """Something that each partition is asked for."""

    page: type[P]
    answer: Callable[[Partition, LetterQuery, web.Request], Awaitable[P]]


LETTERS = Question(LetterPage, lambda task, query, _: letter_page(task, query))
GROUPS = Question(GroupPage, lambda task, query, _: group_page(task, query))
TO_RETRY = Question(CandidatePage, lambda task, query, request: retry_page(task, query, request.app[ENGINE].settings))
TO_DISCARD = Question(CandidatePage, lambda task, query, _: discard_page(task, query))
QUESTIONS: dict[str, Question[Any]] = {
    "letters": LETTERS,
    "groups": GROUPS,
    "to-retry": TO_RETRY,
    "to-discard": TO_DISCARD,
}
_names = {id(question): name for name, question in QUESTIONS.items()}
_decode_query = msgspec.json.Decoder(LetterQuery).decode
_encode_query = msgspec.json.Encoder().encode


class Candidates(NamedTuple):
    """Letters that may be changed, oldest first, and those that were found and may not (the first REFUSED_MAX)."""

    chosen: list[Candidate]
    refused: list[Refused]
    refused_count: int


@service.route("GET", "/internal/dead-letters/{number}/{question}")
async def answer_question(request: web.Request) -> web.StreamResponse:
    """For other workers: a page of an owned partition; `?query=` is a LetterQuery as JSON."""
    question, number = QUESTIONS.get(request.match_info["question"]), request.match_info["number"]
    if question is None or not (number.isascii() and number.isdecimal()):
        raise Problem(404, f"there is no {request.path}")
    try:
        query = _decode_query(request.query.get("query", ""))
    except msgspec.DecodeError as error:
        raise Problem(422, f"query: {error}") from error
    return json_response(await question.answer(request.app[ENGINE].task(int(number)), query, request))


async def newest_letters(
    request: web.Request, wanted: LetterFilter, limit: int, before: tuple[int, int] | None
) -> list[LetterView]:
    """At most `limit` letters, newest first: by number, and by partition where numbers are the same.

    `before` is number and partition behind which to go on. Raises PartitionNotHere when a partition cannot be read.
    """

    async def of_partition(partition: int) -> list[LetterView]:
        place = None if before is None else before[0] + (partition < before[1])
        pages = await _pages(request, LETTERS, partition, LetterQuery(wanted, limit, place))
        return [letter for page in pages for letter in page.items]

    found = await _of_all(request, of_partition)
    return list(heapq.merge(*found, key=attrgetter("place"), reverse=True))[:limit]


async def letter_groups(request: web.Request, wanted: LetterFilter) -> list[LetterGroup]:
    """What failed alike, most first. Raises as `newest_letters` does."""
    groups: dict[str, LetterGroup] = {}

    async def of_partition(partition: int) -> None:
        for page in await _pages(request, GROUPS, partition, LetterQuery(wanted)):
            for group in page.items:
                known = groups.get(group.fingerprint)
                groups[group.fingerprint] = group if known is None else known.plus(group)

    await _of_all(request, of_partition)
    return sorted(groups.values(), key=lambda group: (-group.count, -group.last_failed_ms, group.fingerprint))


async def candidates(
    request: web.Request, question: Question[CandidatePage], wanted: LetterFilter, limit: int
) -> Candidates:
    """The oldest `limit` letters that may be changed, and those met on the way that may not."""

    async def of_partition(partition: int) -> list[CandidatePage]:
        return await _pages(request, question, partition, LetterQuery(wanted, limit))

    pages = [page for found in await _of_all(request, of_partition) for page in found]
    chosen = sorted(
        (found for page in pages for found in page.items), key=lambda found: (found.number, found.partition)
    )
    refused = [found for page in pages for found in page.refused]
    return Candidates(chosen[:limit], refused[:REFUSED_MAX], sum(page.refused_count for page in pages))


R = TypeVar("R")


async def _of_all(request: web.Request, of_partition: Callable[[int], Awaitable[R]]) -> list[R]:
    return await asyncio.gather(*(of_partition(number) for number in range(request.app[ENGINE].settings.partitions)))


async def _pages(request: web.Request, question: Question[P], partition: int, query: LetterQuery) -> list[P]:
    """Pages of one partition: until it has no more, or `query.limit` items are there."""
    pages: list[P] = []
    while True:
        page = await _page(request, question, partition, query)
        pages.append(page)
        left = query.limit - len(page.items)
        if page.next is None or (query.limit and left <= 0):
            return pages
        query = replace(query, place=page.next, limit=left if query.limit else 0)
        await asyncio.sleep(0)


async def _page(request: web.Request, question: Question[P], partition: int, query: LetterQuery) -> P:
    task = task_here(request, partition)
    if task is not None:
        return await question.answer(task, query, request)
    asked = urlencode({"query": _encode_query(query).decode()})
    body = await ask_owner(request, partition, f"/internal/dead-letters/{partition}/{_names[id(question)]}?{asked}")
    if body is None:
        raise PartitionNotHere(f"partition {partition} is at a worker of another version; try again")
    return msgspec.json.decode(body, type=question.page)
