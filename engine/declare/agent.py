"""Agents: readers of one topic each, with a handler for each type of its messages."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, TypeVar, cast

from engine.declare.envelope import Envelope
from engine.declare.errors import UnknownEventType
from engine.declare.handlers import Acceptance, Handler, RecordHandler
from engine.declare.settings import Settings
from engine.declare.table import AnyTable
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Record

C = TypeVar("C")
M = TypeVar("M")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., None])
Opens = Callable[[Any], AbstractAsyncContextManager[C]]
"""Makes, of the application's settings, the context manager of a client that an agent keeps open."""

Call = Callable[[C, Envelope[Any], UnitOfWork], Coroutine[Any, Any, Any] | None]
"""Makes the call for a message, None where none is needed; synchronous, and reads only."""


class Agent(Generic[C]):
    """A reader of one topic. Its position is stored under its name, and moves in the commit of its handlers' work.

    A handler is synchronous, reads and writes through its unit of work, and raises to fail its record alone. `help` is
    what `faust agents` and the published contract say; without it, what the first handler's docstring says. `C` is
    the type of the client that `opens` gives, None without it.

    A `deferred` agent does not handle its records at once on a busy partition, but together with others when none have
    come for a moment, a read waits for them, or `commit_interval` is over.
    """

    def __init__(
        self, name: str, topic: Topic, *, help: str = "", opens: Opens[C] | None = None, deferred: bool = False
    ) -> None:
        self.name = name
        self.topic = topic
        self.deferred = deferred
        self.make_call: Call[C] | None = None
        self._help = help
        self._opens = opens
        self.handlers: dict[type, Handler] = {}
        self._of_records: RecordHandler | None = None

    @property
    def help(self) -> str:
        """What it does, in a sentence."""
        if self._help:
            return self._help
        first = next(iter(self.handlers.values()), self._of_records)
        return ((first.__doc__ if first is not None else None) or self.name).strip().split("\n", 1)[0]

    def on(self, *payloads: type) -> Callable[[F], F]:
        """Register the decorated function for these payload types; a type has one handler per agent."""

        def register(handler: F) -> F:
            for payload in payloads:
                if payload in self.handlers:
                    raise ValueError(f"{payload.__name__} has a handler already: {self.handlers[payload]}")
                self.handlers[payload] = handler
            return handler

        return register

    def on_record(self, handler: RecordHandler) -> RecordHandler:
        """Register the decorated function for every record, as it is: neither checked nor decoded.

        It returns the record's event type, for metrics.
        """
        self._of_records = handler
        return handler

    def call(
        self, function: Callable[[C, Envelope[M], UnitOfWork], Coroutine[Any, Any, R] | None]
    ) -> Callable[[C, Envelope[M], UnitOfWork], Coroutine[Any, Any, R] | None]:
        """Register what makes a call to the outside of each message that has a handler, before that is called.

        `function(client, message, work)` returns the coroutine of the call, or None where none is needed. It is
        synchronous and may read rows, which are as the records of the same key before it left them. Calls of different
        keys run at the same time, at most `outside_calls_max`. The handler then finds what its call returned in
        `work.outcome`. A call that raises Unavailable, or takes longer than `call_timeout`, is made again until it
        does not; any other error makes its record a dead letter. While most calls fail, none is made.
        """
        self.make_call = function
        return function

    def check(self) -> None:
        """Raise ValueError for a declaration that contradicts itself."""
        if self._of_records is not None and (self.handlers or self.make_call is not None):
            raise ValueError(f"agent {self.name} handles records as they are: it has no handlers by type, and no calls")
        if self._opens is not None and self.make_call is None:
            raise ValueError(
                f"agent {self.name} opens a client and makes no call with it: declare one with @agent.call"
            )
        if self.deferred and self.make_call is not None:
            raise ValueError(f"agent {self.name} makes calls to the outside: it cannot be deferred")

    def __contains__(self, payload: type) -> bool:
        """Whether there is a handler for this payload type."""
        return payload in self.handlers

    @asynccontextmanager
    async def opened(self, settings: Settings) -> AsyncIterator[C]:
        """Keep the client open that `opens` gives; raises what it raises."""
        if self._opens is None:
            yield cast("C", None)
            return
        async with self._opens(settings) as client:
            yield client

    def bind(self, accept: Acceptance) -> RecordHandler:
        """The function that handles a record of the topic: it accepts, decodes and dispatches.

        The returned function raises a RecordError for a record that can never be processed.
        """
        if self._of_records is not None:
            return self._of_records
        by_payload, topic, strict = self.handlers, self.topic.name, self.topic.strict

        def handle(record: Record, work: UnitOfWork) -> str:
            envelope = accept(record, work.partition)
            handler = by_payload.get(type(envelope.payload))
            if handler is not None:
                handler(envelope, work)
            elif strict:
                raise UnknownEventType(f"{envelope.event_type} does not belong into {topic}")
            return envelope.event_type

        return handle


class Projection(Agent[None]):
    """An agent that makes `tables` of the records of its topic, and does nothing else.

    Tables that the same agent makes are rebuilt together. A handler may read other tables only for what never changes
    there once the record exists: a rebuild reads them as they are now.

    Raises ValueError for a topic that forgets: what is made of it could not be made anew.
    """

    def __init__(self, name: str, topic: Topic, *tables: AnyTable, help: str = "", deferred: bool = True) -> None:
        if topic.retention_ms is not None or topic.compacted:
            raise ValueError(f"{topic.name} is not kept for ever: what is made of it is no projection")
        super().__init__(name, topic, help=help, deferred=deferred)
        self.tables = tables
