"""Times of audits."""

from datetime import UTC, datetime


def time_of_ms(epoch_ms: int) -> datetime:
    """A time given in milliseconds since 1970."""
    return datetime.fromtimestamp(epoch_ms / 1000, UTC)
