"""Views of events leave out what a class of messages hides, and figures of services are told among the others."""

from datetime import UTC, datetime
from typing import ClassVar

import msgspec

from engine.declare.envelope import Message, Metadata, encode_envelope, new_envelope
from engine.declare.registry import EventRegistry
from engine.web.events import event_views
from engine.web.live.figures import Figures


class Called(Message, frozen=True):
    """A call, whose number is shown to nobody."""

    event_type: ClassVar[str] = "phone.called"
    schema_version: ClassVar[int] = 1
    aggregate_type: ClassVar[str] = "Phone"
    hidden_fields: ClassVar[tuple[str, ...]] = ("phone_number",)

    seconds_long: int
    phone_number: str


def test_a_view_of_an_event_leaves_out_the_fields_that_its_class_hides() -> None:
    envelope = new_envelope(
        Called(3, "+44 20 7946 0000"),
        event_id="e-1",
        aggregate_id="a-1",
        timestamp=datetime(2026, 11, 23, tzinfo=UTC),
        metadata=Metadata(),
    )
    (view,) = event_views([encode_envelope(envelope)], EventRegistry([Called]))
    assert view["payload"] == {"seconds_long": 3}
    assert view["event_type"] == "phone.called"


def test_figures_of_services_stand_among_the_others_and_add_up_with_those_of_another_worker() -> None:
    here = Figures(partitions=2, counts={"sensors": {"hot": 1, "cold": 0}}, dead_letters=3)
    there = Figures(partitions=1, counts={"sensors": {"hot": 2}, "doors": {"open": 4}})
    assert here.view()["sensors"] == {"hot": 1, "cold": 0}
    assert "counts" not in here.view()

    both = here.plus(Figures.of_view(msgspec.json.encode(there.view())))
    assert (both.workers, both.partitions, both.dead_letters) == (2, 3, 3)
    assert both.counts == {"sensors": {"hot": 3, "cold": 0}, "doors": {"open": 4}}
