"""Faults: what is missing, damaged or stands still until a person decides, with what to do about it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from engine.observe.about import about

log = logging.getLogger(__name__)

FaultKey = tuple[str | int, ...]


class Fault(msgspec.Struct, frozen=True):
    """One finding: `kind` groups findings, `detail` says what is the matter, `advice` what to do without losing more.

    `partition` is the number that it concerns; None concerns the whole worker.
    """

    kind: str
    detail: str
    advice: str
    partition: int | None = None

    @property
    def sentence(self) -> str:
        """Finding and advice as one text."""
        return f"{self.detail}: {self.advice}"


class Faults:
    """The open faults of one worker: `/healthz` is 503 while there is one, and doctor, metrics and page show them.

    Report what does not pass by itself, or lasts; a commit that is repeated a moment later is no fault.
    """

    def __init__(self) -> None:
        self._open: dict[FaultKey, Fault] = {}

    def report(self, key: FaultKey, fault: Fault) -> None:
        """Open a fault, or replace the one with this key; the log has a line whenever its text changes."""
        if self._open.get(key) == fault:
            return
        self._open[key] = fault
        log.error("%s", fault.sentence, extra=about(partition=fault.partition) if fault.partition is not None else {})

    def clear(self, key: FaultKey) -> None:
        """The fault is over; nothing happens when it was not open."""
        fault = self._open.pop(key, None)
        if fault is not None:
            log.info("no longer so: %s", fault.detail)

    def forget_partition(self, number: int) -> None:
        """Another worker looks after this partition from now on, and its faults with it."""
        for key in [key for key, fault in self._open.items() if fault.partition == number]:
            del self._open[key]

    def open(self) -> Sequence[Fault]:
        """All open faults, the oldest first."""
        return tuple(self._open.values())

    def __contains__(self, key: FaultKey) -> bool:
        return key in self._open
