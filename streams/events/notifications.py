"""Commands of notifications."""

from typing import ClassVar, Literal

from engine import Id, Message
from streams.events.money import Money, is_plain
from streams.events.orders import OrderItem

NotificationKind = Literal["order_placed", "order_confirmed", "order_cancelled", "payment_failed"]


class NotificationMessage(Message, frozen=True, gc=False):
    """What all commands of notifications have in common."""

    schema_version: ClassVar[int] = 1
    aggregate_type: ClassVar[str] = "Notification"
    hidden_fields: ClassVar[tuple[str, ...]] = ("email",)
    aggregate_id_field: ClassVar[str | None] = "order_id"


class SendNotification(NotificationMessage, frozen=True, gc=False):
    """Tell a customer by mail what happened to an order; one mail per order and kind.

    `reason` says why an order was cancelled or a payment failed.
    """

    event_type: ClassVar[str] = "notification.send"

    order_id: Id
    kind: NotificationKind
    email: str
    customer_id: Id
    items: tuple[OrderItem, ...]
    total: Money
    reason: str | None = None

    def __post_init__(self) -> None:
        """Refuse amounts that are not plain decimals (`NaN`, `1E+5`): commands come from any client."""
        for index, item in enumerate(self.items):
            if not is_plain(item.price.amount):
                raise ValueError(f"not a plain decimal - at `$.items[{index}].price.amount`")
        if not is_plain(self.total.amount):
            raise ValueError("not a plain decimal - at `$.total.amount`")


NOTIFICATION_TYPES: tuple[type[NotificationMessage], ...] = (SendNotification,)
