"""The sagas of orders: how far each has come, and how many stand where."""

import msgspec

from domain.sagas.state import Saga
from engine import Table


class SagaCount(msgspec.Struct, frozen=True, gc=False):
    """How many sagas of a partition are in one state."""

    count: int = 0

    def plus(self, other: "SagaCount") -> "SagaCount":
        """Both together."""
        return SagaCount(self.count + other.count)


class FailedSaga(msgspec.Struct, frozen=True, gc=False):
    """A saga that waits for somebody: what it could not undo, and since when (production time, epoch ms)."""

    step: str
    line: int
    error: str | None
    failed_ms: int


SAGAS: Table[str, Saga] = Table("sagas", Saga, help="the saga of every order, by order id")

FAILED_SAGAS: Table[str, FailedSaga] = Table(
    "failed-sagas", FailedSaga, help="sagas whose compensation failed and that wait to be resumed, by order id"
)

SAGA_COUNTS: Table[str, SagaCount] = Table("saga-counts", SagaCount, help="sagas by state, of each partition")
