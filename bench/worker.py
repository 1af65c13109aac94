"""The orders job on this project's own engine: a worker like any other, with one service.

Environment, as `bench.systems` sets it: BENCH_BOOTSTRAP (host:port), BENCH_SOURCE and BENCH_OUTPUT (topics), BENCH_RUN
(unique name of the run), BENCH_STATE_DIR (a folder of its own). Runs until SIGTERM.
"""

import os
from decimal import Decimal
from pathlib import Path

import msgspec

from engine.declare.envelope import Envelope
from engine.declare.service import Service
from engine.declare.table import Table
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.faust.worker import run_in_loop, serve
from streams.app import create_app
from streams.events.orders import OrderPlaced
from streams.settings import Settings

SOURCE = Topic(os.environ["BENCH_SOURCE"], "placed orders, keyed by customer", own_key=False)
OUTPUT = Topic(os.environ["BENCH_OUTPUT"], "accepted orders")


class CustomerTotal(msgspec.Struct, frozen=True, gc=False):
    """What a customer has ordered so far; `total` is exact."""

    count: int
    total: Decimal


class OrderAccepted(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """The derived event of the orders job."""

    event_type: str
    order_id: str
    causation_id: str


TOTALS: Table[str, CustomerTotal] = Table("customer-totals", CustomerTotal)
NOTHING = CustomerTotal(0, Decimal(0))

service = Service("orders-job", tables=(TOTALS,), topics=(OUTPUT,))


events = service.agent("accept-orders", SOURCE, help="Do the orders job.")


@events.on(OrderPlaced)
def accept_order(event: Envelope[OrderPlaced], work: UnitOfWork) -> None:
    """Add the order to its customer's total and emit the derived event."""
    order = event.payload
    before = work.get(TOTALS, order.customer_id) or NOTHING
    work.put(TOTALS, order.customer_id, CustomerTotal(before.count + 1, before.total + order.total.amount))
    work.send(OUTPUT, order.customer_id, OrderAccepted("order.accepted", order.order_id, event.event_id))


if __name__ == "__main__":
    settings = Settings(
        app_id=os.environ["BENCH_RUN"],
        broker=f"kafka://{os.environ['BENCH_BOOTSTRAP']}",
        data_dir=Path(os.environ["BENCH_STATE_DIR"]),
        web_port=int(os.environ.get("BENCH_WEB_PORT", "6477")),
        log_level="WARNING",
    )
    raise SystemExit(run_in_loop(serve(create_app(settings, services=(service,)))))
