"""Events as views show them: as they were published, with snake_case names, without the fields that stay hidden."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, NotRequired, TypedDict

import msgspec

from engine.declare.envelope import TimeText
from engine.declare.registry import EventRegistry

_CAPITAL: Final = re.compile(r"(?<!^)(?=[A-Z])")


class EventMetadataView(TypedDict):
    """Where an event comes from."""

    correlation_id: str | None
    causation_id: str | None
    user_id: str | None


class EventView(TypedDict):
    """An event as it was published, with snake_case names; its payload is that of `event_type`, see /asyncapi.json."""

    event_id: str
    event_type: str
    aggregate_id: str
    aggregate_type: str
    timestamp: TimeText
    version: int
    metadata: EventMetadataView
    payload: dict[str, Any]
    aggregate_version: NotRequired[int]


def event_views(events: Iterable[bytes], registry: EventRegistry) -> list[EventView]:
    """Encoded envelopes with snake_case names; the `hidden_fields` of their classes are left out."""
    views: list[EventView] = [snake_case(msgspec.json.decode(value)) for value in events]
    for view in views:
        found = registry.classes.get(view["event_type"])
        for name in found.hidden_fields if found is not None else ():
            view["payload"].pop(name, None)
    return views


def snake_case(value: Any) -> Any:
    """The same JSON value with all names in snake_case."""
    if isinstance(value, dict):
        return {_CAPITAL.sub("_", name).lower(): snake_case(member) for name, member in value.items()}
    if isinstance(value, list):
        return [snake_case(member) for member in value]
    return value
