"""A worker of one of two releases of the application: `python -m tests.chaos.release_worker before` (or `after`).

Both count what was ordered of each product: lines of orders are sent on under their product's id, and counted there, so
a line is often written by one worker and read by another. `after` writes them in a new version, which `before` was told
how to read; and it brings a service, with an agent on a topic that is there already, a new topic and a new table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar, Final

import msgspec

from engine.declare.envelope import Envelope, Message, follow_up
from engine.declare.service import Service
from engine.declare.table import Table
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.faust.worker import run_in_loop, serve
from engine.observe.logs import configure_logging
from streams.app import create_app, shop_services
from streams.events.orders import OrderItem, OrderPlaced
from streams.settings import load_settings
from streams.topics import ORDER_EVENTS

BEFORE, AFTER = "before", "after"
LINE_ORDERED: Final = "line.ordered"


class LineOrdered(Message, frozen=True, gc=False):
    """A line of an order, as `before` writes it."""

    event_type: ClassVar[str] = LINE_ORDERED
    schema_version: ClassVar[int] = 1
    aggregate_type: ClassVar[str] = "Product"

    product_id: str
    quantity: int


class LineOrderedV2(Message, frozen=True, gc=False):
    """The same as `after` writes it: a field has another name, and one is new."""

    event_type: ClassVar[str] = LINE_ORDERED
    schema_version: ClassVar[int] = 2
    aggregate_type: ClassVar[str] = "Product"

    product_id: str
    pieces: int
    order_id: str | None


class Count(msgspec.Struct, frozen=True, gc=False):
    """How many records there were under a key, and pieces in them."""

    records: int = 0
    pieces: int = 0


PRODUCT_LINES = Topic("product-lines", "lines of orders; key = product id")
PRODUCT_COUNTS: Table[str, Count] = Table("product-counts", Count)
CUSTOMER_PLACED = Topic("customer-placed", "placed orders; key = customer id", own_key=False)
CUSTOMER_COUNTS: Table[str, Count] = Table("customer-counts", Count)


def services_of(release: str) -> list[Service]:
    """All services of the application, and those of the release."""
    own = [before()] if release == BEFORE else [after(), customer_counts()]
    return [*shop_services(), *own]


def before() -> Service:
    """Products in the first version of lines. It can read the second one: the release after it will write that."""
    service = product_counts(
        LineOrdered,
        lambda event, item: LineOrdered(item.product_id, item.quantity),
        lambda line: int(line.quantity),
    )

    @service.registry.downcaster(LINE_ORDERED, from_version=2)
    def to_quantity(payload: dict[str, Any]) -> dict[str, Any]:
        return {"productId": payload["productId"], "quantity": payload["pieces"]}

    return service


def after() -> Service:
    """Products in the second version of lines."""
    service = product_counts(
        LineOrderedV2,
        lambda event, item: LineOrderedV2(item.product_id, item.quantity, event.payload.order_id),
        lambda line: int(line.pieces),
    )

    @service.registry.upcaster(LINE_ORDERED, from_version=1)
    def to_pieces(payload: dict[str, Any]) -> dict[str, Any]:
        return {"productId": payload["productId"], "pieces": payload["quantity"], "orderId": None}

    return service


def product_counts(
    line: type[Message],
    write: Callable[[Envelope[OrderPlaced], OrderItem], Message],
    pieces_of: Callable[[Any], int],
) -> Service:
    """What both releases do, with lines in one version."""
    service = Service("product-counts", tables=(PRODUCT_COUNTS,), topics=(PRODUCT_LINES,), types=(line,))
    splitting, counting = service.agent("split-lines", ORDER_EVENTS), service.agent("count-lines", PRODUCT_LINES)

    @splitting.on(OrderPlaced)
    def split(event: Envelope[OrderPlaced], work: UnitOfWork) -> None:
        for number, item in enumerate(event.payload.items):
            message = follow_up(event, write(event, item), step=f"line {number}", aggregate_id=item.product_id)
            work.send(PRODUCT_LINES, item.product_id, message)

    @counting.on(line)
    def count(event: Envelope[Any], work: UnitOfWork) -> None:
        found = work.get(PRODUCT_COUNTS, event.aggregate_id) or Count()
        counted = Count(found.records + 1, found.pieces + pieces_of(event.payload))
        work.put(PRODUCT_COUNTS, event.aggregate_id, counted)

    return service


def customer_counts() -> Service:
    """What only the release after has."""
    service = Service("customer-counts", tables=(CUSTOMER_COUNTS,), topics=(CUSTOMER_PLACED,))
    passing_on, counting = service.agent("pass-on-placed", ORDER_EVENTS), service.agent("count-placed", CUSTOMER_PLACED)

    @passing_on.on(OrderPlaced)
    def pass_on(event: Envelope[OrderPlaced], work: UnitOfWork) -> None:
        work.send(CUSTOMER_PLACED, event.payload.customer_id, event)

    @counting.on(OrderPlaced)
    def count(event: Envelope[OrderPlaced], work: UnitOfWork) -> None:
        customer_id, pieces = event.payload.customer_id, sum(item.quantity for item in event.payload.items)
        found = work.get(CUSTOMER_COUNTS, customer_id) or Count()
        work.put(CUSTOMER_COUNTS, customer_id, Count(found.records + 1, found.pieces + pieces))

    return service


def main() -> None:
    """Run the worker until it is killed or told to stop."""
    (release,) = sys.argv[1:]
    settings = load_settings()
    configure_logging(settings)

    async def live() -> int:
        return await serve(create_app(settings, services=services_of(release)))

    raise SystemExit(run_in_loop(live()))


if __name__ == "__main__":
    main()
