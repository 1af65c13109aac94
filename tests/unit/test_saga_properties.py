"""Whatever the interleaving: stock and money are conserved, and orders agree with both."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from domain.orders import Order
from streams.events.inventory import AddStock
from streams.events.money import Money
from streams.events.orders import CancelOrder, ConfirmOrder, OrderItem, PlaceOrder, ShipOrder
from streams.events.sagas import ResumeSaga
from streams.topics import INVENTORY_COMMANDS, INVENTORY_EVENTS, ORDER_COMMANDS, PAYMENT_EVENTS, SAGA_COMMANDS
from tables.inventory import RESERVATIONS, STOCK
from tables.orders import ORDERS
from tables.payments import PAYMENTS
from tables.sagas import SAGA_COUNTS, SAGAS
from tests.unit.saga_world import BACKOFF_S, STEP_TIMEOUT_S, STYLES, World

PRODUCTS = ("a", "b", "c")
ORDERS_MAX = 4


class Shop(RuleBasedStateMachine):
    """A shop in which anything may happen, in any order, twice or late."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World
        self.placed = 0
        self.told = 0

    # ---- what happens

    @initialize(style=st.sampled_from(STYLES), pieces=st.integers(0, 8))
    def open_shop(self, style: str, pieces: int) -> None:
        """Stock every product with a few pieces."""
        self.world = World(style)
        for product in PRODUCTS:
            self.world.tell(INVENTORY_COMMANDS, AddStock(product, pieces + 1), f"stock-{product}")
        self.world.settle()

    @precondition(lambda self: self.placed < ORDERS_MAX)
    @rule(
        lines=st.lists(st.tuples(st.sampled_from(PRODUCTS), st.integers(1, 4)), min_size=1, max_size=3),
        declined=st.booleans(),
        refusals=st.sampled_from((0, 0, 1, 5)),
    )
    def place(self, lines: list[tuple[str, int]], declined: bool, refusals: int) -> None:
        """Place an order; whether the bank will say no is decided now."""
        self.placed += 1
        order_id = f"o-{self.placed}"
        if declined:
            self.world.bank.declines.add(order_id)
        self.world.bank.refuses_refunds[order_id] = refusals
        items = tuple(
            OrderItem(product, quantity, Money(Decimal("0.10") * self.placed, "EUR")) for product, quantity in lines
        )
        self.world.tell(ORDER_COMMANDS, PlaceOrder(order_id, "c-1", items), f"place-{order_id}")

    @rule(
        number=st.integers(1, ORDERS_MAX),
        kind=st.sampled_from((CancelOrder, CancelOrder, ShipOrder, ConfirmOrder)),
    )
    def ask(self, number: int, kind: Any) -> None:
        """Let somebody cancel, ship or confirm an order."""
        self.told += 1
        self.world.tell(ORDER_COMMANDS, kind(f"o-{number}"), f"told-{self.told}")

    @rule(number=st.integers(1, ORDERS_MAX))
    def resume(self, number: int) -> None:
        """Let an operator resume a saga."""
        self.told += 1
        self.world.tell(SAGA_COMMANDS, ResumeSaga(f"o-{number}"), f"told-{self.told}")

    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Deliver any message that waits, the oldest of its agent or not."""
        waiting = [name for name, records in self.world.waiting.items() if records]
        if waiting:
            agent = data.draw(st.sampled_from(waiting))
            self.world.deliver(agent, data.draw(st.integers(0, len(self.world.waiting[agent]) - 1)))

    @rule(times=st.integers(1, 12))
    def go_on(self, times: int) -> None:
        """Deliver some messages in turn."""
        for _ in range(times):
            agent = next((name for name, records in self.world.waiting.items() if records), None)
            if agent is None:
                return
            self.world.deliver(agent)

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """Let any message of a command or reply topic come again."""
        sources = [name for name in self.world.topics if name.endswith(("-commands", "-replies"))]
        name = data.draw(st.sampled_from(sorted(sources)))
        records = self.world.topics[name]
        record = records[data.draw(st.integers(0, len(records) - 1))]
        self.world._append(name, record.key or b"", record.value or b"", record.headers)

    @rule(seconds=st.sampled_from((BACKOFF_S, 5 * BACKOFF_S, STEP_TIMEOUT_S + 1)))
    def wait(self, seconds: float) -> None:
        """Let time pass: deadlines and pauses end."""
        self.world.pass_time(seconds)

    # ---- what holds at every moment

    @invariant()
    def no_product_is_oversold(self) -> None:
        for product, stock in self.world.all(STOCK):
            assert 0 <= stock.reserved <= stock.on_hand, product
            lines = [row for key, row in self.world.all(RESERVATIONS) if key.product_id == product]
            assert stock.reserved == sum(row.quantity for row in lines if row.state == "reserved")

    @invariant()
    def stock_is_what_came_minus_what_left(self) -> None:
        there: Counter[str] = Counter()
        for event in self.world.messages(INVENTORY_EVENTS):
            if event.event_type == "inventory.stocked":
                there[event.payload.product_id] += event.payload.quantity
            elif event.event_type == "inventory.shipped":
                there[event.payload.product_id] -= event.payload.quantity
        assert {product: stock.on_hand for product, stock in self.world.all(STOCK)} == dict(there)

    @invariant()
    def money_that_was_received_and_not_refunded_is_at_the_bank(self) -> None:
        balance: dict[str, Money] = {}
        for event in self.world.messages(PAYMENT_EVENTS):
            if event.event_type == "payment.received":
                assert event.payload.order_id not in balance, "charged twice"
                balance[event.payload.order_id] = event.payload.amount
            elif event.event_type == "payment.refunded":
                assert balance.pop(event.payload.order_id) == event.payload.amount
        assert balance == self.world.bank.held

    @invariant()
    def a_confirmed_order_has_stock_and_payment(self) -> None:
        for order in self.orders("confirmed"):
            assert self.world.bank.held[order.order_id] == order.total
            states = {row.state for key, row in self.world.all(RESERVATIONS) if key.order_id == order.order_id}
            assert states <= {"reserved", "shipped"}
            reserved = [row for key, row in self.world.all(RESERVATIONS) if key.order_id == order.order_id]
            assert sum(row.quantity for row in reserved) == order.item_count

    @invariant()
    def sagas_are_counted(self) -> None:
        states = Counter(saga.state for _, saga in self.world.all(SAGAS))
        assert {state: row.count for state, row in self.world.all(SAGA_COUNTS) if row.count} == dict(states)

    # ---- what holds in the end

    def teardown(self) -> None:
        """Let everything come to its end."""
        if not hasattr(self, "world"):
            return
        self.world.settle_for_good()
        self.no_product_is_oversold()
        self.money_that_was_received_and_not_refunded_is_at_the_bank()
        failed = {saga.order_id for _, saga in self.world.all(SAGAS) if saga.state == "compensation_failed"}
        for order_id in failed:  # the bank refuses nothing any more, and somebody looks after it
            self.world.bank.refuses_refunds[order_id] = 0
            self.world.tell(SAGA_COMMANDS, ResumeSaga(order_id), f"finally-{order_id}")
        self.world.settle_for_good()
        confirmed = {order.order_id: order.total for order in self.orders("confirmed")}
        assert self.world.bank.held == confirmed, "charged - refunded = sum of confirmed orders"
        assert not list(self.orders("pending")), "every order is decided"
        for order in self.orders("cancelled"):
            lines = [row for key, row in self.world.all(RESERVATIONS) if key.order_id == order.order_id]
            assert all(row.state in ("released", "failed") for row in lines)
            payment = self.world.get(PAYMENTS, order.order_id)
            assert payment is None or payment.status in ("failed", "refunded")
            assert self.world.get(SAGAS, order.order_id).state == "compensated"
        for order_id in confirmed:
            assert self.world.get(SAGAS, order_id).state == "completed"
        assert not list(self.world._timer_keys())

    def orders(self, status: str) -> list[Order]:
        """Orders in a status."""
        return [order for _, order in self.world.all(ORDERS) if order.status == status]


TestShop = Shop.TestCase
TestShop.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
