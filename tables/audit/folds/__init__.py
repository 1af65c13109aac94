"""What all folds share: the checks of an event as such, and where rows that it leads to are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from msgspec import UNSET

from engine import AnyTable, Envelope, Record, derived_id
from tables.audit.findings import (
    EVENT_IMPOSSIBLE,
    EVENT_MISPLACED,
    EVENT_REPEATED,
    ID_DIFFERS,
    VERSION_GAP,
    Findings,
)
from tables.audit.ledger import Entry, Ledger

RowLedger = Ledger[Entry[Any]]


class Fold(Protocol):
    """Turns the events of one topic into the rows that there should be."""

    ledgers: Mapping[AnyTable, RowLedger]
    """The rows that it has made, of each table that is compared as a whole."""

    def apply(self, record: Record, event: Envelope[Any]) -> None:
        """Take the next event in."""


class Subject:
    """The topic that a fold reads, and what is said about its events."""

    def __init__(self, topic: str, what: str, findings: Findings) -> None:
        self.topic = topic
        self._what = what
        self._findings = findings

    def impossible(self, record: Record, event: Envelope[Any], why: str) -> None:
        """An event cannot follow those before it."""
        self._say(EVENT_IMPOSSIBLE, record, f"{event.event_type} of {self._what} {event.aggregate_id}: {why}")

    def check_place(self, record: Record, event: Envelope[Any], key: str) -> None:
        """Is the event under the key that it belongs to?"""
        if record.key != key.encode():
            self._say(EVENT_MISPLACED, record, f"{event.event_type} of {event.aggregate_id} has the key {record.key!r}")

    def check_id(self, record: Record, event: Envelope[Any], steps: Sequence[str]) -> None:
        """Does the event's id follow from its cause, by one of these steps?"""
        cause = event.metadata.causation_id
        if cause is None or event.event_id not in [derived_id(cause, step) for step in steps]:
            detail = f"the id {event.event_id} of {event.event_type} does not follow from its cause {cause}"
            self._say(ID_DIFFERS, record, detail)

    def next_version(self, record: Record, event: Envelope[Any], before: int) -> int | None:
        """The version of the event, one more than the one before; None when an event of that version came before."""
        found = event.aggregate_version
        if found is UNSET or found == before + 1:
            return before + 1
        name = f"{self._what} {event.aggregate_id}"
        if found <= before:
            detail = f"event {found} of {name} came before: {event.event_type} with the id {event.event_id}"
            self._say(EVENT_REPEATED, record, detail)
            return None
        gone = f"event {before + 1}" if found == before + 2 else f"events {before + 1} to {found - 1}"
        self._say(VERSION_GAP, record, f"{gone} of {name} is missing before event {found}")
        return found

    def _say(self, kind: str, record: Record, detail: str) -> None:
        self._findings.add(kind, detail, self.topic, record.offset)
