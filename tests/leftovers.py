"""End what a test has left running in its event loop: with a task that takes no cancellation, it would never close.

mode's supervisors are such tasks: an application that is not stopped outlives every cancellation.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterable
from typing import Any

from mode import Service

STOP_DEADLINE_S = 15.0  # workers promise to stop in 10 s
CANCEL_DEADLINE_S = 5.0
CANCEL_AGAIN_S = 0.1  # a task may take the second cancellation where it swallowed the first

Task = asyncio.Task[Any]

# Tasks that would not end: were they collected, the warnings about it would fail a test that has no part in it.
_kept: list[Task] = []


async def end_leftovers() -> list[str]:
    """Stop the applications that still run and cancel all other tasks; return a line for each thing that is wrong."""
    problems = [await _stop(service) for service in _running_services(_other_tasks())]
    left = await _cancel(_other_tasks())
    for task in left:
        asyncio._unregister_task(task)  # so that closing the loop does not wait for it
    _kept.extend(left)
    return problems + [f"a task takes no cancellation: {describe(task)}" for task in left]


def _other_tasks() -> set[Task]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def _running_services(tasks: Iterable[Task]) -> set[Service]:
    """Return the services at the root, usually applications, that run these tasks and were not told to stop."""
    owners = [owner for task in tasks if isinstance(owner := _owner(task), Service)]
    roots = {(owner.beacon.root or owner.beacon).data for owner in owners}
    return {root for root in roots if isinstance(root, Service) and not root.should_stop}


def _owner(task: Task) -> object:
    """Return the object whose method the task runs, if it runs one."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    return frame.f_locals.get("self") if frame is not None else None


async def _stop(service: Service) -> str:
    left = f"{service!r} was left running"
    stopping: asyncio.Task[None] = asyncio.ensure_future(service.stop())
    done, _ = await asyncio.wait({stopping}, timeout=STOP_DEADLINE_S)
    if not done:
        return f"{left} and does not stop: {describe(stopping)}"
    if not stopping.cancelled() and (error := stopping.exception()) is not None:
        return f"{left} and its stop failed: {error!r}"
    return left


async def _cancel(tasks: set[Task]) -> set[Task]:
    """Cancel tasks again and again until they end; return those that do not in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CANCEL_DEADLINE_S
    while tasks and loop.time() < deadline:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=CANCEL_AGAIN_S)
    return tasks


def describe(task: Task) -> str:
    """Return a task's name, its coroutine, and the line at which it waits."""
    stack = "".join(line for frame in task.get_stack() for line in traceback.format_stack(frame, limit=1))
    return f"{task.get_name()} {task.get_coro()!r}\n{stack}"
