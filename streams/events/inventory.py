"""Commands and events of stock."""

from typing import Annotated, ClassVar

import msgspec

from engine import Id, Message

# What fits 64 bits; which quantities are good ones is the domain's decision.
Quantity = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Line = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
"""The number of an order's line, from 1 on: an order may have several lines with one product."""


class InventoryMessage(Message, frozen=True, gc=False):
    """What all commands and events of stock have in common."""

    schema_version: ClassVar[int] = 1
    aggregate_type: ClassVar[str] = "Product"


class InventoryCommand(InventoryMessage, frozen=True, gc=False):
    """Base of commands; the key is the product's id."""

    aggregate_id_field: ClassVar[str | None] = "product_id"


class AddStock(InventoryCommand, frozen=True, gc=False):
    """Put `quantity` pieces more on the shelf; the same command takes effect once."""

    event_type: ClassVar[str] = "inventory.stock"

    product_id: Id
    quantity: Quantity


class AdjustStock(InventoryCommand, frozen=True, gc=False):
    """Say how many pieces are on the shelf, reserved ones included, as after a stocktake."""

    event_type: ClassVar[str] = "inventory.adjust"

    product_id: Id
    on_hand: Quantity


class ReserveStock(InventoryCommand, frozen=True, gc=False):
    """Reserve the pieces of one line of an order; once per order and line."""

    event_type: ClassVar[str] = "inventory.reserve"

    product_id: Id
    order_id: Id
    quantity: Quantity
    line: Line = 1


class ReleaseStock(InventoryCommand, frozen=True, gc=False):
    """Give a line's reserved pieces back; a line that was never reserved then never will be."""

    event_type: ClassVar[str] = "inventory.release"

    product_id: Id
    order_id: Id
    line: Line = 1


class ShipStock(InventoryCommand, frozen=True, gc=False):
    """Send a line's reserved pieces away."""

    event_type: ClassVar[str] = "inventory.ship"

    product_id: Id
    order_id: Id
    line: Line = 1


class StockAdded(InventoryMessage, frozen=True, gc=False):
    """Stock has changed by `quantity` pieces, fewer than none after a stocktake; `on_hand` is what there is now."""

    event_type: ClassVar[str] = "inventory.stocked"

    product_id: Id
    quantity: int
    on_hand: int


class StockReserved(InventoryMessage, frozen=True, gc=False):
    """The pieces of one line of an order are reserved."""

    event_type: ClassVar[str] = "inventory.reserved"

    product_id: Id
    order_id: Id
    line: int
    quantity: int


class StockReservationFailed(InventoryMessage, frozen=True, gc=False):
    """A line could not be reserved: `reason` is a stable snake_case code, `available` what there was."""

    event_type: ClassVar[str] = "inventory.reservation_failed"

    product_id: Id
    order_id: Id
    line: int
    quantity: int
    available: int
    reason: str


class StockReleased(InventoryMessage, frozen=True, gc=False):
    """A line holds no pieces any more; `quantity` were given back, 0 where none were reserved."""

    event_type: ClassVar[str] = "inventory.released"

    product_id: Id
    order_id: Id
    line: int
    quantity: int


class StockReleaseFailed(InventoryMessage, frozen=True, gc=False):
    """A line's pieces cannot be given back: `reason` is a stable snake_case code."""

    event_type: ClassVar[str] = "inventory.release_failed"

    product_id: Id
    order_id: Id
    line: int
    reason: str


class StockShipped(InventoryMessage, frozen=True, gc=False):
    """A line's pieces have left the shelf."""

    event_type: ClassVar[str] = "inventory.shipped"

    product_id: Id
    order_id: Id
    line: int
    quantity: int


class InventoryRejected(InventoryMessage, frozen=True, gc=False):
    """A command that no saga waits for was refused: `reason` is a stable snake_case code, `detail` a sentence."""

    event_type: ClassVar[str] = "inventory.rejected"

    product_id: Id
    order_id: Id | None
    command: str
    reason: str
    detail: str


INVENTORY_COMMAND_TYPES: tuple[type[InventoryMessage], ...] = (
    AddStock,
    AdjustStock,
    ReserveStock,
    ReleaseStock,
    ShipStock,
)
LINE_EVENT_TYPES: tuple[type[InventoryMessage], ...] = (
    StockReserved,
    StockReservationFailed,
    StockReleased,
    StockReleaseFailed,
    StockShipped,
    InventoryRejected,
)
"""What a command about an order's line is answered with."""

INVENTORY_EVENT_TYPES: tuple[type[InventoryMessage], ...] = (StockAdded, *LINE_EVENT_TYPES)
INVENTORY_TYPES: tuple[type[InventoryMessage], ...] = (*INVENTORY_COMMAND_TYPES, *INVENTORY_EVENT_TYPES)
