"""The backlog of one life of a partition: fetches that agents have, or that wait for something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable


class Backlog:
    """Counts what was fetched and is not handled yet; `wake` has the transport look again at what can be fetched."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.queued: Counter[str] = Counter()  # fetches per topic that agents have not finished
        self.held: Counter[str] = Counter()  # fetches per topic that wait for something else, and keep others away
        self.oldest_ms: dict[tuple[str, str], int] = {}  # production time of the oldest record an agent has to handle
        self.busy_at = 0.0  # when records that do not linger came last, monotonic
        self.is_draining = False  # lingering fetches are being handled; a commit waits until all of them are
        self._wake = wake

    def is_through(self) -> bool:
        """Whether agents have finished everything that a commit waits for."""
        return not self.queued.total() and not self.is_draining

    def hold(self, topic: str) -> None:
        """A fetch of `topic` counts as waiting although its agent goes on; not one that a commit waits for."""
        self.held[topic] += 1

    def let_go(self, topic: str, fetches: int = 1) -> None:
        """Fetches that were held are handled: there is room for others."""
        self.held[topic] -= fetches
        self._wake()

    def finished(self, topic: str) -> None:
        """An agent is through with a fetch."""
        self.queued[topic] -= 1
        self._wake()

    def handled_all(self, source: tuple[str, str]) -> None:
        """No record of an agent in a topic waits for a call to the outside, or lingers, any more."""
        self.oldest_ms.pop(source, None)
        self._wake()

    def clear(self) -> None:
        """Forget what agents have; it is fetched again."""
        self.queued.clear()
        self.oldest_ms.clear()
