"""The state of an order's saga: how far each of its steps has come."""

from datetime import datetime
from typing import Final, Literal

import msgspec

from streams.events.orders import SagaStyle

SagaState = Literal["running", "completed", "compensating", "compensated", "compensation_failed"]
RUNNING: Final = "running"
COMPLETED: Final = "completed"
COMPENSATING: Final = "compensating"
COMPENSATED: Final = "compensated"
COMPENSATION_FAILED: Final = "compensation_failed"
"""A compensation was refused or not answered too often: somebody has to look, and resume the saga."""

StepState = Literal["pending", "asked", "timed_out", "done", "failed", "undoing", "undo_failed", "undone"]


class StepRun(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One step of one saga, for one line of the order (from 1 on) or all of it (0).

    Times are production time, epoch ms. `undo_attempts` counts the compensations that were refused or not answered.
    """

    name: str
    line: int
    state: StepState = "pending"
    asked_ms: int | None = None
    answered_ms: int | None = None
    error: str | None = None
    undo_asked_ms: int | None = None
    undo_answered_ms: int | None = None
    undo_attempts: int = 0
    undo_error: str | None = None
    timed_out_ms: int | None = None


class Saga(msgspec.Struct, frozen=True, gc=False):
    """The saga of one order, in the steps of definition `version`.

    `reason` says why it is being undone. `placed_id` is the event it began with, `placed_at` its business time.
    `started_ms`, `ended_ms` and `timer_ms`, when its timer wakes it, are production time, epoch ms. `causes` are the
    records that later commands of a coordinated saga followed from, by what makes the command's id; those it began with
    followed from `placed_id`.
    """

    order_id: str
    style: SagaStyle
    version: int
    state: SagaState
    reason: str | None
    placed_id: str
    correlation_id: str | None
    user_id: str | None
    placed_at: datetime
    started_ms: int
    ended_ms: int | None
    timer_ms: int | None
    steps: tuple[StepRun, ...]
    causes: dict[str, str] = {}
