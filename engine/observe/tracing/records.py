"""Spans of records: one for each time a record is handled, whose parent is the trace context in its headers.

What a record sends carries the context of its own span, whatever else is in the same fetch or the same commit. A commit
is a trace of its own, linked to the spans of its records.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import SpanContext

from engine.declare.envelope import Envelope
from engine.declare.handlers import Acceptance, RecordHandler, TimerHandler
from engine.declare.timers import TIMERS, Timer, TimerKey, timer_topic
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.classify import names_in
from engine.failures.dead_letters import TIMERS_AGENT
from engine.failures.lanes import NotNow
from engine.log.ports import Headers, Record
from engine.observe.tracing.current import CURRENT, TRACEPARENT, TRACESTATE, Value
from engine.observe.tracing.sdk import ActiveSpan, Spans
from engine.observe.tracing.w3c import NO_PARENT, parent_in
from engine.work.tracing import SpanOf, Untraced

LINKS_MAX: Final = 128  # of one commit; as many as the SDK keeps by default


class TracedUnitOfWork(UnitOfWork):
    """A unit of work whose outputs and timers carry the context of the span of the record that caused them.

    `span` is that of the record at hand, `last` that of the one before while there is none at hand. `links` are the
    first sampled spans of the records in it.
    """

    __slots__ = ("last", "links", "span")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.span: ActiveSpan | None = None
        self.last: ActiveSpan | None = None
        self.links: list[SpanContext] = []

    @property
    def trace_id(self) -> str | None:
        """The trace of the record at hand, or of the one that was handled last."""
        span = self.span or self.last
        return span.trace_id if span is not None else None

    def send_raw(self, topic: Topic, key: bytes, value: bytes, headers: Headers = ()) -> None:
        """Emit bytes; a record that brings a trace context of its own keeps it."""
        super().send_raw(topic, key, value, self._traced(headers))

    def schedule(self, kind: str, key: str, due_ms: int, payload: bytes = b"") -> None:
        """Set a timer that goes on with the trace of the record that sets it."""
        timer = Timer(kind=kind, key=key, due_ms=due_ms, payload=payload, headers=tuple(self._traced(())))
        self.put(TIMERS, TimerKey(due_ms, kind, key), timer)

    def deliver(self, envelope: Envelope[Any]) -> None:
        """Hand a message to the services that react to its type, in a span that is a part of the record's."""
        span = self.span
        if span is None or type(envelope.payload) not in self._reactions:
            super().deliver(envelope)
            return
        with span.child(f"react {envelope.event_type}", "internal", described(envelope)) as reaction:
            self.span = reaction
            try:
                super().deliver(envelope)
            finally:
                self.span = span

    def _traced(self, headers: Headers) -> Headers:
        if self.span is None or any(name == TRACEPARENT for name, _ in headers):
            return headers
        return (*headers, *self.span.headers())


class TracedRecords(Untraced):
    """The engine's tracing when it is on."""

    unit_of_work = TracedUnitOfWork

    def __init__(self, spans: Spans) -> None:
        self._spans = spans

    def handler(
        self, handle: RecordHandler, agent: str, topic: str, begun: SpanOf | None = None
    ) -> RecordHandler:  # fmt: skip
        """What handles each record of `topic` for `agent`, in a span; `begun` gives those that have one already."""

        def traced(record: Record, work: UnitOfWork) -> str:
            span: ActiveSpan | None = begun(record) if begun is not None else None
            if span is None or not span.span.is_recording():  # it failed before, and found no room to wait
                span = self._start(record, agent, topic, work.partition)
            with _Handling(span, work):
                return handle(record, work)

        return traced

    def timer_handler(self, handle: TimerHandler, kind: str) -> TimerHandler:
        """What handles timers of `kind`, in a span."""
        topic = timer_topic(kind)

        def traced(timer: Timer, work: UnitOfWork) -> None:
            span = self._start(work.record, TIMERS_AGENT, topic, work.partition)
            span.annotate("aggregate_id", timer.key)
            with _Handling(span, work):
                handle(timer, work)

        return traced

    def accept(self, accept: Acceptance) -> Acceptance:
        """What accepts and decodes a record, whose message then describes its span."""

        def traced(record: Record, number: int) -> Envelope[Any]:
            envelope = accept(record, number)
            span = CURRENT.get()
            if isinstance(span, ActiveSpan) and span.span.is_recording():
                for name, value in described(envelope).items():
                    span.annotate(name, value)
            return envelope

        return traced

    def begin(self, record: Record, agent: str, topic: str, partition: int) -> ActiveSpan:
        """The span of a record that is handled in two steps; its call may fail, so it is described here already."""
        span, names = self._start(record, agent, topic, partition), names_in(record.value)
        told = {
            "messaging.message.id": names.event_id,
            "event_type": names.event_type,
            "correlation_id": names.correlation_id,
            "aggregate_id": names.aggregate_id,
        }
        for name, value in told.items():
            if value is not None:
                span.annotate(name, value)
        return span

    def context(self, span: Any) -> contextvars.Context:
        """Where the call of a record runs, so that what it does belongs to the record's span."""
        context = contextvars.copy_context()
        context.run(CURRENT.set, span)
        return context

    def abandon(self, spans: Iterable[Any]) -> None:
        """End the spans of records whose calls were made, but which were not handled."""
        for span in spans:
            if span is not None and span.span.is_recording():
                span.refuse("Abandoned")
                span.span.end()

    @contextmanager
    def committing(self, work: UnitOfWork) -> Iterator[None]:
        """The commit of a unit of work, as a trace of its own; none where no record of it is sampled."""
        assert isinstance(work, TracedUnitOfWork)
        if not work.links:
            yield
            return
        attributes: dict[str, Value] = {"partition": work.partition, "records": work.records}
        commit = self._spans.start("commit", "internal", attributes, links=work.links)
        try:
            yield
        except BaseException as error:
            commit.refuse(type(error).__name__)
            raise
        finally:
            commit.span.end()

    def _start(self, record: Record, agent: str, topic: str, partition: int) -> ActiveSpan:
        attributes: dict[str, Value] = {
            "messaging.system": self._spans.system,
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.destination.name": topic,
            "messaging.destination.partition.id": str(partition),
            "messaging.consumer.group.name": self._spans.group,
            "agent": agent,
        }
        if record.offset >= 0:  # a timer has none
            attributes["messaging.kafka.offset"] = record.offset
        return self._spans.start(f"process {topic}", "consumer", attributes, _parent_of(record))


class _Handling:
    """A record is handled while the block lasts: its span is the current one, and that of its unit of work."""

    __slots__ = ("_span", "_token", "_work")

    def __init__(self, span: ActiveSpan, work: UnitOfWork) -> None:
        assert isinstance(work, TracedUnitOfWork)
        self._span = span
        self._work = work

    def __enter__(self) -> None:
        self._work.span = self._work.last = self._span
        self._token = CURRENT.set(self._span)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        work, span = self._work, self._span.span
        CURRENT.reset(self._token)
        work.span = None
        if kind is NotNow:
            return  # it was not its turn: nothing happened
        if kind is not None:
            self._span.refuse(kind.__name__)
        if work.retry_count:
            self._span.annotate("retry_count", work.retry_count)
        if len(work.links) < LINKS_MAX and span.is_recording():
            work.links.append(span.get_span_context())
        span.end()


def described(envelope: Envelope[Any]) -> dict[str, Value]:
    """What a span says of a message: ids and types, never what is in it."""
    attributes: dict[str, Value] = {
        "messaging.message.id": envelope.event_id,
        "event_type": envelope.event_type,
        "aggregate_type": envelope.aggregate_type,
        "aggregate_id": envelope.aggregate_id,
    }
    if envelope.metadata.correlation_id is not None:
        attributes["correlation_id"] = envelope.metadata.correlation_id
    return attributes


def _parent_of(record: Record) -> Context:
    """The trace context in a record's headers, whoever wrote them."""
    if not record.headers:
        return NO_PARENT
    found: dict[str, list[str]] = {TRACEPARENT: [], TRACESTATE: []}
    for name, value in record.headers:
        if name in found:
            found[name].append((value or b"").decode("ascii", "replace"))
    return parent_in(found[TRACEPARENT], found[TRACESTATE])
