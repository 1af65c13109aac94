"""What is being handled in this process right now, for the watchdog to look at; see watchdog.py.

Handlers run in one thread and one at a time, so there is one place for it. Records pay two attribute stores for it
(about 15 ns together), and one small object for each slice.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

from engine.log.ports import Record
from engine.watchdog.stuck import StuckRecords

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


class Handling:
    """Who handles records: an agent in one slice, or one timer.

    A new object each time, so that turns can be told apart. `stuck` are the marks of its partition.
    """

    __slots__ = ("agent", "stuck", "topic")

    def __init__(self, agent: str, topic: str, stuck: StuckRecords) -> None:
        self.agent = agent
        self.topic = topic
        self.stuck = stuck


class Watch:
    """The record whose handler runs now, None while none does, and who handles it (or did so last)."""

    __slots__ = ("by", "record")

    def __init__(self) -> None:
        self.by: Handling | None = None
        self.record: Record | None = None


WATCH: Final = Watch()
BOUNDARIES: Final[set[types.CodeType]] = set()


def boundary(function: F) -> F:
    """Mark the code that sets WATCH around a handler: the frames above its own are those of the handler."""
    BOUNDARIES.add(function.__code__)
    return function


@boundary
def watched(by: Handling, record: Record, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call what handles `record`; raises HandlerTimeout for one that is marked as stuck, without calling it."""
    by.stuck.check(by.agent, by.topic, record)
    WATCH.by = by
    try:
        WATCH.record = record
        return function(*args, **kwargs)
    finally:
        WATCH.record = None


@boundary
@types.coroutine
def watched_steps(by: Handling, record: Record, call: Coroutine[Any, Any, R]) -> Generator[Any, Any, R]:
    """Await `call` with an eye on each of its steps: it may wait for long, but not keep the event loop for long."""
    step = partial(call.send, None)
    while True:
        WATCH.by = Handling(by.agent, by.topic, by.stuck)
        try:
            WATCH.record = record
            awaited = step()
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            WATCH.record = None
        try:
            step = partial(call.send, (yield awaited))
        except BaseException as error:  # as `await` does: the call may answer it, a cancellation above all
            step = partial(call.throw, error)
