"""How long the log still keeps what agents have not read: asked before it is too late."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from engine.health.check import Check, some
from engine.partition.engine import Engine

SOON_S: Final = 86_400.0


class RetentionLeft(NamedTuple):
    """How long until the log may remove the oldest record that an agent has not handled; negative when it may now."""

    agent: str
    topic: str
    partition: int
    seconds: float


def retention_left(engine: Engine) -> Iterator[RetentionLeft]:
    """Agents behind which records of topics wait that are not kept for ever, in the partitions of this worker.

    The embedded log keeps what no agent has passed, whatever the retention.
    """
    if engine.settings.transport != "kafka":
        return
    now_ms = time.time() * 1000
    for number, task in engine.tasks.items():
        for (agent, name), oldest_ms in task.backlog.oldest_ms.items():
            retention_ms = engine.source_watch.retention_ms(name)
            if retention_ms is not None:
                yield RetentionLeft(agent, name, number, (oldest_ms + retention_ms - now_ms) / 1000)


def check_retention(engine: Engine) -> Check:
    """Does the log remove records soon that an agent has not read yet?"""
    near = [left for left in retention_left(engine) if left.seconds < SOON_S]
    if not near:
        return Check("unread records", True, "no record that an agent has not read is about to be removed")
    places = [
        f"{left.topic}/{left.partition} for {left.agent} "
        + (f"in {left.seconds / 3600:.1f} h" if left.seconds > 0 else "now")
        for left in sorted(near, key=lambda left: left.seconds)
    ]
    advice = (
        "keep these topics longer at once (kafka-configs.sh --alter --add-config retention.ms=...), then see what the "
        "agents wait for: a dead letter, a paused call, a worker that is away"
    )
    return Check("unread records", False, f"records that agents have not read may be removed: {some(places)}", advice)
