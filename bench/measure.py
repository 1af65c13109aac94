"""Measure a system from outside, by what it leaves on the broker.

The same for every system, whatever it is written in and whatever it says about itself:

- Its output topic is made with `message.timestamp.type=LogAppendTime`, so that the broker stamps each batch as it is
  appended. The rate is the number of output records over the time from the first to the last stamp. Start-up (JVM,
  group join, opening stores) comes before the first stamp and does not count; warming up after it does.
- Only committed records count (`read_committed`), and they are counted one by one after the run: end offsets also
  count transaction markers. While a system runs, this process only asks for the end offsets, twice a second.

Known error: what was worked before the first append is counted without its time. That is at most one commit interval
for a system that appends when it commits (100 ms), one producer batch for one that streams: below 1% in a run of 15 s.
`second_half_records_per_s`, taken between two stamps inside the run, is free of it and of warming up.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from bench.broker import PARTITIONS

OUTPUT_CONFIGS = {"message.timestamp.type": "LogAppendTime"}
POLL_S = 0.5


class Measurement(msgspec.Struct, frozen=True):
    """`records` committed, `seconds` from the first to the last append, and rates in records/s."""

    records: int
    seconds: float
    records_per_s: float
    second_half_records_per_s: float


class NotFinished(Exception):
    """The system did not commit all its output in time."""


async def measure_output(
    bootstrap: str, topic: str, expected: int, timeout_s: float, check_running: Callable[[], None]
) -> Measurement:
    """Wait until `topic` holds `expected` committed records and is quiet, then count and time them.

    `check_running` is called at each poll and raises when waiting has become pointless.

    Raises:
        NotFinished: fewer records were committed within `timeout_s`.
    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8 * 1024 * 1024,
        fetch_max_bytes=64 * 1024 * 1024,
    )
    await consumer.start()
    try:
        appended: Counter[int] = Counter()
        deadline = time.monotonic() + timeout_s
        while appended.total() < expected:
            await _quiet(consumer, topic, expected, deadline, check_running)
            await _count(consumer, topic, appended)
            if time.monotonic() > deadline:
                raise NotFinished(f"{appended.total()} of {expected} records were committed in {timeout_s:.0f} s")
        return summarise(appended)
    finally:
        await consumer.stop()


async def _quiet(
    consumer: AIOKafkaConsumer, topic: str, expected: int, deadline: float, check_running: Callable[[], None]
) -> None:
    """Wait until the end offsets allow for `expected` records and have stopped moving, or the deadline has passed."""
    partitions = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    before = -1
    while time.monotonic() < deadline:
        check_running()
        # With read_committed these are the last stable offsets: what open transactions hold is not in them.
        end = sum((await consumer.end_offsets(partitions)).values())
        if end >= expected and end == before:
            return
        before = end
        await asyncio.sleep(POLL_S)


async def _count(consumer: AIOKafkaConsumer, topic: str, appended: Counter[int]) -> None:
    """Count the records up to the present end by the millisecond in which they were appended."""
    partitions = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    ends = await consumer.end_offsets(partitions)
    if not consumer.assignment():
        # Not before the first count: an assigned consumer fetches, and would disturb what it measures.
        consumer.assign(partitions)
    while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
        for records in (await consumer.getmany(timeout_ms=200)).values():
            appended.update([record.timestamp for record in records])


def summarise(appended: Counter[int]) -> Measurement:
    """Turn records per millisecond of append into a measurement."""
    stamps = sorted(appended)
    records, first, last = appended.total(), stamps[0], stamps[-1]
    passed, half = 0, first
    for stamp in stamps:
        passed += appended[stamp]
        if passed >= records / 2:
            half = stamp
            break
    return Measurement(
        records=records,
        seconds=(last - first) / 1000,
        records_per_s=_rate(records, last - first),
        second_half_records_per_s=_rate(records - passed, last - half),
    )


def _rate(records: int, duration_ms: int) -> float:
    # A stamp is exact to 1 ms.
    return round(records * 1000 / max(duration_ms, 1), 1)
