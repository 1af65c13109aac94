"""`create_app` makes a Faust application with an engine from settings and services."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import pkgutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import faust
from faust.exceptions import ImproperlyConfigured
from faust.transport.drivers import TRANSPORTS

from engine.contracts.documents import DOCUMENTS, Documents
from engine.declare.agent import Projection
from engine.declare.handlers import Handler
from engine.declare.partition import Query
from engine.declare.registry import EventRegistry
from engine.declare.service import Service
from engine.declare.settings import Settings, SettingsError, load_settings
from engine.declare.topic import Topic
from engine.failures.service import service as dead_letters
from engine.failures.topics import DEAD_LETTERS
from engine.faust import commands
from engine.faust.agents import bind_agent
from engine.faust.assignor import NumberAssignor
from engine.faust.tables import EngineTables
from engine.faust.web_server import WebServer
from engine.log.embedded.broker import EmbeddedBroker
from engine.log.kafka.broker import KafkaBroker
from engine.log.ports import Broker
from engine.observe.gauges import Gauges
from engine.observe.tracing import environment
from engine.partition.engine import Engine
from engine.web.answers import BODY_BYTES_MAX, ENGINE, FAUST_APP, GAUGES, SERVICES, answer_problems
from engine.web.routes.queries import QUERIES, queries_of
from engine.web.routing import install as install_routing

if TYPE_CHECKING:
    from engine.observe.tracing.sdk import Spans

log = logging.getLogger(__name__)
S = TypeVar("S", bound=Settings)

ROUTE_PACKAGES = ("engine.web.routes", "engine.web.dead_letters", "engine.web.live", "engine.web.page")

TRANSPORTS.aliases.update(
    {
        "embedded": "engine.faust.embedded:Transport",
        "memory": "engine.faust.embedded:Transport",
        "kafka": "engine.faust.kafka:Transport",
    }
)


class EngineApp(faust.App):
    """A Faust application that carries its engine."""

    engine: Engine
    services: Sequence[Service]
    queries: Mapping[str, Query[Any, Any]]
    spans: Spans | None = None

    async def on_first_start(self) -> None:
        """Before anything is bound: with tracing on, what is bound makes spans."""
        await super().on_first_start()
        if environment.is_on(os.environ):
            # Not imported otherwise: what is off costs no start-up time and no memory.
            from engine.observe.tracing.records import TracedRecords
            from engine.observe.tracing.sdk import Spans

            self.spans = Spans(self.engine.settings)
            self.engine.tracing = TracedRecords(self.spans)

    async def on_shutdown(self) -> None:
        """Send the last spans, once everything has ended that makes any."""
        await super().on_shutdown()
        if self.spans is not None:
            await asyncio.to_thread(self.spans.close)

    def on_webserver_init(self, web: Any) -> None:
        """Add the services' routes to the web server, once it is known where it listens."""
        web.around.append(answer_problems(self.engine, self.conf.web_bind))
        web.web_app[ENGINE], web.web_app[FAUST_APP] = self.engine, self
        declared = [gauge for service in self.services for gauge in service.gauges]
        web.web_app[SERVICES] = self.services
        web.web_app[GAUGES] = Gauges(self.engine, declared)
        web.web_app[QUERIES] = self.queries
        # Faust asks its CORS library at every answer; nothing here may be read from other origins.
        web.web_app.on_response_prepare.clear()
        if self.spans is not None:
            from engine.observe.tracing.requests import trace_requests

            web.around.append(trace_requests(self.spans))
        web.web_app[DOCUMENTS] = Documents(self.engine, tuple(self.services))
        install_routing(web.web_app, self.engine, lambda number: cast(NumberAssignor, self.assignor).owner_url(number))
        for service in self.services:
            for setup in service.web_setups:
                setup(web.web_app)
        # The router tries them one after the other: what is asked for most has a short path.
        routes = [route for service in self.services for route in service.routes]
        for route in sorted(routes, key=lambda route: route.path.count("/")):
            web.web_app.router.add_route(route.method, route.path, route.function)

    def _new_web(self) -> Any:
        return WebServer(self, self.engine.settings)

    def finalize(self) -> None:
        """Refuse what Faust's command line was told and what has no effect here."""
        commands.refuse_datadir(type(self.engine.settings))
        super().finalize()

    def agent(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse a plain agent: it would take records without a unit of work, and its positions are kept nowhere."""
        raise ImproperlyConfigured(
            "app.agent cannot be used here: declare the agent with Service.agent, which reads records exactly once; "
            "run a plain Faust agent in a Faust application of its own, beside this one"
        )

    def Table(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse a table of Faust: it would never be restored or committed."""
        raise ImproperlyConfigured(
            "tables of Faust cannot be used here: declare an engine Table in a Service, whose agents write it in the "
            "transaction of their records"
        )

    GlobalTable = SetTable = SetGlobalTable = Table

    def LiveCheck(self, **kwargs: Any) -> Any:
        """Refuse LiveCheck: it needs agents and tables of Faust."""
        raise ImproperlyConfigured(f"LiveCheck cannot be used here: {commands.livecheck.reason}")

    def on_rebalance_return(self) -> None:
        """Nothing: partitions are restored in the background, so a rebalance ends before Faust notes its return."""

    def _create_directories(self) -> None:
        """Nothing: Faust keeps no state here, and the engine makes the folders it needs."""


def create_app(settings: Settings, services: Iterable[Service], *, registry: EventRegistry | None = None) -> EngineApp:
    """Compose an application of services; may be called several times in a process.

    Types of the services are added to those of `registry`.
    """
    found = tuple(services)
    app = EngineApp(
        settings.app_id,
        broker=settings.broker if settings.transport == "kafka" else f"{settings.transport}://",
        datadir=str(settings.data_dir / "faust"),
        web_bind=settings.web_host,
        web_port=settings.web_port,
        web_host=settings.web_host,
        canonical_url=settings.public_url,
        web_application_options={"client_max_size": BODY_BYTES_MAX},
        topic_partitions=settings.partitions,
        topic_disable_leader=True,
        topic_allow_declare=False,
        stream_wait_empty=False,
        stream_buffer_maxsize=4096,  # bounded by the engine instead, which asks for two fetches per partition at most
        broker_session_timeout=settings.session_timeout,
        broker_commit_interval=3600.0,  # Faust has nothing to commit
        PartitionAssignor=NumberAssignor,
        TableManager=EngineTables,
        Worker="engine.faust.worker:EngineWorker",
        autodiscover=False,
    )
    app.services, app.queries = found, queries_of(found)
    app.engine = _create_engine(settings, found, _registry_of(found, registry))
    for service in found:
        for agent in service.agents.values():
            bind_agent(app, app.engine, agent)
    return app


def app_from_environment(settings: type[S], create: Callable[[S], EngineApp]) -> EngineApp:
    """Make the application that `faust -A MODULE` asks for; raises SystemExit where its settings cannot be used."""
    try:
        return create(load_settings(settings))
    except SettingsError as error:
        raise SystemExit(str(error)) from error


def _registry_of(services: Iterable[Service], base: EventRegistry | None) -> EventRegistry:
    """All types there are, with the converters of their other versions."""
    registry = EventRegistry()
    if base is not None:
        registry.extend(base)
    for service in services:
        registry.extend(service.registry)
    return registry


def _create_engine(settings: Settings, services: Sequence[Service], registry: EventRegistry) -> Engine:
    broker: Broker = KafkaBroker(settings) if settings.transport == "kafka" else EmbeddedBroker(settings)
    topics = {topic.name: topic for service in services for topic in service.topics} | {DEAD_LETTERS.name: DEAD_LETTERS}
    agents: dict[str, Topic] = {}
    tables: dict[str, Any] = {}
    for service in services:
        for name, agent in service.agents.items():
            if name in agents:
                raise ValueError(f"two agents are called {name}")
            agents[name] = agent.topic
        for table in service.tables:
            if table.name in tables:
                raise ValueError(f"two services write table {table.name}")
            tables[table.name] = table
    timers = {kind: handler for service in services for kind, handler in service.timers.items()}
    reactions: dict[type, list[Handler]] = {}
    for service in services:
        for payload, handler in service.reactions:
            reactions.setdefault(payload, []).append(handler)
    in_memory = settings.transport == "memory"
    stores = (
        Path(tempfile.gettempdir()) / f"{settings.application.name}-{uuid.uuid4().hex}"
        if in_memory
        else settings.data_dir / "stores"
    )
    projections = [a for service in services for a in service.agents.values() if isinstance(a, Projection)]
    owned = {topic.name for service in services for topic in service.produces}
    owned |= {topic.name for topic in agents.values() if topic.strict}
    return Engine(
        settings,
        broker,
        registry,
        topics.values(),
        tables.values(),
        agents,
        timers,
        stores,
        reactions,
        projections,
        owned - {DEAD_LETTERS.name},  # each application has dead letters of its own in it
    )


def engine_services() -> tuple[Service, ...]:
    """The services that every application has: decisions about dead letters, and the routes of the engine."""
    return (dead_letters, *discover(ROUTE_PACKAGES))


def discover(packages: Iterable[str]) -> tuple[Service, ...]:
    """Every Service that a module of these packages declares, in the order of module names."""
    services: dict[int, Service] = {}
    for package_name in packages:
        package = importlib.import_module(package_name)
        for info in sorted(pkgutil.walk_packages(package.__path__, f"{package_name}."), key=lambda info: info.name):
            module = importlib.import_module(info.name)
            for value in vars(module).values():
                if isinstance(value, Service):
                    services[id(value)] = value
    return tuple(services.values())
