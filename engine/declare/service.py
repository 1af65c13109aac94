"""Services: what a module declares - its agents, timers, tables and routes - for `create_app` to find and bind."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, overload

from aiohttp import web

from engine.declare.agent import Agent, Opens, Projection
from engine.declare.envelope import Message
from engine.declare.handlers import Handler, TimerHandler
from engine.declare.operation import Operation, Undocumented
from engine.declare.partition import Partition, Query, QueryFunction
from engine.declare.registry import EventRegistry
from engine.declare.table import AnyTable
from engine.declare.topic import Topic

LiveView = Callable[[int, Any, Any], Any]
"""Makes an item of partition number, key and row; None where the row is not shown."""

FigureFunction = Callable[[Partition], Mapping[str, int]]

A = TypeVar("A", bound=Agent[Any])
C = TypeVar("C")
Asked = TypeVar("Asked")
Answered = TypeVar("Answered")
T = TypeVar("T", bound=TimerHandler)
GaugeFunction = Callable[[Any], Mapping[str, float]]  # of a Partition, or of the whole task where the engine counts
G = TypeVar("G", bound=GaugeFunction)
F = TypeVar("F", bound=FigureFunction)
V = TypeVar("V", bound=LiveView)
H = TypeVar("H", bound=Callable[..., None])
WebSetup = Callable[[web.Application], None]
RouteFunction = Callable[[web.Request], Awaitable[web.StreamResponse]]
R = TypeVar("R", bound=RouteFunction)


class LiveTable(NamedTuple):
    """A table whose changes `/live` tells as `event`."""

    table: AnyTable
    event: str
    view: LiveView


class Figure(NamedTuple):
    """Counts by state among the figures of `/live`: `read` makes one partition's part, which changes with `table`."""

    name: str
    table: AnyTable
    read: FigureFunction


class History(NamedTuple):
    """Where the events of aggregates are: a table whose keys begin with the aggregate's id, or a topic.

    A topic is looked into for the aggregates of `topics` alone, and in its newest records alone.
    """

    where: AnyTable | Topic
    topics: Sequence[Topic]


class ServiceGauge(NamedTuple):
    """A figure for `/metrics`: `read` gives one partition's part of it by the value of `label`.

    Without a label the only value is "". `combine` makes one figure of all partitions' parts.
    """

    name: str
    help: str
    label: str | None
    read: GaugeFunction
    combine: Callable[[Iterable[float]], float]


class Route(NamedTuple):
    """An HTTP route, and what it is in the published contract; None when nothing is said, which a test complains of."""

    method: str
    path: str
    function: RouteFunction
    operation: Operation | Undocumented | None


class Service:
    """Declarations of one module, bound to no application, so that several applications may share the module.

    `topics` it produces to and `tables` it writes are created with the application; each table has one writing service.
    `types` are the events and commands it brings along, which the application can then decode; converters of their
    other versions are added to `registry`.
    """

    def __init__(
        self,
        name: str,
        *,
        tables: Iterable[AnyTable] = (),
        topics: Iterable[Topic] = (),
        types: Iterable[type[Message]] = (),
    ) -> None:
        self.name = name
        self.tables: Sequence[AnyTable] = tuple(tables)
        self.agents: dict[str, Agent[Any]] = {}
        self.timers: dict[str, TimerHandler] = {}
        self.gauges: list[ServiceGauge] = []
        self.live_tables: list[LiveTable] = []
        self.figures: list[Figure] = []
        self.histories: list[History] = []
        self.reactions: list[tuple[type[Message], Handler]] = []
        self.queries: list[Query[Any, Any]] = []
        self.routes: list[Route] = []
        self.web_setups: list[WebSetup] = []
        self.types: Sequence[type[Message]] = tuple(types)
        self.registry = EventRegistry(self.types)
        self.produces: Sequence[Topic] = tuple(topics)

    @property
    def topics(self) -> Sequence[Topic]:
        """Topics it consumes and those it says it produces to."""
        return (*(agent.topic for agent in self.agents.values()), *self.produces)

    @overload
    def agent(self, name: str, topic: Topic, *, help: str = "", deferred: bool = False) -> Agent[None]: ...

    @overload
    def agent(self, name: str, topic: Topic, *, help: str = "", opens: Opens[C]) -> Agent[C]: ...

    def agent(
        self, name: str, topic: Topic, *, help: str = "", opens: Opens[Any] | None = None, deferred: bool = False
    ) -> Agent[Any]:
        """Declare an agent, a reader of `topic`; its position is stored under its name. Handlers are registered on it.

        `opens` makes, of the application's settings, an async context manager of the client that the agent's calls to
        the outside need (`@agent.call`). It is entered before the first record, and tried again while it fails.
        """
        return self._add(Agent(name, topic, help=help, opens=opens, deferred=deferred))

    def projection(
        self, name: str, topic: Topic, *tables: AnyTable, help: str = "", deferred: bool = True
    ) -> Projection:
        """Declare an agent that makes `tables` of `topic`, and nothing else: they can be rebuilt.

        The topic is kept for ever. What a handler sends or schedules is left out in a rebuild; what it reads of other
        tables must never change there once the record exists.
        """
        if missing := [table.name for table in tables if table not in self.tables]:
            raise ValueError(f"service {self.name} does not write {', '.join(missing)}")
        return self._add(Projection(name, topic, *tables, help=help, deferred=deferred))

    def _add(self, agent: A) -> A:
        if agent.name in self.agents:
            raise ValueError(f"service {self.name} has an agent {agent.name} already")
        self.agents[agent.name] = agent
        return agent

    def reaction(self, *payloads: type[Message]) -> Callable[[H], H]:
        """Declare a handler of messages that other services deliver (`work.deliver`) rather than send.

        It runs at once, in the unit of work and the savepoint of whoever delivers: for services that share the key and
        must never be seen apart. It fails the record at hand when it raises. What may come later is an agent's.
        """

        def register(function: H) -> H:
            self.reactions += [(payload, function) for payload in payloads]
            return function

        return register

    def on_timer(self, kind: str) -> Callable[[T], T]:
        """Declare the handler of timers of `kind`, called like a record handler: synchronous, in the unit of work."""

        def register(function: T) -> T:
            self.timers[kind] = function
            return function

        return register

    def gauge(
        self, name: str, help: str, *, label: str | None = None, combine: Callable[[Iterable[float]], float] = sum
    ) -> Callable[[G], G]:
        """Declare a figure of `/metrics`: a function from a partition to values by `label`; partitions add up,
        unless something else makes one figure of theirs.
        """

        def register(function: G) -> G:
            self.gauges.append(ServiceGauge(name, help, label, function, combine))
            return function

        return register

    def live(self, table: AnyTable, event: str) -> Callable[[V], V]:
        """Declare that `/live` tells changed rows of `table` as `event`: a function from partition number, key and row
        to the item that is told, or None.
        """

        def register(function: V) -> V:
            self.live_tables.append(LiveTable(table, event, function))
            return function

        return register

    def figure(self, name: str, table: AnyTable) -> Callable[[F], F]:
        """Declare counts among the figures of `/live`: a function from a partition to counts by state, which depend on
        `table` alone; partitions and workers add up.
        """

        def register(function: F) -> F:
            self.figures.append(Figure(name, table, function))
            return function

        return register

    def history(self, where: AnyTable | Topic, *topics: Topic) -> None:
        """Declare where the events of aggregates are that a dead letter shows: in a table whose keys begin with the
        aggregate's id, or among the newest records of a topic, for the letters of `topics`.
        """
        self.histories.append(History(where, topics))

    def query(
        self, name: str, *, changes: bool = False
    ) -> Callable[[QueryFunction[Asked, Answered]], Query[Asked, Answered]]:
        """Declare what is read of one partition: an async function of engine, partition and what is asked.

        Any worker answers it with `ask` or `ask_all`. Both types, of what is asked and of the answer, are those of the
        function's annotations, and have to be such as msgspec makes JSON of. `changes` says that it is no mere reading.
        """

        def register(function: QueryFunction[Asked, Answered]) -> Query[Asked, Answered]:
            query = Query(name, function, changes)
            self.queries.append(query)
            return query

        return register

    def route(self, method: str, path: str, operation: Operation | Undocumented | None = None) -> Callable[[R], R]:
        """Declare an HTTP route of the web view: an aiohttp handler; `request.app[ENGINE]` is the engine.

        `operation` is what `/openapi.json` says of it, together with the function's docstring.
        """

        def register(function: R) -> R:
            self.routes.append(Route(method, path, function, operation))
            return function

        return register

    def web_setup(self, function: WebSetup) -> WebSetup:
        """Declare what is done with the web application before it starts: what its routes share, and how that ends."""
        self.web_setups.append(function)
        return function
