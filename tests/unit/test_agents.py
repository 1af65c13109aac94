"""Agents are declared by a service with name, topic and handlers; what contradicts itself is refused."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.declare.agent import Agent, Projection
from engine.declare.envelope import Envelope
from engine.declare.service import Service
from engine.declare.table import Table
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Record
from streams.app import create_app
from streams.events.orders import OrderCancelled, OrderPlaced
from tests.apps import make_settings

TOPIC = Topic("words", "what agents read")
TABLE: Table[str, int] = Table("counts", int)


def count(message: Envelope[Any], work: UnitOfWork) -> None:
    """Count it.

    And no more.
    """


def raw(record: Record, work: UnitOfWork) -> str:
    return "raw"


@asynccontextmanager
async def open_client(settings: Any) -> AsyncIterator[str]:
    yield "client"


def ask(client: object, message: Envelope[Any], work: UnitOfWork) -> None:
    """Ask nothing."""


def test_a_service_knows_its_agents_by_name_with_their_topics_and_each_name_once() -> None:
    service = Service("words", tables=(TABLE,))
    agent, projection = service.agent("read-words", TOPIC), service.projection("count-words", TOPIC, TABLE)
    assert service.agents == {"read-words": agent, "count-words": projection}
    assert [topic.name for topic in service.topics] == ["words", "words"]
    assert (agent.deferred, projection.deferred, projection.tables) == (False, True, (TABLE,))
    with pytest.raises(ValueError, match="service words has an agent read-words already"):
        service.agent("read-words", TOPIC)


def test_an_agent_says_what_it_does_or_lets_its_first_handler_say_it() -> None:
    said, unsaid, silent = (Agent[None](name, TOPIC, help=help) for name, help in (("a", "Say."), ("b", ""), ("c", "")))
    for agent in (said, unsaid):
        agent.on(OrderPlaced)(count)
    silent.on_record(raw)
    assert [agent.help for agent in (said, unsaid, silent)] == ["Say.", "Count it.", "c"]


def test_faust_lists_a_declared_agent_under_its_name_with_its_sentence(tmp_path: Path) -> None:
    service = Service("words")
    service.agent("read-words", TOPIC, help="Read words.").on(OrderPlaced)(count)
    listed = create_app(make_settings("memory://", tmp_path), services=[service]).agents
    assert {name: agent.fun.__doc__ for name, agent in listed.items()} == {"read-words": "Read words."}


def _records_and_types(service: Service) -> None:
    agent = service.agent("read", TOPIC)
    agent.on(OrderPlaced)(count)
    agent.on_record(raw)


def _client_without_call(service: Service) -> None:
    service.agent("read", TOPIC, opens=open_client).on(OrderCancelled)(count)


def _deferred_call(service: Service) -> None:
    agent = service.agent("read", TOPIC, deferred=True)
    agent.on(OrderPlaced)(count)
    agent.call(ask)


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (_records_and_types, "read handles records as they are"),
        (_client_without_call, "read opens a client and makes no call"),
        (_deferred_call, "read makes calls to the outside: it cannot be deferred"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused_when_the_application_is_made(
    tmp_path: Path, declare: Callable[[Service], None], says: str
) -> None:
    service = Service("words")
    declare(service)
    with pytest.raises(ValueError, match=says):
        create_app(make_settings("memory://", tmp_path), services=[service])


def test_a_projection_is_an_agent_that_is_deferred(tmp_path: Path) -> None:
    service = Service("words", tables=(TABLE,))
    projection = service.projection("count-words", TOPIC, TABLE)
    engine = create_app(make_settings("memory://", tmp_path), services=[service]).engine
    assert isinstance(projection, Projection)
    assert engine.projections == {"count-words": projection}
    assert engine.agents == {"count-words": TOPIC}
