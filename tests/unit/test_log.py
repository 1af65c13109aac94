"""The embedded log behaves as Kafka does, in memory and in RocksDB, and survives what a machine does to it."""

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.log.embedded import log as log_module
from engine.log.embedded.layout import ROW_BYTES_MAX, last_offset_of, row_key, rows_of_topic
from engine.log.embedded.log import (
    KeyRequired,
    Log,
    LogLocked,
    LogReadFailed,
    LogUnavailable,
    LogWriteFailed,
    MemoryStorage,
    NewRecord,
    OffsetOutOfRange,
    ProducerFenced,
    Record,
    RecordTooLarge,
    RocksStorage,
    Storage,
    TopicConfig,
    TopicExistsDifferently,
    UnknownTopicOrPartition,
)

HOUR_MS = 60 * 60 * 1000


class Clock:
    """Time that moves when a test says so."""

    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now_ms


class Fixture:
    """A log with its storage and clock, which can be closed and opened again where the storage keeps things."""

    def __init__(self, open_storage: Callable[[], Storage]) -> None:
        self._open_storage = open_storage
        self.clock = Clock()
        self.open()

    def open(self) -> Log:
        self.storage = self._open_storage()
        self.log = Log(self.storage, self.clock)
        return self.log

    def reopen(self) -> Log:
        self.log.close()
        return self.open()

    def rows(self, topic_number: int = 0) -> int:
        return sum(1 for _ in self.storage.scan(*rows_of_topic(topic_number)))


@pytest.fixture(params=["memory", "rocksdb"])
def fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fixture]:
    opened = Fixture(MemoryStorage if request.param == "memory" else lambda: RocksStorage(tmp_path / "log"))
    yield opened
    opened.log.close()


@pytest.fixture
def log(fixture: Fixture) -> Log:
    fixture.log.create_topic("orders", TopicConfig(partitions=2))
    return fixture.log


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Fixture]:
    opened = Fixture(lambda: RocksStorage(tmp_path / "log"))
    opened.log.create_topic("orders", TopicConfig(partitions=2))
    yield opened
    opened.log.close()


def new(*values: str) -> list[NewRecord]:
    return [NewRecord(b"k", value.encode()) for value in values]


def read_all(log: Log, topic: str, partition: int = 0, max_records: int = 10_000) -> list[Record]:
    records: list[Record] = []
    offset = 0
    while True:
        batch, offset = log.read(topic, partition, offset, max_records=max_records)
        if not batch:
            assert offset == log.end_offset(topic, partition)
            return records
        records += batch


def values(records: list[Record]) -> list[str]:
    return [(record.value or b"").decode() for record in records]


class TestAppendAndRead:
    def test_records_come_back_as_they_were_appended(self, log: Log, fixture: Fixture) -> None:
        headers = (("trace", b"\x00\xff"), ("trace", b"2"))
        assert log.append("orders", 0, [NewRecord(b"k", b"v", headers, 5), NewRecord(None, None)]) == 0
        assert log.read("orders", 0, 0) == (
            [Record(0, 5, b"k", b"v", headers), Record(1, fixture.clock.now_ms, None, None, ())],
            2,
        )

    def test_offsets_count_up_without_gaps_per_partition(self, log: Log) -> None:
        assert log.append("orders", 0, new("a", "b")) == 0
        assert log.append("orders", 1, new("x")) == 0
        assert log.append("orders", 0, new("c")) == 2
        assert values(read_all(log, "orders", 0)) == ["a", "b", "c"]
        assert [record.offset for record in read_all(log, "orders", 0)] == [0, 1, 2]
        assert values(read_all(log, "orders", 1)) == ["x"]

    def test_appending_nothing_changes_nothing(self, log: Log) -> None:
        assert log.append("orders", 0, []) == 0
        assert log.end_offset("orders", 0) == 0

    def test_reading_in_the_middle_of_an_append_starts_at_that_record(self, log: Log) -> None:
        log.append("orders", 0, new("a", "b", "c"))
        records, position = log.read("orders", 0, 1)
        assert (values(records), position) == (["b", "c"], 3)

    def test_a_read_stops_at_the_number_of_records_asked_for(self, log: Log) -> None:
        log.append("orders", 0, new("a", "b"))
        log.append("orders", 0, new("c", "d"))
        records, position = log.read("orders", 0, 0, max_records=3)
        assert (values(records), position) == (["a", "b", "c"], 3)
        assert values(read_all(log, "orders", 0, max_records=1)) == ["a", "b", "c", "d"]

    def test_a_read_stops_at_the_bytes_asked_for_but_always_gets_ahead(self, log: Log) -> None:
        for value in "abc":
            log.append("orders", 0, new(value * 1000))
        assert len(log.read("orders", 0, 0, max_bytes=2500)[0]) == 2
        records, position = log.read("orders", 0, 0, max_bytes=1)
        assert (len(records), position) == (1, 1)

    def test_reading_at_the_end_gives_nothing_and_behind_it_is_an_error(self, log: Log) -> None:
        log.append("orders", 0, new("a"))
        assert log.read("orders", 0, 1) == ([], 1)
        with pytest.raises(OffsetOutOfRange):
            log.read("orders", 0, 2)

    def test_a_large_append_is_cut_into_bounded_rows_and_read_in_order(self, log: Log, fixture: Fixture) -> None:
        sizes = [10, 400_000, 300, 90_000, 90_000, 90_000, 5, 200_000, 1]
        appended = [NewRecord(b"%d" % number, b"v" * size) for number, size in enumerate(sizes * 3)]
        assert log.append("orders", 0, appended) == 0
        assert [(record.key, record.value) for record in read_all(log, "orders")] == [
            (record.key, record.value) for record in appended
        ]
        rows = [len(value) for _, value in fixture.storage.scan(*rows_of_topic(0))]
        assert all(size <= ROW_BYTES_MAX or size > 400_000 for size in rows)
        assert len(rows) > 3

    def test_a_record_above_the_limit_is_refused_with_its_size_and_the_limit(self, fixture: Fixture) -> None:
        log = fixture.log
        log.create_topic("small", TopicConfig(partitions=1, max_record_bytes=100))
        log.append("small", 0, [NewRecord(b"k" * 10, b"v" * 80, (("name", b"header"),))] * 5)
        with pytest.raises(RecordTooLarge, match=r"101 bytes .* 100 bytes"):
            log.append("small", 0, [NewRecord(b"k", b"v"), NewRecord(b"k" * 10, b"v" * 80, (("name", b"headers"),))])
        assert log.end_offset("small", 0) == 5

    @pytest.mark.parametrize(
        "record",
        [
            NewRecord("text", b"v"),  # type: ignore[arg-type]
            NewRecord(b"k", "text"),  # type: ignore[arg-type]
            NewRecord(b"k", b"v", ((b"name", b"v"),)),  # type: ignore[arg-type]
            NewRecord(b"k", b"v", (("name", None),)),  # type: ignore[arg-type]
            NewRecord(b"k", b"v", (), 1.5),  # type: ignore[arg-type]
        ],
    )
    def test_a_record_that_could_not_be_read_back_is_refused(self, log: Log, record: NewRecord) -> None:
        with pytest.raises(TypeError):
            log.append("orders", 0, [NewRecord(b"k", b"v"), record])
        assert log.end_offset("orders", 0) == 0

    def test_an_unknown_topic_or_partition_is_an_error(self, log: Log) -> None:
        for call in (
            lambda: log.append("nowhere", 0, new("a")),
            lambda: log.append("orders", 2, new("a")),
            lambda: log.append("orders", -1, new("a")),
            lambda: log.read("nowhere", 0, 0),
            lambda: log.end_offset("orders", 2),
            lambda: log.commit_offsets("group", {("nowhere", 0): 1}),
        ):
            with pytest.raises(UnknownTopicOrPartition):
                call()

    def test_a_lost_row_is_an_error_and_not_the_end_of_the_partition(self, log: Log, fixture: Fixture) -> None:
        log.append("orders", 0, new("a"))
        fixture.storage.write([], [row_key(0, 0, 0)])
        with pytest.raises(LogReadFailed):
            log.read("orders", 0, 0)

    @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_sequence_of_appends_and_reads_equals_a_list(self, fixture: Fixture, data: st.DataObject) -> None:
        log = fixture.log
        name = f"t{len(log.topics())}"
        log.create_topic(name, TopicConfig(partitions=1))
        expected: list[bytes | None] = []
        body = st.one_of(st.none(), st.binary(max_size=20), st.integers(1, 150_000).map(lambda size: b"x" * size))
        for batch in data.draw(st.lists(st.lists(body, max_size=5), max_size=5)):
            assert log.append(name, 0, [NewRecord(None, value) for value in batch]) == len(expected)
            expected += batch
        offset = data.draw(st.integers(0, len(expected)))
        max_records = data.draw(st.integers(1, 7))
        while offset < len(expected):
            records, position = log.read(name, 0, offset, max_records=max_records)
            assert [record.offset for record in records] == list(range(offset, position))
            assert [record.value for record in records] == expected[offset:position]
            assert 0 < len(records) <= max_records
            offset = position


class TestTopics:
    def test_creating_a_topic_again_keeps_it_as_it_is(self, log: Log) -> None:
        log.append("orders", 0, new("a"))
        log.create_topic("orders", TopicConfig(partitions=2, retention_ms=1))
        assert log.topics() == {"orders": TopicConfig(partitions=2)}
        assert values(read_all(log, "orders")) == ["a"]

    def test_a_topic_with_another_number_of_partitions_is_refused(self, log: Log) -> None:
        with pytest.raises(TopicExistsDifferently, match="has 2 partitions, not 3"):
            log.create_topic("orders", TopicConfig(partitions=3))

    @pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "x" * 250, "é"])
    def test_a_name_that_kafka_refuses_is_refused(self, fixture: Fixture, name: str) -> None:
        with pytest.raises(ValueError, match="not a topic name"):
            fixture.log.create_topic(name, TopicConfig(partitions=1))

    def test_a_topic_needs_a_partition(self, fixture: Fixture) -> None:
        with pytest.raises(ValueError, match="at least one partition"):
            fixture.log.create_topic("empty", TopicConfig(partitions=0))

    def test_a_deleted_topic_is_gone_with_its_records_and_offsets_and_no_other(
        self, log: Log, fixture: Fixture
    ) -> None:
        log.create_topic("payments", TopicConfig(partitions=1))
        for topic in ("orders", "payments"):
            log.append(topic, 0, new(topic))
            log.commit_offsets("group", {(topic, 0): 1})
        log.delete_topic("orders")
        assert fixture.rows(0) == 0
        assert list(log.topics()) == ["payments"]
        assert log.committed("group", "orders", 0) is None
        assert log.committed("group", "payments", 0) == 1
        assert values(read_all(log, "payments")) == ["payments"]

    def test_a_recreated_topic_starts_empty_and_has_another_uid(self, log: Log) -> None:
        log.append("orders", 0, new("a"))
        uid = log.topic_uid("orders")
        log.delete_topic("orders")
        log.create_topic("orders", TopicConfig(partitions=1))
        assert log.end_offset("orders", 0) == 0
        assert read_all(log, "orders") == []
        assert log.topic_uid("orders") != uid


class TestTransactions:
    def test_a_commit_appends_to_several_partitions_and_moves_offsets(self, log: Log) -> None:
        log.create_topic("payments", TopicConfig(partitions=1))
        epoch = log.init_producer("app-0")
        log.append("orders", 1, new("x"))
        appends = [("orders", 1, new("a", "b")), ("payments", 0, new("c")), ("orders", 1, new("d"))]
        assert log.commit("app-0", epoch, appends, {("orders", 0): 7, ("orders", 1): 3}, "group") == [1, 0, 3]
        assert values(read_all(log, "orders", 1)) == ["x", "a", "b", "d"]
        assert values(read_all(log, "payments")) == ["c"]
        assert log.committed("group", "orders", 0) == 7
        assert log.committed("group", "orders", 1) == 3
        assert log.committed("other", "orders", 0) is None

    def test_a_newer_producer_fences_the_older_one(self, log: Log) -> None:
        older = log.init_producer("app-0")
        newer = log.init_producer("app-0")
        assert newer > older
        with pytest.raises(ProducerFenced):
            log.commit("app-0", older, [("orders", 0, new("zombie"))], {("orders", 0): 1}, "group")
        assert log.end_offset("orders", 0) == 0
        assert log.committed("group", "orders", 0) is None
        log.commit("app-0", newer, [("orders", 0, new("a"))], {}, "group")
        assert values(read_all(log, "orders")) == ["a"]

    def test_producers_with_other_ids_are_not_fenced(self, log: Log) -> None:
        first = log.init_producer("app-0")
        log.init_producer("app-1")
        log.commit("app-0", first, [("orders", 0, new("a"))], {}, "group")

    def test_a_producer_that_was_never_started_is_fenced(self, log: Log) -> None:
        with pytest.raises(ProducerFenced):
            log.commit("app-0", 0, [], {}, "group")

    @pytest.mark.parametrize(
        ("bad", "error"),
        [
            (("orders", 9, new("b")), UnknownTopicOrPartition),
            (("orders", 1, [NewRecord(b"k", b"v" * 2_000_000)]), RecordTooLarge),
        ],
    )
    def test_a_commit_with_one_refused_append_does_nothing_at_all(
        self, log: Log, bad: tuple[str, int, list[NewRecord]], error: type[Exception]
    ) -> None:
        epoch = log.init_producer("app-0")
        grown: list[object] = []
        log.subscribe(grown.append)
        with pytest.raises(error):
            log.commit("app-0", epoch, [("orders", 0, new("a")), bad], {("orders", 0): 1}, "group")
        assert log.end_offset("orders", 0) == 0
        assert log.read("orders", 0, 0) == ([], 0)
        assert log.committed("group", "orders", 0) is None
        assert grown == []

    def test_offsets_can_be_committed_without_a_transaction_and_move_back(self, log: Log) -> None:
        log.commit_offsets("group", {("orders", 0): 5})
        log.commit_offsets("group", {("orders", 0): 2})
        assert log.committed("group", "orders", 0) == 2


class TestSubscribers:
    def test_subscribers_hear_of_the_partitions_that_grew_and_can_read_them(self, log: Log) -> None:
        heard: list[tuple[frozenset[tuple[str, int]], int]] = []
        unsubscribe = log.subscribe(lambda grown: heard.append((grown, log.end_offset("orders", 1))))
        epoch = log.init_producer("app-0")
        log.commit("app-0", epoch, [("orders", 1, new("a")), ("orders", 0, [])], {("orders", 0): 1}, "group")
        log.commit_offsets("group", {("orders", 0): 1})
        unsubscribe()
        unsubscribe()
        log.append("orders", 1, new("b"))
        assert heard == [(frozenset({("orders", 1)}), 1)]

    def test_a_failing_subscriber_neither_fails_the_append_nor_silences_the_others(
        self, log: Log, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(_: object) -> None:
            raise RuntimeError("out of order")

        heard: list[object] = []
        log.subscribe(fail)
        log.subscribe(heard.append)
        assert log.append("orders", 0, new("a")) == 0
        assert len(heard) == 1
        assert "out of order" in caplog.text


class TestReopen:
    def test_everything_is_there_after_a_restart(self, durable: Fixture) -> None:
        log = durable.log
        log.create_topic("changelog", TopicConfig(partitions=1, compacted=True, retention_ms=5, max_record_bytes=9))
        epoch = log.init_producer("app-0")
        log.commit("app-0", epoch, [("orders", 0, new("a", "b"))], {("orders", 1): 4}, "group")
        topics, uid = log.topics(), log.topic_uid("orders")

        log = durable.reopen()
        assert log.topics() == topics
        assert log.topic_uid("orders") == uid
        assert values(read_all(log, "orders")) == ["a", "b"]
        assert log.committed("group", "orders", 1) == 4
        log.commit("app-0", epoch, [("orders", 0, new("c"))], {}, "group")
        assert log.init_producer("app-0") > epoch
        assert values(read_all(log, "orders")) == ["a", "b", "c"]

    def test_a_topic_created_after_a_restart_does_not_share_rows_with_an_older_one(self, durable: Fixture) -> None:
        durable.log.append("orders", 0, new("a"))
        durable.log.delete_topic("orders")
        log = durable.reopen()
        log.create_topic("payments", TopicConfig(partitions=1))
        assert read_all(log, "payments") == []
        assert durable.reopen().topics() == {"payments": TopicConfig(partitions=1)}

    def test_start_offsets_survive_a_restart(self, durable: Fixture) -> None:
        log = durable.log
        log.create_topic("short", TopicConfig(partitions=1, retention_ms=HOUR_MS))
        log.append("short", 0, new("a"))
        durable.clock.now_ms += 2 * HOUR_MS
        list(log.maintain())
        log = durable.reopen()
        assert (log.start_offset("short", 0), log.end_offset("short", 0)) == (1, 1)
        assert log.append("short", 0, new("b")) == 1

    def test_a_folder_of_another_layout_version_is_refused_and_let_go(self, durable: Fixture) -> None:
        durable.storage.write([(b"v", b"\x63")])
        with pytest.raises(LogUnavailable, match="layout 99"):
            durable.reopen()
        durable.storage = durable._open_storage()
        durable.storage.write([(b"v", b"\x01")])
        durable.storage.close()
        durable.open()


class TestRetention:
    def test_old_rows_go_and_the_start_offset_moves(self, fixture: Fixture) -> None:
        log = fixture.log
        log.create_topic("short", TopicConfig(partitions=1, retention_ms=HOUR_MS))
        log.append("short", 0, new("a", "b"))
        fixture.clock.now_ms += 2 * HOUR_MS
        log.append("short", 0, new("c"))
        list(log.maintain())
        assert (log.start_offset("short", 0), log.end_offset("short", 0)) == (2, 3)
        records, position = log.read("short", 0, 0)
        assert (values(records), position) == (["c"], 3)
        assert fixture.rows() == 1

    def test_a_row_stays_until_its_newest_record_is_old(self, fixture: Fixture) -> None:
        log = fixture.log
        log.create_topic("short", TopicConfig(partitions=1, retention_ms=HOUR_MS))
        now_ms = fixture.clock.now_ms
        log.append("short", 0, [NewRecord(b"k", b"old", (), 0), NewRecord(b"k", b"new", (), now_ms)])
        list(log.maintain())
        assert log.start_offset("short", 0) == 0

    def test_a_partition_without_records_left_reads_as_empty_from_any_offset(self, fixture: Fixture) -> None:
        log = fixture.log
        log.create_topic("short", TopicConfig(partitions=1, retention_ms=HOUR_MS))
        log.append("short", 0, [NewRecord(b"k", b"v", (), 0)] * 3)
        list(log.maintain())
        assert [log.read("short", 0, offset) for offset in range(4)] == [([], 3)] * 4

    def test_topics_without_retention_keep_everything(self, log: Log, fixture: Fixture) -> None:
        log.append("orders", 0, [NewRecord(b"k", b"ancient", (), 0)])
        list(log.maintain())
        assert values(read_all(log, "orders")) == ["ancient"]

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(ages_h=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), max_size=250), compacted=st.booleans())
    def test_what_is_young_enough_is_always_there(
        self, fixture: Fixture, ages_h: list[list[int]], compacted: bool
    ) -> None:
        log, now_ms = fixture.log, fixture.clock.now_ms
        name = f"t{len(log.topics())}"
        log.create_topic(name, TopicConfig(partitions=1, compacted=compacted, retention_ms=2 * HOUR_MS))
        for number, batch in enumerate(ages_h):
            log.append(name, 0, [NewRecord(b"%d" % number, b"v", (), now_ms - age * HOUR_MS) for age in batch])
        list(log.maintain())
        start = log.start_offset(name, 0)
        ages = [age for batch in ages_h for age in batch]
        assert all(age > 2 for age in ages[:start])
        first = next((batch for batch in ages_h if min(batch) <= 2), None)
        assert start == sum(map(len, ages_h[: ages_h.index(first)])) if first else start == len(ages)
        log.delete_topic(name)


class TestCompaction:
    @pytest.fixture
    def changelog(self, fixture: Fixture) -> Log:
        fixture.log.create_topic("changelog", TopicConfig(partitions=1, compacted=True))
        return fixture.log

    def test_only_the_newest_record_of_a_key_stays_at_its_offset(self, changelog: Log, fixture: Fixture) -> None:
        for value in "abc":
            changelog.append("changelog", 0, [NewRecord(b"x", value.encode()), NewRecord(value.encode(), b"1")])
        changelog.append("changelog", 0, [NewRecord(b"last", b"1")])
        list(changelog.maintain())
        records = read_all(changelog, "changelog")
        assert [(record.offset, record.key) for record in records] == [
            (1, b"a"),
            (3, b"b"),
            (4, b"x"),
            (5, b"c"),
            (6, b"last"),
        ]
        assert (changelog.start_offset("changelog", 0), changelog.end_offset("changelog", 0)) == (0, 7)
        assert fixture.rows() == 2

    def test_the_last_row_stays_so_that_a_reader_reaches_the_end(self, changelog: Log) -> None:
        changelog.append("changelog", 0, [NewRecord(b"x", b"1")] * 3)
        list(changelog.maintain(0))
        assert len(read_all(changelog, "changelog")) == 3

    def test_a_read_skips_what_compaction_dropped_from_any_offset(self, changelog: Log) -> None:
        for _ in range(5):
            changelog.append("changelog", 0, [NewRecord(b"x", b"1")] * 2)
        list(changelog.maintain(0))
        for offset in range(9):
            records, position = changelog.read("changelog", 0, offset)
            assert ([record.offset for record in records][-2:], position) == ([8, 9], 10)
            assert all(record.offset >= offset for record in records)

    def test_a_tombstone_outlives_the_older_records_by_the_delete_retention(
        self, changelog: Log, fixture: Fixture
    ) -> None:
        def keys_after(hours: int) -> list[bytes | None]:
            fixture.clock.now_ms += hours * HOUR_MS
            changelog.append("changelog", 0, [NewRecord(b"other", b"1")])
            list(changelog.maintain(0))
            return [record.key for record in read_all(changelog, "changelog")]

        changelog.append("changelog", 0, [NewRecord(b"x", b"1")])
        changelog.append("changelog", 0, [NewRecord(b"x", None)])
        # Old when compaction first meets it, but a reader may have seen the older record a moment ago.
        assert keys_after(48) == [b"x", b"other"]
        assert keys_after(23) == [b"x", b"other", b"other"]
        assert keys_after(1) == [b"other", b"other"]

    def test_a_little_change_does_not_start_a_compaction_of_a_large_partition(
        self, changelog: Log, fixture: Fixture
    ) -> None:
        changelog.append("changelog", 0, [NewRecord(b"%d" % number, b"v" * 100) for number in range(100)])
        changelog.append("changelog", 0, [NewRecord(b"0", b"1")])
        list(changelog.maintain())
        changelog.append("changelog", 0, [NewRecord(b"0", b"2")])
        list(changelog.maintain())
        assert len(read_all(changelog, "changelog")) == 102
        list(changelog.maintain(0))
        assert len(read_all(changelog, "changelog")) == 101

    def test_a_record_without_a_key_is_refused(self, changelog: Log) -> None:
        with pytest.raises(KeyRequired):
            changelog.append("changelog", 0, [NewRecord(None, b"v")])

    def test_many_small_rows_become_few(self, changelog: Log, fixture: Fixture) -> None:
        for number in range(250):
            changelog.append("changelog", 0, [NewRecord(b"%d" % number, b"v")])
        list(changelog.maintain(0))
        assert fixture.rows() == 4
        assert len(read_all(changelog, "changelog")) == 250

    @pytest.mark.parametrize("steps_before", range(1, 7))
    def test_a_topic_deleted_in_the_middle_of_a_compaction_stays_deleted(
        self, changelog: Log, fixture: Fixture, steps_before: int
    ) -> None:
        for number in range(300):
            changelog.append("changelog", 0, [NewRecord(b"x", b"%d" % number)])
        steps = changelog.maintain(0)
        for _ in range(steps_before):
            next(steps)
        changelog.delete_topic("changelog")
        list(steps)
        assert fixture.rows() == 0
        assert list(fixture.storage.scan(b"p", b"q")) == []

    def test_two_compactions_at_once_do_not_keep_the_next_one_from_starting(self, changelog: Log) -> None:
        for size in (200, 200, 1):
            changelog.append("changelog", 0, [NewRecord(b"x", b"v" * size)] * 100)
        for _ in zip_longest(changelog.maintain(0), changelog.maintain(0)):
            pass
        for _ in range(3):
            changelog.append("changelog", 0, [NewRecord(b"x", b"v" * 10)] * 100)
        list(changelog.maintain())
        assert len(read_all(changelog, "changelog")) == 101

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_every_reader_of_a_compacted_partition_ends_with_the_same_values(
        self, fixture: Fixture, data: st.DataObject
    ) -> None:
        """Appends, maintenance steps (several at once) and time interleave; a reader reads along in pieces."""
        log = fixture.log
        name = f"t{len(log.topics())}"
        log.create_topic(name, TopicConfig(partitions=1, compacted=True))
        latest: dict[bytes | None, bytes | None] = {}
        followed: dict[bytes | None, bytes | None] = {}
        position = 0
        running: list[Iterator[None]] = []
        records = st.lists(
            st.tuples(st.sampled_from([b"a", b"b", b"c", b"d"]), st.sampled_from([b"1", b"2", None])).map(
                lambda key_and_value: NewRecord(*key_and_value)
            ),
            min_size=1,
            max_size=4,
        )
        for action in data.draw(st.lists(st.sampled_from(["append", "append", "start", "step", "hours", "read"]))):
            if action == "append":
                batch = data.draw(records)
                log.append(name, 0, batch)
                latest.update((record.key, record.value) for record in batch)
            elif action == "start":
                running.append(log.maintain(0))
            elif action == "step":
                for steps in running:
                    next(steps, None)
            elif action == "hours" and position == log.end_offset(name, 0):
                # A reader that is slower than the delete retention may miss deletions, as with Kafka.
                fixture.clock.now_ms += 30 * HOUR_MS
            elif action == "read":
                found, position = log.read(name, 0, position, max_records=data.draw(st.integers(1, 5)))
                followed.update((record.key, record.value) for record in found)
        for steps in running:
            list(steps)

        alive = {key: value for key, value in latest.items() if value is not None}
        restored = {record.key: record.value for record in read_all(log, name)}
        assert {key: value for key, value in restored.items() if value is not None} == alive
        found, _ = log.read(name, 0, position)
        followed.update((record.key, record.value) for record in found)
        assert {key: value for key, value in followed.items() if value is not None} == alive
        log.delete_topic(name)


# Processes that are killed, limited, locked out or not allowed

ROOT = Path(log_module.__file__).parents[3]

PRELUDE = """
import os, resource, sys
from pathlib import Path
from engine.log.embedded import storage as log_storage
from engine.log.embedded.log import *
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, *arguments: object) -> str:
    process = start(script, *arguments)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output


ENDLESS_COMMITS = """
log = Log(RocksStorage(Path(sys.argv[1])))
log.create_topic("orders", TopicConfig(partitions=1))
log.create_topic("payments", TopicConfig(partitions=1))
epoch = log.init_producer("app-0")
number = log.committed("group", "orders", 0) or 0
while True:
    number += 1
    value = b"%d" % number
    appends = [("orders", 0, [NewRecord(value, b"v" * 400)] * 700), ("payments", 0, [NewRecord(value, b"")])]
    log.commit("app-0", epoch, appends, {("orders", 0): number}, "group")
    print(number, epoch, flush=True)
"""


def test_a_kill_during_commits_leaves_every_acknowledged_one_and_none_in_part(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    chosen = random.Random(seed)
    acknowledged = 0
    last_epoch = -1
    for _ in range(4):
        process = start(ENDLESS_COMMITS, tmp_path / "log")
        assert process.stdout is not None
        for _ in range(chosen.randint(1, 60)):
            process.stdout.readline()
        process.kill()
        output, errors = process.communicate()
        acknowledgements = [line.split() for line in output.splitlines(keepends=True) if line.endswith("\n")]
        acknowledged = max([acknowledged, *(int(number) for number, _ in acknowledgements)])

        log = Log(RocksStorage(tmp_path / "log"))
        committed = log.committed("group", "orders", 0)
        assert committed is not None, (seed, errors)
        assert committed >= acknowledged, seed
        numbers = [int(record.key or b"") for record in read_all(log, "payments")]
        assert numbers == list(range(1, committed + 1)), seed
        orders = [int(record.key or b"") for record in read_all(log, "orders")]
        assert orders == [number for number in numbers for _ in range(700)], seed
        epoch = log.init_producer("app-0")
        assert epoch > last_epoch, seed
        last_epoch = epoch
        log.close()


FULL_DISK = """
storage = RocksStorage(Path(sys.argv[1]))
log = Log(storage)
log.create_topic("orders", TopicConfig(partitions=1))
epoch = log.init_producer("app-0")
heard = []
log.subscribe(heard.append)

def commit(number):
    records = [NewRecord(b"%d" % number, os.urandom(400_000))]
    log.commit("app-0", epoch, [("orders", 0, records)], {("orders", 0): number}, "group")

def check(commits):
    found = (log.end_offset("orders", 0), log.committed("group", "orders", 0), len(heard))
    assert found == (commits, commits, commits), found
    position = 0
    for number in range(commits):
        records, position = log.read("orders", 0, position, max_records=1)
        assert [record.key for record in records] == [b"%d" % (number + 1)]

def fails_to_commit(number):
    try:
        commit(number)
    except (LogWriteFailed, LogUnavailable) as error:
        print(type(error).__name__, error)
        return True

commit(1)
commit(2)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
assert fails_to_commit(3)
check(2)
log_storage.REOPEN_PAUSE_S = 0.0
try:
    storage.write([(b"behind", b"a failed write")])
except LogWriteFailed as error:
    assert "must be opened again first" in str(error)
else:
    raise AssertionError("written behind a failed write")
assert fails_to_commit(3)
assert fails_to_commit(3)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
commit(3)
check(3)
assert log.init_producer("app-0") == epoch + 1
log.close()
"""


def test_a_full_disk_fails_the_write_changes_nothing_and_is_over_when_there_is_room(tmp_path: Path) -> None:
    output = run(FULL_DISK, tmp_path / "log")
    assert output.startswith("LogWriteFailed could not write")
    assert "Free disk space" in output
    log = Log(RocksStorage(tmp_path / "log"))
    assert [record.key for record in read_all(log, "orders")] == [b"1", b"2", b"3"]
    log.close()


class UncertainStorage(MemoryStorage):
    """Storage whose writes can take effect although they are reported as failed, as a failing disk's may."""

    def __init__(self) -> None:
        super().__init__()
        self.loses_reply = False
        self.failed = False

    def write(
        self,
        puts: Sequence[tuple[bytes, bytes]],
        deletes: Sequence[bytes] = (),
        delete_range: tuple[bytes, bytes] | None = None,
    ) -> None:
        super().write(puts, deletes, delete_range)
        if self.loses_reply:
            self.failed = True
            raise LogWriteFailed("no reply")

    def reopen(self) -> None:
        self.failed = False


def test_a_write_whose_outcome_was_unknown_is_looked_up_before_the_next_one() -> None:
    storage = UncertainStorage()
    log = Log(storage)
    log.create_topic("orders", TopicConfig(partitions=1))
    epoch = log.init_producer("app-0")
    heard: list[object] = []
    log.subscribe(heard.append)
    storage.loses_reply = True
    with pytest.raises(LogWriteFailed):
        log.commit("app-0", epoch, [("orders", 0, new("a"))], {("orders", 0): 1}, "group")
    assert (log.end_offset("orders", 0), log.committed("group", "orders", 0), heard) == (0, None, [])
    storage.loses_reply = False
    assert log.init_producer("app-0") == epoch + 1
    assert log.committed("group", "orders", 0) == 1
    assert values(read_all(log, "orders")) == ["a"]
    assert heard == [frozenset({("orders", 0)})]


@pytest.mark.parametrize("config", [TopicConfig(1, compacted=True), TopicConfig(1, retention_ms=HOUR_MS)])
@pytest.mark.parametrize("steps_before", range(1, 7))
def test_maintenance_that_was_under_way_does_not_undo_such_a_write(config: TopicConfig, steps_before: int) -> None:
    storage = UncertainStorage()
    log = Log(storage)
    log.create_topic("orders", config)
    for _ in range(650):
        log.append("orders", 0, [NewRecord(b"k", b"v", (), 0)])
    steps = log.maintain(0)
    for _ in range(steps_before):
        next(steps)
    storage.loses_reply = True
    with pytest.raises(LogWriteFailed):
        log.append("orders", 0, new("a"))
    storage.loses_reply = False
    log.append("orders", 0, new("b"))
    list(steps)
    assert Log(storage).end_offset("orders", 0) == log.end_offset("orders", 0) == 652


OPEN = """
if len(sys.argv) > 2 and os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    Log(RocksStorage(Path(sys.argv[1])))
except LogError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A folder that another user can reach, as pytest's own cannot be."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_folder_in_use_by_another_process_is_refused_with_what_to_do(durable: Fixture, tmp_path: Path) -> None:
    output = run(OPEN, tmp_path / "log")
    assert output.startswith("LogLocked")
    assert "Stop that worker" in output
    with pytest.raises(LogLocked):
        RocksStorage(tmp_path / "log")


def test_a_folder_that_may_not_be_written_is_refused_with_what_to_do(public_path: Path) -> None:
    log = Log(RocksStorage(public_path / "data" / "log"))
    log.close()
    for path in [public_path / "data" / "log", *(public_path / "data" / "log").iterdir()]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    output = run(OPEN, public_path / "data" / "log", "unprivileged")
    assert output.startswith("LogUnavailable")
    assert "must be allowed to read and write" in output


def test_a_folder_that_may_not_be_created_is_refused_with_what_to_do(public_path: Path) -> None:
    public_path.chmod(0o555)
    output = run(OPEN, public_path / "data" / "log", "unprivileged")
    public_path.chmod(0o755)
    assert output.startswith("LogUnavailable")
    assert not (public_path / "data").exists()


def test_a_file_in_the_place_of_the_folder_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(LogUnavailable, match="move the folder with all that is in it"):
        RocksStorage(tmp_path / "data" / "log")


def test_a_closed_log_says_so(durable: Fixture) -> None:
    durable.log.append("orders", 0, new("a"))
    durable.log.close()
    with pytest.raises(LogUnavailable, match="closed"):
        durable.log.read("orders", 0, 0)
    with pytest.raises(LogUnavailable, match="closed"):
        durable.log.append("orders", 0, new("a"))


def test_a_synced_log_keeps_the_same_promises(tmp_path: Path) -> None:
    log = Log(RocksStorage(tmp_path / "log", sync=True))
    log.create_topic("orders", TopicConfig(partitions=1))
    log.append("orders", 0, new("a"))
    log.close()
    log = Log(RocksStorage(tmp_path / "log", sync=True))
    assert values(read_all(log, "orders")) == ["a"]
    log.close()


def test_a_rows_key_sorts_by_its_last_offset_and_gives_it_back() -> None:
    keys = [row_key(1, 0, 255), row_key(1, 0, 256), row_key(1, 1, 0), row_key(2, 0, 0)]
    assert sorted(keys) == keys
    assert [last_offset_of(key) for key in keys] == [255, 256, 0, 0]


def test_a_gap_in_a_topic_that_is_not_compacted_is_a_loss_and_no_row_to_pass(fixture: Fixture) -> None:
    log = fixture.log
    log.create_topic("events", TopicConfig(partitions=1))
    for value in ("a", "b", "c"):
        log.append("events", 0, new(value))
    fixture.storage.write([], [row_key(0, 0, 1)])
    with pytest.raises(LogReadFailed, match=r"events\[0\] lacks records between 1 and 2"):
        read_all(log, "events")
