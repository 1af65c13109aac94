"""Ids of Kafka's topics: a topic that was deleted and made anew under the same name has another one.

aiokafka asks for metadata in versions that know no ids; here is the first one that does (10, Kafka 2.8 and newer).
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from io import BytesIO
from typing import Any, Final

from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaError,
    LeaderNotAvailableError,
    NodeNotReadyError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from engine.log.ports import TransportError

METADATA_KEY: Final = 3
METADATA_VERSION: Final = 10
NO_ID: Final = uuid.UUID(int=0)
NO_ERROR: Final = 0


class Uuid(AbstractType[uuid.UUID]):  # type: ignore[misc]
    """Sixteen bytes; only zeros mean that there is none."""

    @classmethod
    def encode(cls, value: uuid.UUID) -> bytes:
        """The bytes of an id."""
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> uuid.UUID:
        """The id that begins here; raises ValueError when there are fewer bytes."""
        return uuid.UUID(bytes=data.read(16))


class MetadataResponse_v10(Response):  # type: ignore[misc]
    """Topics with their ids."""

    API_KEY = METADATA_KEY
    API_VERSION = METADATA_VERSION
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("in_sync", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class MetadataRequest_v10(RequestStruct):  # type: ignore[misc]
    """Asks for topics by name."""

    API_KEY = METADATA_KEY
    API_VERSION = METADATA_VERSION
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = MetadataResponse_v10
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class TopicIdsRequest(Request[MetadataRequest_v10]):  # type: ignore[misc]
    """Metadata of some topics, which are not created by asking for them."""

    API_KEY = METADATA_KEY

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def build(self, request_struct_class: type[MetadataRequest_v10]) -> MetadataRequest_v10:
        """The request on the wire."""
        topics: list[Any] = [(NO_ID, name, {}) for name in self._names]
        return request_struct_class(topics, False, False, False, {})


async def read_topic_ids(client: Any, names: Collection[str]) -> Mapping[str, str]:
    """Ids of those of these topics that exist, by name; empty texts where the broker knows no ids.

    `client` is a connected client of aiokafka. Raises TransportError.
    """
    try:
        node = client.get_random_node()
        if node is None:
            raise NodeNotReadyError("no broker is known")
        answer = await client.send(node, TopicIdsRequest(names))
        return _ids(answer.topics)
    except (IncompatibleBrokerVersion, NotImplementedError):  # what aiokafka raises for want of a version
        return dict.fromkeys(names, "")
    except KafkaError as error:
        raise TransportError(f"cannot read the ids of topics: {type(error).__name__}: {error}") from error


def _ids(topics: Collection[Any]) -> Mapping[str, str]:
    ids = {}
    for error_code, name, topic_id, *_ in topics:
        if error_code == UnknownTopicOrPartitionError.errno:
            continue
        if error_code not in (NO_ERROR, LeaderNotAvailableError.errno):
            raise for_code(error_code)(name)
        ids[name] = "" if topic_id == NO_ID else str(topic_id)
    return ids
