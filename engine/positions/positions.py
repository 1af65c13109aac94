"""Positions: how far each agent is in each topic of its partition, kept in the store with the state it led to."""

from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from engine.declare.application import Application
from engine.declare.table import Table

LossKind = Literal["removed", "made anew", "cut off"]

REMOVED: Final = "removed"
MADE_ANEW: Final = "made anew"
CUT_OFF: Final = "cut off"


class AgentPosition(msgspec.Struct, frozen=True):
    """The next offset that `agent` will handle, of the topic with this id.

    The id is empty where it is not known: the broker has none, or a release wrote the row that did not ask for it.
    `cut_off_at` is where the partition ended when it was found to end before `offset`: it may have grown since.
    """

    agent: str
    topic: str
    offset: int
    topic_id: str = ""
    cut_off_at: int | None = None


POSITIONS: Table[str, AgentPosition] = Table(
    "positions", AgentPosition, help="each agent's next offset in each topic of the partition"
)


def position_key(agent: str, topic: str) -> str:
    """Key of an agent's position in a topic; neither name has a space."""
    return f"{agent} {topic}"


class Loss(msgspec.Struct, frozen=True):
    """Records that a topic no longer has and that `agent` needs or has relied on: offsets `first` to `end` - 1.

    `goes_on_at` is where the agent goes on when the loss is accepted. How many records of a topic that was made anew
    are missing is not known: `first` and `end` are then where the agent was.
    """

    kind: LossKind
    agent: str
    topic: str
    partition: int
    first: int
    end: int
    goes_on_at: int
    topic_id: str

    @property
    def records(self) -> int:
        """How many offsets are missing; 1 where that cannot be known."""
        return max(1, self.end - self.first)

    @property
    def detail(self) -> str:
        """What is missing, in words."""
        place, them = f"{self.topic}/{self.partition}", "it" if self.records == 1 else "them"
        if self.kind == REMOVED:
            return f"{place}: {self._missing()} removed before {self.agent} had read {them}"
        if self.kind == CUT_OFF:
            return (
                f"{place}: {self._missing()} cut off after {self.agent} had read {them}: the partition ended at "
                f"{self.goes_on_at} (a leader without all copies, or an older copy of the log)"
            )
        return (
            f"{place}: the topic was deleted and made anew; what {self.agent} had not read of the one before is gone, "
            f"and its position {self.first} says nothing about the new one"
        )

    def _missing(self) -> str:
        if self.records == 1:
            return f"1 record, offset {self.first}, was"
        return f"{self.records} records, offsets {self.first} to {self.end - 1}, were"

    def advice(self, application: Application) -> str:
        """What to do about it, without losing more."""
        accept = application.command(f"accept-loss {self.topic} {self.partition} --reason ...")
        return (
            "if their producer still has them, have them sent again; then let the agent go on at offset "
            f"{self.goes_on_at} with {accept}; "
            "everything else goes on meanwhile"
        )


class AcceptedLoss(msgspec.Struct, frozen=True):
    """A loss that a person has accepted, so that the agent could go on; `accepted_at_ms` is the worker's clock."""

    loss: Loss
    accepted_at_ms: int
    by: str
    reason: str

    @property
    def detail(self) -> str:
        """What is missing, and who has accepted that."""
        at = datetime.fromtimestamp(self.accepted_at_ms / 1000, UTC)
        return f"{self.loss.detail}; accepted by {self.by} on {at:%F %T}Z: {self.reason}"


ACCEPTED_LOSSES: Table[str, AcceptedLoss] = Table(
    "accepted-losses", AcceptedLoss, help="records that were lost, and who let the agents go on without them"
)


def accepted_loss_key(loss: Loss, at_ms: int) -> str:
    """Key of an accepted loss: those of one agent and topic are together, the oldest first."""
    return f"{loss.topic} {loss.agent} {at_ms:013d}"


def find_loss(position: AgentPosition, partition: int, topic_id: str, start: int, end: int) -> Loss | None:
    """What the topic lacks at an agent's position, None when the position fits.

    `topic_id` is the topic's id now, empty where the broker has none; the partition has the offsets `start` to
    `end` - 1.
    """
    at = position.offset

    def lost(kind: LossKind, first: int, behind: int, goes_on_at: int) -> Loss:
        return Loss(kind, position.agent, position.topic, partition, first, behind, goes_on_at, topic_id)

    if position.topic_id and topic_id and position.topic_id != topic_id:
        return lost(MADE_ANEW, at, at, start)
    if at < start:
        return lost(REMOVED, at, start, start)
    if position.cut_off_at is not None or at > end:
        cut_off_at = end if position.cut_off_at is None else position.cut_off_at
        return lost(CUT_OFF, cut_off_at, at, cut_off_at)
    return None
