"""The unit of work reads its own changes first and can take back one record without touching the others."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.declare.table import Table
from engine.declare.timers import TIMERS, Timer, TimerKey
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.partitioner import partition_for
from engine.log.ports import Record
from streams.settings import Settings

PARTITIONS = 4
SETTINGS = Settings(_env_file=None)
OUT = Topic("out", "outputs")


class Row(msgspec.Struct, frozen=True):
    value: int


ROWS: Table[str, Row] = Table("rows", Row)
OTHERS: Table[str, Row] = Table("others", Row)


class Committed:
    """What earlier units of work left."""

    def __init__(self, rows: dict[tuple[Any, Any], Any] | None = None) -> None:
        self.rows = rows or {}

    def committed_or_committing(self, table: Any, key: Any) -> Any:
        return self.rows.get((table, key))


def new_work(committed: Committed | None = None, number: int = 0) -> UnitOfWork:
    return UnitOfWork(
        number, committed or Committed(), lambda key: partition_for(key, PARTITIONS), msgspec.json.encode, SETTINGS
    )


def changed(work: UnitOfWork) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Rows and outputs that a commit would write."""
    rows = {table.name: dict(rows) for table, rows in work.rows.items() if rows}
    return rows, {to: list(records) for to, records in work.outputs.items() if records}


def test_reads_see_the_open_changes_before_what_was_committed() -> None:
    work = new_work(Committed({(ROWS, "a"): Row(1), (ROWS, "b"): Row(1)}))
    assert work.get(ROWS, "a") == Row(1)
    work.put(ROWS, "a", Row(2))
    work.delete(ROWS, "b")
    assert (work.get(ROWS, "a"), work.get(ROWS, "b"), work.get(ROWS, "c")) == (Row(2), None, None)
    assert work.get(OTHERS, "a") is None


def test_a_record_taken_back_leaves_puts_deletes_sends_and_timers_of_others() -> None:
    work = new_work(Committed({(ROWS, "old"): Row(0)}))
    work.put(ROWS, "a", Row(1))
    work.send_raw(OUT, b"a", b"kept")
    work.schedule("kind", "a", 10)
    work.release()
    before = changed(work)

    work.put(ROWS, "a", Row(2))
    work.put(ROWS, "a", Row(3))
    work.delete(ROWS, "old")
    work.put(OTHERS, "new", Row(4))
    work.send_raw(OUT, b"a", b"dropped")
    work.send_raw(OUT, b"z", b"dropped")
    work.send_here(OUT, None, b"dropped")
    work.schedule("kind", "b", 20)
    work.cancel("kind", "a", 10)
    work.rollback()

    assert changed(work) == before
    assert work.get(ROWS, "old") == Row(0)
    assert work.get(TIMERS, TimerKey(10, "kind", "a")) == Timer("kind", "a", 10)
    work.put(ROWS, "a", Row(5))
    work.release()
    assert work.get(ROWS, "a") == Row(5)


def test_what_was_released_cannot_be_taken_back() -> None:
    work = new_work()
    work.put(ROWS, "a", Row(1))
    work.send_raw(OUT, b"a", b"1")
    work.release()
    work.rollback()
    assert work.get(ROWS, "a") == Row(1)
    assert sum(map(len, work.outputs.values())) == 1


def test_a_unit_of_work_whose_every_change_was_taken_back_is_empty() -> None:
    work = new_work()
    assert work.is_empty()
    work.put(ROWS, "a", Row(1))
    work.send_raw(OUT, b"a", b"1")
    assert not work.is_empty()
    work.rollback()
    assert work.is_empty()


def test_outputs_go_to_the_partition_of_their_key_in_the_order_they_were_sent() -> None:
    work = new_work(number=3)
    keys = [f"key-{number}".encode() for number in range(20)]
    for number, key in enumerate(keys * 2):
        work.send_raw(OUT, key, b"%d" % number, (("h", b"v"),))
    for (topic, partition), records in work.outputs.items():
        assert topic == OUT.name
        assert all(partition_for(key or b"", PARTITIONS) == partition for key, _, _ in records)
        numbers = [int(value or b"") for _, value, _ in records]
        assert numbers == sorted(numbers)
    assert sum(map(len, work.outputs.values())) == 40
    assert work.outputs[OUT.name, partition_for(b"key-0", PARTITIONS)][0] == (b"key-0", b"0", (("h", b"v"),))


def test_what_is_sent_here_stays_with_its_source_whatever_its_key() -> None:
    work = new_work(number=2)
    for key in (None, b"", b"a", b"b", b"c"):
        work.send_here(OUT, key, b"v")
    assert set(work.outputs) == {(OUT.name, 2)}


def test_messages_are_encoded_when_they_are_sent() -> None:
    work = new_work()
    work.send(OUT, "k", Row(1))
    assert work.outputs[OUT.name, partition_for(b"k", PARTITIONS)] == [(b"k", b'{"value":1}', ())]
    with pytest.raises(TypeError):
        work.send(OUT, "k", object())


def test_a_timer_set_again_replaces_the_one_before_and_a_cancelled_one_is_gone() -> None:
    work = new_work()
    work.schedule("kind", "a", 10, b"first")
    work.schedule("kind", "a", 10, b"second")
    work.schedule("other", "a", 10)
    work.cancel("other", "a", 10)
    work.cancel("never", "a", 10)
    timers = {key: timer for key, timer in work.rows[TIMERS].items() if timer is not None}
    assert timers == {TimerKey(10, "kind", "a"): Timer("kind", "a", 10, b"second")}


Step = tuple[str, str, int]
steps = st.lists(
    st.tuples(st.sampled_from(["put", "delete", "send"]), st.sampled_from("abc"), st.integers(0, 9)), max_size=6
)


@given(st.lists(st.tuples(steps, st.booleans()), max_size=8))
def test_taking_back_is_as_if_the_record_had_never_been(records: list[tuple[list[Step], bool]]) -> None:
    committed = Committed({(ROWS, "a"): Row(-1)})
    work, reference = new_work(committed), new_work(committed)
    for changes, fails in records:
        for target in (work, reference):
            if target is reference and fails:
                continue
            target.record = Record(0, 0, b"x", None, ())
            for kind, key, value in changes:
                if kind == "put":
                    target.put(ROWS, key, Row(value))
                elif kind == "delete":
                    target.delete(ROWS, key)
                else:
                    target.send_raw(OUT, key.encode(), b"%d" % value)
        if fails:
            work.rollback()
        else:
            work.release()
            reference.release()
    assert changed(work) == changed(reference)
    assert [work.get(ROWS, key) for key in "abc"] == [reference.get(ROWS, key) for key in "abc"]
