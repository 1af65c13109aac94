"""The story of an order: everything that was asked and that happened, as a tree of what caused what.

Rows of the order's own partition tell it. The history of the order has its events as they were published. Commands to
stock and payments, their answers, and mails are not kept as such; but the row of the saga, the payment's and those of
the mails say which there were, and every id follows from its cause (`derived_id`), so that the ids here are those of
the records. Pure.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from domain.orders import Order
from domain.payments import FAILED, Payment
from domain.sagas.definition import CHARGE, RESERVE, Step, step_of
from domain.sagas.machine import NO_ANSWER, business_time, command_step, undos_of
from domain.sagas.state import Saga, StepRun
from engine import Envelope, Message, Topic, derived_id, format_ms, format_timestamp
from streams.events.inventory import ShipStock
from streams.events.notifications import SendNotification
from streams.events.orders import (
    CancelOrder,
    ConfirmOrder,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    OrderRejected,
    OrderShipped,
    PlaceOrder,
    ShipOrder,
)
from streams.events.payments import PaymentFailed
from streams.topics import (
    INVENTORY_COMMANDS,
    INVENTORY_EVENTS,
    NOTIFICATION_COMMANDS,
    ORDER_COMMANDS,
    ORDER_EVENTS,
    PAYMENT_COMMANDS,
    PAYMENT_EVENTS,
)
from tables.notifications import Notification

DEPTH_MAX: Final = 100
"""What is deeper in the tree begins a tree of its own: an order with many lines is undone in a long chain."""

_COMMANDS: Final[Mapping[str, str]] = {
    OrderPlaced.event_type: PlaceOrder.event_type,
    OrderConfirmed.event_type: ConfirmOrder.event_type,
    OrderCancelled.event_type: CancelOrder.event_type,
    OrderShipped.event_type: ShipOrder.event_type,
}
_MAILS: Final[Mapping[str, str]] = {
    "order_placed": OrderPlaced.event_type,
    "order_confirmed": OrderConfirmed.event_type,
    "order_cancelled": OrderCancelled.event_type,
    "payment_failed": PaymentFailed.event_type,
}
_TOPICS: Final[Mapping[str, tuple[Topic, Topic]]] = {
    ShipStock.aggregate_type: (INVENTORY_COMMANDS, INVENTORY_EVENTS),
    PaymentFailed.aggregate_type: (PAYMENT_COMMANDS, PAYMENT_EVENTS),
}
"""The topics of the commands and of the events that are about one kind of aggregate."""


class Node(msgspec.Struct):
    """A command, an event or a mail (the command to send it), with what followed from it.

    `id` is the record's, null where it cannot be told any more. `at` is business time, of mails production time.
    `aggregate_version` is the event's place in the history of its aggregate. `caused_by` names the record it followed
    from. `detail` is a reason, or the kind of a mail, whose `state` is what became of it.
    """

    id: str | None
    kind: Literal["command", "event", "mail"]
    type: str
    at: str | None
    topic: str
    aggregate_type: str
    aggregate_id: str
    caused_by: str | None
    aggregate_version: int | None = None
    detail: str | None = None
    state: str | None = None
    children: list["Node"] = []


class Parts(NamedTuple):
    """What a story is told from: an order's events, oldest first, and rows that others keep of it."""

    history: Sequence[Envelope[Any]]
    order: Order
    saga: Saga | None
    payment: Payment | None
    mails: Sequence[Notification]


def story(parts: Parts) -> list[Node]:
    """The trees of an order's story, oldest first.

    What came from outside is a root, and so is whatever has a cause that nobody can name any more.
    """
    events = [_event_of_order(event) for event in parts.history]
    asked = [*_of_saga(parts), *_of_payment(parts)]
    known = {node.id for node in (*events, *asked)}
    nodes = [*_from_outside(parts, known), *events, *asked, *_shipping(parts)]
    return _trees([*nodes, *_mails(parts, nodes)])


# ---- the order


def _event_of_order(event: Envelope[Any]) -> Node:
    return Node(
        event.event_id,
        "event",
        event.event_type,
        format_timestamp(event.timestamp),
        ORDER_EVENTS.name,
        event.aggregate_type,
        event.aggregate_id,
        event.metadata.causation_id,
        aggregate_version=event.aggregate_version or None,
        detail=getattr(event.payload, "reason", None),
    )


def _from_outside(parts: Parts, known: Container[str | None]) -> Iterator[Node]:
    """The commands that came to the order: all that its events followed from, but for what its saga had it decide."""
    seen: set[str] = set()
    for event in parts.history:
        cause = event.metadata.causation_id
        if cause is None or cause in seen or cause in known or _is_for_saga(parts, event):
            continue
        seen.add(cause)
        payload = event.payload
        asked = payload.command if isinstance(payload, OrderRejected) else _COMMANDS[event.event_type]
        at = format_timestamp(event.timestamp)  # an event has the time of the command that it follows from
        yield Node(cause, "command", asked, at, ORDER_COMMANDS.name, event.aggregate_type, event.aggregate_id, None)


def _is_for_saga(parts: Parts, event: Envelope[Any]) -> bool:
    """Whether the order decided this for its saga: such a command does not travel, and goes by the id of its cause."""
    if isinstance(event.payload, OrderConfirmed):
        return parts.order.saga is not None
    if isinstance(event.payload, OrderCancelled) and parts.saga is not None:
        return parts.saga.style == "orchestration" and _placing(parts.saga).undo_asked_ms is not None
    return False


def _shipping(parts: Parts) -> Iterator[Node]:
    for event in parts.history:
        if isinstance(event.payload, OrderShipped):
            at = format_timestamp(event.timestamp)
            for line, item in enumerate(parts.order.items, start=1):
                command = ShipStock(item.product_id, parts.order.order_id, line)
                step = f"{command.event_type}:{line}"
                yield _command(command, derived_id(event.event_id, step), at, event.event_id)


# ---- its saga


def _of_saga(parts: Parts) -> Iterator[Node]:
    """What stock and payments were asked for, and what they answered."""
    saga = parts.saga
    if saga is None:
        return
    undone = _undone_by_coordinator if saga.style == "orchestration" else _undone_by_services
    for run in saga.steps:
        step = step_of(saga, run)
        if not step.local:  # the order's own decisions are in its history
            yield from _action(parts, saga, step, run)
            yield from undone(parts, saga, step, run)


def _action(parts: Parts, saga: Saga, step: Step, run: StepRun) -> Iterator[Node]:
    if run.asked_ms is None or step.action is None:
        return
    name = command_step(run.name, run.line)
    command_id: str | None = derived_id(saga.placed_id, name)
    cause = saga.placed_id if run.asked_ms == saga.started_ms else saga.causes.get(name)
    if saga.style == "choreography" and step is CHARGE:
        command_id, cause = _choreographed_charge(parts, saga)
    command = step.action(parts.order, run.line, saga)
    yield _command(command, command_id, _time(saga, run.asked_ms), cause)
    answer = step.event("failed" if run.state == "failed" else "done")
    if run.answered_ms is not None and answer is not None:
        yield _answer(command, command_id, "1", answer, _time(saga, run.answered_ms), run.error)


def _choreographed_charge(parts: Parts, saga: Saga) -> tuple[str | None, str | None]:
    """The command that asked for the money, and the last line's answer, which caused it.

    Which line was the last can be told by what the order then followed from; where there is one line, it is that.
    """
    lines = range(1, len(parts.order.items) + 1)
    last = [derived_id(derived_id(saga.placed_id, command_step(RESERVE.name, line)), "1") for line in lines]
    commands = {derived_id(cause, CHARGE.name): cause for cause in last}
    followed = {event.metadata.causation_id for event in parts.history}
    found = [item for item in commands.items() if len(lines) == 1 or derived_id(item[0], "1") in followed]
    return found[0] if found else (None, None)


def _undone_by_coordinator(parts: Parts, saga: Saga, step: Step, run: StepRun) -> Iterator[Node]:
    """Every try; the answer is the one to the last of them."""
    tries = list(undos_of(saga, run))
    for number, (name, asked_ms) in enumerate(tries, start=1):
        command_id = derived_id(saga.placed_id, name)
        is_last = number == len(tries)
        yield from _undoing(parts, saga, step, run, command_id, saga.causes[name], asked_ms, is_last)


def _undone_by_services(parts: Parts, saga: Saga, step: Step, run: StepRun) -> Iterator[Node]:
    """The first try, which follows from the cancellation: later ones are remembered by the services alone."""
    cancelled = next((event for event in parts.history if isinstance(event.payload, OrderCancelled)), None)
    asked_ms = _placing(saga).undo_answered_ms
    if cancelled is None or asked_ms is None or (step is CHARGE and run.asked_ms is None):
        return
    name = f"refund:{asked_ms}" if step is CHARGE else f"release:{run.line}:{asked_ms}"
    command_id, is_last = derived_id(cancelled.event_id, name), run.undo_attempts == 0
    yield from _undoing(parts, saga, step, run, command_id, cancelled.event_id, asked_ms, is_last)


def _undoing(
    parts: Parts, saga: Saga, step: Step, run: StepRun, command_id: str, cause: str, asked_ms: int, is_last: bool
) -> Iterator[Node]:
    """A command to undo a step, and the answer to the last one."""
    if step.compensation is None:
        return
    command = step.compensation(parts.order, run.line, saga)
    yield _command(command, command_id, _time(saga, asked_ms), cause)
    answered_ms = run.undo_answered_ms
    if not is_last or answered_ms is None or answered_ms < asked_ms or run.undo_error == NO_ANSWER:
        return
    answer = step.event("undone" if run.state == "undone" else "undo_failed")
    version = "1"
    if step is CHARGE and parts.payment is not None:
        version = str(parts.payment.version)  # its last event is this answer
        answer = PaymentFailed if parts.payment.status == FAILED else answer
    if answer is not None:
        yield _answer(command, command_id, version, answer, _time(saga, answered_ms), run.undo_error)


def _placing(saga: Saga) -> StepRun:
    """The saga's own beginning, whose compensation is the order's cancellation."""
    return saga.steps[0]


def _time(saga: Saga, ms: int) -> str:
    return format_timestamp(business_time(saga, ms))


def _command(command: Message, command_id: str | None, at: str, cause: str | None) -> Node:
    topic, _ = _TOPICS[command.aggregate_type]
    return Node(command_id, "command", command.event_type, at, topic.name, command.aggregate_type, _key(command), cause)


def _answer(
    command: Message,
    command_id: str | None,
    step: str,
    answer: type[Message],
    at: str,
    error: str | None,
) -> Node:
    """What a service published when it decided a command; its id follows from the command's and the step."""
    _, topic = _TOPICS[command.aggregate_type]
    answer_id = derived_id(command_id, step) if command_id is not None else None
    return Node(
        answer_id,
        "event",
        answer.event_type,
        at,
        topic.name,
        answer.aggregate_type,
        _key(command),
        command_id,
        detail=error,
    )


def _key(command: Message) -> str:
    assert command.aggregate_id_field is not None, "a command names its aggregate"
    return str(getattr(command, command.aggregate_id_field))


# ---- what else there is


def _of_payment(parts: Parts) -> Iterator[Node]:
    """The payment of an order without a saga: somebody else asked for it, and its row does not say who."""
    payment = parts.payment
    if payment is None or parts.saga is not None:
        return
    at = payment.refunded_at or payment.failed_at or payment.charged_at
    yield Node(
        None,
        "event",
        f"payment.{payment.status}",
        None if at is None else format_timestamp(at),
        PAYMENT_EVENTS.name,
        PaymentFailed.aggregate_type,
        payment.order_id,
        None,
        aggregate_version=payment.version,
        detail=payment.reason,
    )


def _mails(parts: Parts, nodes: Sequence[Node]) -> Iterator[Node]:
    """Mails that are settled, each with the event that it tells of."""
    for mail in parts.mails:
        told = next((node.id for node in nodes if node.kind == "event" and node.type == _MAILS.get(mail.kind)), None)
        yield Node(
            None if told is None else derived_id(told, "notification"),
            "mail",
            SendNotification.event_type,
            None if mail.sent_at_ms is None else format_ms(mail.sent_at_ms),
            NOTIFICATION_COMMANDS.name,
            SendNotification.aggregate_type,
            mail.order_id,
            told,
            detail=mail.kind,
            state=mail.state,
        )


# ---- the trees


def _trees(nodes: Sequence[Node]) -> list[Node]:
    """Hang every node below its cause; see DEPTH_MAX."""
    by_id = {node.id: node for node in nodes if node.id is not None}
    roots: list[Node] = []
    for node in nodes:
        cause = by_id.get(node.caused_by) if node.caused_by is not None else None
        (roots if cause is None else cause.children).append(node)
    level, depth = list(roots), 1
    while level:
        for node in level:
            node.children = _sorted(node.children)
        below = [child for node in level for child in node.children]
        if depth % DEPTH_MAX == 0:
            for node in level:
                node.children = []
            roots += below
        level, depth = below, depth + 1
    return _sorted(roots)


def _sorted(nodes: Iterable[Node]) -> list[Node]:
    """Oldest first; what has no time comes last, and of one time what was told first."""
    return sorted(nodes, key=lambda node: (node.at is None, node.at or ""))
