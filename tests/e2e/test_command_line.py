"""The command line and the worker's process, run as processes of their own."""

from __future__ import annotations

import csv
import gzip
import json
import signal
import socket
from collections import Counter, defaultdict
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cli.order_history import read_order_history
from cli.run import SAMPLE_PRICE_DECIMALS
from streams.events.money import Money
from streams.events.payment_answers import Declined
from streams.payment_gateway.simulator import SimulatedGateway
from streams.settings import Settings
from tests.e2e.processes import FAUST, ORDERS, SAMPLE, Site, without_privileges
from tests.kafka import unused_port

BROKERS = ["embedded", pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.slow])]
CANCELLED_ORDER = "553901"


@pytest.fixture
def site(tmp_path: Path, unused_port: int) -> Site:
    return Site(tmp_path, unused_port)


@pytest.fixture(params=BROKERS)
def any_site(request: pytest.FixtureRequest, tmp_path: Path, unused_port: int) -> Site:
    if request.param == "embedded":
        return Site(tmp_path, unused_port, price_decimals=SAMPLE_PRICE_DECIMALS)
    broker = request.getfixturevalue("private_kafka_broker")
    return Site(tmp_path, unused_port, broker=f"kafka://{broker.bootstrap}", price_decimals=SAMPLE_PRICE_DECIMALS)


def lines(text: str) -> list[str]:
    """Lines with single spaces."""
    return [" ".join(line.split()) for line in text.splitlines()]


def assert_is_one_clear_error(stderr: str, *words: str) -> None:
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if "CRITICAL" in line or line.startswith("Error")]
    assert len(errors) == 1, stderr
    for word in words:
        assert word in errors[0]


# ---- the main job


def test_real_orders_survive_a_restart_and_a_second_import_changes_nothing(any_site: Site) -> None:
    site = any_site
    assert site.run("doctor").returncode == 0

    with site.start("worker") as worker:
        worker.wait_until_ready()
        imported = site.run("import", str(SAMPLE))
        assert imported.returncode == 0, imported.stderr
        assert {
            "products stocked 2,590",
            "orders placed 8,095",
            "confirmed 8,065",
            "cancelled by the customer 30",
            "already there 0",
            "no customer 7,317",
            "price not positive 2",
            "no good line 915",
            "no matching order 383",
            "completed 8,065",
            "compensated (everything undone) 30",
            "Stock and money add up",
            "✓ stocked = on hand + shipped 253,998 = 253,998 pieces",
        } <= set(lines(imported.stdout))
        assert not any("cancelled by their saga" in line for line in lines(imported.stdout))
        order = site.get(f"/orders/{CANCELLED_ORDER}")
        assert (order["status"], order["cancelled_at"][:4]) == ("cancelled", "2011")
        events = [event["event_type"] for event in site.get(f"/orders/{CANCELLED_ORDER}/events")["items"]]
        assert events in (["order.placed", "order.cancelled"], ["order.placed", "order.confirmed", "order.cancelled"])
        assert site.get(f"/sagas/{CANCELLED_ORDER}")["state"] == "compensated"
        of_customer = site.get(f"/customers/{order['customer_id']}/orders", limit=1000)["items"]
        assert CANCELLED_ORDER in {item["order_id"] for item in of_customer}
        tables = {table["name"]: table["rows"] for table in site.get("/tables")["items"]}
        assert (tables["orders"], tables["customer-orders"], tables["sagas"], tables["stock"]) == (
            8095,
            8095,
            8095,
            2590,
        )
        assert tables["order-history"] == sum(row["version"] for row in rows_of(site, "orders").values())
        topics = site.get("/topics")
        assert worker.stop() == 0

    with site.start("worker") as worker:
        worker.wait_until_ready()
        assert site.get(f"/orders/{CANCELLED_ORDER}") == order
        assert site.get(f"/customers/{order['customer_id']}/orders", limit=1000)["items"] == of_customer
        again = site.run("import", str(SAMPLE))
        assert again.returncode == 0, again.stderr
        assert {"products stocked 0", "orders placed 0", "already there 8,125"} <= set(lines(again.stdout))
        assert "nothing has changed" in again.stdout
        assert records_of(site.get("/topics")) == records_of(topics)
        assert worker.stop() == 0


def records_of(topics: dict[str, list[dict[str, object]]]) -> dict[object, object]:
    """Partitions with their offsets by topic, but for the positions, which a restart may move past markers."""
    return {topic["name"]: topic["partitions"] for topic in topics["items"] if "changelog" not in str(topic["name"])}


def test_an_order_placed_by_hand_is_seen_in_the_topic_and_in_the_list_of_topics(any_site: Site) -> None:
    site = any_site
    with site.start("worker") as worker:
        worker.wait_until_ready()
        placed = site.run(
            "place", "--customer", "c 1", "--item", "a:b:2:19.99:EUR", "--item", "c:1:0.02:EUR", "--order-id", "o/1",
            "--wait", "30s",
        )  # fmt: skip
        assert placed.returncode == 0, placed.stderr
        order = json.loads(placed.stdout)
        assert (order["order_id"], order["item_count"], order["total"]["amount"]) == ("o/1", 3, "40.00")

        tailed = site.run("tail", "--from-beginning", "--max", "1")
        (record,) = map(json.loads, tailed.stdout.splitlines())
        assert (record["key"], record["value"]["eventType"]) == ("o/1", "order.placed")

        twice = site.run("place", "--customer", "c 1", "--item", "a:1:1", "--order-id", "o/1")
        assert twice.returncode == 1
        assert_is_one_clear_error(twice.stderr, "an order was placed under this id")

        row = row_of_order_events(site)
        assert row.startswith("order-events 4 ")
        assert worker.stop() == 0
    assert row_of_order_events(site) == row  # now read from the log itself


def row_of_order_events(site: Site) -> str:
    (row,) = [line for line in lines(site.run("topics").stdout) if line.startswith("order-events ")]
    return row


def test_tail_prints_records_as_they_come(site: Site) -> None:
    with site.start("worker") as worker:
        worker.wait_until_ready()
        assert site.run("place", "--customer", "c", "--item", "a:1:1", "--order-id", "before").returncode == 0
        with site.start("tail", "order-commands") as tail:
            number = 0

            def is_printed() -> bool:
                nonlocal number
                number += 1
                assert (
                    site.run("place", "--customer", "c", "--item", "a:1:1", "--order-id", f"o{number}").returncode == 0
                )
                return bool(tail.output)

            tail.wait_until(is_printed, "a record is printed")
            assert '"key":"before"' not in tail.output
            assert tail.stop(signal.SIGINT) == 0
        assert "Traceback" not in tail.output


class Expected(NamedTuple):
    """What the sample has to come to, from its lines and the rule by which the simulated gateway declines."""

    sold: Counter[str]  # pieces of each product, in all orders
    held: Counter[str]  # those of confirmed orders
    totals: dict[str, Decimal]
    confirmed: set[str]
    declined: set[str]
    cancelled: set[str]  # by customers

    def total(self, order_ids: Iterable[str]) -> Decimal:
        return sum((self.totals[order_id] for order_id in order_ids), Decimal(0))


async def expected_of_the_sample(decline: float) -> Expected:
    gateway = SimulatedGateway(Settings(_env_file=None, payment_decline=decline))
    sold, totals = defaultdict[str, Counter[str]](Counter), defaultdict[str, Decimal](Decimal)
    with gzip.open(SAMPLE, "rt", encoding="utf-8", newline="") as sample:
        for row in csv.DictReader(sample):
            quantity, price = int(row["Quantity"]), Decimal(row["UnitPrice"])
            if row["CustomerID"] and quantity > 0 and price > 0:
                sold[row["InvoiceNo"]][row["StockCode"]] += quantity
                totals[row["InvoiceNo"]] += quantity * price
    charges = {order_id: await gateway.charge(order_id, "", Money(totals[order_id], "GBP"), "") for order_id in totals}
    declined = {order_id for order_id, charge in charges.items() if isinstance(charge, Declined)}
    cancelled = {command.order_id for command in read_order_history(SAMPLE).cancellations}
    confirmed = set(totals) - declined - cancelled
    pieces, held = Counter[str](), Counter[str]()
    for order_id, items in sold.items():
        pieces.update(items)
        if order_id in confirmed:
            held.update(items)
    return Expected(pieces, held, totals, confirmed, declined, cancelled)


def rows_of(site: Site, table: str) -> dict[str, Any]:
    """All rows of a table, by key, as they are stored."""
    rows: dict[str, Any] = {}
    cursor: str | None = ""
    while cursor is not None:
        page = site.get(f"/tables/{table}", limit=1000, **({"cursor": cursor} if cursor else {}))
        rows.update((item["key"], item["row"]) for item in page["items"])
        cursor = page["next_cursor"]
    return rows


def amount_of(rows: Iterable[Any], field: str) -> Decimal:
    return sum((Decimal(row[field]["amount"]) for row in rows), Decimal(0))


def check_a_first_look(site: Site, output: str) -> None:
    """The addresses that `run` has printed: they show one of everything, and all of them answer."""
    shown = [line.split()[-1] for line in output.splitlines() if site.url in line]
    paths = [address.removeprefix(site.url) for address in shown]
    kinds = {path.split("/")[1] for path in paths}
    assert kinds >= {"orders", "sagas", "payments", "customers", "inventory", "analytics", "tables", "topics"}
    assert {site.status(path) for path in paths} == {200}
    assert site.get(next(path for path in paths if path.startswith("/orders/")))["status"] == "cancelled"


async def test_run_imports_the_sample_once_and_every_order_and_cent_and_piece_is_where_it_belongs(site: Site) -> None:
    expected = await expected_of_the_sample(0.02)
    revenue = expected.total(expected.confirmed)
    with site.start("run") as process:
        process.wait_until_it_says("stays up")
        said = set(lines(process.output))
        orders, payments, stock = (rows_of(site, name) for name in ("orders", "payments", "stock"))
        summary = site.get("/analytics/summary")
        reconciled = site.get("/analytics/reconciliation")
        check_a_first_look(site, process.output)
        assert process.stop(signal.SIGINT) == 0
    assert "orders placed 8,095" in said

    with site.start("run", ORDERS_PAYMENT_DECLINE="0.5") as process:
        process.wait_until_it_says("stays up")
        assert "already there 8,125" in lines(process.output)
        assert "declines 50% of all cards" in process.output
        check_a_first_look(site, process.output)
        assert rows_of(site, "orders") == orders
        assert process.stop(signal.SIGINT) == 0
    assert "Goodbye" in process.output
    assert "Traceback" not in process.output

    by_status = {
        status: {order_id for order_id, row in orders.items() if row["status"] == status}
        for status in ("confirmed", "cancelled")
    }
    assert by_status == {"confirmed": expected.confirmed, "cancelled": expected.declined | expected.cancelled}
    assert len(orders) == len(expected.totals) == 8095
    assert amount_of((orders[order_id] for order_id in expected.confirmed), "total") == revenue
    reasons = Counter(orders[order_id]["cancel_reason"].split()[0] for order_id in by_status["cancelled"])
    assert reasons.keys() == {"card_declined", "invoice"}

    received = {order_id: row for order_id, row in payments.items() if row["status"] == "received"}
    assert received.keys() == expected.confirmed
    assert amount_of(received.values(), "amount") == revenue
    others = {row["status"] for order_id, row in payments.items() if order_id not in received}
    assert others <= {"failed", "refunded"}

    assert {product: row["on_hand"] for product, row in stock.items()} == expected.sold
    assert {product: row["reserved"] for product, row in stock.items() if row["reserved"]} == expected.held

    (gbp,) = summary["revenue"]
    assert (gbp["currency"], Decimal(gbp["revenue"])) == ("GBP", revenue)
    assert (summary["placed_count"], summary["confirmed_count"] - summary["refunded_count"]) == (
        8095,
        len(expected.confirmed),
    )
    assert (reconciled["adds_up"], reconciled["is_settled"]) == (True, True)
    assert [(Decimal(sums["held"]), sums["currency"]) for sums in reconciled["payments"]] == [(revenue, "GBP")]
    assert reconciled["stock"] == {
        "stocked": expected.sold.total(),
        "shipped": 0,
        "on_hand": expected.sold.total(),
        "reserved": expected.held.total(),
    }
    assert {
        "The simulated payment gateway declines 2% of all cards (ORDERS_PAYMENT_DECLINE).",
        f"confirmed {len(expected.confirmed):,}",
        f"completed {len(expected.confirmed):,}",
        f"compensated (everything undone) {len(expected.declined | expected.cancelled):,}",
        f"✓ reserved = pieces of confirmed orders {expected.held.total():,} = {expected.held.total():,} pieces",
        f"✓ charged - refunded = confirmed orders {revenue:,} = {revenue:,} GBP",
        f"✓ confirmed orders = revenue in analytics {revenue:,} = {revenue:,} GBP",
    } <= said


# ---- a worker that cannot go on says why in one line


def test_a_data_folder_that_another_worker_holds_is_a_clear_error(site: Site) -> None:
    with site.start("worker") as worker:
        worker.wait_until_ready()
        second = site.run("worker", ORDERS_WEB_PORT=str(unused_port()))
        assert second.returncode == 1
        assert_is_one_clear_error(second.stderr, "in use by another worker")
        examined = site.run("doctor", ORDERS_WEB_PORT=str(unused_port()))
        assert examined.returncode == 1
        assert "in use by another worker" in examined.stdout
        assert site.run("doctor").returncode == 0
        assert worker.stop() == 0


def test_a_data_folder_that_cannot_be_written_is_a_clear_error(site: Site) -> None:
    (site.folder / "data").mkdir(mode=0o555)
    command = without_privileges(ORDERS)
    refused = site.run("worker", command=command)
    assert refused.returncode == 1
    assert_is_one_clear_error(refused.stderr, "cannot be written", "ORDERS_DATA_DIR")
    examined = site.run("doctor", command=command)
    assert examined.returncode == 1
    assert "cannot be written" in examined.stdout


def test_a_file_in_place_of_the_data_folder_is_a_clear_error(site: Site) -> None:
    (site.folder / "data").touch()
    refused = site.run("worker")
    assert refused.returncode == 1
    assert_is_one_clear_error(refused.stderr, "is a file")


def test_a_port_in_use_is_a_clear_error(site: Site) -> None:
    with socket.create_server(("127.0.0.1", int(site.settings["ORDERS_WEB_PORT"]))):
        refused = site.run("worker")
        examined = site.run("doctor")
    assert refused.returncode == 1
    assert_is_one_clear_error(refused.stderr, "is in use", "ORDERS_WEB_PORT")
    assert examined.returncode == 1
    assert "ORDERS_WEB_PORT" in examined.stdout


def test_another_number_of_partitions_is_a_clear_error(site: Site) -> None:
    with site.start("worker") as worker:
        worker.wait_until_ready()
        assert worker.stop() == 0
    refused = site.run("worker", ORDERS_PARTITIONS="5")
    assert refused.returncode == 1
    assert_is_one_clear_error(refused.stderr, "4 partitions, not 5")
    examined = site.run("doctor", ORDERS_PARTITIONS="5")
    assert examined.returncode == 1
    assert "order-events has 4" in examined.stdout


@pytest.mark.parametrize("command", [(*ORDERS, "worker"), (*ORDERS, "doctor"), (*ORDERS, "topics"), (*FAUST, "tables")])
def test_settings_that_cannot_be_used_are_named_with_what_is_allowed(site: Site, command: tuple[str, ...]) -> None:
    refused = site.run(command=command, ORDERS_WEB_PORT="0", ORDERS_LOG_LEVEL="x", ORDERS_BROKER="amqp://host")
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    said = lines(refused.stderr)
    assert "ORDERS_WEB_PORT=0: must be a whole number, at least 1 and at most 65535" in said
    assert "ORDERS_LOG_LEVEL=x: must be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'" in said
    assert any(line.startswith("ORDERS_BROKER=amqp://host: ") and "kafka://host:9092" in line for line in said)


def test_settings_are_read_from_a_file(site: Site) -> None:
    (site.folder / ".env").write_text("ORDERS_PARTITIONS=none\n")
    refused = site.run("worker")
    assert refused.returncode == 1
    assert "ORDERS_PARTITIONS=none: must be a whole number" in refused.stderr


def test_a_worker_waits_for_a_broker_that_is_away_and_says_so(site: Site) -> None:
    with site.start("worker", ORDERS_BROKER=f"kafka://127.0.0.1:{unused_port()}") as worker:
        worker.wait_until_it_says("cannot reach Kafka")
        assert site.status("/healthz") == 200
        assert site.status("/readyz") == 503
        examined = site.run("doctor", ORDERS_BROKER=f"kafka://127.0.0.1:{unused_port()}")
        assert examined.returncode == 1
        assert worker.stop() == 0
    assert "Traceback" not in worker.output


def test_the_doctor_says_that_the_worker_which_answers_has_other_settings(site: Site) -> None:
    elsewhere = f"kafka://127.0.0.1:{unused_port()}"
    with site.start("worker", ORDERS_BROKER="memory://") as worker:
        worker.wait_until_ready()
        examined = site.run("doctor", ORDERS_BROKER=elsewhere)
        assert site.run("doctor", ORDERS_BROKER="memory://").returncode == 0
        assert worker.stop() == 0
    assert examined.returncode == 1
    assert "Everything is fine" not in examined.stdout
    assert "has others: memory://" in examined.stdout
    assert "from here: cannot reach Kafka" in examined.stdout


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["place", "--customer", "c", "--item", "a:1:1"], ["no worker answers", "orders worker"]),
        (["import", str(SAMPLE)], ["no worker answers"]),
        (["tail"], ["no worker answers"]),
        (["topics"], ["no worker answers", "no log"]),
        (["run", "--file", "missing.csv"], ["missing.csv cannot be read"]),
    ],
)
def test_a_mistake_is_one_line_and_status_1(site: Site, arguments: list[str], words: list[str]) -> None:
    failed = site.run(*arguments)
    assert failed.returncode == 1
    assert_is_one_clear_error(failed.stderr, *words)


def test_mistakes_that_a_worker_finds_are_one_line_and_status_1(site: Site) -> None:
    (site.folder / "other.csv").write_text("a,b\n")
    with site.start("worker", ORDERS_API_TOKEN="secret") as worker:
        worker.wait_until_ready()
        for arguments, word in (
            (["import", "other.csv"], "is not a file of order history"),
            (["import", "missing.csv"], "cannot be read"),
            (["tail", "no-such-topic"], "there is no topic no-such-topic"),
            (["place", "--customer", "c", "--item", "a:1:1"], "401"),
        ):
            failed = site.run(*arguments)
            assert failed.returncode == 1
            assert_is_one_clear_error(failed.stderr, word)
        placed = site.run("place", "--customer", "c", "--item", "a:1:1", ORDERS_API_TOKEN="secret")
        assert placed.returncode == 0
        assert worker.stop() == 0


def test_a_usage_error_has_status_2_and_names_the_option(site: Site) -> None:
    failed = site.run("place", "--customer", "c", "--item", "a")
    assert failed.returncode == 2
    assert "SKU:QTY:PRICE" in failed.stderr


# ---- Faust's own command line


def test_faust_lists_tables_and_agents(site: Site) -> None:
    tables, agents = site.run("tables", command=FAUST), site.run("agents", command=FAUST)
    assert tables.returncode == agents.returncode == 0
    assert {"orders", "order-history", "customer-orders"} <= set(tables.stdout.split())
    assert {"@decide-orders", "@project-customer-orders"} <= set(agents.stdout.split())


def test_faust_worker_is_the_same_worker(site: Site) -> None:
    port = unused_port()
    elsewhere = Site(site.folder, port)
    with site.start("worker", "-p", str(port), command=FAUST) as worker:
        worker.wait_until(lambda: elsewhere.status("/readyz") == 200, "the worker is ready")
        second = site.run("worker", command=FAUST)
        assert second.returncode == 1
        assert_is_one_clear_error(second.stderr, "in use by another worker")
        assert worker.stop() == 0


def test_a_worker_started_and_stopped_at_once_ends_well(site: Site) -> None:
    with site.start("worker") as worker:
        worker.wait_until_it_says("worker orders starts")
        assert worker.stop() == 0
    assert "Traceback" not in worker.output
