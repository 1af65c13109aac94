"""The orders job as a Faust user writes it today: stock Faust, at least once.

Started as `python -m bench.peers.stock_faust --loop uvloop worker`; see bench/systems.py for its environment.
"""

import os

import faust

from bench.broker import PARTITIONS

app = faust.App(
    os.environ["BENCH_RUN"],
    broker=f"kafka://{os.environ['BENCH_BOOTSTRAP']}",
    store="rocksdb://?driver=rocksdict",
    datadir=os.environ["BENCH_STATE_DIR"],
    value_serializer="json",
    consumer_auto_offset_reset="earliest",
    topic_partitions=PARTITIONS,
    topic_replication_factor=1,
    topic_disable_leader=True,
)
orders = app.topic(os.environ["BENCH_SOURCE"], partitions=PARTITIONS)
accepted = app.topic(os.environ["BENCH_OUTPUT"], partitions=PARTITIONS)
customers = app.Table("customers", partitions=PARTITIONS)


@app.agent(orders)
async def accept_orders(stream: faust.StreamT) -> None:
    """Count each order for its customer and say that it was accepted."""
    async for event in stream.events():
        key, envelope = event.key.decode(), event.value
        customer = customers.get(key) or {"count": 0, "total": 0.0}
        customer["count"] += 1
        customer["total"] += float(envelope["payload"]["total"]["amount"])
        customers[key] = customer
        derived = {
            "eventType": "order.accepted",
            "orderId": envelope["payload"]["orderId"],
            "causationId": envelope["eventId"],
        }
        await accepted.send(key=key, value=derived)


if __name__ == "__main__":
    app.main()
