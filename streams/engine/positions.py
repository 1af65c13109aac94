"""Positions: how far each agent is in each topic of its partition, kept in the store with the state it led to."""

import msgspec

from streams.engine.table import Table


class AgentPosition(msgspec.Struct, frozen=True):
    """The next offset that `agent` will handle."""

    agent: str
    topic: str
    offset: int


POSITIONS: Table[str, AgentPosition] = Table(
    "positions", AgentPosition, help="each agent's next offset in each topic of the partition"
)


def position_key(agent: str, topic: str) -> str:
    """Key of an agent's position in a topic; neither name has a space."""
    return f"{agent} {topic}"
