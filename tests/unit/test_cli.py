"""The command line without a worker: options, messages, summaries."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli import main
from cli.counting import EventCount
from cli.history import CHUNK_BYTES_MAX, CHUNK_ORDERS_MAX, batch_line, chunks, is_same
from cli.order_history import Placement, parse_order_history
from cli.place import ItemType
from cli.report import ImportReport, Outcome
from cli.run import addresses, for_a_first_look
from cli.sums import Check, Reconciliation, printable
from engine.cli.client import Refused, path_of
from engine.cli.console import PlainSteps
from engine.cli.doctor import given_names, lines_of, unknown_variables
from engine.cli.letters.commands import dead_letters
from engine.cli.letters.text import group_table, letter_table, letter_text
from engine.cli.topics import TopicRow, table
from engine.declare.settings import SettingsError
from engine.health.check import Check as DoctorsCheck
from streams.settings import Settings, load_settings

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
    assert set(re.findall(r"^  ([\w-]+) ", shown.output, re.MULTILINE)) >= set(main.commands)


@pytest.mark.parametrize("name", sorted(dead_letters.commands))
def test_every_command_of_dead_letters_has_help_with_an_example_that_names_it(name: str) -> None:
    shown = CliRunner().invoke(main, ["dead-letters", name, "--help"])
    assert shown.exit_code == 0
    assert re.search(rf"Examples?:\n +orders dead-letters {name}\b", shown.output)


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


def sums(*checks: Check, settled: bool = True, **sagas: int) -> Reconciliation:
    return Reconciliation(all(check.holds for check in checks), settled, list(checks), sagas)


MONEY = Check("charged - refunded = confirmed orders", "GBP", "1234.50", "1234.5", "0.00", True)
CENT = Check("charged - refunded = confirmed orders", "EUR", "0.03", "0.02", "0.01", False)
PIECES = Check("stocked = on hand + shipped", None, "1000", "1000", "0", True)


def report(outcome: Outcome, found: Reconciliation | None = None, *lines: str) -> ImportReport:
    return ImportReport("history.csv", parse_order_history([HEADER, *lines]).summary(), outcome, found or sums(), 2.0)


def text_of(shown: ImportReport) -> list[str]:
    """Its lines with single spaces."""
    return [" ".join(line.split()) for line in shown.text().splitlines()]


def test_the_summary_says_what_happened_and_why_something_did_not() -> None:
    lines = ["1,A,x,1,2010-12-01 08:00,1.00,1,France", "2,A,x,1,2010-12-01 08:00,1.00,,France"]
    outcome = Outcome(stocked=1, placed=6, confirmed=1, cancelled=1, pending=1, already_there=2, cancelled_before=1)
    outcome.cancelled_by_saga.update(card_declined=2, out_of_stock=1)
    outcome.refused["already_placed"] += 2
    shown = report(outcome, sums(PIECES, MONEY, completed=1, compensated=4, running=1), *lines)
    assert not shown.is_complete()
    assert text_of(shown) == [
        "history.csv: 2 lines in 2.0 s, 4 a second",
        "products stocked 1",
        "orders placed 6",
        "confirmed 1",
        "cancelled by the customer 1",
        "cancelled by their saga 3",
        "card declined 2",
        "out of stock 1",
        "still pending 1",
        "already there 2",
        "cancellations of cancelled orders 1",
        "refused by the system 2",
        "already placed 2",
        "lines rejected 1",
        "no customer 1",
        "invoices rejected 1",
        "no good line 1",
        "Sagas of all orders",
        "completed 1",
        "compensated (everything undone) 4",
        "still running 1",
        "Stock and money add up",
        "✓ stocked = on hand + shipped 1,000 = 1,000 pieces",
        "✓ charged - refunded = confirmed orders 1,234.50 = 1,234.5 GBP",
    ]


def test_an_order_that_its_saga_cancelled_before_the_file_does_is_no_failure() -> None:
    outcome = Outcome(placed=1, cancelled_before=1)
    outcome.cancelled_by_saga["card_declined"] += 1
    assert report(outcome).is_complete()


def test_a_cent_too_much_is_shown_with_its_difference_and_is_a_failure() -> None:
    shown = report(Outcome(placed=1), sums(MONEY, CENT))
    assert not shown.is_complete()
    assert "Stock and money do NOT add up" in text_of(shown)
    assert "✗ charged - refunded = confirmed orders 0.03 ≠ 0.02 EUR, difference 0.01" in text_of(shown)
    assert "✓ charged - refunded = confirmed orders 1,234.50 = 1,234.5 GBP" in text_of(shown)


def test_sums_that_differ_while_other_orders_are_on_their_way_are_no_failure() -> None:
    shown = report(Outcome(placed=1), sums(CENT, settled=False, running=3))
    assert shown.is_complete()
    assert "Stock and money do not add up yet: orders are on their way" in text_of(shown)


def test_an_import_that_gave_up_waiting_for_its_sagas_says_so_and_fails() -> None:
    shown = report(Outcome(placed=1, is_stalled=True), sums(settled=False, running=1))
    assert not shown.is_complete()
    assert "Not all sagas have ended" in shown.text()
    assert "Not all sagas have ended" not in report(Outcome(placed=1)).text()


def test_the_summary_of_a_second_import_says_that_nothing_has_changed() -> None:
    assert "nothing has changed" in report(Outcome(already_there=8)).text()
    for outcome in (Outcome(placed=1), Outcome(stocked=1), Outcome(cancelled=1)):
        assert "nothing has changed" not in report(outcome).text()
    lost = report(Outcome(unknown=1))
    assert not lost.is_complete()
    assert "dead-letters" in lost.text()


def test_signs_that_a_terminal_does_not_have_are_written_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        assert printable("✓ 1 = 1") == "ok 1 = 1"
        assert printable("✗ 1 ≠ 2") == "!! 1 <> 2"


def event(kind: str, order_id: str = "1", **payload: str) -> dict[str, object]:
    return {"aggregateId": order_id, "eventType": kind, "payload": payload, "metadata": {}}


def test_events_tell_what_became_of_each_order_and_who_cancelled_it() -> None:
    history = parse_order_history(
        [
            HEADER,
            *(f"{order},A,x,1,2010-12-01 08:00,1.00,c{order},France" for order in range(1, 7)),
            "C7,A,x,-1,2010-12-01 09:00,1.00,c1,France",
            "C8,A,x,-1,2010-12-01 09:00,1.00,c2,France",
        ]
    )
    place, cancel = history.placements[0], history.cancellations[0]
    count, outcome = EventCount(), Outcome()
    for order_id in ("1", "2", "3", "4", "5"):
        count.note(event("order.placed", order_id), place)
    count.note(event("order.rejected", "6", command="order.place", reason="total_mismatch"), place)
    count.note(event("order.confirmed", "1"), None)
    count.note(event("order.cancelled", "1", reason="invoice C7"), cancel)  # after it was confirmed
    count.note(event("order.cancelled", "2", reason="card_declined"), None)
    count.note(event("order.rejected", "2", command="order.cancel", reason="already_cancelled"), cancel)
    count.note(event("order.cancelled", "3"), None)
    count.note(event("order.confirmed", "4"), None)
    count.note(event("order.rejected", "4", command="order.ship", reason="already_shipped"), None)  # not the file's
    count.add_to(outcome)
    assert outcome == Outcome(
        placed=5,
        confirmed=1,
        cancelled=1,
        cancelled_by_saga=Counter({"card_declined": 1, "no reason given": 1}),
        pending=1,
        cancelled_before=1,
        refused=Counter(total_mismatch=1),
    )


def test_plain_progress_is_a_line_for_each_step_and_one_now_and_then() -> None:
    written: list[str] = []
    with PlainSteps(written.append, interval_s=0.0) as steps:
        steps.step("reading")
        steps.step("placing", 2000)
        steps.advance(1000)
    assert written == ["reading ...", "placing (2,000) ...", "placing: 1,000 of 2,000"]


# ---- orders dead-letters

LETTER = {
    "id": "3-17", "state": "open", "topic": "order-commands", "partition": 3, "offset": 4, "agent": "decide-orders",
    "key": "o-1", "event_id": "e-1", "event_type": "order.place", "correlation_id": None, "error_type": "OSError",
    "error": "a text\nof " + "many " * 30, "fingerprint": "f", "failed_at": "2026-11-23T10:00:00.123000Z",
    "retry_count": 3, "replays": 1, "waiting": 2, "size_bytes": 10,
}  # fmt: skip
DETAILS = {
    "complete": True, "timestamp": "2026-11-23T09:00:00.000000Z", "value": {"payload": {"x": 1}}, "headers": {"h": "1"},
    "trace": "Traceback\n  line", "closed_at": None, "refusal": {"reason": "too_old", "detail": "it is too old"},
    "actions": [{"at": "2026-11-23T10:00:00.000000Z", "action": "failed", "by": "me", "detail": "again"}],
    "waiting_records": [{"offset": 5, "event_id": None, "event_type": "order.cancel"}],
    "recent_events": [{"timestamp": "2026-11-23T08:00:00Z", "event_type": "order.placed", "payload": {}}],
}  # fmt: skip


def test_letters_are_a_table_with_one_line_for_each() -> None:
    nameless = LETTER | {"id": "12-4", "key": None, "event_type": None, "error": "short"}
    head, first, second = letter_table([LETTER, nameless])
    assert head.split() == ["id", "state", "failed", "waiting", "topic", "key", "type", "error"]
    assert first.split()[:7] == ["3-17", "open", "2026-11-23T10:00:00Z", "2", "order-commands", "o-1", "order.place"]
    assert first.endswith("...")
    assert "OSError: a text of many" in first
    assert second.split()[5:] == ["-", "-", "OSError:", "short"]
    assert len({line.index("order-commands") for line in (first, second)}) == 1


def test_groups_are_a_table_with_one_line_for_each() -> None:
    group = {
        "count": 12, "waiting": 0, "topic": "t", "agent": "a", "last_failed_at": "2026-11-23T10:00:00.1Z",
        "fingerprint": "f", "example_id": "3-17", "error_type": "E", "error": "x",
    }  # fmt: skip
    assert group_table([group])[1].split() == ["12", "0", "t", "a", "2026-11-23T10:00:00Z", "f", "3-17", "E:", "x"]


def test_a_letter_is_told_in_full() -> None:
    shown = "\n".join(letter_text(LETTER | DETAILS))
    for text in (
        "dead letter 3-17: open", "order-commands/3@4, produced 2026-11-23T09:00:00Z", "it is too old", '"x": 1',
        "failed  by me: again", "offset 5  order.cancel  -", "order.placed", "  Traceback",
    ):  # fmt: skip
        assert text in shown
    assert "too large" in "\n".join(letter_text(LETTER | DETAILS | {"complete": False}))
    assert "base64: AA" in "\n".join(letter_text(LETTER | DETAILS | {"value": None, "value_base64": "AA"}))


@pytest.mark.parametrize(
    "arguments",
    [
        ["retry"], ["retry", "1-1", "--topic", "t"], ["retry", "1-1", "--all"], ["retry", "--all", "--key", "k"],
        ["retry", "1-1", "1-2", "--edit"], ["retry", "--all", "--edit"], ["discard", "1-1"],
        ["discard", "--reason", "r"], ["list", "--state", "dead"], ["list", "--limit", "0"],
        ["retry", "1-1", "--payload", "missing.json"],
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_a_usage_error(arguments: list[str]) -> None:
    shown = CliRunner().invoke(main, ["dead-letters", *arguments])
    assert shown.exit_code == 2
    assert "Error" in shown.output


# ---- the rest


def test_addresses_name_orders_a_product_and_the_customer_with_most_orders() -> None:
    lines = [
        HEADER,
        "1,A,x,1,2010-12-01 08:00,1.00,one,France",
        "2,A,x,1,2010-12-01 08:00,1.00,two/2,France",
        "3,B/B,x,3,2010-12-01 08:00,1.00,two/2,France",
        "C4,B/B,x,-1,2010-12-01 09:00,1.00,two/2,France",
        "C5,A,x,-1,2010-12-01 09:00,1.00,one,France",
    ]
    history = parse_order_history(lines)
    shown = addresses("http://localhost:1", history, refunded="3")
    for path in ("/orders/3/events", "/sagas/3", "/payments/3", "/customers/two%2F2/orders", "/inventory/B%2FB"):
        assert f"http://localhost:1{path}" in shown
    assert "/analytics/reconciliation" in shown
    unpaid = addresses("http://localhost:1", history, refunded=None)
    assert "http://localhost:1/orders/1/events" in unpaid
    assert "payments/" not in unpaid
    assert "orders/" not in addresses("http://localhost:1", parse_order_history([HEADER]), None)


@pytest.mark.parametrize(("given", "used"), [(None, 0.02), ("0", 0.0), ("0.5", 0.5)])
def test_a_first_look_has_declined_payments_unless_the_settings_say_otherwise(
    no_settings: pytest.MonkeyPatch, given: str | None, used: float
) -> None:
    if given is not None:
        no_settings.setenv("ORDERS_PAYMENT_DECLINE", given)
    assert for_a_first_look(load_settings()).payment_decline == used
    if given is not None:
        no_settings.delenv("ORDERS_PAYMENT_DECLINE")
        Path(".env").write_text(f"ORDERS_PAYMENT_DECLINE={given}\n")
        assert for_a_first_look(load_settings()).payment_decline == used


def test_a_first_look_takes_the_prices_of_the_bundled_orders(no_settings: pytest.MonkeyPatch) -> None:
    assert for_a_first_look(load_settings()).price_decimals == 3
    no_settings.setenv("ORDERS_PRICE_DECIMALS", "4")
    assert for_a_first_look(load_settings()).price_decimals == 4


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
    (check,) = unknown_variables(Settings, names)
    assert "ORDERS_WEB_PROT" in check.detail
    assert lines_of(check)[0].startswith("note")


@pytest.mark.usefixtures("no_settings")
def test_a_misspelt_setting_in_the_env_file_is_noted() -> None:
    assert not unknown_variables(Settings, given_names())
    Path(".env").write_text("ORDERS_BROKER=memory://\nORDERS_PARTITION=12\nGRAFANA_PASSWORD=secret\n")
    (check,) = unknown_variables(Settings, given_names())
    assert "ORDERS_PARTITION is no setting" in check.detail


def test_a_check_shows_what_to_do() -> None:
    assert lines_of(DoctorsCheck("broker", True, "answers")) == ["ok       broker: answers"]
    assert lines_of(DoctorsCheck("broker", False, "away", "start it")) == [
        "PROBLEM  broker: away",
        "         -> start it",
    ]
