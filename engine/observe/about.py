"""What log lines tell of records and of their errors: enough to find them, and nothing of what is in them."""

from __future__ import annotations

import logging
from typing import Any

from engine.declare.errors import Unavailable
from engine.failures.classify import names_in, place_of, text_of
from engine.log.ports import Record

log = logging.getLogger(__name__)


def fields_of_record(topic: str, partition: int, record: Record, **more: Any) -> dict[str, Any]:
    """Where a record is and what it says of itself; `more` is what else is known, None what is not."""
    names = names_in(record.value)
    fields = {
        "topic": topic,
        "partition": partition,
        "offset": record.offset if record.offset >= 0 else None,  # a timer has none
        "event_type": names.event_type,
        "event_id": names.event_id,
        "aggregate_id": names.aggregate_id,
        "correlation_id": names.correlation_id,
        **more,
    }
    return {name: value for name, value in fields.items() if value is not None}


def about_record(topic: str, partition: int, record: Record, **more: Any) -> dict[str, Any]:
    """`extra` of a log line about a record."""
    return about(**fields_of_record(topic, partition, record, **more))


def about(**fields: Any) -> dict[str, Any]:
    """`extra` of a log line about something; None is left out."""
    return {"about": {name: value for name, value in fields.items() if value is not None}}


def told(error: BaseException) -> str:
    """An error that a record met, for the log: its type, and where it was raised.

    Its words may repeat what is in the record. They are told at DEBUG, and in the dead letter. Those of `Unavailable`
    are about somebody else.
    """
    name = type(error).__name__
    if isinstance(error, Unavailable) or log.isEnabledFor(logging.DEBUG):
        return f"{name}: {text_of(error)}"
    place = place_of(error)
    return f"{name} in {place}" if place else name
