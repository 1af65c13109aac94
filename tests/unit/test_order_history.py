"""The import rules: what a file of order history becomes, and what of it is turned down."""

import csv
import gzip
import random
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from cli import order_history
from cli.order_history import (
    HEADER,
    Cancellation,
    ImportFileError,
    ImportSummary,
    Item,
    OrderHistory,
    Placement,
    RejectedInvoice,
    RejectedLine,
    parse_order_history,
    read_order_history,
)
from streams.events.money import Money

SAMPLE = Path(__file__).parents[2] / "examples" / "online-retail-sample.csv.gz"
HEADER_LINE = ",".join(HEADER)


def line(
    invoice: str = "100",
    product: str = "A",
    *,
    quantity: str = "1",
    time: str = "2010-12-01 08:00",
    price: str = "1.00",
    customer: str = "c1",
    country: str = "France",
) -> str:
    return f"{invoice},{product},a thing,{quantity},{time},{price},{customer},{country}\n"


def parse(*lines: str) -> OrderHistory:
    return parse_order_history([HEADER_LINE + "\n", *lines])


def placements(history: OrderHistory) -> list[Placement]:
    return [command for command in history.commands if isinstance(command, Placement)]


def cancelled_order_ids(history: OrderHistory) -> list[str]:
    return [command.order_id for command in history.commands if isinstance(command, Cancellation)]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """All lines of the sample, header first."""
    with gzip.open(SAMPLE, "rt", encoding="utf-8", newline="") as sample:
        return list(sample)


@pytest.fixture(scope="module")
def history() -> OrderHistory:
    """What the sample says."""
    return read_order_history(SAMPLE)


class TestOrders:
    def test_an_invoice_becomes_an_order_with_its_number_time_customer_and_country(self) -> None:
        history = parse(
            line("536365", "71053", quantity="6", price="3.39", customer="17850"),
            line("536365", "84029E", quantity="2", price="0.1", customer="17850"),
        )
        assert history.commands == (
            Placement(
                command_id="fdf3301b-17b3-5453-989c-843bd4145128",
                order_id="536365",
                customer_id="17850",
                items=(
                    Item("71053", 6, Money(Decimal("3.39"), "GBP")),
                    Item("84029E", 2, Money(Decimal("0.1"), "GBP")),
                ),
                total=Money(Decimal("20.54"), "GBP"),
                occurred_at=datetime(2010, 12, 1, 8, 0, tzinfo=UTC),
                country="France",
            ),
        )
        assert history.rejected_lines == ()
        assert history.rejected_invoices == ()

    def test_the_total_is_exact_where_floats_are_not(self) -> None:
        (order,) = placements(parse(line(price="0.1"), line(price="0.2"), line(quantity="999999999", price="0.000001")))
        assert order.total.amount == Decimal("0.3") + Decimal("999.999999")

    def test_the_same_product_twice_in_an_invoice_is_two_items(self) -> None:
        (order,) = placements(parse(line(quantity="1"), line(quantity="2")))
        assert [item.quantity for item in order.items] == [1, 2]

    def test_lines_of_an_invoice_need_not_be_contiguous(self) -> None:
        history = parse(line("100", "A"), line("101", "B"), line("100", "C"))
        assert {order.order_id: [item.product_id for item in order.items] for order in placements(history)} == {
            "100": ["A", "C"],
            "101": ["B"],
        }

    def test_where_an_invoice_carries_two_times_the_earliest_wins(self) -> None:
        (order,) = placements(parse(line(time="2010-12-01 08:01"), line(time="2010-12-01 08:00")))
        assert order.occurred_at == datetime(2010, 12, 1, 8, 0, tzinfo=UTC)

    def test_a_rejected_line_still_says_when_its_invoice_was_written(self) -> None:
        (order,) = placements(parse(line(time="2010-12-01 08:01"), line(time="2010-12-01 08:00", quantity="0")))
        assert order.occurred_at == datetime(2010, 12, 1, 8, 0, tzinfo=UTC)

    def test_an_empty_country_is_no_country(self) -> None:
        (order,) = placements(parse(line(country="")))
        assert order.country is None

    def test_commands_are_in_time_order_and_within_a_minute_in_file_order(self) -> None:
        history = parse(
            line("103", time="2010-12-02 08:00"), line("102"), line("101"), line("C1", "A", time="2010-12-01 09:00")
        )
        assert [command.order_id for command in history.commands] == ["102", "101", "101", "103"]
        assert isinstance(history.commands[2], Cancellation)


class TestRejectedLines:
    @pytest.mark.parametrize(
        ("bad_line", "reason"),
        [
            (line(customer=""), "no_customer"),
            (line(customer="  "), "no_customer"),
            (line(quantity="0"), "quantity_not_positive"),
            (line(quantity="-1"), "quantity_not_positive"),
            (line(price="0"), "price_not_positive"),
            (line(price="-0.01"), "price_not_positive"),
            (line(customer="", quantity="-1", price="0"), "no_customer"),
            (line(quantity="-1", price="0"), "quantity_not_positive"),
            (line(customer="c2"), "customer_conflict"),
            (line(product=""), "malformed"),
            (line(quantity="1.5"), "malformed"),
            (line(quantity="many"), "malformed"),
            (line(quantity="1" * 10), "malformed"),
            (line(price="NaN"), "malformed"),
            (line(price="Infinity"), "malformed"),
            (line(price="1e3"), "malformed"),
            (line(price="1,00"), "malformed"),
            (line(time=""), "malformed"),
            (line(time="2010-02-30 08:00"), "malformed"),
            (line(time="9999-12-31 08:00"), "malformed"),
            (line(time="0001-01-01 08:00"), "malformed"),
            (line(product="x" * 129), "malformed"),
            (line(customer="", quantity="many"), "malformed"),
            ("100\n", "malformed"),
            ('100,"never closed,1,2010-12-01 08:00,1.00,c1,France\n', "malformed"),
            (line().rstrip() + ",one more column\n", "malformed"),
        ],
    )
    def test_a_bad_line_is_rejected_with_its_first_reason_and_the_rest_stays(self, bad_line: str, reason: str) -> None:
        history = parse(line("100", "A"), bad_line, line("100", "B"))
        assert [(rejected.line_number, rejected.invoice, rejected.reason) for rejected in history.rejected_lines] == [
            (3, "100", reason)
        ]
        assert [[item.product_id for item in order.items] for order in placements(history)] == [["A", "B"]]
        assert history.lines_read == 3

    def test_a_line_without_an_invoice_number_belongs_to_no_invoice(self) -> None:
        history = parse(line(invoice=""))
        assert history.rejected_lines == (RejectedLine(2, "", "malformed"),)
        assert history.rejected_invoices == ()

    def test_an_invoice_without_a_good_line_is_rejected(self) -> None:
        history = parse(line("100", customer=""), line("100", quantity="0"), line("101", time="yesterday"))
        assert history.commands == ()
        assert history.rejected_invoices == (
            RejectedInvoice("100", "no_good_line"),
            RejectedInvoice("101", "no_good_line"),
        )

    def test_blank_lines_are_not_lines(self) -> None:
        assert parse(line(), "\n", " \r\n").lines_read == 1


class TestCancellations:
    def test_a_cancellation_cancels_the_order_of_its_customer_at_its_own_time(self) -> None:
        history = parse(line("100"), line("C101", quantity="-1", time="2010-12-03 10:00"))
        assert history.commands[1] == Cancellation(
            command_id=order_history._command_id("C101"),
            order_id="100",
            occurred_at=datetime(2010, 12, 3, 10, 0, tzinfo=UTC),
            reason="invoice C101",
        )
        assert history.rejected_lines == ()

    def test_it_cancels_the_latest_of_the_earlier_orders_by_time_not_by_place_in_the_file(self) -> None:
        history = parse(
            line("102", time="2010-12-02 08:00"),
            line("101", time="2010-12-01 08:00"),
            line("103", time="2010-12-04 08:00"),
            line("C104", quantity="-1", time="2010-12-03 08:00"),
        )
        assert cancelled_order_ids(history) == ["102"]

    def test_it_skips_orders_of_others_and_orders_without_all_its_products(self) -> None:
        history = parse(
            line("100", "A"),
            line("100", "B"),
            line("101", "A", time="2010-12-02 08:00"),
            line("102", "A", customer="c2", time="2010-12-02 09:00"),
            line("102", "B", customer="c2", time="2010-12-02 09:00"),
            line("C103", "B", quantity="-1", time="2010-12-03 08:00"),
            line("C103", "A", quantity="-5", time="2010-12-03 08:00"),
        )
        assert cancelled_order_ids(history) == ["100"]

    def test_an_order_is_cancelled_once_and_the_next_cancellation_takes_the_one_before(self) -> None:
        history = parse(
            line("100"),
            line("101", time="2010-12-01 09:00"),
            *(line(f"C{number}", quantity="-1", time="2010-12-02 08:00") for number in (201, 202, 203)),
        )
        assert cancelled_order_ids(history) == ["101", "100"]
        assert history.rejected_invoices == (RejectedInvoice("C203", "no_matching_order"),)

    def test_cancellations_match_in_time_order_whatever_their_place_in_the_file(self) -> None:
        history = parse(
            line("C202", "A", quantity="-1", time="2010-12-03 08:00"),
            line("C201", "A", quantity="-1", time="2010-12-02 08:00"),
            line("100", "A"),
        )
        assert [command.command_id for command in history.commands] == [
            order_history._command_id(number) for number in ("100", "C201")
        ]
        assert history.rejected_invoices == (RejectedInvoice("C202", "no_matching_order"),)

    def test_an_order_of_the_same_minute_counts_as_earlier_if_it_stands_earlier_in_the_file(self) -> None:
        assert cancelled_order_ids(parse(line("100"), line("C101", quantity="-1"))) == ["100"]
        assert cancelled_order_ids(parse(line("C101", quantity="-1"), line("100"))) == []

    def test_a_later_order_is_not_cancelled(self) -> None:
        history = parse(line("100", time="2010-12-02 08:00"), line("C101", quantity="-1", time="2010-12-01 08:00"))
        assert cancelled_order_ids(history) == []
        assert history.rejected_invoices == (RejectedInvoice("C101", "no_matching_order"),)

    def test_a_product_on_a_rejected_line_of_an_order_is_not_contained_in_it(self) -> None:
        history = parse(
            line("100", "A"), line("100", "B", price="0"), line("C101", "B", quantity="-1", time="2010-12-02 08:00")
        )
        assert cancelled_order_ids(history) == []

    def test_a_cancellation_without_a_customer_matches_nothing_and_its_lines_say_why(self) -> None:
        history = parse(line("100", customer=""), line("C101", quantity="-1", customer="", time="2010-12-02 08:00"))
        assert history.commands == ()
        assert [(rejected.invoice, rejected.reason) for rejected in history.rejected_lines] == [
            ("100", "no_customer"),
            ("C101", "no_customer"),
        ]
        assert history.rejected_invoices == (
            RejectedInvoice("100", "no_good_line"),
            RejectedInvoice("C101", "no_matching_order"),
        )


class TestSupplies:
    def test_each_product_is_supplied_with_what_all_orders_ask_for_when_the_first_of_them_does(self) -> None:
        history = parse(
            line("2", "B", quantity="1", time="2010-12-01 10:00"),
            line("2", "A", quantity="4", time="2010-12-01 10:00"),
            line("1", "A", quantity="2", time="2010-12-01 09:00"),
            line("1", "A", quantity="3", time="2010-12-01 09:00"),
        )
        assert [(supply.product_id, supply.quantity, supply.occurred_at.hour) for supply in history.supplies()] == [
            ("A", 9, 9),
            ("B", 1, 10),
        ]

    def test_cancelled_orders_count_and_rejected_lines_do_not(self) -> None:
        history = parse(
            line("1", "A", quantity="2"),
            line("1", "B", quantity="2", price="0"),
            line("2", "A", quantity="5", customer=""),
            line("C3", "A", quantity="-2", time="2010-12-02 08:00"),
        )
        assert history.cancellations
        assert [(supply.product_id, supply.quantity) for supply in history.supplies()] == [("A", 2)]

    def test_a_command_id_follows_from_the_product_alone(self) -> None:
        (one,), (other,) = parse(line("1", "A")).supplies(), parse(line("9", "A", quantity="7")).supplies()
        assert one.command_id == other.command_id
        assert one.command_id != parse(line("1", "B")).supplies()[0].command_id

    def test_a_file_without_orders_needs_nothing(self) -> None:
        assert parse().supplies() == []


class TestFiles:
    def write(self, folder: Path, content: bytes) -> Path:
        path = folder / "orders.csv"
        path.write_bytes(content)
        return path

    def test_plain_and_gzipped_files_give_the_same_whatever_their_name(self, tmp_path: Path) -> None:
        content = (HEADER_LINE + "\n" + line()).encode()
        plain = read_order_history(self.write(tmp_path, content))
        assert plain.summary().orders_placed == 1
        assert read_order_history(self.write(tmp_path, gzip.compress(content))) == plain

    def test_a_byte_order_mark_windows_line_ends_and_quotes_are_understood(self, tmp_path: Path) -> None:
        quoted = '100,A,"a ""thing"", red",1,2010-12-01 08:00,1.00,c1,"Korea, South"\r\n'
        (order,) = placements(
            read_order_history(self.write(tmp_path, b"\xef\xbb\xbf" + (HEADER_LINE + "\r\n" + quoted).encode()))
        )
        assert order.country == "Korea, South"

    @pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
    def test_names_are_read_in_either_encoding(self, tmp_path: Path, encoding: str) -> None:
        content = (HEADER_LINE + "\n" + line(country="Curaçao")).encode(encoding)
        (order,) = placements(read_order_history(self.write(tmp_path, content)))
        assert order.country == "Curaçao"

    @pytest.mark.parametrize("time", ["2010-12-01 08:26", "2010-12-01 08:26:00", "12/1/2010 8:26"])
    def test_times_are_read_as_the_original_is_usually_exported(self, time: str) -> None:
        (order,) = placements(parse(line(time=time)))
        assert order.occurred_at == datetime(2010, 12, 1, 8, 26, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "first line is not InvoiceNo,"),
            (b"a,b,c\n1,2,3\n", "first line is not InvoiceNo,"),
            (b"\x89PNG\r\n\x1a\n\x00", "first line is not InvoiceNo,"),
            (gzip.compress(HEADER_LINE.encode() * 100)[:-12], "is damaged"),
            (b"\x1f\x8bnot gzip at all", "is damaged"),
            (HEADER_LINE.encode() + b"\n" + b"x" * (order_history.LINE_BYTES_MAX + 1), "longer than 64 KiB"),
        ],
    )
    def test_another_kind_of_file_is_refused_with_a_clear_error(
        self, tmp_path: Path, content: bytes, message: str
    ) -> None:
        with pytest.raises(ImportFileError, match=message) as refusal:
            read_order_history(self.write(tmp_path, content))
        assert "orders.csv" in str(refusal.value)

    def test_a_missing_file_and_a_folder_are_refused_with_a_clear_error(self, tmp_path: Path) -> None:
        with pytest.raises(ImportFileError, match="No such file"):
            read_order_history(tmp_path / "missing.csv")
        with pytest.raises(ImportFileError, match="directory"):
            read_order_history(tmp_path)

    def test_a_file_with_too_many_lines_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(order_history, "LINES_MAX", 2)
        assert parse(line(), line()).lines_read == 2
        with pytest.raises(ImportFileError, match="more than 2 lines"):
            parse(line(), line(), line())


class TestTheSample:
    def test_its_counts_are_known(self, history: OrderHistory) -> None:
        assert history.summary() == ImportSummary(
            lines_read=27_346,
            orders_placed=8_095,
            orders_cancelled=30,
            lines_rejected={"no_customer": 7_317, "price_not_positive": 2},
            invoices_rejected={"no_good_line": 915, "no_matching_order": 383},
        )
        assert sum(order.total.amount for order in placements(history)) == Decimal("423002.971")

    def test_every_line_and_every_invoice_is_accounted_for(self, history: OrderHistory, lines: list[str]) -> None:
        rows = list(csv.DictReader(lines))
        item_count = sum(len(order.items) for order in placements(history))
        cancelling_count = sum(row["InvoiceNo"].startswith("C") and row["CustomerID"] != "" for row in rows)
        assert item_count + cancelling_count + len(history.rejected_lines) == len(rows)

        rejected = [rejection.invoice for rejection in history.rejected_invoices]
        assert len(set(rejected)) == len(rejected)
        assert len(history.commands) + len(rejected) == len({row["InvoiceNo"] for row in rows})

    def test_what_is_supplied_is_what_the_good_lines_of_its_orders_sell(
        self, history: OrderHistory, lines: list[str]
    ) -> None:
        sold: Counter[str] = Counter()
        customers: dict[str, str] = {}
        for row in csv.DictReader(lines):
            if row["CustomerID"] and int(row["Quantity"]) > 0 and Decimal(row["UnitPrice"]) > 0:
                assert customers.setdefault(row["InvoiceNo"], row["CustomerID"]) == row["CustomerID"]
                sold[row["StockCode"]] += int(row["Quantity"])
        assert {supply.product_id: supply.quantity for supply in history.supplies()} == sold
        assert (len(sold), sold.total()) == (2590, 253_998)
        assert len({supply.command_id for supply in history.supplies()}) == 2590

    def test_command_ids_are_unique_and_a_second_reading_gives_the_same(self, history: OrderHistory) -> None:
        assert len({command.command_id for command in history.commands}) == len(history.commands)
        assert read_order_history(SAMPLE) == history

    def test_the_order_of_the_invoices_in_the_file_does_not_change_which_orders_exist(
        self, history: OrderHistory, lines: list[str]
    ) -> None:
        shuffled = lines[1:]
        random.Random(7).shuffle(shuffled)
        # Lines of one invoice keep their order, as its items do; they no longer stand together.
        in_file_order = {number: iter(group) for number, group in _lines_by_invoice(lines[1:]).items()}
        mixed = [next(in_file_order[text.split(",", 1)[0]]) for text in shuffled]
        again = parse_order_history([lines[0], *mixed])
        assert sorted(placements(again), key=_order_id) == sorted(placements(history), key=_order_id)
        assert again.summary() == history.summary()

    def test_a_brute_force_search_finds_the_same_matches(self, history: OrderHistory, lines: list[str]) -> None:
        found = {
            command.reason.removeprefix("invoice "): command.order_id
            for command in history.commands
            if isinstance(command, Cancellation)
        }
        assert found == _matches_by_brute_force(lines)


def _order_id(order: Placement) -> str:
    return order.order_id


def _lines_by_invoice(lines: list[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for text in lines:
        groups.setdefault(text.split(",", 1)[0], []).append(text)
    return groups


def _matches_by_brute_force(lines: list[str]) -> dict[str, str]:
    """Match on raw rows, comparing each cancellation with every invoice of the file; times compare as text."""
    rows = list(csv.DictReader(lines))
    when: dict[str, tuple[str, int]] = {}
    for position, row in enumerate(rows):
        number = row["InvoiceNo"]
        time, first = when.get(number, (row["InvoiceDate"], position))
        when[number] = min(time, row["InvoiceDate"]), first
    customers = {row["InvoiceNo"]: row["CustomerID"] for row in rows}
    products: dict[str, set[str]] = {number: set() for number in when}
    for row in rows:
        is_good = row["CustomerID"] and Decimal(row["UnitPrice"]) > 0
        if is_good and (int(row["Quantity"]) > 0 or row["InvoiceNo"].startswith("C")):
            products[row["InvoiceNo"]].add(row["StockCode"])
    matches: dict[str, str] = {}
    for cancellation in sorted((number for number in when if number.startswith("C")), key=lambda number: when[number]):
        candidates = [
            number
            for number in when
            if not number.startswith("C")
            and products[cancellation]
            and products[cancellation] <= products[number]
            and customers[number] == customers[cancellation]
            and when[number] < when[cancellation]
            and number not in matches.values()
        ]
        if candidates:
            matches[cancellation] = max(candidates, key=lambda number: when[number])
    return matches
