"""Freshness: a read with a token waits until its view shows at least what the token stands for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import msgspec
from aiohttp import web

from engine.declare.agent import Agent
from engine.declare.operation import Parameter, implies
from engine.declare.topic import Topic
from engine.log.ports import Position, TransportError
from engine.partition.engine import Engine, PartitionNotHere
from engine.partition.task import PartitionTask
from engine.positions.tokens import InvalidToken, Token, decode_token, topic_mark
from engine.web.answers import ENGINE, TIMEOUT_S, Problem, invalid
from engine.web.parameters import duration
from engine.web.routing import ROUTER, partition_of, task_here
from engine.work.waiters import Wanted

END_TIMEOUT_S = 5.0
AFTER = Parameter("after", "a token of a write: what is shown is never older than it", problems=(410, 504))
TIMEOUT = duration("timeout", "how long to wait for what is to be shown, such as 2s or 500ms, at most 30s", TIMEOUT_S)
FRESHNESS = (AFTER, TIMEOUT)
"""The parameters that `catch_up` reads."""

KeyedRoute = Callable[[web.Request, PartitionTask], Awaitable[web.StreamResponse]]
RouteFunction = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Hop(NamedTuple):
    """An agent by its name and topic, for modules that cannot import the agent itself."""

    name: str
    topic: Topic


Step = Agent[Any] | Hop
"""One step of a command on its way into a view: the agent that takes it from its topic."""

Path = Sequence[Step]
"""All steps from a command to a view; the last one writes the view, in the partition of the view's key."""


def by_key(name: str, path: Path) -> Callable[[KeyedRoute], RouteFunction]:
    """Decorate a route that reads rows of one key, `{name}` in its own path: the owner of the key's partition answers.

    The function gets the owner's partition task when it is not older than the request's `?after=`.
    """
    return by_partition(lambda request: partition_of(request, request.match_info[name]), path, key_name=name)


def by_partition(
    number_of: Callable[[web.Request], int], path: Path, key_name: str | None = None
) -> Callable[[KeyedRoute], RouteFunction]:
    """Decorate a route that reads rows of one partition, as `by_key` does; `number_of` may raise problems."""

    def decorate(function: KeyedRoute) -> RouteFunction:
        @wraps(function)
        async def route(request: web.Request) -> web.StreamResponse:
            number = number_of(request)
            task = task_here(request, number)
            if task is None:
                return await request.app[ROUTER].forward(request, number)
            if request.query_string:
                key = request.match_info[key_name].encode() if key_name is not None else None
                await catch_up(request, path, number, key)
                task = request.app[ENGINE].task(number)
            return await function(request, task)

        implies(route, FRESHNESS)
        return route

    return decorate


async def catch_up(request: web.Request, path: Path, number: int | None, key: bytes | None = None) -> None:
    """Wait until partition `number` of the view at the end of `path` is not older than the request's `?after=`.

    None stands for all partitions, for views that are gathered from them. An agent that has passed a record which has
    to wait, because one before it failed, has not handled it: the record of the token, and all of the view's `key`,
    are waited for.

    The token's position is resolved hop by hop: once an agent has passed it, what the agent made of it is in the next
    topic, before that topic's end as of then; so the next agent is waited for there. Without a token nothing is waited
    for. Raises problems: 422 for a token that is none, 504 with the lag after `?timeout=` (2 s), 410 for a token of a
    record that the log has lost, 503 when a partition moves meanwhile.
    """
    if not request.query_string:
        return
    timeout_s, token = TIMEOUT.read(request), request.query.get(AFTER.name)
    if token is None:
        return
    positions, marks = _read_token(request.app[ENGINE], token)
    deadline = asyncio.get_running_loop().time() + timeout_s
    came_through = False
    for index, hop in enumerate(path):
        numbers = {number} if number is not None and index == len(path) - 1 else None
        wanted = _wanted(positions, hop)
        if came_through:
            wanted = await _ends(request.app[ENGINE], hop.topic.name, numbers)
        if numbers is not None:
            wanted = {partition: offset for partition, offset in wanted.items() if partition in numbers}
        last_key = key if numbers is not None else None
        mark = None if came_through else marks.get(hop.topic.name)
        waits = [
            wait_at(request, hop, at, Wanted(offset, not came_through, last_key, mark), deadline)
            for at, offset in wanted.items()
        ]
        await asyncio.gather(*waits)
        came_through = came_through or bool(wanted)


async def catch_up_with_now(request: web.Request, hops: Sequence[Step]) -> None:
    """Wait until each hop's agent has committed all that is in its topic at this moment, in all partitions.

    For views that compare what several agents made of different topics. Raises problems as `catch_up` does.
    """
    deadline = asyncio.get_running_loop().time() + TIMEOUT.read(request)
    ends = await asyncio.gather(*(_ends(request.app[ENGINE], hop.topic.name, None) for hop in hops))
    waiting = [
        wait_at(request, hop, number, Wanted(offset), deadline)
        for hop, wanted in zip(hops, ends, strict=True)
        for number, offset in wanted.items()
    ]
    await asyncio.gather(*waiting)


def _read_token(engine: Engine, text: str) -> Token:
    try:
        token = decode_token(text)
    except InvalidToken as error:
        raise invalid(AFTER.name, str(error)) from error
    if any(at.topic not in engine.topics or at.partition >= engine.settings.partitions for at in token.positions):
        raise invalid(AFTER.name, "not a token of this application")
    return token


def _wanted(positions: Sequence[Position], hop: Step) -> dict[int, int]:
    """The offset to be reached in each partition of the hop's topic."""
    return {at.partition: at.offset + 1 for at in positions if at.topic == hop.topic.name}


async def _ends(engine: Engine, topic: str, numbers: set[int] | None) -> dict[int, int]:
    listed = sorted(numbers if numbers is not None else range(engine.settings.partitions))
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            offsets = await asyncio.gather(*(engine.broker.end_offset(topic, number) for number in listed))
    except TimeoutError as error:
        raise TransportError(f"the broker did not tell the end of {topic} within {END_TIMEOUT_S:.0f} s") from error
    return dict(zip(listed, offsets, strict=True))


async def wait_at(request: web.Request, hop: Step, number: int, wanted: Wanted, deadline: float) -> None:
    """Wait until the hop's agent has committed what is wanted of partition `number`, wherever that is.

    `deadline` is the loop's time. Raises a 504 problem with the lag when it passes.
    """
    timeout_s = max(0.0, deadline - asyncio.get_running_loop().time())
    task = task_here(request, number)
    if task is None:
        await _wait_elsewhere(request, hop, number, wanted, timeout_s)
    else:
        await wait_here(task, hop.name, hop.topic.name, wanted, timeout_s)


async def wait_here(task: PartitionTask, agent: str, topic: str, wanted: Wanted, timeout_s: float) -> None:
    """Wait until an agent of this partition has committed what is wanted.

    Raises problems: 504 with the lag, at once when the agent stands still; 410 when the log has not got the record of
    the token any more, or the topic is not the one that the token counts.
    """
    _check_topic(task, agent, topic, wanted)
    if wanted.is_exact and (gone := task.losses.gone((agent, topic), wanted.offset - 1, wanted.mark)) is not None:
        raise lost(f"the record of the token is gone: {gone}")
    if task.has_done(agent, topic, wanted):
        return
    lag_records = max(0, wanted.offset - task.reached(agent, topic))
    if (loss := task.losses.of((agent, topic))) is not None:
        detail = f"{agent} stands still in {topic}, partition {task.number}: {loss.detail}"
        raise _behind(detail, lag_records, agent, topic, task.number)
    if await task.waiters.wait(agent, topic, wanted.offset, timeout_s, is_exact=wanted.is_exact, key=wanted.key):
        _check_topic(task, agent, topic, wanted)  # somebody may have let the agent go on in another one meanwhile
        return
    lag_records = max(0, wanted.offset - task.reached(agent, topic))
    if wanted.is_exact and await task.losses.is_beyond_end(topic, wanted.offset - 1):
        detail = (
            f"the token stands for offset {wanted.offset - 1} of {topic}, partition {task.number}, which lies beyond "
            "its end: it was never written to the topic as it is now, which may have been made anew or cut off"
        )
        raise _behind(detail, lag_records, agent, topic, task.number)
    raise too_late(agent, topic, task.number, lag_records)


def _check_topic(task: PartitionTask, agent: str, topic: str, wanted: Wanted) -> None:
    """Raise a 410 problem when a token counts another topic than the one whose records the agent handles, or would."""
    source, counted = (agent, topic), task.losses.topic_id((agent, topic))
    if wanted.mark is None or not counted or wanted.mark == topic_mark(counted):
        return
    loss = task.losses.of(source)
    if loss is None or wanted.mark != topic_mark(loss.topic_id):
        raise lost(
            f"the token stands for offset {wanted.offset - 1} of {topic}, partition {task.number}, as it was before it "
            "was deleted and made anew: whether its record was handled cannot be told any more"
        )


def lost(detail: str) -> Problem:
    """A 410: what the token stands for will never be shown."""
    return Problem(410, detail)


async def _wait_elsewhere(request: web.Request, hop: Step, number: int, wanted: Wanted, timeout_s: float) -> None:
    asked = {"agent": hop.name, "offset": wanted.offset, "timeout": f"{int(timeout_s * 1000)}ms"}
    if wanted.is_exact:
        asked["exact"] = 1
    if wanted.key is not None:
        asked["key"] = wanted.key
    if wanted.mark is not None:
        asked["mark"] = wanted.mark
    path = f"/internal/positions/{quote(hop.topic.name, safe='')}/{number}?{urlencode(asked)}"
    status, body = await request.app[ROUTER].ask(number, path, timeout_s)
    if status in (410, 504):
        found: Mapping[str, Any] = msgspec.json.decode(body)
        if status == 410:
            raise lost(found["detail"])
        raise _behind(found["detail"], found["lag_records"], hop.name, hop.topic.name, number)
    if status != 200:
        raise PartitionNotHere(f"partition {number} is moving to another worker; try again")


def too_late(agent: str, topic: str, number: int, lag_records: int) -> Problem:
    """A 504: the view is still older than the token. `lag_records` is how far it is behind, in offsets."""
    behind = f"{lag_records} records behind the token" if lag_records else "at the token, but a record waits there"
    detail = f"{agent} is {behind} in {topic}, partition {number}; try again, or wait longer"
    return _behind(detail, lag_records, agent, topic, number)


def _behind(detail: str, lag_records: int, agent: str, topic: str, number: int) -> Problem:
    return Problem(504, detail, lag_records=lag_records, agent=agent, topic=topic, partition=number)
