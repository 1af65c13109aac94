"""Faust's table manager replaced: tables are listed there, but restored and written by partition tasks."""

from __future__ import annotations

import logging
from typing import Any

from faust.tables import TableManager
from faust.types import TP

from engine.faust.driver import engine_of

log = logging.getLogger(__name__)


class EngineTables(TableManager):
    """Hands assignments to the engine and lets the records flow at once: each partition starts when it is restored."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self.data.update(engine_of(app).tables)

    async def on_start(self) -> None:
        """No channels for changelogs, no recovery service."""
        self._tables_finalized.set()
        self._tables_registered.set()

    async def on_stop(self) -> None:
        """Commit and close all partitions while the consumer is still there."""
        app: Any = self.app
        await app._fetcher.stop()
        await engine_of(self.app).stop()

    def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Nothing: the consumer has told the engine already."""

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        """Own the assigned numbers from now on."""
        app: Any = self.app
        self._recovery_started.set()
        if generation_id != app.consumer_generation_id:
            log.info("generation %d is over before it began", generation_id)
            return
        await engine_of(app).assigned({tp.partition for tp in assigned}, generation_id)
        await app.on_rebalance_complete.send()
        app.consumer.resume_partitions(assigned)
        app.flow_control.resume()
        app.consumer.resume_flow()
        await app._fetcher.maybe_start()
        self.on_actives_ready()
        self.on_standbys_ready()
        app.on_rebalance_end()

    async def wait_until_recovery_completed(self) -> bool:
        """Never waited for: partitions are restored in the background, `/readyz` tells when all are."""
        return False
