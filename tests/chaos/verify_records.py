"""Checks of commands, events and replies against each other: each decided once, told once, and caused by something."""

from __future__ import annotations

from collections import Counter

from tests.chaos.ledger import COMMAND_TOPICS, LINE_COMMANDS, Ledger
from tests.chaos.orders import COMMAND_TYPES
from tests.chaos.shop import ADD, ADJUST
from tests.chaos.verifier import (
    COMMANDS,
    EVENT_TOPICS,
    NOTIFICATIONS,
    PAYMENT_COMMANDS,
    PAYMENT_EVENTS,
    STOCK_EVENTS,
    SUMMARIES,
)

FROM_OUTSIDE = {*COMMAND_TYPES.values(), ADD, ADJUST}


def check_commands(ledger: Ledger) -> list[str]:
    """Every command in the topics was decided once, however often it is there; what customers ask is marked."""
    problems = []
    for topic, events_topic in zip(COMMAND_TOPICS, EVENT_TOPICS, strict=True):
        effects = Counter(event.cause for events in ledger.events[events_topic].values() for event in events)
        answers = Counter(reply.cause for reply in ledger.replies)
        types = {command.id: command.type for command in ledger.commands[topic]}
        times = Counter(command.id for command in ledger.commands[topic])
        for command_id, kind in types.items():
            # A command may be about what another one has decided; then the answer is all that it comes to.
            is_answered = kind in LINE_COMMANDS or topic == PAYMENT_COMMANDS
            if effects[command_id] != 1 and not (is_answered and effects[command_id] == 0 and answers[command_id]):
                problems.append(f"{kind} {command_id} took effect {effects[command_id]} times")
            if is_answered and answers[command_id] != times[command_id]:
                problems.append(
                    f"{kind} {command_id} is there {times[command_id]} times, answers {answers[command_id]}"
                )
    handled = {key.decode() for key in ledger.world.rows("handled-commands")}
    asked = {command.id for command in ledger.commands[COMMANDS]}
    return problems + [f"command {command} is marked as handled wrongly, or not" for command in asked ^ handled]


def check_replies(ledger: Ledger) -> list[str]:
    """Sagas were told of every event about an order, once and byte for byte, under the order's id."""
    told = Counter((reply.key, reply.value) for reply in ledger.replies if reply.version is not None)
    happened: Counter[tuple[str, bytes]] = Counter()
    for topic in (STOCK_EVENTS, PAYMENT_EVENTS):
        for events in ledger.events[topic].values():
            happened.update((o, event.value) for event in events if (o := event.payload.get("orderId")) is not None)
    problems = [f"order {key} was not told {value!r}" for key, value in (happened - told).elements()]
    return problems + [f"order {key} was told {value!r}" for key, value in (told - happened).elements()]


def check_causes(ledger: Ledger) -> list[str]:
    """What follows from something names a record that exists; only commands from outside follow from nothing."""
    of_events = [event for topic in EVENT_TOPICS for events in ledger.events[topic].values() for event in events]
    of_commands = [command for topic in COMMAND_TOPICS for command in ledger.commands[topic]]
    everything = [*of_events, *of_commands, *ledger.replies]
    ids = {found.id for found in everything}
    causes = [(found.type, found.id, found.cause) for found in everything if found.type not in FROM_OUTSIDE]
    for record in (*ledger.world.records(SUMMARIES), *ledger.world.records(NOTIFICATIONS)):
        body = record.body
        causes.append((body["eventType"], body["eventId"], body["metadata"]["causationId"]))
    return [
        f"{kind} {found} follows from {cause}, which is nowhere" for kind, found, cause in causes if cause not in ids
    ]
