"""Waiting for what becomes of a command: at the worker that owns its partition, which need not be the one asked."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from engine.log.ports import Position
from engine.partition.task import PartitionTask
from engine.positions.tokens import encode_token
from engine.web.answers import ENGINE, PASSING, Problem
from engine.web.freshness import Step
from engine.web.routing import ROUTER, task_here

_DONE: Final = (HTTPStatus.OK, HTTPStatus.CREATED)
_REFUSED: Final = (HTTPStatus.CONFLICT, HTTPStatus.GONE, HTTPStatus.UNPROCESSABLE_ENTITY)

Outcome = Callable[[PartitionTask], web.Response]
"""The answer to a command that is handled, from the rows of its partition.

Raises a problem when it was refused, and Unprocessed when nothing came of it.
"""


class Unprocessed(Exception):
    """Nothing came of a command that its agent seems to have passed; `about` is what a problem says beside `detail`."""

    def __init__(self, detail: str, **about: Any) -> None:
        """Keep what is known."""
        super().__init__(detail)
        self.detail = detail
        self.about = about


async def wait_for_outcome(
    request: web.Request, hop: Step, position: Position, outcome: Outcome, path: str, location: str, wait_s: float
) -> web.Response | None:
    """Return what became of the command at `position`, None when that takes longer or cannot be known now.

    `hop` is the agent that handles it. `path` is the (encoded) route by which another worker gives its `outcome`,
    `location` where the thing can be read that the command is about. Raises the problems of `outcome`, and 410 or 500
    when nothing came of the command.
    """
    number = position.partition
    try:
        task = task_here(request, number)
        if task is not None:
            offset = position.offset + 1
            is_handled = await task.waiters.wait(hop.name, hop.topic.name, offset, wait_s, is_exact=True)
            return await _outcome(request.app[ENGINE].task(number), hop, outcome) if is_handled else None
        query = urlencode({"after": encode_token([position]), "timeout": f"{int(wait_s * 1000)}ms"})
        status, body = await request.app[ROUTER].ask(number, f"{path}?{query}", wait_s)
    except PASSING:
        return None
    if status in _DONE:
        return web.Response(body=body, status=status, content_type="application/json", headers={"Location": location})
    if status in _REFUSED:
        return web.Response(body=body, status=status, content_type="application/problem+json")
    return None


async def outcome_at(task: PartitionTask, hop: Step, outcome: Outcome) -> web.Response:
    """Return what became of a command that the agent of `hop` has passed, for another worker; 504 when not known now.

    Raises the problems of `outcome`, and 410 or 500 when nothing came of the command.
    """
    found = await _outcome(task, hop, outcome)
    if found is None:
        raise Problem(504, f"what became of the command cannot be known now: {hop.name} stands still")
    return found


async def _outcome(task: PartitionTask, hop: Step, outcome: Outcome) -> web.Response | None:
    """None when the agent's position says nothing about the log as it is now: the topic may have been made anew."""
    try:
        return outcome(task)
    except Unprocessed as nothing:
        detail, about, source = nothing.detail, nothing.about, (hop.name, hop.topic.name)
    if not await task.losses.fits(source):
        return None
    if accepted := task.losses.accepted(source):
        where = f"it is a dead letter of {hop.topic.name}, or among the records that are gone ({'; '.join(accepted)})"
        raise Problem(410, f"{detail}: {where}; to ask for what is gone again, use another Idempotency-Key", **about)
    raise Problem(500, f"{detail}: see the dead letters of {hop.topic.name}", **about)
