"""Everything that a client was told is there, or the system has said exactly what is not.

`check_losses` compares what was taken out of topics with what was said of it. `beside_losses` is the world without what
was named: everything else has to hold in it as if nothing had been lost. As in `verifier`, nothing here uses the
services' own code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.chaos.orders import CANCEL, COMMAND_TYPES, CONFIRM, EVENT_TYPES, PLACE, REJECTED, Order, Step, timestamp
from tests.chaos.verifier import COMMANDS, CONSUMERS, EVENTS, REQUESTS
from tests.chaos.world import PLACES, Loss, Named, Record, World

# By kind of command: in which states it is not refused, and the state after it.
TRANSITIONS = {
    PLACE: ({"unknown"}, "pending"),
    CONFIRM: ({"pending"}, "confirmed"),
    CANCEL: ({"pending", "confirmed"}, "cancelled"),
}


def check_losses(world: World) -> list[str]:
    """What is gone unread is named, nothing else is, in each place where people look, and it is written down."""
    problems = [problem for loss in world.losses for problem in _misnamed(loss)]
    for topic in sorted({loss.topic for loss in world.losses}):
        problems += _unread(world, topic)
    kept = {_accepted(row) for _, row in world.table("accepted-losses")} if world.losses else set()
    named = {named for loss in world.losses for named in loss.named()}
    problems += [f"{loss} is not written down" for loss in named if not any(map(loss.is_part_of, kept))]
    return problems + [f"{loss} was accepted, and never named" for loss in kept - named]


def count_losses(world: World) -> dict[str, float]:
    """Figures of what was lost."""
    if not world.losses:
        return {}
    return {
        "records_removed": sum(len(loss.gone) for loss in world.losses),
        "records_named": len(named_records(world)),
        "losses_named": sum(len(loss.named()) for loss in world.losses),
    }


def named_records(world: World) -> set[Record]:
    """Records that are gone and named as lost."""
    return {
        record for loss in world.losses for record in loss.gone if any(named.covers(record) for named in loss.named())
    }


def beside_losses(world: World) -> World:
    """The world as if nobody had sent what was named as lost."""
    lost = named_records(world)
    if not lost:
        return world
    copies: defaultdict[bytes, list[tuple[Record, bool]]] = defaultdict(list)
    touched = {record.key for record in lost if record.topic == COMMANDS}
    for record in world.records(COMMANDS):
        if record.key in touched:
            copies[record.key].append((record, record in lost))
    orders = [_without_lost(order, copies[(order.order_id or "").encode()]) for order in world.orders]
    return world.without(orders, lambda record: record in lost)


def _misnamed(loss: Loss) -> list[str]:
    """Names that are not the same everywhere, or reach beyond what is gone."""
    problems = []
    for named in sorted(loss.named(), key=str):
        problems += [f"{place} does not name {named}" for place in PLACES if named not in loss.said.get(place, ())]
        if named.agent != CONSUMERS[loss.topic]:
            problems.append(f"{named} is named for an agent that does not read it")
        begins_at = loss.begins_at.get(named.partition)
        if loss.begins_at and (named.end is None or begins_at is None or named.end > begins_at):
            problems.append(f"{named} is too wide: the partition begins at {begins_at}")
    return problems


def _unread(world: World, topic: str) -> list[str]:
    """Records that are gone without effect and not named, and such as are named although they had their effect."""
    lost = named_records(world)
    gone = {record for loss in world.losses if loss.topic == topic for record in loss.gone}
    effects = _effects(world, topic)
    copies: defaultdict[str, list[Record]] = defaultdict(list)
    for record in world.records(topic):
        copies[_id_of(record)].append(record)
    problems = []
    for id, found in copies.items():
        unnamed = [record for record in found if record not in lost]
        if id not in effects:
            problems += [f"{r.place} ({id}) is gone without effect, and not named" for r in unnamed if r in gone]
        elif not unnamed:
            problems.append(f"{[record.place for record in found]} ({id}) took effect, and is named as lost")
    return problems


def _effects(world: World, topic: str) -> set[str]:
    if topic == REQUESTS:
        return {key.hex() for key in world.rows("order-requests")}
    return {record.body["metadata"]["causationId"] for record in world.records(EVENTS)}


def _id_of(record: Record) -> str:
    """What copies of a record have in common."""
    return record.key.hex() if record.topic == REQUESTS else str(record.body["eventId"])


def _accepted(row: dict[str, Any]) -> Named:
    loss = row["loss"]
    end = loss["end"] if loss["kind"] == "removed" else None
    return Named(loss["topic"], loss["partition"], loss["agent"], loss["first"], end)


def _without_lost(order: Order, copies: Sequence[tuple[Record, bool]]) -> Order:
    """An order whose commands are those that are left, in their order, each with what it then must come to."""
    if not copies:
        return order
    steps: list[tuple[int, Step]] = []
    for step in order.steps:
        places = [place for place, (record, _) in enumerate(copies) if _is_copy(order, step, record)]
        left = [place for place in places if not copies[place][1]]
        if left or not places:  # a command that is nowhere stays a promise
            steps.append((min(left, default=len(copies)), step))
    return replace(order, steps=_outcomes([step for _, step in sorted(steps, key=lambda found: found[0])]))


def _outcomes(steps: Sequence[Step]) -> list[Step]:
    status, outcomes = "unknown", []
    for step in steps:
        allowed, after = TRANSITIONS[step.kind]
        is_allowed = status in allowed
        status = after if is_allowed else status
        outcomes.append(replace(step, event_type=EVENT_TYPES[step.kind] if is_allowed else REJECTED))
    return outcomes


def _is_copy(order: Order, step: Step, record: Record) -> bool:
    """Whether a record is this command; over HTTP its id is the worker's."""
    body = record.body
    if not order.over_http:
        return bool(body["eventId"] == step.command_id)
    asked_at = order.steps[0].asked_at if step.kind == PLACE else step.asked_at
    return bool(body["eventType"] == COMMAND_TYPES[step.kind] and body["timestamp"] == timestamp(asked_at))
