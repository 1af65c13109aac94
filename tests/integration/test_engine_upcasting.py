"""Old versions of an event become the current one on every way in: consumer, load after a restart, and replay."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from domain.orders import Order, evolve, replay
from engine.declare.envelope import Envelope
from engine.declare.errors import UnknownEventVersion
from engine.declare.registry import EventRegistry
from engine.declare.service import Service
from engine.declare.table import NUMBERED_KEY, Table
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Outgoing
from streams.events.orders import registry
from streams.settings import Settings
from tests.apps import (
    DURABLE_TRANSPORTS,
    broker_url,
    caught_up,
    dead_letters,
    make_settings,
    row,
    running,
    unique,
)
from tests.unit.test_envelope import PLACED_V1
from tests.unit.test_registry import OrderPlacedV3, later_registry, version_2_bytes, version_3_bytes

ID = "order-123"
KEY = ID.encode()
VERSIONS = {1: PLACED_V1, 2: version_2_bytes(), 3: version_3_bytes()}


@pytest.fixture(params=DURABLE_TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


class Book:
    """A service of a later release: `order.placed` is at version 3; keeps each order and its history as it came."""

    def __init__(self, source: Topic | None = None, agent: str = "book") -> None:
        name = unique("book")
        self.source = source or Topic(f"{name}-events", "order events of all releases")
        self.orders: Table[str, Order] = Table(f"{name}-orders", Order)
        self.history: Table[tuple[str, int], msgspec.Raw] = Table(f"{name}-history", msgspec.Raw, NUMBERED_KEY)
        self.service = Service(name, tables=(self.orders, self.history))
        self.service.agent(agent, self.source).on(OrderPlacedV3)(self.keep)

    def keep(self, event: Envelope[OrderPlacedV3], work: UnitOfWork) -> None:
        assert (type(event.payload), event.version) == (OrderPlacedV3, 3)
        number = 1 + sum(work.get(self.history, (ID, n)) is not None for n in (1, 2, 3))
        work.put(self.orders, event.aggregate_id, evolve(None, event))
        work.put(self.history, (ID, number), msgspec.Raw(work.record.value or b""))


def replayed(app: object, book: Book, later: EventRegistry, number: int) -> list[Order | None]:
    """The order as each single stored event of its history replays it."""
    task = app.engine.task(number)  # type: ignore[attr-defined]
    return [replay([later.decode(bytes(raw))]) for _, raw in task.scan(book.history)]


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_version_gives_the_same_state_by_consumer_load_and_replay(settings: Settings, version: int) -> None:
    book, later = Book(), later_registry()
    today = evolve(None, registry().decode(PLACED_V1))
    async with running(settings, [book.service], registry=later) as app:
        number = app.engine.partition_for(KEY)
        record: Outgoing = (KEY, VERSIONS[version], ())
        await app.engine.broker.publish(book.source.name, number, [record])
        await caught_up(app)
        assert row(app, book.orders, ID) == today
        assert replayed(app, book, later, number) == [today]
        assert await dead_letters(app, book.source) == []
    shutil.rmtree(settings.data_dir / "stores")  # loaded from the changelog, as on another worker
    async with running(settings, [book.service], registry=later) as app:
        assert row(app, book.orders, ID) == today
        assert replayed(app, book, later, number) == [today]


async def test_a_topic_with_all_versions_is_read_from_the_beginning_by_a_new_projection(settings: Settings) -> None:
    book, later = Book(), later_registry()
    async with running(settings, [book.service], registry=later) as app:
        number = app.engine.partition_for(KEY)
        records: list[Outgoing] = [(KEY, value, ()) for value in VERSIONS.values()]
        await app.engine.broker.publish(book.source.name, number, records)
        await caught_up(app)
    rebuilt = Book(book.source, "rebuilt")
    async with running(settings, [rebuilt.service], registry=later) as app:
        await caught_up(app)
        today = evolve(None, registry().decode(PLACED_V1))
        assert row(app, rebuilt.orders, ID) == today
        assert replayed(app, rebuilt, later, number) == [today] * 3


@pytest.mark.parametrize("settings", ["embedded"], indirect=True)
async def test_an_older_release_keeps_what_it_cannot_read_yet_as_dead_letters(settings: Settings) -> None:
    book = Book()
    async with running(settings, [book.service], registry=registry()) as app:
        number = app.engine.partition_for(KEY)
        await app.engine.broker.publish(book.source.name, number, [(KEY, version_3_bytes(), ())])
        await caught_up(app)
        (letter,) = await dead_letters(app, book.source)
        assert letter.value == version_3_bytes()
        assert dict(letter.headers)["error_type"].decode() == UnknownEventVersion.__name__
