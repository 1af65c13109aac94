"""Fill a topic with the input of the orders job.

Each record is an `order.placed` envelope of about 580 bytes, keyed by one of 10,000 customers. The same number of
records gives the same bytes every time.

    python -m bench.produce --topic orders --records 1500000 [--bootstrap localhost:9092]
"""

import argparse
import asyncio
import random
import time
from collections.abc import Iterator

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import murmur2

from bench.broker import PARTITIONS, create_topic

CUSTOMERS = 10_000
BASKETS = 1_000
BATCH_BYTES = 512 * 1024
BATCHES_IN_FLIGHT_MAX = 16

# Formatting a template costs a tenth of encoding an object, and the input is made while everybody waits.
_ENVELOPE = (
    b'{"eventId":"00000000-0000-4000-8000-%012x","eventType":"order.placed",'
    b'"aggregateId":"order-%08d","aggregateType":"Order","timestamp":"2026-11-23T10:00:00.000000Z","version":1,'
    b'"metadata":{"correlationId":"00000000-0000-4000-9000-%012x","causationId":null,"userId":"%s"},'
    b'"payload":{"orderId":"order-%08d","customerId":"%s",%s}}'
)


Produced = tuple[int, bytes | None, bytes]  # partition, key, value


def records(count: int) -> Iterator[Produced]:
    """Yield (partition, key, value) of `count` records."""
    generator = random.Random(7)
    baskets = [_basket(generator) for _ in range(BASKETS)]
    keys = [b"customer-%05d" % number for number in range(CUSTOMERS)]
    partitions = [(murmur2(key) & 0x7FFFFFFF) % PARTITIONS for key in keys]
    for number in range(count):
        customer = int(generator.random() * CUSTOMERS)
        basket = baskets[int(generator.random() * BASKETS)]
        key = keys[customer]
        yield partitions[customer], key, _ENVELOPE % (number, number, number, key, number, key, basket)


def poisoned(good: Iterator[Produced], every: int) -> Iterator[Produced]:
    """Yield a record that cannot be processed after each `every` good ones: of one kind after the other.

    Not JSON; a payload that does not fit its type; no key; a version that nobody knows, which parks its aggregate
    and so has a key of its own.
    """
    for number, (partition, key, value) in enumerate(good):
        yield partition, key, value
        if number % every == every - 1:
            kind = number // every % 4
            if kind == 0:
                yield partition, key, b"{"
            elif kind == 1:
                yield partition, key, value.replace(b'"items"', b'"itemz"')
            elif kind == 2:
                yield partition, None, value
            else:
                yield partition, b"poison-%d" % number, value.replace(b'"version":1', b'"version":9')


def _basket(generator: random.Random) -> bytes:
    """Two items and their total, as the tail of a payload."""
    quantities, cents = (
        [generator.randrange(1, 5) for _ in range(2)],
        [generator.randrange(100, 5000) for _ in range(2)],
    )
    items = [
        {"productId": f"sku-{generator.randrange(1000)}", "quantity": quantity, "price": _money(price)}
        for quantity, price in zip(quantities, cents, strict=True)
    ]
    total = sum(quantity * price for quantity, price in zip(quantities, cents, strict=True))
    return msgspec.json.encode({"items": items, "total": _money(total)})[1:-1]


def _money(cents: int) -> dict[str, str]:
    return {"amount": f"{cents // 100}.{cents % 100:02d}", "currency": "EUR"}


async def produce(bootstrap: str, topic: str, count: int, poison_every: int = 0) -> None:
    """Create `topic` and append `count` records to it, in batches of up to BATCH_BYTES, and poison if asked for."""
    await create_topic(bootstrap, topic)
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", max_batch_size=BATCH_BYTES)
    await producer.start()
    try:
        builders = [producer.create_batch() for _ in range(PARTITIONS)]
        in_flight: list[asyncio.Future[object]] = []
        good = records(count)
        for partition, key, value in poisoned(good, poison_every) if poison_every else good:
            if builders[partition].append(key=key, value=value, timestamp=None) is None:
                in_flight.append(await producer.send_batch(builders[partition], topic, partition=partition))
                builders[partition] = producer.create_batch()
                builders[partition].append(key=key, value=value, timestamp=None)
            if len(in_flight) >= BATCHES_IN_FLIGHT_MAX:
                await asyncio.gather(*in_flight)
                in_flight.clear()
        for partition, builder in enumerate(builders):
            if builder.record_count():
                in_flight.append(await producer.send_batch(builder, topic, partition=partition))
        await asyncio.gather(*in_flight)
    finally:
        await producer.stop()


def main() -> None:
    """Produce as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m bench.produce", description="Fill a topic with orders.")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--bootstrap", default="localhost:9092")
    options = parser.parse_args()
    started = time.monotonic()
    asyncio.run(produce(options.bootstrap, options.topic, options.records))
    print(f"{options.records} records in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
