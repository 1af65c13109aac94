"""A world in memory for sagas: the real services, whose messages and time the test moves by hand.

Every agent function runs as it is, one record at a time; commits are immediate. The test chooses which message is
delivered next, again, late or never, and when time passes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec

from agents import inventory, orders, payments, sagas, shipping
from agents.choreography import order as choreographed_order
from agents.choreography import payment as choreographed_payment
from agents.choreography import stock as choreographed_stock
from engine.declare.agent import Agent
from engine.declare.envelope import Envelope, Message, Metadata, new_envelope
from engine.declare.handlers import acceptance
from engine.declare.registry import EventRegistry
from engine.declare.service import Service
from engine.declare.timers import TIMERS
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Record
from streams.events.money import Money
from streams.events.orders import ORDER_TYPES
from streams.events.payment_answers import Charged, Declined, Refunded
from streams.settings import Settings
from tests.unit.test_envelope import TEN_O_CLOCK

STYLES = ("orchestration", "choreography")
STEP_TIMEOUT_S = 60.0
RETRIES = 2
BACKOFF_S = 1.0
BEGAN_MS = 1_800_000_000_000

# In the order in which an application finds them.
SERVICES: tuple[Service, ...] = (
    choreographed_order.service,
    choreographed_payment.service,
    choreographed_stock.service,
    inventory.service,
    orders.service,
    payments.service,
    sagas.service,
    shipping.service,
)


class Bank:
    """What stands behind the payment port: keeps accounts, honours idempotency keys, and says no when told to."""

    def __init__(self) -> None:
        self.answers: dict[str, Charged | Declined | Refunded] = {}
        self.held: dict[str, Money] = {}
        self.declines: set[str] = set()
        self.refuses_refunds: dict[str, int] = {}  # order: how many times

    async def charge(self, order_id: str, customer_id: str, amount: Money, key: str) -> Charged | Declined:
        """Take the money, once per key."""
        if key not in self.answers:
            if order_id in self.declines:
                self.answers[key] = Declined("card_declined")
            else:
                assert order_id not in self.held, "charged twice"
                self.held[order_id] = amount
                self.answers[key] = Charged(f"charge-{order_id}")
        answer = self.answers[key]
        assert not isinstance(answer, Refunded)
        return answer

    async def refund(self, order_id: str, reference: str, amount: Money, key: str) -> Refunded | Declined:
        """Give the money back, once per key."""
        if key not in self.answers:
            refusals = self.refuses_refunds.get(order_id, 0)
            if refusals:
                self.refuses_refunds[order_id] = refusals - 1
                self.answers[key] = Declined("account_closed")
            else:
                assert self.held.pop(order_id) == amount
                self.answers[key] = Refunded(f"refund-{order_id}")
        answer = self.answers[key]
        assert not isinstance(answer, Charged)
        return answer


class World:
    """Topics, rows and time of one partition, and the services that live in it."""

    def __init__(self, saga: str, **settings: Any) -> None:
        values: dict[str, Any] = {
            "saga": saga,
            "saga_step_timeout": STEP_TIMEOUT_S,
            "saga_retries": RETRIES,
            "saga_retry_backoff": BACKOFF_S,
        }
        self.settings = Settings(_env_file=None, **values | settings)
        self.bank = Bank()
        self.now_ms = BEGAN_MS
        self.topics: dict[str, list[Record]] = defaultdict(list)
        self.waiting: dict[str, list[Record]] = {}  # by agent, what was not delivered yet
        self.rows: dict[tuple[Any, Any], Any] = {}
        self.failures: list[BaseException] = []
        types = dict.fromkeys((*ORDER_TYPES, *(kind for service in SERVICES for kind in service.types)))
        self.registry = EventRegistry(types)
        self._agents: dict[str, Agent[Any]] = {}
        self._timers: dict[str, Any] = {}
        self._reactions: dict[type, list[Any]] = {}
        for service in SERVICES:
            self._agents |= service.agents
            self._timers |= service.timers
            for payload, handler in service.reactions:
                self._reactions.setdefault(payload, []).append(handler)
        self.waiting = {agent: [] for agent in self._agents}

    # ---- what the test does

    def tell(self, topic: Topic, payload: Message, command_id: str) -> None:
        """Let a client produce a command."""
        assert payload.aggregate_id_field is not None
        key = getattr(payload, payload.aggregate_id_field)
        envelope = new_envelope(
            payload, event_id=command_id, aggregate_id=key, timestamp=TEN_O_CLOCK, metadata=Metadata("trace")
        )
        self._append(topic.name, key.encode(), self.registry.encode(envelope), ())

    def deliver(self, agent: str, index: int = 0) -> Envelope[Any]:
        """Give an agent one of the records that wait for it; the message in it."""
        record = self.waiting[agent].pop(index)
        self._handle(agent, record)
        return self.registry.decode(record.value or b"")

    def repeat(self, topic: Topic, index: int = -1) -> None:
        """Let a message come again."""
        record = self.topics[topic.name][index]
        self._append(topic.name, record.key or b"", record.value or b"", record.headers)

    def lose(self, agent: str, index: int = 0) -> Record:
        """Hold back a record; `give_back` delivers it late."""
        return self.waiting[agent].pop(index)

    def give_back(self, agent: str, record: Record) -> None:
        """Let a record that was held back come."""
        self.waiting[agent].append(record)

    def settle(self, *, without: tuple[str, ...] = ()) -> None:
        """Deliver everything there is, except to the agents in `without`; time stands still."""
        while agent := next((name for name, records in self.waiting.items() if records and name not in without), None):
            self.deliver(agent)

    def pass_time(self, seconds: float) -> None:
        """Let time pass and fire the timers that fall due, each at its own time."""
        end_ms = self.now_ms + int(seconds * 1000)
        while due := [key for key in self._timer_keys() if key.due_ms <= end_ms]:
            self.fire(min(due))
        self.now_ms = end_ms

    def settle_for_good(self) -> None:
        """Deliver everything, and let time pass until no timer is left that would change anything."""
        self.settle()
        for _ in range(100):
            keys = list(self._timer_keys())
            if not keys:
                return
            self.pass_time((min(key.due_ms for key in keys) - self.now_ms) / 1000)
            self.settle()
        raise AssertionError("the world does not come to rest")

    def fire(self, key: Any) -> None:
        """Fire a timer."""
        self.now_ms = max(self.now_ms, key.due_ms)
        timer = self.rows[TIMERS, key]
        work = self._new_work()
        work.record = Record(-1, self.now_ms, timer.key.encode(), timer.payload, ())
        work.put(TIMERS, key, None)
        self._timers[timer.kind](timer, work)
        work.release()
        self._commit(work)

    # ---- what the test sees

    def get(self, table: Any, key: Any) -> Any:
        """A row."""
        return self.rows.get((table, key))

    def all(self, table: Any) -> Iterator[tuple[Any, Any]]:
        """All rows of a table."""
        return ((key, row) for (of, key), row in self.rows.items() if of is table)

    def messages(self, topic: Topic) -> list[Envelope[Any]]:
        """Everything that was ever sent to a topic."""
        return [self.registry.decode(record.value or b"") for record in self.topics[topic.name]]

    # ---- the inside

    def committed_or_committing(self, table: Any, key: Any) -> Any:
        """Where units of work get their rows from."""
        return self.rows.get((table, key))

    def _timer_keys(self) -> Iterator[Any]:
        return (key for (table, key) in self.rows if table is TIMERS)

    def _append(self, topic: str, key: bytes, value: bytes, headers: Any) -> None:
        self.now_ms += 1
        record = Record(len(self.topics[topic]), self.now_ms, key, value, tuple(headers))
        self.topics[topic].append(record)
        for name, agent in self._agents.items():
            if agent.topic.name == topic:
                self.waiting[name].append(record)

    def _handle(self, name: str, record: Record) -> None:
        """Let an agent make the record's call to the bank, if it makes any, handle the record and commit."""
        self.now_ms += 1
        agent, outcome = self._agents[name], None
        if agent.make_call is not None:
            work = self.new_work()
            work.record = record
            call = agent.make_call(self.bank, self.registry.decode(record.value or b""), work)
            outcome = _result(call) if call is not None else None
        work = self.new_work()
        work.record, work.outcome = record, outcome
        agent.bind(acceptance(self.registry, agent.topic, 1 << 20, lambda key: 0))(record, work)
        work.release()
        self._commit(work)

    def new_work(self) -> UnitOfWork:
        """A unit of work on this world's rows."""
        return self._new_work()

    def _new_work(self) -> UnitOfWork:
        work = UnitOfWork(0, self, lambda key: 0, self._encode, self.settings, self._reactions)
        work.now_ms = self.now_ms
        return work

    def _encode(self, message: Any) -> bytes:
        return self.registry.encode(message) if isinstance(message, Envelope) else msgspec.json.encode(message)

    def _commit(self, work: UnitOfWork) -> None:
        for table, rows in work.rows.items():
            for key, row in rows.items():
                if row is None:
                    self.rows.pop((table, key), None)
                else:
                    self.rows[table, key] = row
        for (topic, _), records in work.outputs.items():
            for key, value, headers in records:
                self._append(topic, key or b"", value or b"", headers)


def _result(coroutine: Any) -> Any:
    """The result of a coroutine that never has to wait: nothing here is outside of this process."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("a call waits for something")
