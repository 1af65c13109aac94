"""Positions are held against the log: what does not fit is named, whatever release wrote the position."""

from __future__ import annotations

import msgspec
import pytest

from engine.positions.positions import CUT_OFF, MADE_ANEW, POSITIONS, REMOVED, AgentPosition, Loss, find_loss
from streams.settings import APPLICATION

ID, OTHER_ID = "topic-1", "topic-2"


class OldPosition(msgspec.Struct, frozen=True):
    """The row as 4ffe7df reads and writes it."""

    agent: str
    topic: str
    offset: int


def loss_at(offset: int, start: int, end: int, topic_id: str = ID, cut_off_at: int | None = None) -> Loss | None:
    position = AgentPosition("decide-orders", "order-commands", offset, topic_id, cut_off_at)
    return find_loss(position, 2, ID, start, end)


@pytest.mark.parametrize("offset", [10, 15, 20])
@pytest.mark.parametrize("topic_id", [ID, ""])
def test_a_position_within_the_log_fits_also_when_its_topic_id_is_not_known(offset: int, topic_id: str) -> None:
    assert loss_at(offset, 10, 20, topic_id) is None


@pytest.mark.parametrize("topic_id", [ID, ""])
def test_removed_records_are_named_with_agent_number_and_offsets(topic_id: str) -> None:
    loss = loss_at(0, 512, 600, topic_id)
    assert loss is not None
    assert (loss.kind, loss.records, loss.goes_on_at) == (REMOVED, 512, 512)
    assert (
        loss.detail
        == "order-commands/2: 512 records, offsets 0 to 511, were removed before decide-orders had read them"
    )
    assert "orders accept-loss order-commands 2" in loss.advice(APPLICATION)
    one = loss_at(511, 512, 600, topic_id)
    assert one is not None
    assert one.detail == "order-commands/2: 1 record, offset 511, was removed before decide-orders had read it"


@pytest.mark.parametrize("offset", [0, 5, 500])
def test_a_topic_with_another_id_was_made_anew_wherever_the_position_lies(offset: int) -> None:
    loss = loss_at(offset, 0, 20, OTHER_ID)
    assert loss is not None
    assert (loss.kind, loss.records, loss.goes_on_at, loss.topic_id) == (MADE_ANEW, 1, 0, ID)
    assert "made anew" in loss.detail


@pytest.mark.parametrize("topic_id", [ID, ""])
def test_a_partition_that_ends_before_the_position_was_cut_off(topic_id: str) -> None:
    loss = loss_at(30, 0, 20, topic_id)
    assert loss is not None
    assert (loss.kind, loss.first, loss.end, loss.goes_on_at) == (CUT_OFF, 20, 30, 20)
    assert "offsets 20 to 29, were cut off after decide-orders had read them" in loss.detail


def test_a_partition_that_was_cut_off_stays_so_when_it_has_grown_past_the_position() -> None:
    loss = loss_at(30, 0, 50, ID, cut_off_at=20)
    assert loss is not None
    assert (loss.kind, loss.goes_on_at) == (CUT_OFF, 20)


def test_old_rows_are_read_and_old_releases_read_new_rows() -> None:
    old = msgspec.json.encode(OldPosition("decide-orders", "order-commands", 7))
    assert POSITIONS.decode_row(old) == AgentPosition("decide-orders", "order-commands", 7, "", None)
    new = POSITIONS.encode_row(AgentPosition("decide-orders", "order-commands", 7, ID, 5))
    assert msgspec.json.decode(new, type=OldPosition) == OldPosition("decide-orders", "order-commands", 7)
