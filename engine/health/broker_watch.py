"""Looks after what the worker has at the log: do its clients work, and does its clock agree with the log's?"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from engine.declare.application import NAMELESS, Application
from engine.health.faults import Fault, Faults
from engine.log.ports import Broker, ClientState, TransportError
from engine.work.background import repeat

log = logging.getLogger(__name__)

NOT_READY_AFTER_S: Final = 5.0
FAULT_AFTER_S: Final = 30.0
CLIENTS_INTERVAL_S: Final = 1.0
CLOCK_INTERVAL_S: Final = 30.0
CLOCK_INTERVAL_IN_TROUBLE_S: Final = 5.0
CLOCK_DIFFERENCE_MAX_S: Final = 60.0
CLOCK_KEY: Final = ("clock",)
CLOCK_ADVICE: Final = (
    "set the clocks of this machine and of the brokers by NTP (`timedatectl`, `chronyc tracking`); until then Kafka "
    "may refuse records, and deadlines and retries come early or late; nothing is lost"
)


def client_advice(application: Application) -> str:
    """What to do about a client of the log that fails."""
    return (
        f"see that the broker is up and that this worker may use it ({application.command('doctor')}); "
        "the worker makes its clients anew by itself, and restarting it loses nothing"
    )


class BrokerWatch:
    """Opens a fault when a client of the log has failed for FAULT_AFTER_S, or when the clocks differ by too much.

    Comparing clocks writes a record every CLOCK_INTERVAL_S, which also shows that publishing works.
    """

    def __init__(
        self,
        broker: Broker,
        clients: Callable[[], Sequence[ClientState]],
        faults: Faults,
        application: Application = NAMELESS,
    ) -> None:
        self._application = application
        self.clock_ahead_s: float | None = None
        """How far the clock was ahead of the log's when they were compared last; None when they never were."""
        self._broker = broker
        self._clients = clients
        self._faults = faults
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to look."""
        if not self._loops:
            self._loops = [
                asyncio.create_task(
                    repeat(self._look_at_clients, "watch of clients", CLOCK_INTERVAL_S), name="watch of clients"
                ),
                asyncio.create_task(
                    repeat(self._compare_clocks, "watch of clocks", CLOCK_INTERVAL_S), name="watch of clocks"
                ),
            ]

    async def stop(self) -> None:
        """Look no more."""
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            await asyncio.wait(self._loops)
        self._loops = []

    def not_ready(self) -> str | None:
        """Why the worker cannot do what it is asked for; None when nothing has failed for NOT_READY_AFTER_S."""
        failing = (state for state in self._clients() if state.failing_s > NOT_READY_AFTER_S)
        return "; ".join(map(describe, failing)) or None

    async def _look_at_clients(self) -> float:
        for state in self._clients():
            key = ("client", state.name)
            if state.failing_s <= FAULT_AFTER_S:
                self._faults.clear(key)
            elif key not in self._faults:
                self._faults.report(key, Fault("client", describe(state), client_advice(self._application)))
        return CLIENTS_INTERVAL_S

    async def _compare_clocks(self) -> float:
        try:
            ahead_s = await self._broker.clock_ahead_s()
        except TransportError as error:
            log.debug("clocks cannot be compared: %s", error)
            return CLOCK_INTERVAL_IN_TROUBLE_S
        self.clock_ahead_s = ahead_s
        if ahead_s is None or abs(ahead_s) <= CLOCK_DIFFERENCE_MAX_S:
            self._faults.clear(CLOCK_KEY)
            return CLOCK_INTERVAL_S
        if CLOCK_KEY not in self._faults:
            self._faults.report(CLOCK_KEY, Fault("clock", describe_clock(ahead_s), CLOCK_ADVICE))
        return CLOCK_INTERVAL_IN_TROUBLE_S


def describe(state: ClientState) -> str:
    """A client that fails, for people."""
    return f"the {state.name} has failed for {state.failing_s:.0f} s: {state.reason}"


def describe_clock(ahead_s: float) -> str:
    """Clocks that differ, for people."""
    here, there = (time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(time.time() - back_s)) for back_s in (0, ahead_s))
    way = "ahead of" if ahead_s > 0 else "behind"
    return f"this worker's clock is {_span(abs(ahead_s))} {way} the broker's (here it is {here}, there {there})"


def _span(seconds: float) -> str:
    for unit, length_s in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.1f} s"
