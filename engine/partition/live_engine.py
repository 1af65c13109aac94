"""The live engine: the engine with its partition tasks, as the parts of it that keep and watch them see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engine.calls.circuit import Pause
from engine.log.ports import TopicSpec
from engine.partition.task import PartitionTask
from engine.work.context import EngineContext


class LiveEngine(EngineContext, Protocol):
    """What a partition task needs, and the tasks themselves."""

    tasks: dict[int, PartitionTask]

    def topic_specs(self) -> Sequence[TopicSpec]:
        """Every topic of the application and a changelog for each table."""

    def pauses(self) -> list[Pause]:
        """Agents whose calls to the outside are paused while records wait for them."""

    def new_task(self, number: int) -> PartitionTask:
        """The next life of partition `number`, not yet started."""

    def resume(self, task: PartitionTask) -> None:
        """Let records flow into a partition from where its agents are, unless a rebalance is on."""

    def forget(self, task: PartitionTask) -> None:
        """The task's life is over."""

    def request_rejoin(self) -> bool:
        """Join the group anew, because this worker may own less than it believes; False where there is no group."""

    def die(self, message: str) -> None:
        """End the worker with a message: going on would need what only a new start gives."""
