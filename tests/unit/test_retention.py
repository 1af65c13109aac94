"""What Kafka may remove before it is read is told beforehand."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from engine.health.retention import check_retention, retention_left
from engine.work.backlog import Backlog

DAY_MS = 86_400_000
SOURCE = "send-notifications", "notification-commands"


def engine(age_ms: int, retention_ms: int | None, transport: str = "kafka") -> Any:
    backlog = Backlog(lambda: None)
    backlog.oldest_ms[SOURCE] = int(time.time() * 1000) - age_ms
    task = SimpleNamespace(backlog=backlog)
    watch = SimpleNamespace(retention_ms=lambda topic: retention_ms)
    return SimpleNamespace(settings=SimpleNamespace(transport=transport), tasks={1: task}, source_watch=watch)


def test_the_time_left_is_the_retention_less_the_age_of_the_oldest_unread_record() -> None:
    (left,) = retention_left(engine(5 * DAY_MS, 7 * DAY_MS))
    assert (left.agent, left.topic, left.partition) == (*SOURCE, 1)
    assert left.seconds == pytest.approx(2 * 86_400, abs=5)
    assert check_retention(engine(5 * DAY_MS, 7 * DAY_MS)).ok


@pytest.mark.parametrize(("age_ms", "said"), [(int(6.5 * DAY_MS), "in 12.0 h"), (8 * DAY_MS, "now")])
def test_the_doctor_names_what_may_be_removed_within_a_day(age_ms: int, said: str) -> None:
    check = check_retention(engine(age_ms, 7 * DAY_MS))
    assert not check.ok
    assert f"notification-commands/1 for send-notifications {said}" in check.detail
    assert "retention.ms" in (check.advice or "")


@pytest.mark.parametrize(("retention_ms", "transport"), [(None, "kafka"), (DAY_MS, "embedded"), (DAY_MS, "memory")])
def test_what_is_kept_for_ever_or_by_the_embedded_log_is_never_near_its_end(
    retention_ms: int | None, transport: str
) -> None:
    assert list(retention_left(engine(30 * DAY_MS, retention_ms, transport))) == []
