"""The stock of a product: what may happen to it and to the lines of orders that reserve of it, and what then is."""

from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from engine import Envelope
from streams.events.inventory import (
    AddStock,
    AdjustStock,
    InventoryRejected,
    ReleaseStock,
    ReserveStock,
    ShipStock,
    StockAdded,
    StockReleased,
    StockReleaseFailed,
    StockReservationFailed,
    StockReserved,
    StockShipped,
)

ReservationState = Literal["reserved", "released", "shipped", "failed"]

RESERVED: Final = "reserved"
RELEASED: Final = "released"
"""Holds no pieces and never will again; also a line that was released before it was reserved (a tombstone)."""
SHIPPED: Final = "shipped"
FAILED: Final = "failed"


class Stock(msgspec.Struct, frozen=True, gc=False):
    """One product, in pieces; `on_hand` includes the reserved ones, `version` is the number of its events so far.

    `stocked` tells whether anybody ever said what there is: before that commands were only refused.
    """

    product_id: str
    on_hand: int = 0
    reserved: int = 0
    version: int = 0
    stocked: bool = False


class Reservation(msgspec.Struct, frozen=True, gc=False):
    """What one line of an order has of a product.

    `quantity` is the pieces that were reserved, 0 where none ever were. `requested` and `available` are the pieces
    asked for and those that were free then. `reason` is the stable code why reserving failed, or why a shipped line
    could not be released.
    """

    state: ReservationState
    quantity: int
    requested: int = 0
    available: int = 0
    reason: str | None = None


ON_HAND_MAX: Final = 10**15
"""The most pieces of one product; sums of quantities then fit 64 bits, and every JSON reader's numbers."""

BELOW_RESERVED: Final = "below_reserved"

LineCommand = ReserveStock | ReleaseStock | ShipStock
StockCommand = AddStock | AdjustStock | LineCommand
LineEvent = StockReserved | StockReservationFailed | StockReleased | StockReleaseFailed | StockShipped
StockEvent = StockAdded | LineEvent | InventoryRejected


def decide(stock: Stock | None, reservation: Reservation | None, command: StockCommand) -> StockEvent:
    """Return the event that follows from a command; one of a line must not have been decided (see `outcome`)."""
    return _DECISIONS[type(command)](stock or Stock(command.product_id), reservation, command)


def outcome(stock: Stock | None, reservation: Reservation | None, command: LineCommand) -> LineEvent | None:
    """Return what an equal command of the same line came to before; None when there was none."""
    if reservation is None:
        return None
    return _OUTCOMES[type(command)](stock or Stock(command.product_id), reservation, command)


def not_reserved(command: LineCommand) -> InventoryRejected:
    """Return the refusal of a line that should be shipped and has no reserved pieces."""
    return _rejected(command, "not_reserved", "the line has no reserved pieces", command.order_id)


def evolve(
    stock: Stock | None, reservation: Reservation | None, event: Envelope[Any]
) -> tuple[Stock, Reservation | None]:
    """Return the stock, and the line the event names, after it; one without aggregate version counts as the next.

    Raises ValueError when the event is not the next one of the product's history, or cannot follow it.
    """
    before = stock or Stock(event.aggregate_id)
    version = before.version + 1
    if event.aggregate_version != version and event.aggregate_version is not UNSET:
        raise ValueError(
            f"product {event.aggregate_id}: expected event {version} of its history, got {event.aggregate_version}"
        )
    after, line = _EVOLUTIONS[event.event_type](replace(before, version=version), reservation, event.payload)
    if not 0 <= after.reserved <= after.on_hand:
        raise ValueError(f"product {after.product_id}: {after.reserved} of {after.on_hand} pieces cannot be reserved")
    return after, line


# ---- decisions


def _add(stock: Stock, reservation: None, command: AddStock) -> StockEvent:
    if command.quantity < 1:
        return _rejected(command, "invalid_quantity", "at least 1 piece can be added")
    return _stocked(stock, command, stock.on_hand + command.quantity)


def _adjust(stock: Stock, reservation: None, command: AdjustStock) -> StockEvent:
    if command.on_hand < 0:
        return _rejected(command, "invalid_quantity", "there cannot be less than 0 pieces")
    if command.on_hand < stock.reserved:
        return _rejected(command, BELOW_RESERVED, f"{stock.reserved} pieces are reserved; release them first")
    return _stocked(stock, command, command.on_hand)


def _stocked(stock: Stock, command: AddStock | AdjustStock, on_hand: int) -> StockEvent:
    if on_hand > ON_HAND_MAX:
        return _rejected(command, "above_limit", f"there can be at most {ON_HAND_MAX} pieces of a product")
    return StockAdded(command.product_id, on_hand - stock.on_hand, on_hand)


def _reserve(stock: Stock, reservation: Reservation | None, command: ReserveStock) -> StockEvent:
    if reservation is not None:
        return _failed(stock, command, "released_before")
    if command.quantity < 1:
        return _failed(stock, command, "invalid_quantity")
    if not stock.stocked:
        return _failed(stock, command, "unknown_product")
    if command.quantity > _available(stock):
        return _failed(stock, command, "out_of_stock")
    return StockReserved(command.product_id, command.order_id, command.line, command.quantity)


def _release(stock: Stock, reservation: Reservation | None, command: ReleaseStock) -> StockEvent:
    if reservation is not None and reservation.state == SHIPPED:
        return StockReleaseFailed(command.product_id, command.order_id, command.line, "already_shipped")
    quantity = reservation.quantity if reservation is not None else 0
    return StockReleased(command.product_id, command.order_id, command.line, quantity)


def _ship(stock: Stock, reservation: Reservation | None, command: ShipStock) -> StockEvent:
    if reservation is None or reservation.state != RESERVED:
        return not_reserved(command)
    return StockShipped(command.product_id, command.order_id, command.line, reservation.quantity)


def _available(stock: Stock) -> int:
    return stock.on_hand - stock.reserved


def _failed(stock: Stock, command: ReserveStock, reason: str) -> StockReservationFailed:
    return StockReservationFailed(
        command.product_id, command.order_id, command.line, command.quantity, _available(stock), reason
    )


def _rejected(command: StockCommand, reason: str, detail: str, order_id: str | None = None) -> InventoryRejected:
    return InventoryRejected(command.product_id, order_id, command.event_type, reason, detail)


# ---- outcomes of commands decided before


def _reserve_outcome(stock: Stock, line: Reservation, command: ReserveStock) -> LineEvent | None:
    product_id, order_id, number = command.product_id, command.order_id, command.line
    if line.state in (RESERVED, SHIPPED):
        return StockReserved(product_id, order_id, number, line.quantity)
    if line.reason is not None:
        return StockReservationFailed(product_id, order_id, number, line.requested, line.available, line.reason)
    if line.quantity > 0:  # given back since: nobody may go on as if the pieces were still held
        available = _available(stock)
        return StockReservationFailed(product_id, order_id, number, line.requested, available, "released_before")
    return None


def _release_outcome(stock: Stock, line: Reservation, command: ReleaseStock) -> LineEvent | None:
    if line.state == RELEASED:
        return StockReleased(command.product_id, command.order_id, command.line, line.quantity)
    if line.state == SHIPPED and line.reason is not None:
        return StockReleaseFailed(command.product_id, command.order_id, command.line, line.reason)
    return None


def _ship_outcome(stock: Stock, line: Reservation, command: ShipStock) -> LineEvent | None:
    if line.state != SHIPPED:
        return None
    return StockShipped(command.product_id, command.order_id, command.line, line.quantity)


# ---- evolutions


def _on_added(stock: Stock, line: None, event: StockAdded) -> tuple[Stock, None]:
    if stock.on_hand + event.quantity != event.on_hand:
        raise ValueError(f"product {event.product_id}: {stock.on_hand} + {event.quantity} is not {event.on_hand}")
    return replace(stock, on_hand=event.on_hand, stocked=True), None


def _on_reserved(stock: Stock, line: Reservation | None, event: StockReserved) -> tuple[Stock, Reservation]:
    if line is not None:
        raise ValueError(f"product {event.product_id}: line {event.line} of {event.order_id} was {line.state} before")
    reserved = Reservation(RESERVED, event.quantity, event.quantity, _available(stock))
    return replace(stock, reserved=stock.reserved + event.quantity), reserved


def _on_failed(stock: Stock, line: Reservation | None, event: StockReservationFailed) -> tuple[Stock, Reservation]:
    state = FAILED if line is None else line.state
    return stock, Reservation(state, 0, event.quantity, event.available, event.reason)


def _on_released(stock: Stock, line: Reservation | None, event: StockReleased) -> tuple[Stock, Reservation]:
    released = Reservation(RELEASED, 0) if line is None else replace(line, state=RELEASED)
    return replace(stock, reserved=stock.reserved - event.quantity), released


def _on_release_failed(stock: Stock, line: Reservation | None, event: StockReleaseFailed) -> tuple[Stock, Reservation]:
    return stock, replace(_known(line, event), reason=event.reason)


def _on_shipped(stock: Stock, line: Reservation | None, event: StockShipped) -> tuple[Stock, Reservation]:
    left = replace(stock, on_hand=stock.on_hand - event.quantity, reserved=stock.reserved - event.quantity)
    return left, replace(_known(line, event), state=SHIPPED)


def _on_rejected(stock: Stock, line: Reservation | None, event: InventoryRejected) -> tuple[Stock, Reservation | None]:
    return stock, line


def _known(line: Reservation | None, event: LineEvent) -> Reservation:
    if line is None:
        raise ValueError(f"product {event.product_id}: {event.event_type} before line {event.line} was reserved")
    return line


_DECISIONS: Final[dict[type[Any], Callable[[Stock, Any, Any], StockEvent]]] = {
    AddStock: _add,
    AdjustStock: _adjust,
    ReserveStock: _reserve,
    ReleaseStock: _release,
    ShipStock: _ship,
}

_OUTCOMES: Final[dict[type[Any], Callable[[Stock, Reservation, Any], LineEvent | None]]] = {
    ReserveStock: _reserve_outcome,
    ReleaseStock: _release_outcome,
    ShipStock: _ship_outcome,
}

_EVOLUTIONS: Final[dict[str, Callable[[Stock, Any, Any], tuple[Stock, Reservation | None]]]] = {
    StockAdded.event_type: _on_added,
    StockReserved.event_type: _on_reserved,
    StockReservationFailed.event_type: _on_failed,
    StockReleased.event_type: _on_released,
    StockReleaseFailed.event_type: _on_release_failed,
    StockShipped.event_type: _on_shipped,
    InventoryRejected.event_type: _on_rejected,
}
