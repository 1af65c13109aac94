"""The orders job on Quix Streams; see bench/systems.py for its environment.

It runs in a virtual environment of its own (requirements-quix.txt), so it imports nothing of this project.
"""

import os
from typing import Any

from quixstreams import Application, State  # type: ignore[import-not-found,unused-ignore]


def accept_order(envelope: dict[str, Any], state: State) -> dict[str, Any]:
    """Count the order for its customer and say that it was accepted."""
    customer = state.get("customer") or {"count": 0, "total": 0.0}
    customer["count"] += 1
    customer["total"] += float(envelope["payload"]["total"]["amount"])
    state.set("customer", customer)
    return {
        "eventType": "order.accepted",
        "orderId": envelope["payload"]["orderId"],
        "causationId": envelope["eventId"],
    }


def main() -> None:
    """Run until SIGTERM."""
    app = Application(
        broker_address=os.environ["BENCH_BOOTSTRAP"],
        consumer_group=os.environ["BENCH_RUN"],
        state_dir=os.environ["BENCH_STATE_DIR"],
        processing_guarantee=os.environ["BENCH_GUARANTEE"],
        auto_offset_reset="earliest",
        loglevel="WARNING",
    )
    orders = app.topic(os.environ["BENCH_SOURCE"], key_deserializer="str", value_deserializer="json")
    accepted = app.topic(os.environ["BENCH_OUTPUT"], key_serializer="str", value_serializer="json")
    app.dataframe(orders).apply(accept_order, stateful=True).to_topic(accepted)
    app.run()


if __name__ == "__main__":
    main()
