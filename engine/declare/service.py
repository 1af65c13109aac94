"""Services: what a module declares - its agents, timers, tables and routes - for `create_app` to find and bind."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from aiohttp import web

from engine.declare.envelope import Message
from engine.declare.handlers import Handler, Handlers, RecordHandler
from engine.declare.operation import Operation, Undocumented
from engine.declare.projection import Projection, check_source
from engine.declare.registry import EventRegistry
from engine.declare.table import AnyTable
from engine.declare.topic import Topic
from engine.partition.batch import Batches
from engine.partition.context import TimerHandler

AgentFunction = Callable[[Batches], Awaitable[None]]
A = TypeVar("A", bound=AgentFunction)
T = TypeVar("T", bound=TimerHandler)
GaugeFunction = Callable[[Any], Mapping[str, float]]  # of a Partition, or of the whole task where the engine counts
G = TypeVar("G", bound=GaugeFunction)
H = TypeVar("H", bound=Callable[..., None])
WebSetup = Callable[[web.Application], None]
RouteFunction = Callable[[web.Request], Awaitable[web.StreamResponse]]
R = TypeVar("R", bound=RouteFunction)


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
        self.agents: dict[str, tuple[Topic, AgentFunction]] = {}
        self.projections: list[Projection] = []
        self.timers: dict[str, TimerHandler] = {}
        self.gauges: list[ServiceGauge] = []
        self.reactions: list[tuple[type[Message], Handler]] = []
        self.routes: list[Route] = []
        self.web_setups: list[WebSetup] = []
        self.types: Sequence[type[Message]] = tuple(types)
        self.registry = EventRegistry(self.types)
        self.produces: Sequence[Topic] = tuple(topics)

    @property
    def topics(self) -> Sequence[Topic]:
        """Topics it consumes and those it says it produces to."""
        return (*(topic for topic, _ in self.agents.values()), *self.produces)

    def agent(self, topic: Topic) -> Callable[[A], A]:
        """Declare an agent: an async function that takes batches of `topic`; its position is stored under its name."""

        def register(function: A) -> A:
            name = function.__name__.replace("_", "-")
            if name in self.agents:
                raise ValueError(f"service {self.name} has an agent {name} already")
            self.agents[name] = topic, function
            return function

        return register

    def projection(self, topic: Topic, handlers: Handlers | RecordHandler, *tables: AnyTable) -> Callable[[A], A]:
        """Declare an agent that makes `tables` of `topic` with `handlers`, and nothing else: they can be rebuilt.

        The topic is kept for ever. What a handler sends or schedules is left out in a rebuild; what it reads of other
        tables must never change there once the record exists.
        """
        check_source(topic)
        if missing := [table.name for table in tables if table not in self.tables]:
            raise ValueError(f"service {self.name} does not write {', '.join(missing)}")

        def register(function: A) -> A:
            self.agent(topic)(function)
            name = next(reversed(self.agents))
            self.projections.append(Projection(name, topic, handlers, tables))
            return function

        return register

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
