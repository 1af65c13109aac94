"""Waiting for what becomes of a command: at the worker that owns its partition, which need not be the one asked."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from engine.log.ports import Position
from engine.partition.task import PartitionTask
from engine.web.answers import ENGINE, PASSING
from engine.web.freshness import Hop
from engine.web.routing import ROUTER, task_here
from engine.web.tokens import encode_token

_DONE: Final = (HTTPStatus.OK, HTTPStatus.CREATED)
_REFUSED: Final = (HTTPStatus.CONFLICT, HTTPStatus.GONE, HTTPStatus.UNPROCESSABLE_ENTITY)

Outcome = Callable[[PartitionTask], web.Response]
"""The answer to a command that is handled, from the rows of its partition; raises a problem when it was refused."""


async def wait_for_outcome(
    request: web.Request, hop: Hop, position: Position, outcome: Outcome, path: str, location: str, wait_s: float
) -> web.Response | None:
    """Return what became of the command at `position`, None when that takes longer or cannot be known now.

    `hop` is the agent that handles it. `path` is the (encoded) route by which another worker gives its `outcome`,
    `location` where the thing can be read that the command is about. Raises the problems of `outcome`.
    """
    number = position.partition
    try:
        task = task_here(request, number)
        if task is not None:
            offset = position.offset + 1
            is_handled = await task.waiters.wait(hop.agent, hop.topic.name, offset, wait_s, is_exact=True)
            return outcome(request.app[ENGINE].task(number)) if is_handled else None
        query = urlencode({"after": encode_token([position]), "timeout": f"{int(wait_s * 1000)}ms"})
        status, body = await request.app[ROUTER].ask(number, f"{path}?{query}", wait_s)
    except PASSING:
        return None
    if status in _DONE:
        return web.Response(body=body, status=status, content_type="application/json", headers={"Location": location})
    if status in _REFUSED:
        return web.Response(body=body, status=status, content_type="application/problem+json")
    return None
