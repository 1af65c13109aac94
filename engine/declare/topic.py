"""A topic as an application declares it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from engine.declare.envelope import Envelope, Message
from engine.log.ports import TOPIC_RECORD_BYTES_MAX

DAY_MS = 86_400_000


class Published(msgspec.Struct, frozen=True):
    """The values of a topic for other systems, which are no envelopes: events in a shape of their own.

    `name` begins the names of its contracts. `types` are the types of the values by event, `encode` makes value and
    headers of an event's envelope, None of one that is not published. `headers` are those that each record has, and
    `note` says in words what they are.
    """

    name: str
    types: Callable[[], Mapping[type[Message], Any]]
    encode: Callable[[Envelope[Any]], tuple[bytes, Sequence[tuple[str, bytes]]] | None]
    headers: tuple[str, ...] = ()
    note: str = ""


class Topic(msgspec.Struct, frozen=True):
    """A topic; all topics of an application have the same number of partitions.

    `retention_ms` None keeps records for ever. `strict` topics carry only types their consumer knows: another type
    there is a dead letter, while consumers of event topics ignore types they do not handle. `own_key`: records are
    keyed by the envelope's aggregate id; False where another key re-partitions them for a projection. `lanes`: records
    wait behind one of their key that failed; False where each stands for itself, and is a dead letter at once when it
    fails. `key` says in words what the key is, and `carries` which commands and events are in it, for the published
    contract; `published` says so of a topic whose values are no envelopes.
    """

    name: str
    help: str
    retention_ms: int | None = None
    compacted: bool = False
    strict: bool = False
    own_key: bool = True
    lanes: bool = True
    record_bytes_max: int = TOPIC_RECORD_BYTES_MAX
    key: str = "aggregate id"
    carries: tuple[type[Message], ...] = ()
    published: Published | None = None
