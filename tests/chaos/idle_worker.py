"""A worker that takes commands of orders in and handles none: `python -m tests.chaos.idle_worker`."""

from __future__ import annotations

from engine.partition.engine import Engine
from engine.partition.task import PartitionTask
from tests.chaos.verifier import COMMANDS


def main() -> None:
    """Let no task take records of commands, and run the worker."""
    task_for = Engine.task_for

    def idle(engine: Engine, topic: str, number: int) -> PartitionTask | None:
        return None if topic == COMMANDS else task_for(engine, topic, number)

    Engine.task_for = idle  # type: ignore[method-assign, assignment]
    from cli import main as orders

    orders(["worker"])


if __name__ == "__main__":
    main()
