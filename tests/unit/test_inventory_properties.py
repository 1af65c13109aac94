"""No interleaving of stock commands, repeated, reordered or failed half way, makes or loses a piece."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from agents.inventory import commands
from domain.inventory import RESERVED, LineCommand, Reservation, Stock, StockCommand, evolve
from engine.declare.envelope import Envelope, Metadata, encode_envelope, new_envelope
from engine.declare.handlers import acceptance
from engine.declare.registry import EventRegistry
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Outgoing, Record
from streams.events.inventory import (
    INVENTORY_TYPES,
    AddStock,
    AdjustStock,
    InventoryRejected,
    ReleaseStock,
    ReserveStock,
    ShipStock,
    StockAdded,
    StockReleased,
    StockReservationFailed,
    StockReserved,
    StockShipped,
)
from streams.settings import Settings
from streams.topics import INTEGRATION_EVENTS, INVENTORY_COMMANDS, INVENTORY_EVENTS, SAGA_REPLIES
from tables.inventory import HANDLED_STOCK_COMMANDS, RESERVATIONS, STOCK, ReservationKey
from tests.unit.test_inventory_domain import Product

SETTINGS = Settings(_env_file=None)
REGISTRY = EventRegistry(INVENTORY_TYPES)
HANDLE = commands.bind(acceptance(REGISTRY, INVENTORY_COMMANDS, 1 << 20, lambda key: 0))

products = st.sampled_from(["p", "q"])
orders = st.sampled_from(["o-1", "o-2", "o-3"])
lines = st.integers(1, 2)
quantities = st.integers(-1, 12)
line_commands = st.one_of(
    st.builds(ReserveStock, products, orders, quantities, lines),
    st.builds(ReleaseStock, products, orders, lines),
    st.builds(ShipStock, products, orders, lines),
)
stock_commands = st.one_of(st.builds(AddStock, products, quantities), st.builds(AdjustStock, products, quantities))


class Committed:
    """The rows that earlier units of work left."""

    def __init__(self) -> None:
        self.rows: dict[Any, dict[Any, Any]] = {}

    def committed_or_committing(self, table: Any, key: Any) -> Any:
        return self.rows.get(table, {}).get(key)


class Shelves:
    """A partition of the service with its real handlers, and everything it has sent."""

    def __init__(self) -> None:
        self.committed = Committed()
        self.work = self._new_work()
        self.sent: dict[str, list[Outgoing]] = {}

    def _new_work(self) -> UnitOfWork:
        return UnitOfWork(0, self.committed, lambda key: 0, encode_envelope, SETTINGS)

    def handle(self, command: Envelope[Any], keep: bool = True) -> None:
        """Handle a command as the engine does; without `keep` it fails at the end and is taken back."""
        record = Record(0, 1, command.aggregate_id.encode(), encode_envelope(command), ())
        self.work.record = record
        HANDLE(record, self.work)
        if not keep:
            self.work.rollback()
        self.work.release()

    def commit(self) -> None:
        """Keep all that is open."""
        for table, rows in self.work.rows.items():
            self.committed.rows.setdefault(table, {}).update(rows)
        for (topic, _), outputs in self.work.outputs.items():
            self.sent.setdefault(topic, []).extend(outputs)
        self.work = self._new_work()

    def rows(self, table: Any) -> dict[Any, Any]:
        """The rows as of now."""
        return self.committed.rows.get(table, {}) | self.work.rows.get(table, {})

    def outputs(self, topic: Topic) -> list[Outgoing]:
        """What was sent to a topic, oldest first."""
        return [*self.sent.get(topic.name, []), *self.work.outputs.get((topic.name, 0), [])]

    def events(self) -> list[Envelope[Any]]:
        """What happened to stock, oldest first."""
        return [REGISTRY.decode(value or b"") for _, value, _ in self.outputs(INVENTORY_EVENTS)]

    def everything(self) -> Any:
        """All rows and outputs."""
        tables = (STOCK, RESERVATIONS, HANDLED_STOCK_COMMANDS)
        topics = (INVENTORY_EVENTS, SAGA_REPLIES, INTEGRATION_EVENTS)
        return [self.rows(table) for table in tables], [self.outputs(topic) for topic in topics]


class Deliveries(RuleBasedStateMachine):
    """Commands are issued, and delivered in any order and any number of times."""

    commands: Bundle[Envelope[Any]] = Bundle("commands")

    def __init__(self) -> None:
        super().__init__()
        self.shelves = Shelves()
        self.issued = 0
        self.delivered: set[str] = set()
        self.released: set[ReservationKey] = set()

    @rule(target=commands, payload=st.one_of(line_commands, stock_commands))
    def issue(self, payload: StockCommand) -> Envelope[Any]:
        self.issued += 1
        return new_envelope(
            payload,
            event_id=f"command-{self.issued}",
            aggregate_id=payload.product_id,
            timestamp=datetime(2026, 11, 23, 10, tzinfo=UTC),
            metadata=Metadata(),
        )

    @rule(command=commands)
    def deliver(self, command: Envelope[Any]) -> None:
        shelves, payload = self.shelves, command.payload
        stock = shelves.rows(STOCK).get(command.aggregate_id, Stock(command.aggregate_id))
        key = ReservationKey(payload.product_id, payload.order_id, payload.line) if is_line(payload) else None
        is_new_line = key not in shelves.rows(RESERVATIONS)
        events_before, replies_before = len(shelves.events()), len(shelves.outputs(SAGA_REPLIES))
        shelves.handle(command)

        new = shelves.outputs(INVENTORY_EVENTS)[events_before:]
        replies = shelves.outputs(SAGA_REPLIES)[replies_before:]
        if command.event_id in self.delivered:
            assert new == []
        self.delivered.add(command.event_id)
        if key is None:
            assert replies == []
            return
        (reply,) = replies
        assert reply[0] == key.order_id.encode()
        assert [value for _, value, _ in new] in ([], [reply[1]])
        if isinstance(payload, ReleaseStock):
            self.released.add(key)
        if isinstance(payload, ReserveStock) and is_new_line:
            fits = stock.stocked and 1 <= payload.quantity <= stock.on_hand - stock.reserved
            expected = StockReserved if fits else StockReservationFailed
            assert [type(event.payload) for event in shelves.events()[events_before:]] == [expected]

    @rule(command=commands)
    def fail(self, command: Envelope[Any]) -> None:
        before = self.shelves.everything()
        self.shelves.handle(command, keep=False)
        assert self.shelves.everything() == before

    @rule()
    def commit(self) -> None:
        before = self.shelves.everything()
        self.shelves.commit()
        assert self.shelves.everything() == before

    @invariant()
    def no_piece_is_made_or_lost(self) -> None:
        events = self.shelves.events()
        held: Counter[str] = Counter()
        for key, line in self.shelves.rows(RESERVATIONS).items():
            held[key.product_id] += line.quantity if line.state == RESERVED else 0
        for product_id, stock in self.shelves.rows(STOCK).items():
            mine = [event.payload for event in events if event.aggregate_id == product_id]
            assert stock.on_hand >= stock.reserved >= 0
            assert stock.on_hand == pieces(mine, StockAdded) - pieces(mine, StockShipped)
            assert stock.reserved == held[product_id]
            assert held[product_id] == (
                pieces(mine, StockReserved) - pieces(mine, StockReleased) - pieces(mine, StockShipped)
            )

    @invariant()
    def a_line_is_decided_once_in_each_way(self) -> None:
        decided = Counter(
            (type(event.payload), event.aggregate_id, event.payload.order_id, event.payload.line)
            for event in self.shelves.events()
            if not isinstance(event.payload, StockAdded | InventoryRejected)
        )
        assert max(decided.values(), default=1) == 1

    @invariant()
    def what_was_released_holds_nothing_even_if_it_is_reserved_later(self) -> None:
        rows = self.shelves.rows(RESERVATIONS)
        assert all(rows[key].state != RESERVED for key in self.released)

    @invariant()
    def the_history_tells_the_whole_state(self) -> None:
        stocks: dict[str, Stock] = {}
        reservations: dict[ReservationKey, Reservation] = {}
        events = self.shelves.events()
        for event in events:
            key = None
            if not isinstance(event.payload, StockAdded | InventoryRejected):
                key = ReservationKey(event.aggregate_id, event.payload.order_id, event.payload.line)
            line = None if key is None else reservations.get(key)
            stocks[event.aggregate_id], line = evolve(stocks.get(event.aggregate_id), line, event)
            if key is not None and line is not None:
                reservations[key] = line
        assert stocks == self.shelves.rows(STOCK)
        assert reservations == self.shelves.rows(RESERVATIONS)
        assert len({event.event_id for event in events}) == len(events)

    @invariant()
    def others_are_told_what_has_a_contract(self) -> None:
        published = sum(
            isinstance(event.payload, StockReserved | StockReservationFailed | StockReleased)
            for event in self.shelves.events()
        )
        assert len(self.shelves.outputs(INTEGRATION_EVENTS)) == published


def is_line(payload: Any) -> bool:
    return isinstance(payload, LineCommand)


def pieces(events: Sequence[Any], event_class: Any) -> int:
    return sum(event.quantity for event in events if type(event) is event_class)


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.one_of(stock_commands, line_commands), max_size=20))
def test_a_line_command_handled_twice_is_handled_once(commands: list[StockCommand]) -> None:
    once, twice = Product(), Product()
    for command in commands:
        answer, _ = once.handle(command)
        assert twice.handle(command)[0] == answer
        if is_line(command) and not isinstance(answer, InventoryRejected):
            assert twice.handle(command) == (answer, False)
    assert (once.stock, once.lines) == (twice.stock, twice.lines)
