"""Newline-delimited JSON: a command per line, each taken or refused by itself, all published together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypedDict

from aiohttp import web

from engine import Topic
from engine.web import Problem, ProblemDetails, json_response, publish_commands, token_of

LINES_PER_SLICE = 100  # about 5 ms; the loop is then given back
PROBLEMS_MAX = 1000

LineCommand = Callable[[bytes, int], tuple[str, bytes]]
"""Key and record of a line, which is given with its number; raises a problem when it cannot be used."""


class LineProblem(ProblemDetails, frozen=True, kw_only=True):
    """A line that was refused, counted from 1, and why."""

    line: int


class LinesAccepted(TypedDict):
    """What became of the lines; the token stands for all commands together, null when nothing was accepted."""

    accepted: int
    rejected: int
    problems: list[LineProblem]
    token: str | None


async def take_lines(request: web.Request, topic: Topic, command_of: LineCommand) -> web.Response:
    """Publish a command for each line: 202 `{accepted, rejected, problems, token}`.

    `problems` holds `{line, title, status, detail, errors}` of the first 1000 rejected lines, counted from 1; blank
    lines are ignored. The token (null when nothing was accepted) stands for all commands together. The body has at most
    1 MiB, like every other.
    """
    commands: list[tuple[str, bytes]] = []
    problems: list[dict[str, Any]] = []
    rejected = 0
    for number, line in enumerate((await request.read()).split(b"\n"), start=1):
        if number % LINES_PER_SLICE == 0:
            await asyncio.sleep(0)
        if not line.strip():
            continue
        try:
            commands.append(command_of(line, number))
        except Problem as problem:
            rejected += 1
            if len(problems) < PROBLEMS_MAX:
                problems.append({"line": number, **problem.body})
    positions = await publish_commands(request, topic, commands) if commands else []
    answer = {
        "accepted": len(commands),
        "rejected": rejected,
        "problems": problems,
        "token": token_of(request, positions) if positions else None,
    }
    return json_response(answer, 202)
