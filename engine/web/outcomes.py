"""Waiting for what becomes of a command: at the worker that owns its partition, which need not be the one asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from engine.declare.partition import Partition, Query
from engine.log.ports import Position
from engine.partition.engine import Engine
from engine.partition.task import PartitionTask
from engine.web.answers import PASSING, Problem
from engine.web.freshness import Step
from engine.web.routes.queries import ask

T = TypeVar("T")


class CommandAsked(msgspec.Struct, frozen=True):
    """A command about `key` that its agent has handled before `offset`; waited for at most `wait_s` seconds."""

    key: str
    command_id: str
    offset: int
    wait_s: float


class Unprocessed(Exception):
    """Nothing came of a command that its agent seems to have passed; `about` is what a problem says beside `detail`."""

    def __init__(self, detail: str, **about: Any) -> None:
        """Keep what is known."""
        super().__init__(detail)
        self.detail = detail
        self.about = about


async def wait_for_outcome(
    request: web.Request,
    query: Query[CommandAsked, T | None],
    position: Position,
    key: str,
    command_id: str,
    wait_s: float,
) -> T | None:
    """Return what became of the command at `position`, None when that takes longer or cannot be known now.

    `query` gives it with `outcome_of`. Raises the problems of that.
    """
    asked = CommandAsked(key, command_id, position.offset + 1, wait_s)
    try:
        return await ask(request, query, position.partition, asked, wait_s)
    except PASSING:
        return None


async def outcome_of(
    engine: Engine, task: PartitionTask, asked: CommandAsked, hop: Step, outcome: Callable[[Partition], T]
) -> T | None:
    """Return what became of a command once the agent of `hop` has handled it, None when that is not known in time.

    `outcome` finds it in the rows of the partition; it raises a problem when the command was refused, and Unprocessed
    when nothing came of it, which is a 410 or 500 problem.
    """
    if not await task.waiters.wait(hop.name, hop.topic.name, asked.offset, asked.wait_s, is_exact=True):
        return None
    return await _outcome(engine.task(task.number), hop, outcome)


async def _outcome(task: PartitionTask, hop: Step, outcome: Callable[[Partition], T]) -> T | None:
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
