"""The commit of one unit of work, in six steps whose order is what makes every record count exactly once.

1. encode dirty rows once per key, however often they changed;
2. begin the transaction;
3. send outputs and changelog rows as pre-built record batches;
4. add the source offsets, and wait until both have arrived;
5. commit the transaction;
6. write rows and changelog positions to RocksDB in one batch.

A crash before 5 leaves nothing behind: the rows were never in RocksDB, the offsets never moved. A crash after 5 is
repaired from the changelog, from the stored position on. A worker that was frozen and wakes up is fenced at 2 to 5.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from engine.declare.table import AnyTable
from engine.declare.unit_of_work import Changes, UnitOfWork
from engine.log.ports import Outgoing, TransactionalProducer
from engine.store.store import ChangelogMark, Store

ROWS_PER_SLICE = 2000

Probe = Callable[[str], None]  # called around the steps; tests end the process there


async def commit(
    work: UnitOfWork,
    offsets: Mapping[tuple[str, int], int],
    producer: TransactionalProducer,
    store: Store,
    app_id: str,
    probe: Probe,
) -> None:
    """Commit `work`, with the group's `offsets` by topic and partition.

    After an error in steps 2 to 6 nobody knows what the broker made of it: the caller gives up producer, store and
    everything in memory, and starts again from what is committed.
    """
    # 1. encode dirty rows once per key
    changes = {table: await _encode(work, table) for table, rows in work.rows.items() if rows}
    batches: dict[tuple[str, int], Sequence[Outgoing]] = {
        to: records for to, records in work.outputs.items() if records
    }
    for table, rows in changes.items():
        batches[table.changelog_topic(app_id), work.partition] = rows
    probe("before 2")
    # 2. begin the transaction
    await producer.begin()
    probe("after 2")
    # 3. send outputs and changelog rows
    await producer.send(batches)
    probe("after 3")
    # 4. add the source offsets
    await producer.send_offsets(offsets)
    await producer.flush()
    probe("after 4")
    # 5. commit the transaction
    ends = await producer.commit()
    probe("after 5")
    # 6. rows and changelog positions in one write
    store.write(
        ((table.prefix, rows) for table, rows in changes.items()),
        _marks(changes, ends, store, app_id, work.partition, producer.markers),
    )
    probe("after 6")


async def _encode(work: UnitOfWork, table: AnyTable) -> list[Outgoing]:
    """Every dirty row as key and value (None: deleted), in slices, so that a large commit does not hold up the loop."""
    encode_key, encode_row = table.key.encode, table.encode_row
    rows = iter(work.rows[table].items())
    encoded: list[Outgoing] = []
    while chunk := [
        (encode_key(key), None if row is None else encode_row(row), ()) for key, row in islice(rows, ROWS_PER_SLICE)
    ]:
        encoded += chunk
        if len(chunk) == ROWS_PER_SLICE:
            await asyncio.sleep(0)
    return encoded


def _marks(
    changes: Changes, ends: Mapping[tuple[str, int], int], store: Store, app_id: str, partition: int, markers: int
) -> dict[str, ChangelogMark]:
    """How far each changelog is in the store once `changes` are written."""
    marks = {}
    for table in changes:
        topic = table.changelog_topic(app_id)
        mark = store.mark(topic)
        end = ends[topic, partition]
        marks[topic] = ChangelogMark(end, mark.identity, mark.identity_offset, mark.topic_id, markers)
    return marks
