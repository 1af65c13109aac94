"""Reading the log for people: records of a topic from an offset on, or its newest ones."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import msgspec

from engine.declare.envelope import TimeText
from engine.declare.times import format_ms
from engine.log.ports import Broker, Record, TransportError

READ_TIMEOUT_S = 10.0
PAGE_BYTES_MAX = 4 << 20


async def read_page(
    broker: Broker, topic: str, partition: int, offset: int | None, limit: int
) -> tuple[Sequence[Record], int, int]:
    """At most `limit` committed records (and about 4 MiB), oldest first, the offset to go on at, and the topic's end.

    Without `offset` the newest ones, found by looking `2 x limit` offsets back, as transaction markers take offsets
    too; there may be fewer. Raises TransportError.
    """
    reader = broker.reader(partition, [topic])
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            await reader.start()
            first, end = (await reader.bounds())[topic]
            position = max(first, end - 2 * limit if offset is None else offset)
            records: list[Record] = []
            size = 0
            reader.seek(topic, position)
            while position < end and (offset is None or (len(records) < limit and size < PAGE_BYTES_MAX)):
                found, position = (await reader.fetch()).get(topic, ((), position))
                records += found
                size += sum(len(record.value or b"") for record in found)
    except TimeoutError as error:
        raise TransportError(f"reading {topic}/{partition} took over {READ_TIMEOUT_S:.0f} s") from error
    finally:
        await reader.close()
    if offset is None:
        return records[-limit:], position, end
    if len(records) > limit:
        return records[:limit], records[limit].offset, end
    return records, position, end


async def bounds(broker: Broker, topics: Sequence[str], partitions: int) -> Mapping[str, list[tuple[int, int]]]:
    """First and next offset of every partition of topics that exist. Raises TransportError."""
    readers = [broker.reader(number, topics) for number in range(partitions)]
    try:
        await asyncio.gather(*(reader.start() for reader in readers))
        found = await asyncio.gather(*(reader.bounds() for reader in readers))
    finally:
        await asyncio.gather(*(reader.close() for reader in readers))
    return {topic: [of_partition[topic] for of_partition in found] for topic in topics}


class RecordView(TypedDict):
    """A record as JSON; a value that is not JSON is null, with its bytes in `value_base64`."""

    partition: int
    offset: int
    timestamp: TimeText
    key: str | None
    value: Any
    headers: dict[str, str]
    value_base64: NotRequired[str]


def record_view(partition: int, record: Record) -> RecordView:
    """A record as JSON: `{partition, offset, timestamp, key, value, headers}`.

    A value that is not JSON is null with its bytes in `value_base64`; in keys and headers, what is not UTF-8 is
    replaced.
    """
    view: RecordView = {
        "partition": partition,
        "offset": record.offset,
        "timestamp": format_ms(record.timestamp_ms),
        "key": None if record.key is None else record.key.decode(errors="replace"),
        "value": None,
        "headers": {name: value.decode(errors="replace") for name, value in record.headers},
    }
    if record.value is not None:
        try:
            view["value"] = msgspec.json.decode(record.value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            view["value_base64"] = base64.b64encode(record.value).decode()
    return view
