"""When the nightly audit is due."""

from datetime import UTC, datetime

import pytest

from streams.settings import Settings
from tables.audit.nightly import last_slot


@pytest.mark.parametrize(
    ("now", "at", "slot"),
    [
        ("2026-11-30T03:00:00", "03:00", "2026-11-30T03:00"),
        ("2026-11-30T02:59:59", "03:00", "2026-11-29T03:00"),
        ("2026-11-30T23:59:59", "00:00", "2026-11-30T00:00"),
        ("2026-03-01T00:00:00", "23:30", "2026-02-28T23:30"),
    ],
)
def test_the_last_slot_is_the_newest_time_that_has_passed(now: str, at: str, slot: str) -> None:
    assert last_slot(datetime.fromisoformat(now).replace(tzinfo=UTC), at) == datetime.fromisoformat(slot).replace(
        tzinfo=UTC
    )


@pytest.mark.parametrize("text", ["3:00", "24:00", "03:60", "nightly", "03:00:00"])
def test_what_is_no_time_of_the_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a time of the day"):
        Settings(_env_file=None, audit_at=text)
