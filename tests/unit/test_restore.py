"""Restoring follows the changelog to its very end, and never gives a store up for a changelog that has less."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from engine.declare.table import AnyTable, Table
from engine.log.embedded.broker import EmbeddedBroker
from engine.log.ports import Outgoing, TopicSpec
from engine.store.changelogs import IDENTITY_KEY, ChangelogRefused, Standing, new_identity
from engine.store.repair_rows import FROM_CHANGELOG, REPAIRS, RepairRow
from engine.store.restore import Restored, RestoreProgress, identify, restore
from engine.store.store import Store
from streams.settings import Settings
from tests.apps import make_settings
from tests.lost_records import remove_before

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


async def restored(broker: EmbeddedBroker, store: Store, keep_s: float = KEEP_S) -> tuple[Restored, RestoreProgress]:
    """Restore all tables; what was found, and how much was applied."""
    reader, progress = broker.reader(0, list(TOPICS)), RestoreProgress()
    await reader.start()
    async with asyncio.timeout(20):
        try:
            found = await restore(store, reader, 0, TOPICS, keep_s, progress, await broker.topic_ids(list(TOPICS)))
        finally:
            await reader.close()
    return found, progress


async def name(broker: EmbeddedBroker, store: Store) -> None:
    """Give the changelogs their identity."""
    producer = broker.producer(0)
    await producer.start()
    await identify(list(TOPICS), 0, producer, store, await broker.topic_ids(list(TOPICS)))


def stored(store: Store, table: AnyTable = TABLE) -> dict[bytes, bytes]:
    return {key.removeprefix(table.prefix): value for key, value in store.scan(table.prefix)}


async def test_rows_and_deletions_are_applied_to_the_end_of_every_changelog(
    broker: EmbeddedBroker, store: Store
) -> None:
    await broker.publish("rows-log", 0, rows(a=1, b=2, c=3))
    await broker.publish("rows-log", 0, rows(a=4, b=None))
    await broker.publish("others-log", 0, rows(a=9))
    found, progress = await restored(broker, store)
    assert (set(found.nameless), found.shortened) == (set(TOPICS), [])
    assert (stored(store), stored(store, OTHER)) == ({b"a": b"4", b"c": b"3"}, {b"a": b"9"})
    assert (store.mark("rows-log").position, store.mark("others-log").position) == (5, 1)
    assert (progress.applied, progress.total) == (6, 6)


async def test_a_second_restore_applies_only_what_is_new(broker: EmbeddedBroker, store: Store) -> None:
    await restored(broker, store)
    await name(broker, store)
    await broker.publish("rows-log", 0, rows(a=1))
    found, progress = await restored(broker, store)
    assert (found.nameless, progress.applied, progress.total) == ([], 1, 1)
    _, progress = await restored(broker, store)
    assert progress.applied == 0
    assert stored(store) == {b"a": b"1"}


async def test_the_identity_is_no_row_and_is_found_again_by_a_new_store(broker: EmbeddedBroker, store: Store) -> None:
    await name(broker, store)
    identity = store.mark("rows-log").identity
    assert identity
    store.wipe()
    found, _ = await restored(broker, store)
    assert found.nameless == []
    assert (store.mark("rows-log").identity, stored(store)) == (identity, {})
    assert store.get(TABLE.prefix + IDENTITY_KEY) is None


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
    assert store.mark("rows-log").position == 100


# ---- a changelog that has less than the store


async def refused(broker: EmbeddedBroker, store: Store, keep_s: float = KEEP_S) -> list[tuple[str, Standing]]:
    """The changelogs for which a restore is refused; the store has the rows then that it had."""
    before = stored(store), stored(store, OTHER)
    with pytest.raises(ChangelogRefused) as caught:
        await restored(broker, store, keep_s)
    assert (stored(store), stored(store, OTHER)) == before
    assert "rows-log/0" in caught.value.detail
    return [(changelog.topic, changelog.standing) for changelog in caught.value.changelogs]


async def end_of(broker: EmbeddedBroker, topic: str = "rows-log") -> int:
    return await broker.end_offset(topic, 0)


async def filled(broker: EmbeddedBroker, store: Store) -> None:
    """Rows a to c in the changelog and in the store."""
    await name(broker, store)
    await broker.publish("rows-log", 0, rows(a=1, b=2, c=3))
    await restored(broker, store)


async def recreate(broker: EmbeddedBroker) -> None:
    broker.log.delete_topic("rows-log")
    await broker.create_topics([TopicSpec("rows-log", 1, True, None)])


async def test_a_store_further_than_its_changelog_is_kept_and_refused(broker: EmbeddedBroker, store: Store) -> None:
    await filled(broker, store)
    mark = store.mark("rows-log")
    store.write([(TABLE.prefix, rows(more=1))], {"rows-log": replace(mark, position=mark.position + 1)})
    assert await refused(broker, store) == [("rows-log", Standing.AHEAD)]


@pytest.mark.parametrize("records", [0, 50], ids=["empty", "longer"])
async def test_a_store_of_a_changelog_created_anew_is_kept_and_refused(
    broker: EmbeddedBroker, store: Store, records: int
) -> None:
    await filled(broker, store)
    await recreate(broker)
    await broker.publish("rows-log", 0, rows(a=7) * records)
    assert await refused(broker, store) == [("rows-log", Standing.OTHER)]


async def test_a_store_without_topic_ids_knows_a_changelog_created_anew_by_its_identity(
    broker: EmbeddedBroker, store: Store
) -> None:
    await filled(broker, store)
    store.write((), {topic: replace(store.mark(topic), topic_id="") for topic in TOPICS})
    await recreate(broker)
    await broker.publish("rows-log", 0, rows(a=7) * 50)
    assert await refused(broker, store) == [("rows-log", Standing.OTHER)]


async def test_another_identity_at_the_same_place_is_of_another_changelog(broker: EmbeddedBroker, store: Store) -> None:
    await filled(broker, store)
    store.write((), {"rows-log": replace(store.mark("rows-log"), identity=b"another")})
    assert await refused(broker, store) == [("rows-log", Standing.OTHER)]


async def test_a_store_of_an_earlier_release_is_given_the_ids_of_its_topics(
    broker: EmbeddedBroker, store: Store
) -> None:
    await filled(broker, store)
    known = {topic: store.mark(topic) for topic in TOPICS}
    store.write((), {topic: replace(mark, topic_id="") for topic, mark in known.items()})
    await broker.publish("rows-log", 0, rows(d=4))
    await restored(broker, store)
    assert {topic: store.mark(topic).topic_id for topic in TOPICS} == await broker.topic_ids(list(TOPICS))
    assert stored(store)[b"d"] == b"4"


async def test_a_store_is_followed_on_when_the_beginning_of_its_changelog_was_removed(
    broker: EmbeddedBroker, store: Store
) -> None:
    await filled(broker, store)
    await remove_before(broker, "rows-log", 0, await end_of(broker))
    await broker.publish("rows-log", 0, rows(d=4))
    found, progress = await restored(broker, store)
    assert stored(store) == {b"a": b"1", b"b": b"2", b"c": b"3", b"d": b"4"}
    assert progress.applied == 1
    assert [changelog.topic for changelog in found.shortened] == ["rows-log"]


@pytest.mark.parametrize("left", [0, 2], ids=["all", "some"])
async def test_without_a_store_a_changelog_whose_beginning_was_removed_is_refused(
    broker: EmbeddedBroker, store: Store, left: int
) -> None:
    await filled(broker, store)
    await remove_before(broker, "rows-log", 0, await end_of(broker) - left)
    store.wipe()
    assert await refused(broker, store) == [("rows-log", Standing.EMPTY)]
    assert stored(store) == {}


async def test_records_removed_before_the_store_had_them_are_named(broker: EmbeddedBroker, store: Store) -> None:
    await filled(broker, store)
    at = store.mark("rows-log").position
    await broker.publish("rows-log", 0, rows(d=4, e=5))
    await remove_before(broker, "rows-log", 0, at + 1)
    with pytest.raises(ChangelogRefused, match=f"offsets {at} to {at}"):
        await restored(broker, store)
    assert await refused(broker, store) == [("rows-log", Standing.BEHIND)]


async def test_a_store_too_old_for_tombstones_is_kept_when_a_changelog_could_not_restore_it(
    broker: EmbeddedBroker, store: Store
) -> None:
    await filled(broker, store)
    await remove_before(broker, "rows-log", 0, await end_of(broker))
    await broker.publish("rows-log", 0, rows(missed=1))
    store.written_at -= KEEP_S / 2 + 1
    assert await refused(broker, store) == [("rows-log", Standing.OLD)]


# ---- a changelog that a repair has made whole again


async def repaired(broker: EmbeddedBroker, *written: Outgoing) -> None:
    """All rows written anew, and then the identity that says so."""
    start = await end_of(broker)
    await broker.publish("rows-log", 0, written)
    await broker.publish("rows-log", 0, [(IDENTITY_KEY, new_identity(start), ())])


async def test_a_repaired_changelog_restores_a_new_store(broker: EmbeddedBroker, store: Store) -> None:
    await filled(broker, store)
    await remove_before(broker, "rows-log", 0, await end_of(broker))
    await repaired(broker, *rows(a=1, b=2))
    await broker.publish("rows-log", 0, rows(d=4))
    store.wipe()
    found, _ = await restored(broker, store)
    assert stored(store) == {b"a": b"1", b"b": b"2", b"d": b"4"}
    assert (found.shortened, found.nameless) == ([], [])


async def test_a_repair_whose_own_beginning_was_removed_does_not_count(broker: EmbeddedBroker, store: Store) -> None:
    await filled(broker, store)
    await remove_before(broker, "rows-log", 0, await end_of(broker))
    start = await end_of(broker)
    await repaired(broker, *rows(a=1, b=2))
    await remove_before(broker, "rows-log", 0, start + 1)
    store.wipe()
    assert await refused(broker, store) == [("rows-log", Standing.EMPTY)]


async def test_an_earlier_store_follows_a_repaired_changelog_although_compaction_took_the_identity_it_knows(
    broker: EmbeddedBroker, store: Store
) -> None:
    await filled(broker, store)
    await repaired(broker, *rows(a=1, b=2, c=3))
    await broker.publish("rows-log", 0, rows(d=4))
    for _ in broker.log.maintain(min_dirty_ratio=0):
        pass
    await restored(broker, store)
    assert stored(store) == {b"a": b"1", b"b": b"2", b"c": b"3", b"d": b"4"}


async def test_a_store_of_the_topic_before_is_given_up_for_one_that_was_created_anew_and_repaired(
    broker: EmbeddedBroker, store: Store
) -> None:
    await filled(broker, store)
    await recreate(broker)
    await repaired(broker, *rows(a=1, b=2))
    await restored(broker, store)
    assert stored(store) == {b"a": b"1", b"b": b"2"}


async def test_a_store_that_lacks_removed_records_is_given_up_for_a_changelog_that_was_repaired(
    broker: EmbeddedBroker, store: Store
) -> None:
    await filled(broker, store)
    await broker.publish("rows-log", 0, rows(d=4, e=5))
    await remove_before(broker, "rows-log", 0, await end_of(broker))
    await repaired(broker, *rows(a=1, d=4))
    await restored(broker, store)
    assert stored(store) == {b"a": b"1", b"d": b"4"}


async def test_a_store_is_not_given_up_while_another_of_its_changelogs_could_not_restore_it(
    broker: EmbeddedBroker, store: Store
) -> None:
    await filled(broker, store)
    await recreate(broker)
    await repaired(broker, *rows(a=1))
    await broker.publish("others-log", 0, rows(kept=1))
    await restored_others(broker, store)
    await remove_before(broker, "others-log", 0, await end_of(broker, "others-log"))
    with pytest.raises(ChangelogRefused, match="others-log/0"):
        await restored(broker, store)
    assert stored(store, OTHER) == {b"kept": b"1"}


async def restored_others(broker: EmbeddedBroker, store: Store) -> None:
    """Restore the second table alone."""
    reader = broker.reader(0, ["others-log"])
    await restore(store, reader, 0, TOPICS, KEEP_S, RestoreProgress(), await broker.topic_ids(["others-log"]))


async def test_a_store_that_was_further_than_its_changelog_when_that_was_repaired_is_given_up_for_it(
    broker: EmbeddedBroker, store: Store
) -> None:
    topics = {**TOPICS, "repairs-log": REPAIRS}
    await broker.create_topics([TopicSpec("repairs-log", 1, True, None)])
    await filled(broker, store)
    end = await end_of(broker)
    mark = replace(store.mark("rows-log"), position=end + 1)
    store.write([(TABLE.prefix, rows(never=1))], {"rows-log": mark})
    await repaired(broker, *rows(a=1, b=2, c=3))
    noted = RepairRow(1, FROM_CHANGELOG, "somebody", "", {"rows-log": end}, 0, 0)
    await broker.publish("repairs-log", 0, [(b"1", REPAIRS.encode_row(noted), ())])
    reader = broker.reader(0, list(topics))
    await restore(store, reader, 0, topics, KEEP_S, RestoreProgress(), await broker.topic_ids(list(topics)))
    assert stored(store) == {b"a": b"1", b"b": b"2", b"c": b"3"}
