"""Audits by themselves, once a day, and the faults of those that were made before the worker started."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from typing import Final
from weakref import WeakSet

from engine.inspection import AUDITS, LAST, Engine, PartitionTask, StoreError
from streams.settings import shop_settings
from tables.audit.audits import Audits, report_fault
from tables.audit.times import time_of_ms

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0


def last_slot(now: datetime, at: str) -> datetime:
    """The last time before `now` at which the clock showed `at` (`HH:MM`, UTC)."""
    slot = datetime.combine(now.date(), time.fromisoformat(at), UTC)
    return slot if slot <= now else slot - timedelta(days=1)


class NightlyAudits:
    """Begins the audit of each owned partition once after the time of ORDERS_AUDIT_AT, if that came while it ran here.

    A partition that moves meanwhile is audited by its new owner, unless that was done since the last such time.
    """

    def __init__(
        self, engine: Engine, audits: Audits, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._engine = engine
        self._audits = audits
        self._clock = clock
        self._began_at = clock()
        self._begun: dict[int, datetime] = {}  # by partition, for which slot
        self._recalled: WeakSet[PartitionTask] = WeakSet()

    async def run(self) -> None:
        """Look for what is due until it is cancelled."""
        while True:
            try:
                self.look()
            except StoreError as error:  # the partition's own task says what is to be done about that
                log.warning("the last audit cannot be read: %s", error)
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Recall the faults of earlier audits, and begin what is due."""
        tasks = [task for task in self._engine.tasks.values() if task.life.is_running()]
        for task in tasks:
            if task not in self._recalled:
                self._recalled.add(task)
                if (last := task.read(AUDITS, LAST)) is not None:
                    report_fault(self._engine, task.number, last)
        at = shop_settings(self._engine.settings).audit_at
        if not at or (slot := last_slot(self._clock(), at)) <= self._began_at:
            return
        for task in tasks:
            if self._begun.get(task.number) != slot:
                self._begun[task.number] = slot
                last = task.read(AUDITS, LAST)
                if last is None or time_of_ms(last.started_ms) < slot:
                    self._audits.begin(task)
