"""What the engine asks of the consumer that feeds it."""

from collections.abc import Sequence
from typing import Protocol

from engine.log.ports import ClientState
from engine.work.fetched import Fetched


class TransportControl(Protocol):
    """How the engine steers the consumer it is fed by."""

    def clients(self) -> Sequence[ClientState]:
        """How the consumer's client does; empty where there is none."""

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Go on fetching at `offset`."""

    def wake(self) -> None:
        """Look again at what can be fetched."""

    def request_rejoin(self) -> bool:
        """Join the group anew: this worker may own less than it believes; False where there is no group to join."""

    def deliver(self, fetched: Fetched) -> None:
        """Hand a fetch that was not taken from the log to the agents of its topic."""
