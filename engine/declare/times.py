"""Times: which business times are accepted from outside, and arithmetic on them that cannot leave those years."""

from datetime import UTC, datetime, timedelta
from typing import Final

from engine.declare.envelope import format_timestamp

EARLIEST: Final = datetime(1900, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC) - timedelta(microseconds=1)
ACCEPTED: Final = f"a time in the years {EARLIEST.year} to {LATEST.year}"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_RANGE_MS: Final = (LATEST - EARLIEST) // _MILLISECOND + 1


def is_accepted(time: datetime) -> bool:
    """Whether an aware time from outside may be used as business time."""
    return EARLIEST <= time <= LATEST


def later(start: datetime, elapsed_ms: int) -> datetime:
    """The business time `elapsed_ms` milliseconds after `start`, at most LATEST.

    Logs of earlier releases may hold events whose own time lies later than that.
    """
    if start >= LATEST:
        return LATEST
    return min(start + min(max(0, elapsed_ms), _RANGE_MS) * _MILLISECOND, LATEST)


def format_ms(epoch_ms: int) -> str:
    """Milliseconds since 1970 as a timestamp on the wire; what lies outside of the accepted years as their bound.

    Kafka takes any number as a record's timestamp.
    """
    earliest_ms, latest_ms = (EARLIEST - _EPOCH) // _MILLISECOND, (LATEST - _EPOCH) // _MILLISECOND
    return format_timestamp(_EPOCH + min(max(earliest_ms, epoch_ms), latest_ms) * _MILLISECOND)
