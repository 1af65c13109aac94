"""What handles records and messages, and the checks that a record passes before it is handled."""

from collections.abc import Callable, Coroutine
from typing import Any

from engine.declare.envelope import Envelope
from engine.declare.errors import (
    InvalidBusinessTime,
    KeyMismatch,
    MissingKey,
    OversizeRecord,
    WrongPartition,
)
from engine.declare.registry import EventRegistry
from engine.declare.timers import Timer
from engine.declare.times import ACCEPTED, EARLIEST, LATEST
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Record

Handler = Callable[[Envelope[Any], UnitOfWork], None]
RecordHandler = Callable[[Record, UnitOfWork], str]  # returns the event type, for metrics
Acceptance = Callable[[Record, int], Envelope[Any]]
TimerHandler = Callable[[Timer, UnitOfWork], None]
Prepare = Callable[[Envelope[Any], UnitOfWork], Coroutine[Any, Any, Any] | None]
"""Makes the call for a message, None where none is needed; synchronous, and reads only."""

KEY_BYTES_MAX = 2048  # an Idempotency-Key and an id, in the longest UTF-8
HEADER_BYTES_MAX = 64 << 10
SHARED_MESSAGES_MAX = 16_384  # of one topic, until all of its agents have had them


def _value_within_bounds(record: Record, topic: str, record_bytes_max: int) -> bytes:
    """The record's value; raises OversizeRecord for what is too large to be kept while it waits."""
    key_bytes, value_bytes = len(record.key or b""), len(record.value or b"")
    header_bytes = sum(len(name) + len(value or b"") for name, value in record.headers)
    if record.value is None or value_bytes > record_bytes_max:
        raise OversizeRecord(f"{value_bytes} bytes; a record of {topic} has 1 to {record_bytes_max}")
    if key_bytes > KEY_BYTES_MAX or header_bytes > HEADER_BYTES_MAX:
        raise OversizeRecord(
            f"a key of {key_bytes} and headers of {header_bytes} bytes; "
            f"a record of {topic} has at most {KEY_BYTES_MAX} and {HEADER_BYTES_MAX}"
        )
    return record.value


class SharedAcceptance:
    """Accepts and decodes the records of a topic once for all of its agents: messages are immutable.

    A message is kept until every agent has had it. What an agent skips, because it had it in an earlier life, stays
    until there is too much of it.
    """

    def __init__(self, accept: Acceptance, agents: int) -> None:
        self._accept = accept
        self._agents = agents
        self._kept: dict[tuple[int, int], tuple[Record, Envelope[Any], int]] = {}

    def __call__(self, record: Record, number: int) -> Envelope[Any]:
        """The message of a record read from a partition number; raises as `accept` does, to each agent."""
        place = number, record.offset
        kept = self._kept.pop(place, None)
        if kept is not None and kept[0] is record:
            _, envelope, waiting = kept
        else:
            envelope, waiting = self._accept(record, number), self._agents
            if len(self._kept) >= SHARED_MESSAGES_MAX:
                self._kept.clear()
        if waiting > 1:
            self._kept[place] = record, envelope, waiting - 1
        return envelope


def acceptance(
    registry: EventRegistry, topic: Topic, record_bytes_max: int, partition_for: Callable[[bytes], int]
) -> Acceptance:
    """The function that checks and decodes a record of `topic`, read from a partition number.

    It raises a RecordError for a record that can never be processed. Topics that only this system writes are trusted to
    be partitioned right; in `strict` ones, which any client writes, it is checked: a client with another partitioner
    would split an aggregate over two partitions. So is the business time, which sums over days go on from.
    """
    decode, strict, own_key = registry.decode, topic.strict, topic.own_key

    def accept(record: Record, number: int) -> Envelope[Any]:
        key, value = record.key, record.value
        if not key:
            raise MissingKey(f"a record of {topic.name} needs its aggregate's id as key")
        if value is None or len(value) > record_bytes_max or len(key) > KEY_BYTES_MAX or record.headers:
            value = _value_within_bounds(record, topic.name, record_bytes_max)
        if strict and partition_for(key) != number:
            raise WrongPartition(
                f"key {key!r} belongs into partition {partition_for(key)} of {topic.name}: "
                "let your client partition with murmur2, as Kafka's own clients do"
            )
        envelope = decode(value)
        if strict and not EARLIEST <= envelope.timestamp <= LATEST:
            raise InvalidBusinessTime(f"the timestamp {envelope.timestamp:%Y-%m-%dT%H:%M:%SZ} is not {ACCEPTED}")
        if own_key and envelope.aggregate_id.encode() != key:
            raise KeyMismatch(f"key {key!r} is not the aggregate's id {envelope.aggregate_id!r}")
        return envelope

    return accept
