"""A client that gets everything wrong: commands of known orders that no handler can take."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

from engine.faust.app import EngineApp
from engine.log.ports import Record, TransportError
from streams.topics import ORDER_COMMANDS
from tests.chaos.orders import encode, new_id

RECENT = 20
HOPELESS = ("UndecodableRecord", "InvalidPayload", "UnknownEventType", "KeyMismatch")
"""Types of errors of records that are never processed."""
MISPLACED = ("WrongPartition", "MissingKey")
"""Those of records that lie in the wrong place only: the system's own commands once more."""


class Spoiler:
    """Writes some records a second, from inside of a worker, which holds the embedded log."""

    def __init__(self, per_s: float, goes_on: Callable[[], bool]) -> None:
        self._pause_s = 1 / per_s
        self._goes_on = goes_on
        self._recent: deque[Record] = deque(maxlen=RECENT)
        self._random = random.Random()

    def note(self, record: Record) -> None:
        """Take a command as a model."""
        self._recent.append(record)

    async def spoil(self, app: EngineApp) -> None:
        """Write as long as it may."""
        rnd = self._random
        while self._goes_on():
            await asyncio.sleep(rnd.expovariate(1 / self._pause_s))
            if self._recent and self._goes_on():
                model = rnd.choice(self._recent)
                home = app.engine.partition_for(model.key or b"")
                number, key, value = spoiled(rnd, model, home, app.engine.settings.partitions)
                with contextlib.suppress(TransportError):  # whether it is there does not matter
                    await app.engine.broker.publish(ORDER_COMMANDS.name, number, [(key, value, ())])


def spoiled(rnd: random.Random, model: Record, home: int, partitions: int) -> tuple[int, bytes | None, bytes | None]:
    """Partition, key and value of a record that is a dead letter for sure."""
    order_id, other_id = (model.key or b"").decode(), new_id(rnd)

    def command(event_type: str, aggregate_id: str, payload: dict[str, str]) -> bytes:
        return encode(event_type, new_id(rnd), ("Order", aggregate_id), datetime.now(UTC), "spoiled", payload)

    return rnd.choice(
        (
            (home, model.key, b'{"eventId": "' + other_id.encode()),
            (home, model.key, command("order.praise", order_id, {})),
            (home, model.key, command("order.place", order_id, {})),
            (home, model.key, command("order.confirm", other_id, {"orderId": other_id})),
            # The system's own commands once more, in the wrong partition, or of nobody.
            ((home + 1) % partitions, model.key, model.value),
            (home, None, model.value),
        )
    )
