"""The orders of the full-order benchmark: what is sent, what is read back, and the sums that have to agree."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from engine.declare.envelope import Message, Metadata, encode_envelope, new_envelope
from streams.events.money import Money
from streams.events.orders import OrderItem, PlaceOrder
from streams.topics import INVENTORY_EVENTS, ORDER_EVENTS, PAYMENT_EVENTS

PRODUCTS = 1000
CUSTOMERS = 10_000
PIECES = 3
TIMEOUT_S = 600.0
PRICE = Money(Decimal("9.95"), "EUR")
CONFIRMED = b'"eventType":"order.confirmed"'


class Refused(Exception):
    """What was measured is not what was promised."""


# ---- what is sent


def items(number: int) -> tuple[OrderItem, OrderItem]:
    """Two lines of different products."""
    first = number * 7 % PRODUCTS
    return OrderItem(f"p-{first}", 1, PRICE), OrderItem(f"p-{(first + 1 + number % 500) % PRODUCTS}", 2, PRICE)


def record(payload: Message, command_id: str) -> tuple[bytes, bytes]:
    """Key and value of a command."""
    assert payload.aggregate_id_field is not None
    key = getattr(payload, payload.aggregate_id_field)
    envelope = new_envelope(
        payload, event_id=command_id, aggregate_id=key, timestamp=datetime.now(UTC), metadata=Metadata()
    )
    return key.encode(), encode_envelope(envelope)


def order(run: str, number: int) -> tuple[bytes, bytes]:
    """A command that places an order."""
    order_id = f"{run}-{number}"
    return record(PlaceOrder(order_id, f"c-{number % CUSTOMERS}", items(number)), f"place-{order_id}")


async def produce(bootstrap: str, topic: str, records: Sequence[tuple[bytes, bytes]]) -> None:
    """Write records, each to the partition of its key."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=20) as producer:
        for start in range(0, len(records), 5000):
            chunk = records[start : start + 5000]
            await asyncio.gather(*[await producer.send(topic, value, key=key) for key, value in chunk])


# ---- what is read


@asynccontextmanager
async def reading(bootstrap: str, topic: str, **options: Any) -> AsyncIterator[AIOKafkaConsumer]:
    """A read_committed consumer of all partitions of a topic."""
    # Without a group, whose members share partitions, it is given all of them at once.
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, isolation_level="read_committed", **options)
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def read_all(bootstrap: str, topic: str) -> list[Any]:
    """Every committed record of a topic."""
    async with reading(bootstrap, topic, auto_offset_reset="earliest", max_partition_fetch_bytes=8 << 20) as consumer:
        ends = await consumer.end_offsets(consumer.assignment())
        found: list[Any] = []
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += records
        return found


async def wait_for_quiet(bootstrap: str, topic: str, at_least: int) -> None:
    """Wait until a topic has grown by that many offsets and grows no more; asks once a second."""
    async with reading(bootstrap, topic) as consumer:
        consumer.pause(*consumer.assignment())
        first = before = sum((await consumer.end_offsets(consumer.assignment())).values())
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            await asyncio.sleep(1.0)
            end = sum((await consumer.end_offsets(consumer.assignment())).values())
            if end == before and end - first >= at_least:
                return
            before = end
    raise Refused(f"{topic} has not come to rest in {TIMEOUT_S:.0f} s")


async def check(bootstrap: str, runs: Mapping[str, int]) -> None:
    """Refuse a run in which stock or money do not add up: `runs` is the number of orders by prefix of their ids.

    Each order has its pieces reserved and is charged once; what is charged is the sum of the orders' totals.
    """
    reserved: Counter[str] = Counter()
    payments: Counter[str] = Counter()
    charged: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for topic in (INVENTORY_EVENTS, PAYMENT_EVENTS, ORDER_EVENTS):
        for found in await read_all(bootstrap, topic.name):
            event = json.loads(found.value)
            payload = event["payload"]
            order_id = payload.get("orderId", "")
            match event["eventType"]:
                case "inventory.reserved":
                    reserved[order_id] += payload["quantity"]
                case "payment.received":
                    payments[order_id] += 1
                    charged[order_id.rpartition("-")[0]] += cents(payload["amount"])
                case "order.placed":
                    totals[order_id.rpartition("-")[0]] += cents(payload["total"])
    for run, count in runs.items():
        for number in range(count):
            order_id = f"{run}-{number}"
            if (reserved[order_id], payments[order_id]) != (PIECES, 1):
                raise Refused(f"{order_id}: {reserved[order_id]} pieces reserved, {payments[order_id]} payments")
        if not charged[run] == totals[run] == count * PIECES * cents(msgspec.to_builtins(PRICE)):
            raise Refused(f"{run}: {charged[run]} cents were charged for orders of {totals[run]}")


def cents(money: Mapping[str, str]) -> int:
    """An amount on the wire as a whole number."""
    return int(Decimal(money["amount"]) * 100)


async def count_confirmed(consumer: AIOKafkaConsumer, run: str, orders: int) -> None:
    """Read until every order of a run is confirmed; raises Refused when that takes too long."""
    prefix, confirmed = run.encode() + b"-", 0
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while confirmed < orders:
                for records in (await consumer.getmany(timeout_ms=1000)).values():
                    confirmed += sum(CONFIRMED in found.value and found.key.startswith(prefix) for found in records)
    except TimeoutError as error:
        raise Refused(f"{run}: {confirmed} of {orders} orders were confirmed in {TIMEOUT_S:.0f} s") from error
