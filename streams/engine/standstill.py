"""Who stands still in a partition, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.engine.partition_task import PartitionTask


def without_room(task: PartitionTask) -> Sequence[tuple[str, str]]:
    """Agents and topics whose next record has to wait in its lane, and finds no room there."""
    return sorted({*task.stalled.sources(), *task.calls.stalled()})
