"""A topic as an application declares it."""

import msgspec

from engine.declare.envelope import Message
from engine.log.ports import TOPIC_RECORD_BYTES_MAX

DAY_MS = 86_400_000


class Topic(msgspec.Struct, frozen=True):
    """A topic; all topics of an application have the same number of partitions.

    `retention_ms` None keeps records for ever. `strict` topics carry only types their consumer knows: another type
    there is a dead letter, while consumers of event topics ignore types they do not handle. `own_key`: records are
    keyed by the envelope's aggregate id; False where another key re-partitions them for a projection. `lanes`: records
    wait behind one of their key that failed; False where each stands for itself, and is a dead letter at once when it
    fails. `key` says in words what the key is, and `carries` which commands and events are in it, for the published
    contract.
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
