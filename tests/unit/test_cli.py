"""The command line without a worker: options, messages, summaries."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from agents.cli import main
from agents.cli.client import Refused, path_of
from agents.cli.console import PlainSteps
from agents.cli.doctor import lines_of, unknown_variables
from agents.cli.history import CHUNK_BYTES_MAX, CHUNK_ORDERS_MAX, batch_line, chunks, is_same
from agents.cli.place import ItemType
from agents.cli.report import ImportReport, Outcome
from agents.cli.run import addresses
from agents.cli.topics import TopicRow, table
from agents.domain.order_history import Placement, parse_order_history
from streams.doctor import Check
from streams.settings import SettingsError, load_settings

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"


def placements(count: int, items: int = 1) -> list[Placement]:
    lines = [f"{order},P{n},x,1,2010-12-01 08:00,1.00,1,France" for order in range(1, count + 1) for n in range(items)]
    return [command for command in parse_order_history([HEADER, *lines]).commands if isinstance(command, Placement)]


# ---- help


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help_with_an_example_that_names_it(name: str) -> None:
    shown = CliRunner().invoke(main, [name, "--help"])
    assert shown.exit_code == 0
    assert re.search(rf"Examples?:\n +(\w+=\S+ )?orders {name}\b", shown.output)


def test_the_overview_names_every_command() -> None:
    shown = CliRunner().invoke(main, ["--help"])
    assert shown.exit_code == 0
    assert set(re.findall(r"^  (\w+) ", shown.output, re.MULTILINE)) >= set(main.commands)


# ---- settings


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.chdir(tmp_path)  # no .env here
    for name in [name for name in os.environ if name.startswith("ORDERS_")]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WEB_PORT", "70000", "ORDERS_WEB_PORT=70000: must be a whole number, at least 1 and at most 65535"),
        ("WEB_PORT", "http", "ORDERS_WEB_PORT=http: must be a whole number, at least 1 and at most 65535"),
        ("COMMIT_INTERVAL", "0", "ORDERS_COMMIT_INTERVAL=0: must be a number, above 0 and at most 5"),
        ("LOG_LEVEL", "loud", "ORDERS_LOG_LEVEL=loud: must be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("BROKER", "kafka://", "ORDERS_BROKER=kafka://: kafka:// needs at least one host"),
        ("BROKER", "redis://x", "ORDERS_BROKER=redis://x: 'redis://x' is not a broker; use embedded://, memory://"),
        ("APP_ID", "Orders!", "ORDERS_APP_ID=Orders!: String should match pattern"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_with_what_is_allowed(
    no_settings: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    no_settings.setenv(f"ORDERS_{name}", value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    (line,) = str(refused.value).splitlines()
    assert line.startswith(said)


def test_an_option_wins_over_the_environment_and_the_file(no_settings: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("ORDERS_WEB_PORT=1001\nORDERS_PARTITIONS=2\n")
    no_settings.setenv("ORDERS_WEB_PORT", "1002")
    assert load_settings(web_port=None).web_port == 1002
    assert load_settings(web_port=1003).web_port == 1003
    assert load_settings().partitions == 2


def test_secrets_are_not_shown(no_settings: pytest.MonkeyPatch) -> None:
    no_settings.setenv("ORDERS_KAFKA_SASL_PLAIN_PASSWORD", "hush")
    no_settings.setenv("ORDERS_WEB_PORT", "0")
    with pytest.raises(SettingsError) as refused:
        load_settings(kafka_sasl_plain_password=["hush"])
    assert "hush" not in str(refused.value)
    assert "ORDERS_KAFKA_SASL_PLAIN_PASSWORD: " in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, "http://127.0.0.1:6066"),
        ({"web_host": "0.0.0.0", "web_port": 80}, "http://127.0.0.1:80"),
        ({"web_host": "::"}, "http://[::1]:6066"),
        ({"web_url": "https://orders.example/"}, "https://orders.example"),
    ],
)
def test_the_worker_is_looked_for_where_the_settings_put_it(
    no_settings: pytest.MonkeyPatch, settings: dict[str, object], url: str
) -> None:
    assert load_settings(**settings).local_url == url


# ---- orders place


@pytest.mark.parametrize(
    ("text", "product", "quantity", "amount", "currency"),
    [
        ("SKU-1:2:19.99", "SKU-1", 2, "19.99", "GBP"),
        ("SKU-1:2:19.90:USD", "SKU-1", 2, "19.90", "USD"),
        ("a:b:c:1:5:EUR", "a:b:c", 1, "5", "EUR"),
        ("1:2:3:4", "1:2", 3, "4", "GBP"),
    ],
)
def test_an_item_is_product_quantity_price_and_currency(
    text: str, product: str, quantity: int, amount: str, currency: str
) -> None:
    price = {"amount": amount, "currency": currency}
    assert ItemType().convert(text, None, None) == {"product_id": product, "quantity": quantity, "price": price}


@pytest.mark.parametrize(
    "text", ["", "SKU", "SKU:1", "SKU:x:1", "SKU:1:x", "SKU:0:1", "SKU:1:0", "SKU:1:1:usd", ":1:1"]
)
def test_what_is_no_item_is_a_usage_error_that_shows_it(text: str) -> None:
    with pytest.raises(click.BadParameter, match=re.escape(repr(text))):
        ItemType().convert(text, None, None)


# ---- orders import


def test_chunks_keep_everything_in_order_within_both_limits() -> None:
    orders = placements(CHUNK_ORDERS_MAX + 1) + placements(3, items=5000)
    cut = list(chunks(orders))
    assert [order for chunk in cut for order in chunk] == orders
    assert all(len(chunk) <= CHUNK_ORDERS_MAX for chunk in cut)
    assert all(sum(len(batch_line(order)) + 1 for order in chunk) <= CHUNK_BYTES_MAX for chunk in cut)
    assert list(chunks([])) == []


def test_an_order_larger_than_a_chunk_has_one_of_its_own() -> None:
    small, large = placements(2)[0], placements(1, items=20_000)[0]
    assert [len(chunk) for chunk in chunks([small, large, small])] == [1, 1, 1]


@pytest.mark.parametrize(
    "change",
    [{"customer_id": "2"}, {"total": {"amount": "1.01", "currency": "GBP"}}, {"created_at": "x"}, {"total": None}],
)
def test_an_order_is_the_same_when_customer_time_and_total_are(change: dict[str, object]) -> None:
    (placement,) = placements(1)
    order = {
        "customer_id": "1",
        "created_at": "2010-12-01T08:00:00.000000Z",
        "total": {"amount": "1.000", "currency": "GBP"},
        "status": "cancelled",
    }
    assert is_same(placement, order)
    assert not is_same(placement, order | change)


def test_the_summary_says_what_happened_and_why_something_did_not() -> None:
    lines = [HEADER, "1,A,x,1,2010-12-01 08:00,1.00,1,France", "2,A,x,1,2010-12-01 08:00,1.00,,France"]
    outcome = Outcome(placed=1)
    outcome.refused["already_placed"] += 2
    report = ImportReport("history.csv", parse_order_history(lines).summary(), outcome, 2.0)
    assert not report.is_complete()
    assert [" ".join(line.split()) for line in report.text().splitlines()] == [
        "history.csv: 2 lines in 2.0 s, 0 a second",
        "orders placed 1",
        "orders cancelled 0",
        "already there 0",
        "refused by the system 2",
        "already placed 2",
        "lines rejected 1",
        "no customer 1",
        "invoices rejected 1",
        "no good line 1",
    ]


def test_the_summary_of_a_second_import_says_that_nothing_has_changed() -> None:
    summary = parse_order_history([HEADER]).summary()
    assert "nothing has changed" in ImportReport("f", summary, Outcome(already_there=8), 1.0).text()
    assert "nothing has changed" not in ImportReport("f", summary, Outcome(placed=1), 1.0).text()
    lost = ImportReport("f", summary, Outcome(unknown=1), 1.0)
    assert not lost.is_complete()
    assert "dead-letters" in lost.text()


def test_plain_progress_is_a_line_for_each_step_and_one_now_and_then() -> None:
    written: list[str] = []
    with PlainSteps(written.append, interval_s=0.0) as steps:
        steps.step("reading")
        steps.step("placing", 2000)
        steps.advance(1000)
    assert written == ["reading ...", "placing (2,000) ...", "placing: 1,000 of 2,000"]


# ---- the rest


def test_addresses_name_a_cancelled_order_and_the_customer_with_most_orders() -> None:
    lines = [
        HEADER,
        "1,A,x,1,2010-12-01 08:00,1.00,one,France",
        "2,A,x,1,2010-12-01 08:00,1.00,two/2,France",
        "3,B,x,1,2010-12-01 08:00,1.00,two/2,France",
        "C4,B,x,-1,2010-12-01 09:00,1.00,two/2,France",
    ]
    shown = addresses("http://localhost:1", parse_order_history(lines))
    assert "http://localhost:1/orders/3/events" in shown
    assert "http://localhost:1/customers/two%2F2/orders" in shown
    assert "orders/" not in addresses("http://localhost:1", parse_order_history([HEADER]))


def test_paths_are_encoded_part_by_part() -> None:
    assert path_of("orders", "a/b c", "events") == "/orders/a%2Fb%20c/events"


def test_a_problem_becomes_a_sentence_with_its_fields() -> None:
    problem = {"detail": "2 fields cannot be used", "errors": [{"field": "items", "message": "missing"}]}
    assert Refused(422, problem).message == "the worker refused it (422): 2 fields cannot be used\n  items: missing"
    assert "no reason given" in Refused(500, {}).message


def test_the_list_of_topics_has_aligned_columns_and_changelogs_last() -> None:
    rows = [TopicRow("a-changelog", 4, 12_000, "rows"), TopicRow("order-events", 4, 7, "what happened")]
    assert table(rows) == [
        "topic         partitions  records",
        "order-events           4        7  what happened",
        "a-changelog            4   12,000  rows",
    ]


def test_a_misspelt_setting_is_noted() -> None:
    names = ["ORDERS_BROKER", "ORDERS_WEB_PROT", "PATH", "ORDERS_KAFKA_JARS"]
    (check,) = unknown_variables(names)
    assert "ORDERS_WEB_PROT" in check.detail
    assert lines_of(check)[0].startswith("note")


def test_a_check_shows_what_to_do() -> None:
    assert lines_of(Check("broker", True, "answers")) == ["ok       broker: answers"]
    assert lines_of(Check("broker", False, "away", "start it")) == ["PROBLEM  broker: away", "         -> start it"]
