"""The tables of the order aggregate: its state, its history and the commands it has handled."""

import msgspec

from domain.orders import Order
from engine import NUMBERED_KEY, Table


class HandledCommand(msgspec.Struct, frozen=True, gc=False):
    """The mark that a command took effect, at `marked_at_ms` (epoch, production time)."""

    order_id: str
    marked_at_ms: int


ORDERS: Table[str, Order] = Table("orders", Order, help="every order as it is now, by order id")

ORDER_HISTORY: Table[tuple[str, int], msgspec.Raw] = Table(
    "order-history",
    msgspec.Raw,
    NUMBERED_KEY,
    help="every event of every order as it was published, the audit trail",
    cached=False,
)

HANDLED_COMMANDS: Table[str, HandledCommand] = Table(
    "handled-commands",
    HandledCommand,
    help="ids of commands that took effect, so that a repeated one does not",
    marked_at_ms=lambda row: row.marked_at_ms,
    cached=False,
)
