"""Notifications as mail: rendered from the templates, the same bytes for the same command."""

from __future__ import annotations

import email.policy
from collections.abc import Iterable
from decimal import Context, Decimal
from email.headerregistry import Address
from email.message import EmailMessage
from functools import cache
from importlib.resources import files
from string import Template
from typing import Final

import msgspec

from engine import Envelope, derived_id
from streams.events.money import Money
from streams.events.notifications import SendNotification
from streams.events.orders import OrderItem
from streams.mail.address import Mailbox
from streams.mail.text import one_line

# Not every server takes bytes over 127. One that knows SMTPUTF8 does.
_ASCII: Final = email.policy.SMTP.clone(cte_type="7bit")
_SUBJECT: Final = "Subject: "
_EXACT: Final = Context(prec=5_000)  # more digits than a record has room for in one amount that people would send

_REASONS: Final = {
    "out_of_stock": "we do not have enough of it in stock",
    "unknown_product": "we no longer have one of the products",
    "card_declined": "the card was declined",
    "timed_out": "we could not process it in time",
    "no_answer": "we could not process it in time",
}
"""Why, in words for customers; other codes are shown with spaces, and what people wrote as they wrote it."""


class Mail(msgspec.Struct, frozen=True):
    """One mail on its way out; `needs_utf8` when the mailbox's name is not ASCII (SMTPUTF8)."""

    order_id: str
    kind: str
    to: str
    message: EmailMessage
    needs_utf8: bool

    def encode(self) -> bytes:
        """The mail as it is sent, with CRLF."""
        return self.message.as_bytes()


def message_id(order_id: str, kind: str, sender: Mailbox) -> str:
    """The Message-ID of an order's mail of this kind, for ever the same."""
    return f"<{derived_id(order_id, kind)}@{sender.domain}>"


def render(command: Envelope[SendNotification], to: Mailbox, sender: Mailbox) -> Mail:
    """Render a notification; its date is the command's business time."""
    notification = command.payload
    needs_utf8 = not to.local.isascii()
    subject, body = _template(notification.kind)
    words = {
        "order_id": one_line(notification.order_id),
        "date": f"{command.timestamp:%Y-%m-%d}",
        "items": _item_lines(notification.items),
        "total": _amount(notification.total),
        "reason": _reason_line(notification.reason),
    }
    message = EmailMessage(email.policy.SMTPUTF8 if needs_utf8 else _ASCII)
    message["Message-ID"] = message_id(notification.order_id, notification.kind, sender)
    message["Date"] = command.timestamp
    message["From"] = Address(sender.display_name, sender.local, sender.domain)
    message["To"] = Address("", to.local, to.domain)
    message["Subject"] = subject.substitute(words)
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(body.substitute(words))
    return Mail(notification.order_id, notification.kind, str(to), message, needs_utf8)


@cache
def _template(kind: str) -> tuple[Template, Template]:
    """Subject and body: the first line of the file, and what follows the empty line after it."""
    text = files("streams.mail").joinpath("templates", f"{kind}.txt").read_text(encoding="utf-8")
    subject, _, body = text.removeprefix(_SUBJECT).partition("\n\n")
    return Template(subject), Template(body)


def _item_lines(items: Iterable[OrderItem]) -> str:
    return "\n".join(
        f"  {item.quantity} x {one_line(item.product_id)}"
        f"\n      {_amount(item.price)} each, {_amount(_line_total(item))}"
        for item in items
    )


def _line_total(item: OrderItem) -> Money:
    return Money(_EXACT.multiply(item.price.amount, Decimal(item.quantity)), item.price.currency)


def _amount(money: Money) -> str:
    return f"{money.amount:f} {one_line(money.currency)}"


def _reason_line(reason: str | None) -> str:
    words = one_line(reason or "")
    if not words:
        return ""
    is_code = words.isascii() and words.replace("_", "").isalnum() and words.islower()
    known = _REASONS.get(words) or (words.replace("_", " ") if is_code else words)
    return f"\nReason: {known}\n"
