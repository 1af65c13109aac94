"""A cut: rows, positions and topics of one partition as of the same commit, while the partition goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from engine.failures.classify import InfrastructureError
from engine.log.ports import Broker, TransportError
from engine.partition.task import PartitionTask
from engine.positions.positions import POSITIONS, AgentPosition, position_key
from engine.store.snapshot import StoreSnapshot

CUT_TIMEOUT_S: Final = 10.0  # commits wait meanwhile: less than a transaction may stay open


class Cut(NamedTuple):
    """What belongs together: `rows` are those that the records before `ends` and before the agents' positions left.

    `starts` and `ends` are offsets by topic. The partition task is the only writer of the topics that it derives from
    its own records, so that their ends are exact; of other topics only what lies before a position counts.
    """

    rows: StoreSnapshot
    starts: Mapping[str, int]
    ends: Mapping[str, int]

    def position(self, agent: str, topic: str) -> int:
        """The offset before which everything of `topic` is handled by `agent`."""
        row: AgentPosition | None = self.rows.read(POSITIONS, position_key(agent, topic))
        return row.offset if row is not None else 0


async def take_cut(task: PartitionTask, broker: Broker, topics: Sequence[str]) -> Cut:
    """Cut a partition between two of its commits, which wait for it for as long as the log needs to tell its ends.

    Close the cut's rows when done. Raises TransportError when the log does not answer in time, InfrastructureError when
    the partition is moving.
    """
    epoch, number = task.life.epoch, task.number
    reader = broker.reader(number, topics)
    try:
        async with asyncio.timeout(CUT_TIMEOUT_S):
            await reader.start()
            starts = {topic: start for topic, (start, _) in (await reader.bounds()).items()}
            async with task.work.between_commits():
                ends = await asyncio.gather(*(broker.end_offset(topic, number) for topic in topics))
                if task.life.epoch != epoch or not task.life.is_running():
                    raise InfrastructureError(f"partition {number} is moving; try again")
                rows = task.snapshot()
    except TimeoutError as error:
        raise TransportError(f"the log did not tell the ends of partition {number} in {CUT_TIMEOUT_S:.0f} s") from error
    finally:
        await reader.close()
    return Cut(rows, starts, dict(zip(topics, ends, strict=True)))
