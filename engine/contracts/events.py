"""The contracts of commands and events: what each is made of, in which topics, and with which keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from engine.contracts.schemas import Schema, Schemas, resolved
from engine.declare.envelope import Envelope, Message
from engine.declare.registry import EventRegistry
from engine.declare.topic import Published, Topic
from engine.failures.classify import DEAD_LETTER_HEADERS
from engine.failures.topics import DEAD_LETTERS

ENVELOPE: Final = "envelope"
DEAD_LETTER: Final = "dead-letter"

Kind = Literal["command", "event", "both"]
"""Who writes: outsiders, whose commands have to be taken; this system, whose events others read; or both."""


class Contract(msgspec.Struct, frozen=True, omit_defaults=True):
    """One version of a command or event; `topics` are keys by topic. `schema` is that of the payload alone.

    `aggregate_type` is that of the envelope, None where there is no envelope. `headers` are those of the record.
    """

    kind: Kind
    schema: Schema
    topics: Mapping[str, str] = {}
    aggregate_type: str | None = None
    version: int | None = None
    headers: Sequence[str] = ()


def name_of(message_class: type[Message]) -> str:
    """The name of a contract, such as `order.placed/1`."""
    return f"{message_class.event_type}/{message_class.schema_version}"


def kind_of(message_class: type[Message]) -> Literal["command", "event"]:
    """Commands name the field that holds their aggregate's id, as they come from any client."""
    return "event" if message_class.aggregate_id_field is None else "command"


class PublishedEvent(NamedTuple):
    """An event that a topic has for other systems, and the type of its value there."""

    topic: Topic
    published: Published
    event: type[Message]
    value: Any

    @property
    def name(self) -> str:
        """What its contract begins with, and its type."""
        return f"{self.published.name}.{self.event.event_type}"


def published_events(registry: EventRegistry, topics: Iterable[Topic]) -> list[PublishedEvent]:
    """Events of this application that topics have for other systems, in a shape of their own."""
    known = set(registry.classes.values())
    return [
        PublishedEvent(topic, topic.published, event, value)
        for topic in topics
        if topic.published is not None
        for event, value in topic.published.types().items()
        if event in known
    ]


def event_contracts(registry: EventRegistry, topics: Sequence[Topic]) -> dict[str, Contract]:
    """All contracts of an application by name."""
    classes = sorted(registry.classes.values(), key=lambda found: found.event_type)
    outside = published_events(registry, topics)
    schemas = Schemas([Envelope[msgspec.Raw], *classes, *(found.value for found in outside)])

    def schema(found: Any) -> Schema:
        return resolved(schemas.of(found), schemas.components)

    contracts = {ENVELOPE: Contract("both", schema(Envelope[msgspec.Raw]))}
    for found in classes:
        carried = {topic.name: topic.key for topic in topics if found in topic.carries}
        contracts[name_of(found)] = Contract(
            kind_of(found), schema(found), carried, found.aggregate_type, found.schema_version
        )
    for topic, published, event, value in outside:
        contracts[f"{published.name}/{event.event_type}"] = Contract(
            "event", schema(value), {topic.name: topic.key}, headers=published.headers
        )
    if DEAD_LETTERS in topics:
        contracts[DEAD_LETTER] = Contract(
            "event", {}, {DEAD_LETTERS.name: DEAD_LETTERS.key}, headers=DEAD_LETTER_HEADERS
        )
    return dict(sorted(contracts.items()))
