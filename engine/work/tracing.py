"""What the engine leaves to tracing: by default nothing, and nothing is what that costs.

Each function is asked once, when something is bound or begins, never once per record: without tracing it gives back
what it was given. `streams/tracing` has the other answer.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from engine.declare.handlers import Acceptance, RecordHandler, TimerHandler
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Record

SpanOf = Callable[[Record], Any]


class Untraced:
    """No tracing."""

    unit_of_work: type[UnitOfWork] = UnitOfWork

    def handler(
        self, handle: RecordHandler, agent: str, topic: str, begun: SpanOf | None = None
    ) -> RecordHandler:  # fmt: skip
        """What handles each record of `topic` for `agent`, in a span; `begun` gives those that have one already."""
        return handle

    def timer_handler(self, handle: TimerHandler, kind: str) -> TimerHandler:
        """What handles timers of `kind`, in a span."""
        return handle

    def accept(self, accept: Acceptance) -> Acceptance:
        """What accepts and decodes a record, whose message then describes its span."""
        return accept

    def begin(self, record: Record, agent: str, topic: str, partition: int) -> Any:
        """The span of a record that is handled in two steps: a call to the outside, and later the handler."""
        return None

    def context(self, span: Any) -> contextvars.Context | None:
        """Where the call of a record runs, so that what it does belongs to the record's span."""
        return None

    def abandon(self, spans: Iterable[Any]) -> None:
        """End the spans of records whose calls were made, but which were not handled."""

    def committing(self, work: UnitOfWork) -> AbstractContextManager[object]:
        """The commit of a unit of work, as a span of its own."""
        return nullcontext()
