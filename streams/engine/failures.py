"""What becomes of a record that cannot be processed: a dead letter with everything needed to understand it."""

import time
import traceback
from datetime import UTC, datetime

from streams.engine.store import StoreError
from streams.engine.unit_of_work import UnitOfWork
from streams.topics import DEAD_LETTERS
from streams.transport.base import Record

ERROR_BYTES_MAX = 1024
TRACE_BYTES_MAX = 8192
_OWN_HEADERS = frozenset(
    (
        "original_topic",
        "original_partition",
        "original_offset",
        "error_type",
        "error",
        "trace",
        "retry_count",
        "failed_at",
        "agent",
    )
)


class InfrastructureError(Exception):
    """The record is not to blame (disk, broker, memory): the unit of work is dropped and the record tried again."""


INFRASTRUCTURE_ERRORS = (InfrastructureError, StoreError, MemoryError)


def dead_letter(work: UnitOfWork, topic: str, agent: str, record: Record, error: BaseException) -> str:
    """Emit `record` as it came to `dead-letters`, in the same unit of work as the position that moves past it.

    Returns what it says of the error.
    """
    trace = "".join(traceback.format_exception(error))
    own = {
        "original_topic": topic,
        "original_partition": str(work.partition),
        "original_offset": str(record.offset),
        "error_type": type(error).__name__,
        "error": _bounded(_text_of(error), ERROR_BYTES_MAX),
        "trace": _bounded(trace, TRACE_BYTES_MAX),
        "retry_count": "0",
        "failed_at": datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "agent": agent,
    }
    original = [(name, value) for name, value in record.headers if name not in _OWN_HEADERS]
    headers = original + [(name, text.encode()) for name, text in own.items()]
    work.send_here(DEAD_LETTERS, record.key, record.value, headers)
    return own["error"]


def _text_of(error: BaseException) -> str:
    """The error's own words; whatever a handler raises must not keep its record from being buried."""
    try:
        return str(error)
    except BaseException:
        return f"{type(error).__name__}, whose text cannot be had"


def _bounded(text: str, bytes_max: int) -> str:
    """The end of `text` that fits: the end of a trace is where the cause is."""
    return text.encode(errors="backslashreplace")[-bytes_max:].decode(errors="ignore")
