"""Asking queries: a partition that is here answers by the query's function, any other by its owner's route."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import msgspec
from aiohttp import web

from engine.declare.partition import Query
from engine.declare.service import Service
from engine.partition.engine import PartitionNotHere
from engine.web.answers import ENGINE, Problem, encode_json, json_response, problem_of
from engine.web.routing import ROUTER, task_here

A = TypeVar("A")
T = TypeVar("T")

service = Service("queries")

PATH: Final = "/internal/queries"
ASK_TIMEOUT_S: Final = 5.0
QUERIES: web.AppKey[Mapping[str, Query[Any, Any]]] = web.AppKey("queries", dict)

# Problems of the query itself, which are the client's to know. Others are of two workers that do not go together now.
_TOLD: Final = frozenset({409, 410, 422, 504})


def queries_of(services: Iterable[Service]) -> dict[str, Query[Any, Any]]:
    """All queries of an application, by name; raises ValueError when two have the same."""
    found: dict[str, Query[Any, Any]] = {}
    for query in (query for service in services for query in service.queries):
        if found.setdefault(query.name, query) is not query:
            raise ValueError(f"two services declare a query {query.name}")
    return found


async def ask(request: web.Request, query: Query[A, T], number: int, asked: A, timeout_s: float = ASK_TIMEOUT_S) -> T:
    """Return the answer of partition `number`, wherever it is; its owner gets `timeout_s` seconds for it.

    Raises the problems of the query, and PartitionNotHere (503) when the partition cannot be read now or its worker is
    of a release that has another query, or none, under this name.
    """
    task = task_here(request, number)
    if task is not None:
        return await query(request.app[ENGINE], task, asked)
    path = f"{PATH}/{quote(query.name, safe='')}/{number}?{urlencode({'asked': encode_json(asked)})}"
    method = "POST" if query.changes else "GET"
    headers = {name: request.headers[name] for name in ("Authorization",) if name in request.headers}
    status, body = await request.app[ROUTER].ask(number, path, timeout_s, headers, method)
    if status in _TOLD:
        raise problem_of(status, body)
    if status in (400, 404):
        raise _another_version(number)
    if status != 200:
        raise PartitionNotHere(f"partition {number} is moving to another worker; try again")
    try:
        return query.decode_answer(body)
    except msgspec.DecodeError as error:
        raise _another_version(number) from error


async def ask_all(request: web.Request, query: Query[A, T], asked: A, timeout_s: float = ASK_TIMEOUT_S) -> list[T]:
    """Return the answers of all partitions, in the order of their numbers.

    Raises as `ask` does, also when one partition alone cannot be read: nothing is left out silently.
    """
    numbers = range(request.app[ENGINE].settings.partitions)
    return await asyncio.gather(*(ask(request, query, number, asked, timeout_s) for number in numbers))


def _another_version(number: int) -> PartitionNotHere:
    return PartitionNotHere(f"partition {number} is at a worker of another version; try again")


async def answer(request: web.Request, changes: bool) -> Any:
    """Answer another worker's query about an own partition; raises problems: 404 for an unknown query, 400 for what it
    cannot be asked.
    """
    query, number = request.app[QUERIES].get(request.match_info["name"]), request.match_info["number"]
    if query is None or query.changes is not changes or not (number.isascii() and number.isdecimal()):
        raise Problem(404, f"there is no {request.path}")
    try:
        asked = query.decode_asked(request.query.get("asked", ""))
    except msgspec.DecodeError as error:
        raise Problem(400, f"asked: {error}") from error
    engine = request.app[ENGINE]
    return await query(engine, engine.task(int(number)), asked)


@service.route("GET", f"{PATH}/{{name}}/{{number}}")
async def answer_query(request: web.Request) -> web.StreamResponse:
    """For other workers: what a query finds in an owned partition; `?asked=` is JSON of the query's own type."""
    return json_response(await answer(request, changes=False))


@service.route("POST", f"{PATH}/{{name}}/{{number}}")
async def answer_change(request: web.Request) -> web.StreamResponse:
    """For other workers: the same of a query that changes something."""
    return json_response(await answer(request, changes=True))
