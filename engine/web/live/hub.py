"""The hub of one worker: listens to commits and to the other workers, but only while somebody listens to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, Final

from aiohttp import web

from engine.declare.service import Service
from engine.observe.gauges import Gauges
from engine.partition.engine import Engine
from engine.web.answers import ENGINE, FAUST_APP, GAUGES, PASSING
from engine.web.event_stream import RESYNC, Subscriber, Subscribers
from engine.web.live.changes import Changes
from engine.web.live.figures import Figures, FiguresHere
from engine.web.live.other_workers import OtherWorkers
from engine.web.routing import ROUTER, Router

log = logging.getLogger(__name__)

FIGURES_S: Final = 1.0
STREAMS_MAX: Final = 200
WORKER_STREAMS_MAX: Final = 100


class LiveHub:
    """`everywhere` are streams of what happens at all workers, `here` those of this one, for the other workers."""

    def __init__(self, engine: Engine, gauges: Gauges, router: Router, faust_app: Any) -> None:
        self.everywhere = Subscribers(STREAMS_MAX)
        self.here = Subscribers(WORKER_STREAMS_MAX)
        self._engine = engine
        self._gauges = gauges
        self._router = router
        self._faust_app = faust_app
        self._life: asyncio.Task[None] | None = None

    @contextmanager
    def subscribed(self, subscribers: Subscribers) -> Iterator[Subscriber]:
        """Give a stream while the block lasts, with everything that feeds it; raises a 503 problem at the limit."""
        with subscribers.subscribed() as subscriber:
            if self._life is None or self._life.done():
                self._life = asyncio.get_running_loop().create_task(self._live(), name="live hub")
            yield subscriber

    async def close(self) -> None:
        """End all streams; the worker stops."""
        self.everywhere.close()
        self.here.close()
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)

    async def _live(self) -> None:
        """Feed the streams until there are none."""
        listeners = self._engine.commit_listeners
        services: Sequence[Service] = self._faust_app.services
        changes = Changes(self._tell, [live for service in services for live in service.live_tables])
        declared = [figure for service in services for figure in service.figures]
        figures = FiguresHere(self._engine, self._gauges, declared)
        others = OtherWorkers(self._router, self.everywhere.publish)
        listeners.add(changes.committed)
        listeners.add(figures.committed)
        try:
            owned = self._engine.numbers
            while self.everywhere or self.here:
                others.follow(self._router.others() if self.everywhere else ())
                if owned != self._engine.numbers:
                    owned = self._engine.numbers
                    self._tell(RESYNC, {})
                await self._tell_figures(figures, others)
                await asyncio.sleep(FIGURES_S)
        finally:
            listeners.remove(changes.committed)
            listeners.remove(figures.committed)
            changes.close()
            await others.close()

    async def _tell_figures(self, figures: FiguresHere, others: OtherWorkers) -> None:
        try:
            await self._gauges.refresh(self._faust_app.consumer)
            own = figures.read()
        except PASSING as error:
            log.debug("no figures: %s", error)
            return
        except Exception:
            log.exception("the figures of this worker cannot be told")
            return
        self.here.publish("figures", own.view())
        self.everywhere.publish("figures", reduce(Figures.plus, others.figures.values(), own).view())

    def _tell(self, event: str, data: Any) -> None:
        self.here.publish(event, data)
        self.everywhere.publish(event, data)


LIVE: web.AppKey[LiveHub] = web.AppKey("live", LiveHub)


def install(application: web.Application) -> None:
    """Give an application its hub, whose streams end when the worker stops."""
    hub = application[LIVE] = LiveHub(
        application[ENGINE], application[GAUGES], application[ROUTER], application[FAUST_APP]
    )

    async def close(_: web.Application) -> None:
        await hub.close()

    application.on_shutdown.append(close)
