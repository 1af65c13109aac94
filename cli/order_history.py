"""Turn a file of order history into commands: which orders were placed, and which of them were cancelled.

The file is the UCI data set "Online Retail" (D. Chen 2015, doi 10.24432/C5BW33) as CSV, plain or gzipped. What comes
out is a function of the file alone: no clock, no random numbers, nothing of what the system already holds.

Lines. Each line is good, or rejected with the first reason that applies:

- ``malformed``: not eight columns, an empty invoice number or stock code, an id of more than 128 characters, or a
  quantity, time or price that is not one. Nothing else of such a line is used.
- ``no_customer``: the customer is empty.
- ``quantity_not_positive``: on an order's line. A cancellation's lines count pieces given back, so theirs may be
  negative.
- ``price_not_positive``: on any line.
- ``customer_conflict``: another customer than on the invoice's first good line.

Invoices. Lines with the same number are one invoice, wherever in the file they stand. Its time is the earliest of its
lines, rejected ones included unless malformed. It stands in the history by that time, then by its first line in the
file; "earlier" and "latest" below mean this order, so within a minute the file's order decides.

- An order is an invoice with a good line: its number is the order's id, its items are the good lines in the file's
  order, its total is the exact sum of quantity times price in GBP, its country is that of the first good line.
  Without a good line it is rejected as ``no_good_line``.
- A cancellation is an invoice ``C...``. It cancels the latest earlier order of its customer that contains all products
  of its good lines and is not cancelled yet. Whatever else it is, also without a good line (so without a customer), it
  is rejected as ``no_matching_order``.

Stock. The file does not say what was on the shelf. So that its orders can be filled, each product is supplied with all
pieces that the orders of the file ask for, at the time of the first of them.
"""

import csv
import gzip
import re
import uuid
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal, cast

import msgspec

from engine import derived_id, is_accepted
from streams.events.money import Money

CURRENCY = "GBP"
HEADER = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country"]
# uuid5 of the data set's DOI as a URL. Never change it: the ids are what makes a second import change nothing.
COMMAND_NAMESPACE = uuid.UUID("2be43a6b-2a40-5c9f-a6df-b2245ddfce23")

# Everything of a file is held in memory until the cancellations are matched: a few hundred bytes a line.
LINES_MAX = 2_000_000
LINE_BYTES_MAX = 64 * 1024
ID_LENGTH_MAX = 128
# Bounded, so that the sums stay exact within decimal's 28 digits.
_QUANTITY = re.compile(r"-?[0-9]{1,9}")
_PRICE = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,6})?")
# This project's sample, and the two ways in which the original spreadsheet is usually exported.
_TIME_FORMATS = ("%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%m/%d/%Y %H:%M")
_GZIP_MAGIC = b"\x1f\x8b"

LineReason = Literal["malformed", "no_customer", "quantity_not_positive", "price_not_positive", "customer_conflict"]
InvoiceReason = Literal["no_good_line", "no_matching_order"]


class ImportFileError(Exception):
    """The file cannot be read, or is not order history of this kind; the message is meant for the user."""


class Item(msgspec.Struct, frozen=True, gc=False):
    """One good line of an order; `price` is that of one piece."""

    product_id: str
    quantity: int
    price: Money


class Placement(msgspec.Struct, frozen=True):
    """Place an order. All but `command_id` has the shape of the body of `POST /orders`."""

    command_id: str
    order_id: str
    customer_id: str
    items: tuple[Item, ...]
    total: Money
    occurred_at: datetime
    country: str | None


class Cancellation(msgspec.Struct, frozen=True, gc=False):
    """Cancel an order that an earlier command placed; `reason` names the invoice that says so."""

    command_id: str
    order_id: str
    occurred_at: datetime
    reason: str


class Supply(msgspec.Struct, frozen=True, gc=False):
    """Pieces of a product that the file's orders ask for in total; the fields are those of `POST /inventory/batch`.

    The id follows from the product alone: however many imports race, one of them stocks it.
    """

    product_id: str
    quantity: int
    occurred_at: datetime
    command_id: str


class RejectedLine(msgspec.Struct, frozen=True, gc=False):
    """A line that takes no part; `line_number` counts from 1, which is the header."""

    line_number: int
    invoice: str
    reason: LineReason


class RejectedInvoice(msgspec.Struct, frozen=True, gc=False):
    """An invoice that leads to no command."""

    invoice: str
    reason: InvoiceReason


class ImportSummary(msgspec.Struct, frozen=True):
    """Counts of one file; the rejected ones by reason, reasons that did not occur are absent."""

    lines_read: int
    orders_placed: int
    orders_cancelled: int
    lines_rejected: dict[str, int]
    invoices_rejected: dict[str, int]


class OrderHistory(msgspec.Struct, frozen=True):
    """What a file says: commands in the order of the history, rejections in the order of the file."""

    commands: tuple[Placement | Cancellation, ...]
    rejected_lines: tuple[RejectedLine, ...]
    rejected_invoices: tuple[RejectedInvoice, ...]
    lines_read: int

    @property
    def placements(self) -> list[Placement]:
        """The orders."""
        return [command for command in self.commands if isinstance(command, Placement)]

    @property
    def cancellations(self) -> list[Cancellation]:
        """The cancellations."""
        return [command for command in self.commands if isinstance(command, Cancellation)]

    def supplies(self) -> list[Supply]:
        """What has to be on the shelf for the orders, by product in the order of the first sale."""
        pieces: Counter[str] = Counter()
        first_sold: dict[str, datetime] = {}
        for placement in self.placements:
            for item in placement.items:
                pieces[item.product_id] += item.quantity
                first_sold.setdefault(item.product_id, placement.occurred_at)
        return [
            Supply(product_id, quantity, first_sold[product_id], derived_id(product_id, "import-stock"))
            for product_id, quantity in pieces.items()
        ]

    def summary(self) -> ImportSummary:
        """Count it."""
        placed = len(self.placements)
        return ImportSummary(
            lines_read=self.lines_read,
            orders_placed=placed,
            orders_cancelled=len(self.commands) - placed,
            lines_rejected=dict(sorted(Counter(line.reason for line in self.rejected_lines).items())),
            invoices_rejected=dict(sorted(Counter(invoice.reason for invoice in self.rejected_invoices).items())),
        )


def read_order_history(path: Path) -> OrderHistory:
    """Read a CSV file, gzipped or plain, each line UTF-8 or else Latin-1.

    Raises:
        ImportFileError: the file cannot be read, is damaged, too large, or has another header.
    """
    try:
        with path.open("rb") as plain:
            is_gzip = plain.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            plain.seek(0)
            # A GzipFile is a BinaryIO in all that is used here. It holds nothing of its own to close.
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=plain)) if is_gzip else plain
            return parse_order_history(_decoded_lines(stream))
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ImportFileError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise ImportFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except ImportFileError as error:
        raise ImportFileError(f"{path} is not a file of order history: {error}") from error


def parse_order_history(lines: Iterable[str]) -> OrderHistory:
    """Apply the rules in the module's docstring to the lines of a CSV file, header first.

    Raises:
        ImportFileError: the header is another one, or there are too many lines.
    """
    invoices: dict[str, _Invoice] = {}
    rejected_lines: list[RejectedLine] = []
    lines_read = 0
    for line_number, row in _rows(lines):
        lines_read += 1
        if lines_read > LINES_MAX:
            raise ImportFileError(f"it has more than {LINES_MAX:,} lines; split it by time")
        number = row[0].strip()[:ID_LENGTH_MAX]
        reason = _add_line(invoices, number, row)
        if reason is not None:
            rejected_lines.append(RejectedLine(line_number, number, reason))
    commands, rejected_invoices = _match(invoices)
    return OrderHistory(commands, tuple(rejected_lines), rejected_invoices, lines_read)


class _Invoice(msgspec.Struct):
    """What has been read of an invoice; `position` counts invoices by their first line."""

    number: str
    position: int
    occurred_at: datetime = datetime.max.replace(tzinfo=UTC)
    customer_id: str = ""
    country: str | None = None
    items: list[Item] = []

    @property
    def is_cancellation(self) -> bool:
        return self.number.startswith("C")

    @property
    def products(self) -> frozenset[str]:
        return frozenset(item.product_id for item in self.items)


def _add_line(invoices: dict[str, _Invoice], number: str, row: list[str]) -> LineReason | None:
    """Add a line to its invoice, or say why not."""
    if not number:
        return "malformed"
    invoice = invoices.get(number)
    if invoice is None:
        invoice = invoices[number] = _Invoice(number, position=len(invoices))
    cells = [cell.strip() for cell in row]
    if len(cells) != len(HEADER) or not cells[1] or max(len(cells[n]) for n in (0, 1, 6, 7)) > ID_LENGTH_MAX:
        return "malformed"
    _, product_id, _, quantity_text, time_text, price_text, customer_id, country = cells
    occurred_at, price = _parse_time(time_text), _parse_price(price_text)
    if occurred_at is None or price is None or not _QUANTITY.fullmatch(quantity_text):
        return "malformed"
    invoice.occurred_at = min(invoice.occurred_at, occurred_at)
    quantity = int(quantity_text)
    if not customer_id:
        return "no_customer"
    if quantity <= 0 and not invoice.is_cancellation:
        return "quantity_not_positive"
    if price.amount <= 0:
        return "price_not_positive"
    if not invoice.items:
        invoice.customer_id, invoice.country = customer_id, country or None
    elif customer_id != invoice.customer_id:
        return "customer_conflict"
    invoice.items.append(Item(product_id, quantity, price))
    return None


def _match(
    invoices: dict[str, _Invoice],
) -> tuple[tuple[Placement | Cancellation, ...], tuple[RejectedInvoice, ...]]:
    """Walk through the history once, so that a cancellation meets exactly the earlier orders that are still open."""
    commands: list[Placement | Cancellation] = []
    rejected: list[tuple[int, RejectedInvoice]] = []
    open_orders: dict[str, list[_Invoice]] = defaultdict(list)
    for invoice in sorted(invoices.values(), key=lambda invoice: (invoice.occurred_at, invoice.position)):
        if invoice.is_cancellation:
            order = _take_match(open_orders[invoice.customer_id], invoice)
            if order is not None:
                commands.append(_cancellation(invoice, order))
            else:
                rejected.append((invoice.position, RejectedInvoice(invoice.number, "no_matching_order")))
        elif invoice.items:
            open_orders[invoice.customer_id].append(invoice)
            commands.append(_placement(invoice))
        else:
            rejected.append((invoice.position, RejectedInvoice(invoice.number, "no_good_line")))
    return tuple(commands), tuple(invoice for _, invoice in sorted(rejected))


def _take_match(open_orders: list[_Invoice], cancellation: _Invoice) -> _Invoice | None:
    """Take the latest order that contains all products of the cancellation out of the open ones."""
    products = cancellation.products
    # An invoice without a good line names no product, and no customer either: it must not match "everything".
    if products:
        for index in range(len(open_orders) - 1, -1, -1):
            if products <= open_orders[index].products:
                return open_orders.pop(index)
    return None


def _placement(invoice: _Invoice) -> Placement:
    total = sum((item.quantity * item.price.amount for item in invoice.items), Decimal(0))
    return Placement(
        command_id=_command_id(invoice.number),
        order_id=invoice.number,
        customer_id=invoice.customer_id,
        items=tuple(invoice.items),
        total=Money(total, CURRENCY),
        occurred_at=invoice.occurred_at,
        country=invoice.country,
    )


def _cancellation(invoice: _Invoice, order: _Invoice) -> Cancellation:
    return Cancellation(_command_id(invoice.number), order.number, invoice.occurred_at, f"invoice {invoice.number}")


def _command_id(invoice_number: str) -> str:
    return str(uuid.uuid5(COMMAND_NAMESPACE, invoice_number))


@lru_cache(maxsize=4096)
def _parse_price(text: str) -> Money | None:
    """Parse a price; cached, because a shop has few prices and equal ones then share memory."""
    return Money(Decimal(text), CURRENCY) if _PRICE.fullmatch(text) else None


@lru_cache(maxsize=4096)
def _parse_time(text: str) -> datetime | None:
    """Parse a time of an accepted year as UTC; cached, because the lines of an invoice share theirs."""
    for time_format in _TIME_FORMATS:
        try:
            time = datetime.strptime(text, time_format).replace(tzinfo=UTC)
        except ValueError:
            continue
        return time if is_accepted(time) else None
    return None


def _rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Split lines into columns, with the line's number; check and leave out the header, skip blank lines."""
    numbered = enumerate(lines, start=1)
    _, header = next(numbered, (1, ""))
    if [name.strip() for name in _split(header)] != HEADER:
        raise ImportFileError(f"its first line is not {','.join(HEADER)}")
    for line_number, line in numbered:
        if line.strip():
            yield line_number, _split(line)


def _split(line: str) -> list[str]:
    """Split one line by itself: a quote that is never closed costs its own line, not all that follow."""
    try:
        return next(csv.reader([line]), [""])
    except csv.Error:
        return [""]


def _decoded_lines(stream: BinaryIO) -> Iterator[str]:
    """Decode line by line, so that a single Latin-1 name does not spoil the rest, nor does the file fill the memory."""
    encoding = "utf-8-sig"  # a spreadsheet may have put a byte order mark before the header
    for line in iter(lambda: stream.readline(LINE_BYTES_MAX + 1), b""):
        if len(line) > LINE_BYTES_MAX:
            raise ImportFileError(f"a line is longer than {LINE_BYTES_MAX // 1024} KiB")
        try:
            yield line.decode(encoding)
        except UnicodeDecodeError:
            yield line.decode("latin-1")
        encoding = "utf-8"
