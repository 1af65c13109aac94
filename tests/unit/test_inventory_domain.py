"""What may happen to the stock of a product and to the lines of orders, given what happened before."""

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from domain.inventory import (
    FAILED,
    ON_HAND_MAX,
    RELEASED,
    RESERVED,
    SHIPPED,
    LineCommand,
    Reservation,
    Stock,
    StockCommand,
    StockEvent,
    decide,
    evolve,
    outcome,
)
from engine.declare.envelope import Envelope, Metadata, new_envelope
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
from tables.inventory import RESERVATIONS, ReservationKey


def add(quantity: int) -> AddStock:
    return AddStock("p", quantity)


def adjust(on_hand: int) -> AdjustStock:
    return AdjustStock("p", on_hand)


def reserve(quantity: int, order_id: str = "o", line: int = 1) -> ReserveStock:
    return ReserveStock("p", order_id, quantity, line)


def failed(quantity: int, available: int, reason: str) -> StockReservationFailed:
    return StockReservationFailed("p", "o", 1, quantity, available, reason)


def reserved(quantity: int) -> StockReserved:
    return StockReserved("p", "o", 1, quantity)


def released(quantity: int) -> StockReleased:
    return StockReleased("p", "o", 1, quantity)


RELEASE = ReleaseStock("p", "o")
SHIP = ShipStock("p", "o")
SHIPPED_TWO = StockShipped("p", "o", 1, 2)
CANNOT_RELEASE = StockReleaseFailed("p", "o", 1, "already_shipped")


class Product:
    """A product's stock and lines, driven by commands as the service drives them."""

    def __init__(self, *commands: StockCommand) -> None:
        self.stock: Stock | None = None
        self.lines: dict[tuple[str, int], Reservation] = {}
        self.events: list[Envelope[Any]] = []
        for command in commands:
            self.handle(command)

    def handle(self, command: StockCommand) -> tuple[StockEvent, bool]:
        """Return the answer to a command, and whether it is a new event."""
        key = (command.order_id, command.line) if isinstance(command, LineCommand) else None
        line = self.lines.get(key) if key is not None else None
        known = outcome(self.stock, line, command) if isinstance(command, LineCommand) else None
        if known is not None:
            return known, False
        event = decide(self.stock, line, command)
        self.events.append(envelope(event, len(self.events) + 1))
        self.stock, changed = evolve(self.stock, line, self.events[-1])
        if key is not None and changed is not None:
            self.lines[key] = changed
        return event, True


def envelope(event: StockEvent, version: int) -> Envelope[Any]:
    return new_envelope(
        event,
        event_id=f"event-{version}",
        aggregate_id="p",
        timestamp=datetime(2026, 11, 23, 10, tzinfo=UTC),
        metadata=Metadata(),
        aggregate_version=version,
    )


# ---- the shelf


@pytest.mark.parametrize(
    ("given", "when", "then", "left"),
    [
        ((), add(5), StockAdded("p", 5, 5), (5, 0)),
        ((add(5),), add(2), StockAdded("p", 2, 7), (7, 0)),
        ((), add(ON_HAND_MAX), StockAdded("p", ON_HAND_MAX, ON_HAND_MAX), (ON_HAND_MAX, 0)),
        ((), adjust(0), StockAdded("p", 0, 0), (0, 0)),
        ((add(5),), adjust(9), StockAdded("p", 4, 9), (9, 0)),
        ((add(5),), adjust(3), StockAdded("p", -2, 3), (3, 0)),
        ((add(5),), adjust(5), StockAdded("p", 0, 5), (5, 0)),
        ((add(5), reserve(2)), adjust(2), StockAdded("p", -3, 2), (2, 2)),
    ],
)
def test_the_shelf_has_what_was_put_on_it(
    given: tuple[StockCommand, ...], when: StockCommand, then: StockEvent, left: tuple[int, int]
) -> None:
    product = Product(*given)
    assert product.handle(when) == (then, True)
    assert product.stock == Stock("p", *left, version=len(given) + 1, stocked=True)


@pytest.mark.parametrize(
    ("given", "when", "reason"),
    [
        ((), add(0), "invalid_quantity"),
        ((), add(-1), "invalid_quantity"),
        ((), adjust(-1), "invalid_quantity"),
        ((), add(ON_HAND_MAX + 1), "above_limit"),
        ((add(ON_HAND_MAX),), add(1), "above_limit"),
        ((), adjust(2**63 - 1), "above_limit"),
        ((add(5), reserve(2)), adjust(1), "below_reserved"),
    ],
)
def test_what_the_shelf_cannot_have_is_refused_and_changes_only_the_version(
    given: tuple[StockCommand, ...], when: StockCommand, reason: str
) -> None:
    product = Product(*given)
    before = product.stock or Stock("p")
    event, is_new = product.handle(when)
    assert isinstance(event, InventoryRejected)
    assert (event.order_id, event.command, event.reason, is_new) == (None, when.event_type, reason, True)
    assert event.detail
    assert product.stock == Stock("p", before.on_hand, before.reserved, before.version + 1, before.stocked)


# ---- lines of orders


@pytest.mark.parametrize(
    ("given", "when", "then", "left", "line"),
    [
        # reserving
        ((add(5),), reserve(2), reserved(2), (5, 2), Reservation(RESERVED, 2, 2, 5)),
        ((add(5),), reserve(5), reserved(5), (5, 5), Reservation(RESERVED, 5, 5, 5)),
        ((add(5),), reserve(6), failed(6, 5, "out_of_stock"), (5, 0), Reservation(FAILED, 0, 6, 5, "out_of_stock")),
        (
            (add(5), reserve(4, "other")),
            reserve(2),
            failed(2, 1, "out_of_stock"),
            (5, 4),
            Reservation(FAILED, 0, 2, 1, "out_of_stock"),
        ),
        ((add(5), reserve(4, line=2)), reserve(1), reserved(1), (5, 5), Reservation(RESERVED, 1, 1, 1)),
        ((), reserve(1), failed(1, 0, "unknown_product"), (0, 0), Reservation(FAILED, 0, 1, 0, "unknown_product")),
        ((adjust(0),), reserve(1), failed(1, 0, "out_of_stock"), (0, 0), Reservation(FAILED, 0, 1, 0, "out_of_stock")),
        (
            (add(5),),
            reserve(0),
            failed(0, 5, "invalid_quantity"),
            (5, 0),
            Reservation(FAILED, 0, 0, 5, "invalid_quantity"),
        ),
        (
            (add(5),),
            reserve(-2),
            failed(-2, 5, "invalid_quantity"),
            (5, 0),
            Reservation(FAILED, 0, -2, 5, "invalid_quantity"),
        ),
        (
            (add(5), RELEASE),
            reserve(2),
            failed(2, 5, "released_before"),
            (5, 0),
            Reservation(RELEASED, 0, 2, 5, "released_before"),
        ),
        (
            (add(5), reserve(5, "other"), ShipStock("p", "other")),
            reserve(1),
            failed(1, 0, "out_of_stock"),
            (0, 0),
            Reservation(FAILED, 0, 1, 0, "out_of_stock"),
        ),
        # releasing
        ((add(5), reserve(2)), RELEASE, released(2), (5, 0), Reservation(RELEASED, 2, 2, 5)),
        ((add(5),), RELEASE, released(0), (5, 0), Reservation(RELEASED, 0)),
        ((), RELEASE, released(0), (0, 0), Reservation(RELEASED, 0)),
        (
            (add(1), reserve(2)),
            RELEASE,
            released(0),
            (1, 0),
            Reservation(RELEASED, 0, 2, 1, "out_of_stock"),
        ),
        (
            (add(5), reserve(2), SHIP),
            RELEASE,
            CANNOT_RELEASE,
            (3, 0),
            Reservation(SHIPPED, 2, 2, 5, "already_shipped"),
        ),
        # shipping
        ((add(5), reserve(2)), SHIP, SHIPPED_TWO, (3, 0), Reservation(SHIPPED, 2, 2, 5)),
    ],
)
def test_a_line_is_decided_by_what_happened_to_it_and_to_the_shelf(
    given: tuple[StockCommand, ...],
    when: LineCommand,
    then: StockEvent,
    left: tuple[int, int],
    line: Reservation,
) -> None:
    product = Product(*given)
    assert product.handle(when) == (then, True)
    stocked = any(isinstance(command, AddStock | AdjustStock) for command in given)
    assert product.stock == Stock("p", *left, version=len(given) + 1, stocked=stocked)
    assert product.lines["o", 1] == line


@pytest.mark.parametrize(
    ("given", "when", "then"),
    [
        # reserving again, whatever the quantity
        ((add(5), reserve(2)), reserve(2), reserved(2)),
        ((add(5), reserve(2)), reserve(99), reserved(2)),
        ((add(5), reserve(2)), reserve(0), reserved(2)),
        ((add(5), reserve(2), SHIP), reserve(2), reserved(2)),
        ((add(5), reserve(2), SHIP, RELEASE), reserve(2), reserved(2)),
        ((add(1), reserve(2)), reserve(2), failed(2, 1, "out_of_stock")),
        ((add(1), reserve(2)), reserve(1), failed(2, 1, "out_of_stock")),
        ((add(1), reserve(2), add(9)), reserve(2), failed(2, 1, "out_of_stock")),
        ((reserve(2), add(9)), reserve(2), failed(2, 0, "unknown_product")),
        ((add(1), reserve(2), RELEASE, add(9)), reserve(2), failed(2, 1, "out_of_stock")),
        ((add(5), reserve(2), RELEASE), reserve(2), failed(2, 5, "released_before")),
        ((add(5), RELEASE, reserve(2), add(9)), reserve(3), failed(2, 5, "released_before")),
        # releasing again
        ((add(5), reserve(2), RELEASE), RELEASE, released(2)),
        ((RELEASE,), RELEASE, released(0)),
        ((add(5), RELEASE, reserve(2)), RELEASE, released(0)),
        ((add(1), reserve(2), RELEASE), RELEASE, released(0)),
        ((add(5), reserve(2), SHIP, RELEASE), RELEASE, CANNOT_RELEASE),
        # shipping again
        ((add(5), reserve(2), SHIP), SHIP, SHIPPED_TWO),
        ((add(5), reserve(2), SHIP, RELEASE), SHIP, SHIPPED_TWO),
    ],
)
def test_what_was_decided_for_a_line_is_restated_and_changes_nothing(
    given: tuple[StockCommand, ...], when: LineCommand, then: StockEvent
) -> None:
    product = Product(*given)
    before = product.stock, dict(product.lines), list(product.events)
    assert product.handle(when) == (then, False)
    assert (product.stock, product.lines, product.events) == before


@pytest.mark.parametrize(
    "given", [(), (add(5),), (add(5), RELEASE), (add(5), reserve(2), RELEASE), (add(1), reserve(2))]
)
def test_only_a_reserved_line_can_be_shipped(given: tuple[StockCommand, ...]) -> None:
    product = Product(*given)
    before = product.stock or Stock("p"), dict(product.lines)
    event, is_new = product.handle(SHIP)
    assert isinstance(event, InventoryRejected)
    assert (event.order_id, event.command, event.reason, is_new) == ("o", "inventory.ship", "not_reserved", True)
    after = cast(Stock, product.stock)
    assert (after.on_hand, after.reserved, product.lines) == (before[0].on_hand, before[0].reserved, before[1])


def test_lines_and_orders_have_reservations_of_their_own() -> None:
    product = Product(add(10), reserve(1), reserve(2, line=2), reserve(3, "other"))
    assert {key: line.quantity for key, line in product.lines.items()} == {("o", 1): 1, ("o", 2): 2, ("other", 1): 3}
    product.handle(ReleaseStock("p", "o", 2))
    product.handle(ShipStock("p", "other"))
    assert {key: line.state for key, line in product.lines.items()} == {
        ("o", 1): RESERVED,
        ("o", 2): RELEASED,
        ("other", 1): SHIPPED,
    }
    assert product.stock == Stock("p", 7, 1, 6, stocked=True)


# ---- history


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([envelope(StockAdded("p", 5, 5), 2)], "expected event 1"),
        ([envelope(StockAdded("p", 5, 6), 1)], "is not 6"),
        ([envelope(reserved(1), 1)], "cannot be reserved"),
        (
            [envelope(StockAdded("p", 5, 5), 1), envelope(reserved(2), 2), envelope(reserved(2), 3)],
            "was reserved before",
        ),
        ([envelope(SHIPPED_TWO, 1)], "before line 1 was reserved"),
        ([envelope(CANNOT_RELEASE, 1)], "before line 1 was reserved"),
    ],
)
def test_a_history_that_cannot_be_is_refused(events: list[Envelope[Any]], message: str) -> None:
    stock: Stock | None = None
    line: Reservation | None = None
    for event in events[:-1]:
        stock, line = evolve(stock, line, event)
    with pytest.raises(ValueError, match=message):
        evolve(stock, line, events[-1])


def test_reservations_are_listed_by_product_then_order_then_line() -> None:
    keys = [
        ReservationKey("p", "o", 1),
        ReservationKey("p", "o", 2),
        ReservationKey("p", "o", 300),
        ReservationKey("p", "ö", 1),
        ReservationKey("p", "other", 1),
        ReservationKey("q", "", 2**31 - 1),
        ReservationKey("p1", "o", 1),
        ReservationKey("prod\0uct", "o" * 128, 1),
    ]
    raw = [RESERVATIONS.key.encode(key) for key in keys]
    assert raw == sorted(raw)
    assert [RESERVATIONS.key.decode(encoded) for encoded in raw] == keys
