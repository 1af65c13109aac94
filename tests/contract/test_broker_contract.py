"""The ports of every transport behave as Kafka does: order, offsets, transactions, fencing, restart."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from engine.declare.topic import DAY_MS, Topic
from engine.log.partitioner import partition_for
from engine.log.ports import Broker, Outgoing, PartitionsMismatch, ProducerFenced, TopicSpec, TransportError
from streams.settings import Settings
from tests.apps import (
    DURABLE_TRANSPORTS,
    KAFKA,
    TRANSPORTS,
    broker_url,
    connected,
    make_settings,
    read_committed,
    unique,
)
from tests.lost_records import add_partitions, delete_topic, remove_before, until_gone

PARTITIONS = 2
LARGE_BYTES = 2 << 20  # larger than any consumer accepts; the log takes it, so that it can become a dead letter
TOO_LARGE_BYTES = 5 << 20

SOURCE, TABLE = "source", "table"


@pytest.fixture(params=TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path, partitions=PARTITIONS)


@pytest.fixture
def topic() -> str:
    return unique("contract")


@pytest.fixture
def changelog() -> str:
    return unique("contract-changelog")


@pytest.fixture
async def broker(settings: Settings, topic: str, changelog: str) -> AsyncIterator[Broker]:
    async with connected(settings, specs(topic, changelog)) as broker:
        yield broker


def specs(topic: str, changelog: str) -> list[TopicSpec]:
    return [TopicSpec(topic, PARTITIONS, False, None), TopicSpec(changelog, PARTITIONS, True, None)]


def keyed(*values: str) -> list[Outgoing]:
    return [(b"key", value.encode(), ()) for value in values]


async def values_of(broker: Broker, topic: str, partition: int = 0) -> list[str]:
    return [(record.value or b"").decode() for record in await read_committed(broker, topic, partition)]


# ---- topics


async def test_topics_are_created_once_with_their_partitions(broker: Broker, topic: str, changelog: str) -> None:
    await broker.publish(topic, 0, keyed("kept"))
    await broker.create_topics(specs(topic, changelog))
    assert {name: count for name, count in (await broker.topics()).items() if name in (topic, changelog)} == {
        topic: PARTITIONS,
        changelog: PARTITIONS,
    }
    assert await values_of(broker, topic) == ["kept"]


async def test_a_topic_with_another_number_of_partitions_is_refused_by_name(broker: Broker, topic: str) -> None:
    with pytest.raises(PartitionsMismatch, match=rf"{topic}.* has {PARTITIONS} partitions"):
        await broker.create_topics([TopicSpec(topic, PARTITIONS + 1, False, None)])


@pytest.mark.parametrize("settings", [KAFKA], indirect=True)
async def test_topics_of_another_size_are_refused_with_advice_that_deletes_nothing(
    broker: Broker, topic: str, changelog: str
) -> None:
    with pytest.raises(PartitionsMismatch, match=f"set ORDERS_PARTITIONS={PARTITIONS}, which they were made with"):
        await broker.create_topics([TopicSpec(name, PARTITIONS + 1, False, None) for name in (topic, changelog)])
    await broker.create_topics([TopicSpec(unique("larger"), PARTITIONS + 1, False, None), *specs(topic, changelog)])
    few = unique("few")
    await broker.create_topics([TopicSpec(few, 1, False, None)])
    with pytest.raises(PartitionsMismatch, match=f"{few} has 1 partitions.*if it is empty, add partitions"):
        await broker.create_topics([TopicSpec(few, PARTITIONS, False, None), *specs(topic, changelog)])
    await add_partitions(broker, topic, PARTITIONS + 1)
    await broker.create_topics(specs(topic, changelog))  # those that were added are left alone


@pytest.mark.parametrize("settings", [KAFKA], indirect=True)
async def test_records_that_the_log_removes_by_their_age_are_stamped_by_the_broker_whatever_their_producers_clock_says(
    settings: Settings, broker: Broker, topic: str
) -> None:
    kept_a_week = unique("week")
    await broker.create_topics([TopicSpec(kept_a_week, PARTITIONS, False, 7 * DAY_MS)])
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers)
    await producer.start()
    now_ms = int(time.time() * 1000)
    try:
        for name in (kept_a_week, topic):
            await producer.send_and_wait(name, b"late", partition=0, timestamp_ms=now_ms - 8 * DAY_MS)
    finally:
        await producer.stop()
    (stamped,) = await read_committed(broker, kept_a_week, 0)
    assert abs(stamped.timestamp_ms - now_ms) < DAY_MS
    (kept_for_ever,) = await read_committed(broker, topic, 0)
    assert kept_for_ever.timestamp_ms == now_ms - 8 * DAY_MS


async def test_a_topic_that_is_made_anew_has_another_id(broker: Broker, topic: str, changelog: str) -> None:
    before = await broker.topic_ids([topic, changelog, unique("missing")])
    assert before.keys() == {topic, changelog}
    assert all(before.values())
    assert await broker.topic_ids([topic, changelog]) == before
    await delete_topic(broker, topic)
    await until_gone(broker, topic)
    await broker.create_topics(specs(topic, changelog))
    after = await broker.topic_ids([topic, changelog])
    assert after[changelog] == before[changelog]
    assert after[topic] not in ("", before[topic])


async def test_a_partition_begins_behind_what_was_removed_and_ends_behind_its_last_record(
    broker: Broker, topic: str
) -> None:
    await broker.publish(topic, 0, keyed("a", "b", "c"))
    await remove_before(broker, topic, 0, 2)
    assert await broker.bounds([(topic, 0), (topic, 1)]) == {(topic, 0): (2, 3), (topic, 1): (0, 0)}


# ---- records


async def test_records_of_a_partition_keep_their_order_and_publish_returns_their_offsets(
    broker: Broker, topic: str
) -> None:
    positions = []
    for start in range(0, 60, 20):
        positions += await broker.publish(topic, 0, keyed(*(str(number) for number in range(start, start + 20))))
        await broker.publish(topic, 1, keyed("other"))
    records = await read_committed(broker, topic, 0)
    assert [record.value for record in records] == [str(number).encode() for number in range(60)]
    assert [record.offset for record in records] == [position.offset for position in positions] == list(range(60))
    assert {(position.topic, position.partition) for position in positions} == {(topic, 0)}
    assert await values_of(broker, topic, 1) == ["other"] * 3
    assert await broker.end_offset(topic, 0) == 60


async def test_keys_values_and_headers_come_back_as_they_were_written(broker: Broker, topic: str) -> None:
    records: list[Outgoing] = [
        (b"key", b"value", (("a", b"1"), ("b", b""), ("a", b"2"), ("caf\u00e9", b"\x00\xff"))),
        (None, b"no key", ()),
        (b"no value", None, ()),
        (b"", b"", ()),
        (b"\x00\xff", b"\xff\x00", ()),
    ]
    positions = await broker.publish(topic, 0, records)
    producer = broker.producer(1)
    await producer.start()
    await producer.begin()
    await producer.send({(topic, 1): records})
    await producer.commit()
    await producer.close()
    assert len(positions) == len(records)
    for partition in range(PARTITIONS):
        read = await read_committed(broker, topic, partition)
        assert [(record.key, record.value, tuple(record.headers)) for record in read] == records


async def test_a_record_carries_the_time_it_was_produced(broker: Broker, topic: str) -> None:
    before_ms = int(time.time() * 1000)
    await broker.publish(topic, 0, keyed("published"))
    producer = broker.producer(0)
    await producer.start()
    await producer.begin()
    await producer.send({(topic, 0): keyed("in a transaction")})
    await producer.commit()
    await producer.close()
    after_ms = int(time.time() * 1000) + 1
    times_ms = [record.timestamp_ms for record in await read_committed(broker, topic, 0)]
    assert len(times_ms) == 2
    assert all(before_ms <= time_ms <= after_ms for time_ms in times_ms)


async def test_the_log_takes_records_that_no_consumer_accepts_and_refuses_larger_ones_whole(
    broker: Broker, topic: str
) -> None:
    large: Outgoing = (b"large", b"x" * LARGE_BYTES, ())
    await broker.publish(topic, 0, [large])
    with pytest.raises(TransportError):
        await broker.publish(topic, 0, [(b"too large", b"x" * TOO_LARGE_BYTES, ())])
    producer = broker.producer(0)
    await producer.start()
    await producer.begin()
    await producer.send({(topic, 0): [*keyed("before"), large, *keyed("after")]})
    await producer.commit()
    await producer.close()
    sizes = [len(record.value or b"") for record in await read_committed(broker, topic, 0)]
    assert sizes == [LARGE_BYTES, len("before"), LARGE_BYTES, len("after")]


# ---- transactions


async def test_nothing_of_a_transaction_is_visible_before_its_commit_and_everything_after(
    broker: Broker, topic: str, changelog: str
) -> None:
    await broker.publish(topic, 0, keyed("before"))
    producer = broker.producer(0)
    await producer.start()
    await producer.begin()
    await producer.send(
        {(topic, 0): keyed("a", "b"), (topic, 1): keyed("c"), (changelog, 0): [(b"row", b"1", ()), (b"gone", None, ())]}
    )
    await producer.send_offsets({(topic, 0): 1})

    assert await values_of(broker, topic) == ["before"]
    assert await values_of(broker, topic, 1) == []
    assert await read_committed(broker, changelog, 0) == []
    assert await broker.committed([(topic, 0)]) == {}

    ends = await producer.commit()
    await producer.close()
    assert await values_of(broker, topic) == ["before", "a", "b"]
    assert await values_of(broker, topic, 1) == ["c"]
    rows = await read_committed(broker, changelog, 0)
    assert [(record.key, record.value) for record in rows] == [(b"row", b"1"), (b"gone", None)]
    assert await broker.committed([(topic, 0), (topic, 1)]) == {(topic, 0): 1}
    assert ends == {(topic, 0): 3, (topic, 1): 1, (changelog, 0): rows[-1].offset + 1}


async def test_nothing_of_an_uncommitted_transaction_stays_after_its_producer_went_away(
    broker: Broker, topic: str
) -> None:
    lost = broker.producer(0)
    await lost.start()
    await lost.begin()
    await lost.send({(topic, 0): keyed("lost"), (topic, 1): keyed("lost")})
    await lost.send_offsets({(topic, 0): 7})
    await lost.close()

    successor = broker.producer(0)
    await successor.start()
    assert await values_of(broker, topic) == []
    await successor.begin()
    await successor.send({(topic, 0): keyed("kept")})
    await successor.commit()
    await successor.close()
    assert await values_of(broker, topic) == ["kept"]
    assert await values_of(broker, topic, 1) == []
    assert await broker.committed([(topic, 0)]) == {}


async def test_a_producer_commits_one_transaction_after_another(broker: Broker, topic: str) -> None:
    producer = broker.producer(0)
    await producer.start()
    for number in range(20):
        await producer.begin()
        await producer.send({(topic, 0): keyed(f"{number}a", f"{number}b")})
        await producer.send_offsets({(topic, 0): number})
        ends = await producer.commit()
        records = await read_committed(broker, topic, 0) if number in (0, 19) else []
        assert not records or ends == {(topic, 0): records[-1].offset + 1}
    await producer.close()
    assert await values_of(broker, topic) == [f"{number}{step}" for number in range(20) for step in "ab"]
    assert await broker.committed([(topic, 0)]) == {(topic, 0): 19}


async def test_a_transaction_larger_than_a_batch_keeps_its_order(broker: Broker, topic: str) -> None:
    producer = broker.producer(0)
    await producer.start()
    await producer.begin()
    records: list[Outgoing] = [(b"key", f"{number:06}".encode() * 500, ()) for number in range(1200)]  # 3.6 MB
    await producer.send({(topic, 0): records})
    ends = await producer.commit()
    await producer.close()
    read = await read_committed(broker, topic, 0)
    assert [(record.value or b"")[:6] for record in read] == [f"{number:06}".encode() for number in range(1200)]
    assert ends[topic, 0] == read[-1].offset + 1 == 1200


async def test_a_transaction_of_nothing_but_offsets_moves_them(broker: Broker, topic: str) -> None:
    producer = broker.producer(0)
    await producer.start()
    for offsets in ({(topic, 0): 3, (topic, 1): 4}, {(topic, 0): 5}, {}):
        await producer.begin()
        await producer.send({})
        await producer.send_offsets(offsets)
        assert await producer.commit() == {}
    await producer.close()
    assert await broker.committed([(topic, 0), (topic, 1)]) == {(topic, 0): 5, (topic, 1): 4}


async def test_a_record_without_key_and_value_passes_through_a_transaction(broker: Broker, topic: str) -> None:
    producer = broker.producer(0)
    await producer.start()
    await producer.begin()
    await producer.send({(topic, 0): [(None, None, (("why", b"any client may write such a record"),))]})
    await producer.commit()
    await producer.close()
    (record,) = await read_committed(broker, topic, 0)
    assert (record.key, record.value) == (None, None)


# ---- fencing


async def test_a_second_producer_of_a_partition_fences_the_open_transaction_of_the_first(
    broker: Broker, topic: str
) -> None:
    first = broker.producer(0)
    await first.start()
    await first.begin()
    await first.send({(topic, 0): keyed("fenced")})
    await first.send_offsets({(topic, 0): 9})
    second = broker.producer(0)
    await second.start()
    with pytest.raises(ProducerFenced):
        await first.commit()
    await first.close()
    await second.begin()
    await second.send({(topic, 0): keyed("kept")})
    await second.commit()
    await second.close()
    assert await values_of(broker, topic) == ["kept"]
    assert await broker.committed([(topic, 0)]) == {}


async def test_a_fenced_producer_cannot_begin_anew(broker: Broker, topic: str) -> None:
    first, second = broker.producer(0), broker.producer(0)
    await first.start()
    await second.start()

    async def one_more_transaction() -> None:
        await first.begin()
        await first.send({(topic, 0): keyed("fenced")})
        await first.commit()

    with pytest.raises(ProducerFenced):
        await one_more_transaction()
    await first.close()
    await second.close()
    assert await values_of(broker, topic) == []


async def test_producers_of_different_partition_numbers_leave_each_other_alone(broker: Broker, topic: str) -> None:
    producers = [broker.producer(number) for number in range(PARTITIONS)]
    for producer in producers:
        await producer.start()
    for number, producer in enumerate(producers):
        await producer.begin()
        await producer.send({(topic, number): keyed(str(number))})
    for producer in producers:
        await producer.commit()
        await producer.close()
    assert [await values_of(broker, topic, number) for number in range(PARTITIONS)] == [["0"], ["1"]]


# ---- readers


async def test_a_reader_gets_to_the_end_past_markers_and_aborted_records(broker: Broker, topic: str) -> None:
    producer = broker.producer(0)
    await producer.start()
    await producer.begin()
    await producer.send({(topic, 0): keyed("kept")})
    await producer.commit()
    await producer.begin()
    await producer.send({(topic, 0): keyed("aborted")})
    await producer.close()
    successor = broker.producer(0)
    await successor.start()
    await successor.close()

    reader = broker.reader(0, [topic])
    await reader.start()
    start, end = (await reader.bounds())[topic]
    reader.seek(topic, start)
    position, values = start, []
    deadline = time.monotonic() + 20
    while position < end:
        assert time.monotonic() < deadline
        for records, reached in (await reader.fetch()).values():
            values += [record.value for record in records]
            position = reached
    assert (start, position, values) == (0, end, [b"kept"])
    assert end <= await broker.end_offset(topic, 0)
    await reader.close()


async def test_a_reader_goes_on_where_it_is_told_to(broker: Broker, topic: str, changelog: str) -> None:
    await broker.publish(topic, 0, keyed("a", "b", "c"))
    await broker.publish(changelog, 0, keyed("x", "y"))
    reader = broker.reader(0, [topic, changelog])
    await reader.start()
    assert await reader.bounds() == {topic: (0, 3), changelog: (0, 2)}
    for offset, expected in ((1, [b"b", b"c"]), (0, [b"a", b"b", b"c"]), (2, [b"c"])):
        reader.seek(topic, offset)
        reader.seek(changelog, 2)
        found: list[bytes | None] = []
        deadline = time.monotonic() + 20
        while len(found) < len(expected):
            assert time.monotonic() < deadline
            moved = await reader.fetch()
            found += [record.value for record in moved.get(topic, ((), 0))[0]]
        assert found == expected
    await reader.close()


async def test_an_empty_partition_ends_where_it_begins(broker: Broker, topic: str) -> None:
    reader = broker.reader(1, [topic])
    await reader.start()
    assert await reader.bounds() == {topic: (0, 0)}
    await reader.close()
    assert await read_committed(broker, topic, 1) == []


# ---- restart


@pytest.mark.parametrize("settings", DURABLE_TRANSPORTS, indirect=True)
async def test_a_restart_finds_topics_records_and_offsets_and_still_fences(
    settings: Settings, topic: str, changelog: str
) -> None:
    async with connected(settings, specs(topic, changelog)) as broker:
        published = await broker.publish(topic, 0, keyed("published"))
        producer = broker.producer(0)
        await producer.start()
        await producer.begin()
        await producer.send({(topic, 0): keyed("committed")})
        await producer.send_offsets({(topic, 0): 1})
        await producer.commit()
        await producer.begin()
        await producer.send({(topic, 0): keyed("lost")})
        await producer.close()
    async with connected(settings) as again:
        assert (await again.topics())[topic] == PARTITIONS
        successor = again.producer(0)
        await successor.start()
        await successor.begin()
        await successor.send({(topic, 0): keyed("after")})
        await successor.commit()
        await successor.close()
        records = await read_committed(again, topic, 0)
        assert [record.value for record in records] == [b"published", b"committed", b"after"]
        assert [record.offset for record in records] == sorted({record.offset for record in records})
        assert records[0].offset == published[0].offset
        assert await again.committed([(topic, 0)]) == {(topic, 0): 1}


@pytest.mark.parametrize("settings", ["memory"], indirect=True)
async def test_memory_keeps_nothing(settings: Settings, topic: str, changelog: str) -> None:
    async with connected(settings, specs(topic, changelog)) as broker:
        await broker.publish(topic, 0, keyed("forgotten"))
    async with connected(settings) as again:
        assert await again.topics() == {}


# ---- keys


@pytest.mark.parametrize("settings", [KAFKA], indirect=True)
async def test_a_stock_kafka_client_puts_a_key_on_the_partition_we_compute(settings: Settings) -> None:
    topic = Topic(unique("keys"), "keys of a stock client")
    keys = [f"order-{number}".encode() for number in range(100)] + ["\u00e9\u4e16".encode(), b"k", b"\x00\xff" * 40]
    spread = 5
    async with connected(settings, [TopicSpec(topic.name, spread, False, None)]) as broker:
        async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
            sent = [await producer.send(topic.name, b"value", key=key) for key in keys]
            partitions = [(await future).partition for future in sent]
        assert partitions == [partition_for(key, spread) for key in keys]
        assert set(partitions) == set(range(spread))
        read = {
            record.key: number
            for number in range(spread)
            for record in await read_committed(broker, topic.name, number)
        }
    assert read == dict(zip(keys, partitions, strict=True))
