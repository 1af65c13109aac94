"""Accepting losses: a person lets the agents of a topic go on behind records that are gone, and it is written down."""

from __future__ import annotations

import time
from collections.abc import Sequence

from engine.failures.classify import InfrastructureError
from engine.partition.engine import Engine
from engine.positions.positions import AcceptedLoss


async def accept_losses(engine: Engine, topic: str, number: int, by: str, reason: str) -> Sequence[AcceptedLoss]:
    """Let all agents of a topic's partition go on behind what is missing there now; nothing is done where nothing is.

    Returns what was accepted, once it is committed. Raises PartitionNotHere, TransportError, and InfrastructureError
    when the partition goes away meanwhile.
    """
    task = engine.task(number)
    await task.losses.look([topic])
    await task.suspend()
    accepted = task.losses.accept(topic, by, reason, int(time.time() * 1000))
    await task.work.settle()
    if task.life.failed.done():
        raise InfrastructureError(f"partition {number} is moving; ask again")
    task.losses.forget_accepted(topic)
    engine.resume(task)
    return accepted
