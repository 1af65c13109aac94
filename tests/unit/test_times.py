"""Times: which years are accepted from outside, and arithmetic that cannot leave them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from engine.declare.times import EARLIEST, LATEST, format_ms, is_accepted, later

FAR = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def test_the_years_that_are_accepted_have_a_first_and_a_last_moment() -> None:
    assert is_accepted(EARLIEST)
    assert is_accepted(LATEST)
    assert not is_accepted(EARLIEST - timedelta(microseconds=1))
    assert not is_accepted(LATEST + timedelta(microseconds=1))
    assert not is_accepted(datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))))


def test_later_goes_on_from_a_time_by_milliseconds() -> None:
    assert later(datetime(2026, 11, 23, tzinfo=UTC), 1500) == datetime(2026, 11, 23, 0, 0, 1, 500_000, tzinfo=UTC)


@pytest.mark.parametrize("elapsed_ms", [-1, -(2**63), 0])
def test_a_clock_that_goes_back_moves_no_business_time(elapsed_ms: int) -> None:
    assert later(EARLIEST, elapsed_ms) == EARLIEST


@pytest.mark.parametrize(("start", "elapsed_ms"), [(FAR, 0), (FAR, 1), (EARLIEST, 2**63 - 1), (LATEST, 1)])
def test_no_sum_leaves_the_accepted_years(start: datetime, elapsed_ms: int) -> None:
    assert later(start, elapsed_ms) == LATEST


def test_a_record_may_have_any_timestamp_and_is_shown_all_the_same() -> None:
    assert format_ms(1_795_428_000_123) == "2026-11-23T10:00:00.123000Z"
    assert format_ms(2**63 - 1) == "2199-12-31T23:59:59.999000Z"
    assert format_ms(-(2**63)) == "1900-01-01T00:00:00.000000Z"
