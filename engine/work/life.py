"""One life of a partition: its state, its epoch, and the error that ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum

from engine.watchdog.stuck import StuckRecords
from engine.work.background import Background


class StaleBatch(Exception):
    """The batch belongs to an earlier life of its partition; its records come again."""


class TaskState(Enum):
    """State of a partition task."""

    RESTORING = "restoring"
    RUNNING = "running"
    SUSPENDED = "suspended"  # restored, but the group has not said that the partition is here
    CLOSED = "closed"


class Life:
    """One life of a partition; after any failure there is a new one.

    `failed` resolves with the error that ended it, and `on_end` is called then. What was fetched carries the `epoch` it
    was fetched in; what belongs to an earlier epoch is refused. `stuck` are the marks of records that handlers hung on.
    """

    def __init__(self, number: int, stuck: StuckRecords, on_end: Callable[[], None]) -> None:
        self.number = number
        self.stuck = stuck
        self.epoch = 0
        self.state = TaskState.RESTORING
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.background = Background(self.fail)
        self._on_end = on_end

    def is_running(self) -> bool:
        """Whether records are taken."""
        return self.state is TaskState.RUNNING

    def is_restored(self) -> bool:
        """Whether the start is over, and the end is not."""
        return self.state in (TaskState.RUNNING, TaskState.SUSPENDED)

    def check(self, epoch: int, topic: str) -> None:
        """Raise StaleBatch for what was fetched in an earlier epoch."""
        if epoch != self.epoch:
            raise StaleBatch(f"partition {self.number} was lost while {topic} was processed")

    def suspend(self) -> None:
        """Refuse everything that was fetched so far."""
        self.state = TaskState.SUSPENDED
        self.epoch += 1

    def close(self) -> None:
        """End without an error."""
        self.state = TaskState.CLOSED
        self.epoch += 1

    def fail(self, error: BaseException) -> None:
        """End with an error; the engine begins a new life."""
        if not self.failed.done():
            self.failed.set_result(error)
        self.close()
        self._on_end()
