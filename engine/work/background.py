"""Background work: tasks and timers that run beside their owner, which hears of every error that ends one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any

log = logging.getLogger(__name__)


class Background:
    """Tasks and timers of one owner.

    `on_error` is called before anything else runs: what an error has left half done must not be committed meanwhile.
    A task that its owner has cancelled ends without an error; one that is cancelled by something else does not.
    """

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself would let go of them

    def run(self, work: Coroutine[Any, Any, object], name: str, context: Context | None = None) -> asyncio.Task[None]:
        """Run a coroutine as a task; the owner may cancel it."""
        task = asyncio.get_running_loop().create_task(self._watch(work), name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, work))
        return task

    def _ended(self, work: Coroutine[Any, Any, object], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        work.close()  # it has not even begun when the task was cancelled at once

    def later(self, delay_s: float, function: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        """Call a function in `delay_s` seconds."""
        return asyncio.get_running_loop().call_later(delay_s, self.call, function, *args)

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function whose error nothing else would hear of, such as the loop's callbacks."""
        try:
            function(*args)
        except BaseException as error:
            if must_pass(error):
                raise
            self._on_error(error)

    async def _watch(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except BaseException as error:
            if must_pass(error):
                raise
            self._on_error(error)


def must_pass(error: BaseException) -> bool:
    """Whether an error ends the process, or comes from the cancellation of the running task.

    A CancelledError may also come from something that the task awaits; then it is an error like any other.
    """
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return True
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


async def outcome(work: Coroutine[Any, Any, object], name: str) -> BaseException | None:
    """Run a coroutine to its end, also when the caller is cancelled meanwhile; the error that ended it."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    await asyncio.wait([task])
    return error_of(task)


def error_of(task: asyncio.Future[Any]) -> BaseException | None:
    """What ended a future that is done, a cancellation included."""
    if task.cancelled():
        return asyncio.CancelledError("it was cancelled")
    return task.exception()


async def repeat(look: Callable[[], Awaitable[float]], name: str, pause_after_error_s: float) -> None:
    """Look again and again, after as many seconds as the look says; `name` is its watch, for the log."""
    while True:
        try:
            pause_s = await look()
        except Exception:  # a mistake in a look must not end the next ones
            log.exception("the %s failed", name)
            pause_s = pause_after_error_s
        await asyncio.sleep(pause_s)


def disregard(future: asyncio.Future[Any]) -> None:
    """Look at the end of a future that nothing waits for any more."""
    future.add_done_callback(error_of)
