"""What tracing costs: CPU per record of one handler, with tracing off, on but not sampled, and on.

Needs no Kafka. The handler decodes an `order.placed`, counts it in a row and sends one record on, in units of work as
the engine makes them. `on` includes making the export requests, and sending them to a collector that throws them away.
`cpu_us_per_record` is that of this process with all of its threads, `loop_us_per_record` that of the thread in which
records are handled; one JSON line per mode.

    python -m bench.tracing --records 50000
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from engine.declare.agent import Agent
from engine.declare.envelope import Envelope
from engine.declare.handlers import acceptance
from engine.declare.registry import EventRegistry
from engine.declare.table import Table
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Record
from engine.work.tracing import Untraced
from streams.events.orders import ORDER_TYPES, OrderPlaced
from streams.settings import Settings
from streams.topics import ORDER_EVENTS
from tables.customers import CUSTOMERS

RECORDS_PER_COMMIT: Final = 2000
OUTPUT: Final = Topic("accepted", "what was accepted")
TRACEPARENT: Final = (("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),)
NOT_SAMPLED: Final = (("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"),)
COLLECTOR: Final = """
import http.server
class Sink(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
print(server.server_port, flush=True)
server.serve_forever()
"""

events = Agent[None]("accept-orders", ORDER_EVENTS)
SEEN: Table[str, Any] = CUSTOMERS


class NoRows:
    """A store in which there is nothing."""

    def committed_or_committing(self, table: Any, key: Any) -> None:
        """Nothing."""


@events.on(OrderPlaced)
def accept_order(event: Envelope[OrderPlaced], work: UnitOfWork) -> None:
    """Read a row, replace it, send one record on."""
    work.get(SEEN, event.aggregate_id)
    work.put(SEEN, event.aggregate_id, event.payload)
    work.send(OUTPUT, event.aggregate_id, event)


def placed(number: int, headers: tuple[tuple[str, bytes], ...]) -> Record:
    """One `order.placed` of about 450 bytes."""
    items = [{"productId": f"SKU-{n}", "quantity": 2, "price": {"amount": "1.50", "currency": "USD"}} for n in range(2)]
    value = {
        "eventId": f"e-{number}",
        "eventType": "order.placed",
        "aggregateId": f"o-{number}",
        "aggregateType": "Order",
        "timestamp": "2026-11-23T10:00:00.000001Z",
        "version": 1,
        "metadata": {"correlationId": f"r-{number}", "causationId": f"c-{number}", "userId": None},
        "payload": {
            "orderId": f"o-{number}",
            "customerId": "c-1",
            "items": items,
            "total": {"amount": "6.00", "currency": "USD"},
        },
    }
    return Record(number, 0, f"o-{number}".encode(), json.dumps(value).encode(), headers)


class Cost(NamedTuple):
    """CPU per record in µs: of all threads, and of the one that handles records."""

    process: float
    loop: float


def cost(tracing: Untraced, records: list[Record], settings: Settings, flush: Callable[[], None]) -> Cost:
    """Handle the records and send the spans there are."""
    registry = EventRegistry(ORDER_TYPES)
    accept = tracing.accept(acceptance(registry, ORDER_EVENTS, 1 << 20, lambda key: 0))
    handle = tracing.handler(events.bind(accept), events.name, ORDER_EVENTS.name)
    began, loop_began = time.process_time(), time.thread_time()
    for first in range(0, len(records), RECORDS_PER_COMMIT):
        work = tracing.unit_of_work(0, NoRows(), lambda key: 0, registry.encode, settings)
        for record in records[first : first + RECORDS_PER_COMMIT]:
            work.record = record
            handle(record, work)
            work.release()
        with tracing.committing(work):
            pass
    loop = time.thread_time() - loop_began
    flush()
    return Cost((time.process_time() - began) / len(records) * 1e6, loop / len(records) * 1e6)


def traced_cost(port: int, records: list[Record], settings: Settings) -> Cost:
    """As `cost`, with spans made, and exported where they are sampled."""
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{port}"
    os.environ["OTEL_BSP_MAX_QUEUE_SIZE"] = str(2 * len(records))  # none is dropped, which would be cheaper
    from engine.observe.tracing.records import TracedRecords
    from engine.observe.tracing.sdk import Spans

    spans = Spans(settings)
    try:
        return cost(TracedRecords(spans), records, settings, spans.flush)
    finally:
        spans.close()


def main() -> None:
    """Measure, and print a line per mode."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, default=50_000)
    count = parser.parse_args().records
    settings = Settings(_env_file=None, broker="memory://")
    with subprocess.Popen([sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, text=True) as collector:
        assert collector.stdout is not None
        port = int(collector.stdout.readline())
        modes: dict[str, Callable[[], Cost]] = {
            "off": lambda: cost(Untraced(), [placed(n, ()) for n in range(count)], settings, lambda: None),
            "not_sampled": lambda: traced_cost(port, [placed(n, NOT_SAMPLED) for n in range(count)], settings),
            "on": lambda: traced_cost(port, [placed(n, TRACEPARENT) for n in range(count)], settings),
        }
        for mode, measure in modes.items():
            measured = measure()
            figures = {"cpu_us_per_record": round(measured.process, 1), "loop_us_per_record": round(measured.loop, 1)}
            print(json.dumps({"tracing": mode, "records": count, **figures}), flush=True)
        collector.kill()


if __name__ == "__main__":
    main()
