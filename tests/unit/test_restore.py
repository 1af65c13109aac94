"""Restoring follows the changelog to its very end and starts anew where the store cannot belong to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from streams.engine.restore import IDENTITY_KEY, RestoreProgress, identify, restore
from streams.engine.store import ChangelogMark, Store
from streams.engine.table import AnyTable, Table
from streams.settings import Settings
from streams.transport.base import Outgoing, TopicSpec
from streams.transport.embedded_broker import EmbeddedBroker
from tests.apps import make_settings

KEEP_S = 86_400.0


class Row(msgspec.Struct, frozen=True):
    value: int


TABLE: AnyTable = Table("rows", Row)
OTHER: AnyTable = Table("others", Row)
TOPICS = {"rows-log": TABLE, "others-log": OTHER}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings("memory://", tmp_path, partitions=1)


@pytest.fixture
async def broker(settings: Settings) -> AsyncIterator[EmbeddedBroker]:
    broker = EmbeddedBroker(settings)
    await broker.start()
    await broker.create_topics([TopicSpec(topic, 1, True, None) for topic in TOPICS])
    yield broker
    await broker.stop()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "0")
    yield store
    store.close()


def rows(**values: int | None) -> list[Outgoing]:
    return [(key.encode(), None if value is None else b"%d" % value, ()) for key, value in values.items()]


async def restored(broker: EmbeddedBroker, store: Store, keep_s: float = KEEP_S) -> tuple[list[str], RestoreProgress]:
    """Restore all tables; which have no identity, and how much was applied."""
    reader, progress = broker.reader(0, list(TOPICS)), RestoreProgress()
    await reader.start()
    async with asyncio.timeout(20):
        nameless = await restore(store, reader, TOPICS, keep_s, progress)
    await reader.close()
    return nameless, progress


async def name(broker: EmbeddedBroker, store: Store) -> None:
    """Give the changelogs their identity."""
    producer = broker.producer(0)
    await producer.start()
    await identify(list(TOPICS), 0, producer, store)


def stored(store: Store, table: AnyTable = TABLE) -> dict[bytes, bytes]:
    return {key.removeprefix(table.prefix): value for key, value in store.scan(table.prefix)}


async def test_rows_and_deletions_are_applied_to_the_end_of_every_changelog(
    broker: EmbeddedBroker, store: Store
) -> None:
    await broker.publish("rows-log", 0, rows(a=1, b=2, c=3))
    await broker.publish("rows-log", 0, rows(a=4, b=None))
    await broker.publish("others-log", 0, rows(a=9))
    nameless, progress = await restored(broker, store)
    assert set(nameless) == set(TOPICS)
    assert (stored(store), stored(store, OTHER)) == ({b"a": b"4", b"c": b"3"}, {b"a": b"9"})
    assert (store.mark("rows-log").position, store.mark("others-log").position) == (5, 1)
    assert (progress.applied, progress.total) == (6, 6)


async def test_a_second_restore_applies_only_what_is_new(broker: EmbeddedBroker, store: Store) -> None:
    await restored(broker, store)
    await name(broker, store)
    await broker.publish("rows-log", 0, rows(a=1))
    nameless, progress = await restored(broker, store)
    assert (nameless, progress.applied, progress.total) == ([], 1, 1)
    _, progress = await restored(broker, store)
    assert progress.applied == 0
    assert stored(store) == {b"a": b"1"}


async def test_the_identity_is_no_row_and_is_found_again_by_a_new_store(broker: EmbeddedBroker, store: Store) -> None:
    await name(broker, store)
    identity = store.mark("rows-log").identity
    assert identity
    store.wipe()
    nameless, _ = await restored(broker, store)
    assert nameless == []
    assert (store.mark("rows-log").identity, stored(store)) == (identity, {})
    assert store.get(TABLE.prefix + IDENTITY_KEY) is None


async def test_a_store_further_than_its_changelog_is_restored_anew(broker: EmbeddedBroker, store: Store) -> None:
    await name(broker, store)
    mark = store.mark("rows-log")
    store.write([(TABLE.prefix, rows(lost=1))], {"rows-log": msgspec.structs.replace(mark, position=mark.position + 1)})
    await broker.publish("others-log", 0, rows(kept=1))
    await restored(broker, store)
    assert (stored(store), stored(store, OTHER)) == ({}, {b"kept": b"1"})


async def test_a_store_of_a_changelog_created_anew_is_restored_anew(broker: EmbeddedBroker, store: Store) -> None:
    await name(broker, store)
    store.write([(TABLE.prefix, rows(lost=1))], {})
    broker.log.delete_topic("rows-log")
    await broker.create_topics([TopicSpec("rows-log", 1, True, None)])
    await broker.publish("rows-log", 0, rows(a=1, b=2, c=3))
    nameless, _ = await restored(broker, store)
    assert nameless == ["rows-log"]
    assert stored(store) == {b"a": b"1", b"b": b"2", b"c": b"3"}


async def test_an_identity_that_a_copy_moved_elsewhere_does_not_count(broker: EmbeddedBroker, store: Store) -> None:
    await name(broker, store)
    mark = store.mark("rows-log")
    store.write([(TABLE.prefix, rows(lost=1))], {"rows-log": msgspec.structs.replace(mark, identity=b"another")})
    await restored(broker, store)
    assert stored(store) == {}


async def test_a_store_too_old_for_tombstones_is_restored_anew(broker: EmbeddedBroker, store: Store) -> None:
    await name(broker, store)
    store.write([(TABLE.prefix, rows(deleted_long_ago=1))], {})
    await broker.publish("rows-log", 0, rows(missed=1))
    store.written_at -= KEEP_S / 2 + 1
    await restored(broker, store)
    assert stored(store) == {b"missed": b"1"}


async def test_an_old_store_that_has_missed_nothing_is_kept(broker: EmbeddedBroker, store: Store) -> None:
    await name(broker, store)
    store.write([(TABLE.prefix, rows(kept=1))], {})
    store.written_at -= KEEP_S / 2 + 1
    _, progress = await restored(broker, store)
    assert (progress.applied, stored(store)) == (0, {b"kept": b"1"})


async def test_a_compacted_changelog_is_followed_to_its_end(broker: EmbeddedBroker, store: Store) -> None:
    for value in range(50):
        await broker.publish("rows-log", 0, rows(a=value, b=value))
    for _ in broker.log.maintain(min_dirty_ratio=0):
        pass
    _, progress = await restored(broker, store)
    assert progress.applied < 100
    assert stored(store) == {b"a": b"49", b"b": b"49"}
    assert store.mark("rows-log") == ChangelogMark(100)
