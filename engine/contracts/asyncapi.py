"""The contract of the topics: an AsyncAPI 3.0 document of the commands and events that they carry."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from engine.contracts.events import DEAD_LETTER, PublishedEvent, kind_of, published_events
from engine.contracts.examples import example, on_the_wire
from engine.contracts.schemas import REF_PREFIX, Schema, Schemas
from engine.declare.envelope import Envelope, Message
from engine.declare.registry import EventRegistry
from engine.declare.service import Service
from engine.declare.settings import Settings
from engine.declare.topic import Topic
from engine.failures.classify import DEAD_LETTER_HEADERS
from engine.failures.topics import DEAD_LETTERS

BINDING_VERSION: Final = "0.5.0"
JSON: Final = "application/json"
_ENVELOPE: Final = Envelope[msgspec.Raw]


def asyncapi(
    services: Sequence[Service], registry: EventRegistry, topics: Sequence[Topic], settings: Settings
) -> dict[str, Any]:
    """The document; its schemas are those of the registered types, its examples are encoded as records are."""
    outside = published_events(registry, topics)
    schemas = Schemas([_ENVELOPE, *registry.classes.values(), *(found.value for found in outside)])
    named = {
        **schemas.components,
        **{found.event_type: _enveloped(found, schemas) for found in registry.classes.values()},
        **{found.name: _other_shape(found, schemas) for found in outside},
    }
    document: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {
            "title": settings.application.heading,
            "version": settings.application.release,
            "description": f"Commands and events of {settings.application.described}. A record's key decides its "
            "partition, by Kafka's default partitioner (murmur2). Any client may produce commands; events have one "
            "writer each and are to be read with `read_committed`. Unknown fields are ignored. Changelogs of tables "
            "are not part of this.",
        },
        "defaultContentType": JSON,
        "channels": {
            topic.name: _channel(
                topic, _messages(topic, registry, outside, settings.application.example_values), settings
            )
            for topic in sorted(topics, key=lambda topic: topic.name)
        },
        "operations": _operations(services),
        "components": {"schemas": dict(sorted(named.items()))},
    }
    if settings.transport == "kafka":
        protocol = "kafka-secure" if settings.kafka_security_protocol in ("SSL", "SASL_SSL") else "kafka"
        hosts = settings.bootstrap_servers
        document["servers"] = {
            f"kafka-{number}": {"host": host, "protocol": protocol} for number, host in enumerate(hosts, start=1)
        }
    return document


# ---- schemas of whole values


def _enveloped(found: type[Message], schemas: Schemas) -> Schema:
    """The envelope around a payload of this type."""
    fixed = {"eventType": found.event_type, "aggregateType": found.aggregate_type, "version": found.schema_version}
    if kind_of(found) == "command":
        del fixed["aggregateType"]  # whatever clients say there is taken
    members: Schema = {name: {"const": value} for name, value in fixed.items()}
    return {"allOf": [schemas.of(_ENVELOPE), {"properties": members | {"payload": schemas.of(found)}}]}


def _other_shape(found: PublishedEvent, schemas: Schemas) -> Schema:
    return {"allOf": [schemas.of(found.value), {"properties": {"event_type": {"const": found.event.event_type}}}]}


# ---- channels


def _channel(topic: Topic, messages: dict[str, Any], settings: Settings) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "cleanup.policy": ["compact"] if topic.compacted else ["delete"],
        "retention.ms": -1 if topic.retention_ms is None else topic.retention_ms,
    }
    kafka = {"partitions": settings.partitions, "topicConfiguration": configuration, "bindingVersion": BINDING_VERSION}
    return {
        "address": topic.name,
        "description": topic.help,
        "messages": messages,
        "bindings": {"kafka": kafka},
    }


def _messages(
    topic: Topic, registry: EventRegistry, outside: Iterable[PublishedEvent], values: Mapping[str, Any]
) -> dict[str, Any]:
    key = {"kafka": {"key": {"type": "string", "description": topic.key}, "bindingVersion": BINDING_VERSION}}
    if topic.name == DEAD_LETTERS.name:
        return {DEAD_LETTER: {**_DEAD_LETTER, "bindings": key}}
    if topic.published is not None:
        messages = {found.event.event_type: _other_message(found, values) for found in outside if found.topic == topic}
        return {event_type: {**message, "bindings": key} for event_type, message in messages.items()}
    carried = [found for found in topic.carries if found in registry.classes.values()]
    return {found.event_type: {**_message(found, values), "bindings": key} for found in carried}


def _message(found: type[Message], values: Mapping[str, Any]) -> dict[str, Any]:
    text = inspect.getdoc(found) or ""
    message: dict[str, Any] = {
        "name": found.event_type,
        "title": found.__name__,
        "summary": text.split("\n\n")[0],
        "contentType": JSON,
        "tags": [{"name": kind_of(found)}],
        "correlationId": {"location": "$message.payload#/metadata/correlationId"},
        "payload": {"$ref": REF_PREFIX + found.event_type},
    }
    if (envelope := example(found, values)) is not None:
        message["examples"] = [{"name": "encoded", "payload": on_the_wire(envelope)}]
    return message


def _other_message(found: PublishedEvent, values: Mapping[str, Any]) -> dict[str, Any]:
    event, published = found.event, found.published
    message: dict[str, Any] = {
        "name": event.event_type,
        "title": event.__name__,
        "summary": f"{event.event_type} for other systems{published.note and f', {published.note}'}.",
        "contentType": JSON,
        "tags": [{"name": "event"}],
        "headers": _headers(published.headers),
        "payload": {"$ref": REF_PREFIX + found.name},
    }
    envelope = example(event, values)
    encoded = None if envelope is None else published.encode(envelope)
    if encoded is not None:
        value, headers = encoded
        shown = {name: text.decode() for name, text in headers}
        message["examples"] = [{"name": "encoded", "headers": shown, "payload": msgspec.json.decode(value)}]
    return message


def _headers(names: Iterable[str]) -> Schema:
    listed = list(names)
    return {"type": "object", "properties": {name: {"type": "string"} for name in listed}, "required": listed}


_DEAD_LETTER: Final[Mapping[str, Any]] = {
    "name": DEAD_LETTER,
    "title": "DeadLetter",
    "summary": "A record that could not be processed: its value byte for byte, its own headers, and what happened.",
    "contentType": "application/octet-stream",
    "tags": [{"name": "event"}],
    "headers": _headers(DEAD_LETTER_HEADERS),
    "payload": {"description": "the value of the record that failed, whatever it is"},
}


# ---- operations


def _operations(services: Iterable[Service]) -> dict[str, Any]:
    """What each agent takes, and what each service writes."""
    operations: dict[str, Any] = {}
    for service in services:
        for agent in service.agents.values():
            operations[f"{agent.name}.receive"] = {
                "action": "receive",
                "channel": {"$ref": f"#/channels/{agent.topic.name}"},
                "summary": agent.help,
                "tags": [{"name": service.name}],
            }
        for topic in service.produces:
            operations[f"{service.name}.{topic.name}.send"] = {
                "action": "send",
                "channel": {"$ref": f"#/channels/{topic.name}"},
                "tags": [{"name": service.name}],
            }
    return dict(sorted(operations.items()))
