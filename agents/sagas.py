"""The sagas of orders: begun with the order, moved on by every answer, undone when something fails.

A saga lives in the partition of its order, and what it asks of the order itself is decided in the same unit of work as
the answer that allows it. In the choreographed style it asks for nothing and only keeps the record of what happens.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from domain.orders import Order
from domain.sagas.definition import REPLIES, STOCK_REPLIES
from domain.sagas.machine import Command, Policy, advance, apply, begin, business_time, resume, stuck_at, wakes_at
from domain.sagas.state import COMPENSATING, COMPENSATION_FAILED, RUNNING, Saga
from engine import (
    Envelope,
    Message,
    Metadata,
    Partition,
    Quiet,
    Service,
    Timer,
    Topic,
    UnitOfWork,
    about,
    derived_id,
    new_envelope,
)
from streams.events.inventory import INVENTORY_TYPES
from streams.events.orders import OrderCancelled, OrderConfirmed, OrderPlaced, OrderRejected
from streams.events.payments import PAYMENT_TYPES
from streams.events.sagas import SAGA_TYPES, ResumeSaga
from streams.settings import shop_settings
from streams.topics import INVENTORY_COMMANDS, PAYMENT_COMMANDS, SAGA_COMMANDS, SAGA_REPLIES
from tables.orders import ORDERS
from tables.sagas import FAILED_SAGAS, SAGA_COUNTS, SAGAS, FailedSaga, SagaCount

TIMER = "saga"
NEVER_MS = 1 << 62

SERVICES: Final = (INVENTORY_COMMANDS, PAYMENT_COMMANDS)
"""The topics of the services that steps are asked of."""
_TOPIC_OF: Final[Mapping[type[Message], Topic]] = {kind: topic for topic in SERVICES for kind in topic.carries}

service = Service(
    "sagas",
    tables=(SAGAS, SAGA_COUNTS, FAILED_SAGAS),
    topics=SERVICES,
    types=(*INVENTORY_TYPES, *PAYMENT_TYPES, *SAGA_TYPES),
)

log = logging.getLogger(__name__)
_quiet = Quiet()


replies = service.agent(
    "take-replies", SAGA_REPLIES, help="Bring what services answer to everybody who shares the order's partition."
)
commands = service.agent("resume-sagas", SAGA_COMMANDS, help="Resume sagas whose compensation failed.")


@replies.on(*STOCK_REPLIES)
def deliver_reply(reply: Envelope[Any], work: UnitOfWork) -> None:
    """Hand a reply on, in the unit of work that moves past it."""
    work.deliver(reply)


@service.reaction(OrderPlaced)
def begin_saga(placed: Envelope[OrderPlaced], work: UnitOfWork) -> None:
    """Begin the saga of an order, unless it was placed without one."""
    style = placed.payload.saga
    if style:
        _move(None, begin(placed, style, work.now_ms), placed.event_id, work)


@service.reaction(OrderConfirmed, OrderCancelled, OrderRejected, *REPLIES)
def move_saga(event: Envelope[Any], work: UnitOfWork) -> None:
    """Move the saga of an order on after an event; one that changes nothing, such as a repeated one, is ignored."""
    saga = work.get(SAGAS, event.payload.order_id)
    if saga is None:
        return
    now_ms = work.now_ms
    # Choreographed services try again by themselves: without a timer here, the saga learns of that only now.
    awake = saga if saga.style == "orchestration" else advance(saga, _order(saga, work), now_ms, _policy(saga, work))[0]
    moved = apply(awake, event.payload, now_ms)
    if moved is not awake:
        _move(saga, moved, event.event_id, work)


@commands.on(ResumeSaga)
def resume_saga(command: Envelope[ResumeSaga], work: UnitOfWork) -> None:
    """Try failed compensations anew; a saga without any is left alone. Choreographed services are told."""
    saga = work.get(SAGAS, command.aggregate_id)
    if saga is None:
        return
    resumed = resume(saga)
    if resumed is not saga:
        _move(saga, resumed, command.event_id, work)
        work.deliver(command)


@service.on_timer(TIMER)
def wake_saga(timer: Timer, work: UnitOfWork) -> None:
    """Look at a saga again: a deadline has passed, or a compensation is to be tried again."""
    saga = work.get(SAGAS, timer.key)
    if saga is not None and saga.timer_ms == timer.due_ms:
        _move(saga, replace(saga, timer_ms=None), saga.placed_id, work)


def _move(before: Saga | None, saga: Saga, cause_id: str, work: UnitOfWork) -> None:
    """Store the saga as it is now, with its timer, and ask for what comes next."""
    policy = _policy(saga, work)
    saga, asked = advance(saga, _order(saga, work), work.now_ms, policy)
    saga = _set_timer(saga, wakes_at(saga, policy), work)
    if before is not None and saga.style == "orchestration":
        saga = _with_causes(saga, asked, cause_id)
    _count(before, saga, work)
    _list_failed(before, saga, work)
    # Before anything is asked: the order answers at once, and its answer must find the saga as it is now.
    work.put(SAGAS, saga.order_id, saga)
    if saga.style == "orchestration":
        for command in asked:
            _ask(saga, command, cause_id, work)


def _with_causes(saga: Saga, asked: Sequence[Command], cause_id: str) -> Saga:
    """The saga with what its commands followed from, for those who want to know; the order's own events tell theirs."""
    causes = {command.step: cause_id for command in asked if not command.local}
    return replace(saga, causes={**saga.causes, **causes}) if causes else saga


def _ask(saga: Saga, command: Command, cause_id: str, work: UnitOfWork) -> None:
    """Send a command, or let the order decide at once what is its own.

    The id of a command follows from the order and the step. One that does not travel goes by the id of its cause, so
    that what follows names a record that exists.
    """
    envelope: Envelope[Message] = new_envelope(
        command.payload,
        event_id=cause_id if command.local else derived_id(saga.placed_id, command.step),
        aggregate_id=command.key,
        timestamp=business_time(saga, work.now_ms),
        metadata=Metadata(saga.correlation_id, cause_id, saga.user_id),
    )
    if command.local:
        work.deliver(envelope)
    else:
        work.send(_TOPIC_OF[type(command.payload)], command.key, envelope)


def _set_timer(saga: Saga, wakes_ms: int | None, work: UnitOfWork) -> Saga:
    """The saga with a timer that wakes it in time; one that is set for earlier is kept, and set anew when it fires."""
    if wakes_ms is not None and saga.timer_ms is not None and saga.timer_ms <= wakes_ms:
        return saga
    if saga.timer_ms is not None:
        work.cancel(TIMER, saga.order_id, saga.timer_ms)
    if wakes_ms is not None and saga.style == "orchestration":
        work.schedule(TIMER, saga.order_id, wakes_ms)
    else:
        wakes_ms = None
    return replace(saga, timer_ms=wakes_ms)


def _list_failed(before: Saga | None, saga: Saga, work: UnitOfWork) -> None:
    """Keep the list of those that somebody has to look at."""
    if saga.state == COMPENSATION_FAILED:
        stuck = stuck_at(saga)
        if stuck is not None:
            failed = FailedSaga(stuck.name, stuck.line, stuck.undo_error, stuck.undo_answered_ms or work.now_ms)
            work.put(FAILED_SAGAS, saga.order_id, failed)
            if before is None or before.state != COMPENSATION_FAILED:
                _say_failed(saga, stuck.name)
    elif before is not None and before.state == COMPENSATION_FAILED:
        work.delete(FAILED_SAGAS, saga.order_id)


def _say_failed(saga: Saga, step: str) -> None:
    """Say that somebody has to look at a saga; of many that fail alike, only some."""
    suppressed = _quiet.may_speak(step)
    if suppressed is not None:
        log.warning(
            "a saga cannot undo %s and stands as compensation_failed: POST /sagas/ORDER/resume tries again%s",
            step,
            f" (and {suppressed:,} alike before)" if suppressed else "",
            extra=about(order_id=saga.order_id, correlation_id=saga.correlation_id),
        )


def _order(saga: Saga, work: UnitOfWork) -> Order:
    order = work.get(ORDERS, saga.order_id)
    assert order is not None, "a saga begins with its order"
    return order


def _policy(saga: Saga, work: UnitOfWork) -> Policy:
    """Choreographed orders keep deadlines of their own."""
    policy = Policy.of(shop_settings(work.settings))
    return policy if saga.style == "orchestration" else policy._replace(step_timeout_ms=NEVER_MS)


def _count(before: Saga | None, saga: Saga, work: UnitOfWork) -> None:
    """Keep count of the sagas in each state."""
    if before is not None and before.state == saga.state:
        return
    for state, change in ((before.state if before is not None else None, -1), (saga.state, 1)):
        if state is not None:
            known = work.get(SAGA_COUNTS, state) or SagaCount()
            work.put(SAGA_COUNTS, state, known.plus(SagaCount(change)))


@service.gauge("saga_active", "sagas that have not ended", label="state")
def count_active(task: Partition) -> Mapping[str, int]:
    """How many sagas of a partition go on, or wait for somebody."""
    counts = {state: task.read(SAGA_COUNTS, state) for state in (RUNNING, COMPENSATING, COMPENSATION_FAILED)}
    return {state: row.count if row is not None else 0 for state, row in counts.items()}
