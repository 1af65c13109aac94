"""How long sagas go on: the age of the oldest in each state that is not an end, in the partitions of this worker."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

from domain.sagas.state import COMPENSATING, COMPENSATION_FAILED, RUNNING
from engine import Partition, Service
from engine.inspection import TIMERS
from tables.sagas import FAILED_SAGAS, SAGAS

ROWS_MAX: Final = 100
"""Rows looked at in a partition; every scrape asks, and a partition may have very many sagas."""

service = Service("saga-gauges")


@service.gauge(
    "saga_oldest_seconds", "age of the oldest saga that has not ended, 0 when there is none", label="state", combine=max
)
def oldest_sagas(task: Partition) -> Mapping[str, float]:
    """Seconds since the oldest saga of each state began.

    A saga that goes on has a timer, due one deadline after it last asked: those that have waited longest lie first.
    """
    began_ms: dict[str, int] = {}
    for state, started_ms in (*_waiting(task), *_failed(task)):
        began_ms[state] = min(started_ms, began_ms.get(state, started_ms))
    now_ms = time.time() * 1000
    return {
        state: max(0.0, now_ms - began_ms.get(state, now_ms)) / 1000
        for state in (RUNNING, COMPENSATING, COMPENSATION_FAILED)
    }


def _waiting(task: Partition) -> Iterator[tuple[str, int]]:
    for key, _ in islice(task.scan(TIMERS), ROWS_MAX):
        saga = task.read(SAGAS, key.key)
        if saga is not None and saga.state in (RUNNING, COMPENSATING):
            yield saga.state, saga.started_ms


def _failed(task: Partition) -> Iterator[tuple[str, int]]:
    for order_id, _ in islice(task.scan(FAILED_SAGAS), ROWS_MAX):
        saga = task.read(SAGAS, order_id)
        if saga is not None:
            yield COMPENSATION_FAILED, saga.started_ms
