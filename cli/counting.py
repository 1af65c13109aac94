"""What really became of the commands of an import, read from the events that followed from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from cli.order_history import Cancellation, Placement
from cli.report import Outcome

PENDING, CONFIRMED, CANCELLED = "pending", "confirmed", "cancelled"


class EventCount:
    """Counts events of orders, each order's in the order of its history."""

    def __init__(self) -> None:
        self._fate: dict[str, tuple[str, str]] = {}  # of orders placed by this import: status, and why
        self._placed = 0
        self._cancelled = 0
        self._cancelled_before = 0
        self._refused: Counter[str] = Counter()

    def note(self, event: Mapping[str, Any], command: Placement | Cancellation | None) -> None:
        """Count an event. `command` is the file's that it answers, None for what the order's saga did."""
        order_id, payload = event["aggregateId"], event["payload"]
        match event["eventType"]:
            case "order.placed":
                self._placed += 1
                self._fate[order_id] = PENDING, ""
            case "order.confirmed":
                self._fate[order_id] = CONFIRMED, ""
            case "order.cancelled" if command is not None:
                self._cancelled += 1
                self._fate.pop(order_id, None)
            case "order.cancelled":
                self._fate[order_id] = CANCELLED, payload.get("reason") or "no reason given"
            case "order.rejected" if command is not None:
                self._note_refusal(command, payload["reason"])

    def _note_refusal(self, command: Placement | Cancellation, reason: str) -> None:
        # The order's saga was faster: the order is cancelled, as the file wants it.
        if isinstance(command, Cancellation) and reason == "already_cancelled":
            self._cancelled_before += 1
        else:
            self._refused[reason] += 1

    def add_to(self, outcome: Outcome) -> None:
        """Put the counts into an outcome."""
        outcome.placed += self._placed
        outcome.cancelled += self._cancelled
        outcome.cancelled_before += self._cancelled_before
        outcome.refused += self._refused
        outcome.pending += sum(status == PENDING for status, _ in self._fate.values())
        outcome.confirmed += sum(status == CONFIRMED for status, _ in self._fate.values())
        outcome.cancelled_by_saga += Counter(reason for status, reason in self._fate.values() if status == CANCELLED)
