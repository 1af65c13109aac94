"""Commands and events of orders."""

from typing import Annotated, ClassVar, Literal

import msgspec

from engine import EventRegistry, Id, Message, Time
from streams.events.money import Money, is_plain

SagaStyle = Literal["orchestration", "choreography"]

# What fits 64 bits; which quantities are good ones is the domain's decision.
Quantity = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class OrderItem(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """One line of an order; `price` is for one piece."""

    product_id: Id
    quantity: Quantity
    price: Money


class OrderMessage(Message, frozen=True, gc=False):
    """What all commands and events of orders have in common."""

    schema_version: ClassVar[int] = 1
    aggregate_type: ClassVar[str] = "Order"
    hidden_fields: ClassVar[tuple[str, ...]] = ("email",)


class PlaceOrder(OrderMessage, frozen=True, gc=False):
    """Ask for an order. `total` may be left out; given, it must equal the sum of quantity x price."""

    event_type: ClassVar[str] = "order.place"
    aggregate_id_field: ClassVar[str | None] = "order_id"

    order_id: Id
    customer_id: Id
    items: tuple[OrderItem, ...]
    total: Money | None = None
    country: str | None = None
    email: str | None = None

    def __post_init__(self) -> None:
        """Refuse amounts that are not plain decimals (`NaN`, `1E+5`): commands come from any client."""
        for index, item in enumerate(self.items):
            if not is_plain(item.price.amount):
                raise ValueError(f"not a plain decimal - at `$.items[{index}].price.amount`")
        if self.total is not None and not is_plain(self.total.amount):
            raise ValueError("not a plain decimal - at `$.total.amount`")


class ConfirmOrder(OrderMessage, frozen=True, gc=False):
    """Ask to confirm a pending order."""

    event_type: ClassVar[str] = "order.confirm"
    aggregate_id_field: ClassVar[str | None] = "order_id"

    order_id: Id


class CancelOrder(OrderMessage, frozen=True, gc=False):
    """Ask to cancel a pending or confirmed order."""

    event_type: ClassVar[str] = "order.cancel"
    aggregate_id_field: ClassVar[str | None] = "order_id"

    order_id: Id
    reason: str | None = None


class ShipOrder(OrderMessage, frozen=True, gc=False):
    """Ask to send a confirmed order away; it cannot be cancelled afterwards."""

    event_type: ClassVar[str] = "order.ship"
    aggregate_id_field: ClassVar[str | None] = "order_id"

    order_id: Id


class OrderPlaced(OrderMessage, frozen=True, gc=False):
    """An order was placed; `total` is the sum of quantity x price.

    `saga` is the style of the saga that began with it and will end in it, absent where there is none.
    """

    event_type: ClassVar[str] = "order.placed"

    order_id: Id
    customer_id: Id
    items: tuple[OrderItem, ...]
    total: Money
    country: str | None = None
    email: str | None = None
    saga: SagaStyle | msgspec.UnsetType = msgspec.UNSET


class OrderConfirmed(OrderMessage, frozen=True, gc=False):
    """A pending order was confirmed."""

    event_type: ClassVar[str] = "order.confirmed"

    order_id: Id
    customer_id: Id
    total: Money


class OrderCancelled(OrderMessage, frozen=True, gc=False):
    """A pending or confirmed order was cancelled."""

    event_type: ClassVar[str] = "order.cancelled"

    order_id: Id
    customer_id: Id
    reason: str | None
    total: Money


class OrderShipped(OrderMessage, frozen=True, gc=False):
    """A confirmed order was sent away."""

    event_type: ClassVar[str] = "order.shipped"

    order_id: Id
    customer_id: Id
    total: Money


class OrderRejected(OrderMessage, frozen=True, gc=False):
    """A command was refused: `command` is its type, `reason` a stable snake_case code, `detail` a sentence.

    `customer_id` is the one named by a refused `order.place`; other commands name none.
    """

    event_type: ClassVar[str] = "order.rejected"

    order_id: Id
    customer_id: Id | None
    command: str
    reason: str
    detail: str


class OrderSummaryChanged(OrderMessage, frozen=True, gc=False):
    """An order as a customer's list shows it, after an event; keyed by customer, so that the projection only stores it.

    It carries the whole state, as the list is sorted by `created_at`, which later events do not repeat. `change` is the
    type of the event it follows, for projections that count.
    """

    event_type: ClassVar[str] = "order.summary_changed"

    order_id: Id
    customer_id: Id
    status: str
    item_count: int
    total: Money
    created_at: Time
    confirmed_at: Time | None = None
    cancelled_at: Time | None = None
    change: str | None = None


OrderCommand = PlaceOrder | ConfirmOrder | CancelOrder | ShipOrder
OrderEvent = OrderPlaced | OrderConfirmed | OrderCancelled | OrderShipped | OrderRejected

ORDER_COMMAND_TYPES: tuple[type[OrderMessage], ...] = (PlaceOrder, ConfirmOrder, CancelOrder, ShipOrder)
ORDER_EVENT_TYPES: tuple[type[OrderMessage], ...] = (
    OrderPlaced,
    OrderConfirmed,
    OrderCancelled,
    OrderShipped,
    OrderRejected,
)
ORDER_TYPES: tuple[type[OrderMessage], ...] = (*ORDER_COMMAND_TYPES, *ORDER_EVENT_TYPES, OrderSummaryChanged)


def registry() -> EventRegistry:
    """Return a new registry of all order types; converters of their other versions belong here."""
    return EventRegistry(ORDER_TYPES)
