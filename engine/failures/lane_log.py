"""Log lines about records that fail, and about topics that stand still behind them; of many alike, only some."""

from __future__ import annotations

import logging
from typing import Any

from engine.declare.settings import Settings
from engine.failures.dead_letters import letter_id
from engine.failures.lanes import Lane
from engine.log.ports import Record
from engine.observe.about import about_record
from engine.observe.quiet import Quiet

log = logging.getLogger(__name__)


class LaneLog:
    """The lines of one partition."""

    def __init__(self, number: int, settings: Settings) -> None:
        self._settings = settings
        self._number = number
        self._quiet = Quiet()

    def failed(self, agent: str, topic: str, record: Record, said: str, error: BaseException, **more: Any) -> None:
        """Say what became of a record that failed; `more` are fields of the line."""
        name = type(error).__name__
        suppressed = self._quiet.may_speak(name)
        if suppressed is None:
            return
        log.warning(
            "%s/%d@%d %s%s",
            topic,
            self._number,
            record.offset,
            said,
            f" (and {suppressed:,} alike before)" if suppressed else "",
            extra=about_record(topic, self._number, record, **more, agent=agent, error_type=name),
        )

    def full(self, source: tuple[str, str], record: Record, lane: Lane | None, waiting: int) -> None:
        """Say that a topic stands still, with the figures of `records_waiting` and /aggregates/waiting."""
        if self._quiet.may_speak(f"full {source}") is None:
            return
        behind = ""
        if lane is not None:
            first = "one that is tried again"
            if lane.parked is not None:
                first = f"dead letter {letter_id(self._number, lane.parked)}: retry or discard it"
            behind = f", {len(lane) - 1} of them behind {first}"
        log.error(
            "%s/%d stands still for %s: %d records wait%s. See %s, %s and %s",
            source[1],
            self._number,
            source[0],
            waiting,
            behind,
            self._settings.application.command("dead-letters list"),
            self._settings.variable("waiting_per_aggregate_max"),
            self._settings.variable("waiting_max"),
            extra=about_record(source[1], self._number, record, agent=source[0]),
        )
