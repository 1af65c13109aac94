"""Mail: how it is rendered, which addresses it goes to, and how it leaves over SMTP or into a folder."""

from __future__ import annotations

import asyncio
import email.policy
import logging
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from email import message_from_bytes, message_from_string
from email.message import EmailMessage
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.declare.envelope import Envelope, Metadata, new_envelope
from engine.declare.errors import Unavailable
from engine.declare.settings import SettingsError
from streams.events.money import Money
from streams.events.notifications import NotificationKind, SendNotification
from streams.events.orders import OrderItem
from streams.mail.address import InvalidAddress, Mailbox, parse_address, parse_sender
from streams.mail.delivery import open_mailer
from streams.mail.folder import FolderMailer, file_name
from streams.mail.message import Mail, message_id, render
from streams.mail.outcome import SENT, Delivery
from streams.mail.server import parse_smtp_url
from streams.mail.smtp import CONNECTIONS_MAX, SmtpMailer
from streams.settings import Settings, load_settings
from tests.apps import wait_until
from tests.kafka import unused_port
from tests.mail_server import MailServer, accept_only, mail_server

SENDER = parse_sender("Our Shop <orders@shop.example>")
ADA = parse_address("ada@example.com")
TEN_O_CLOCK = datetime(2010, 12, 1, 10, 0, tzinfo=UTC)


def usd(amount: str) -> Money:
    return Money(Decimal(amount), "USD")


ITEMS = (OrderItem("SKU-1", 2, usd("1.50")), OrderItem("SKU-22", 12, usd("1000.05")))


def command(
    kind: NotificationKind = "order_placed", order_id: str = "o-1", **changes: Any
) -> Envelope[SendNotification]:
    values: dict[str, Any] = {"email": str(ADA), "customer_id": "c-1", "items": ITEMS, "total": usd("12003.60")}
    return new_envelope(
        SendNotification(order_id, kind, **values | changes),
        event_id="n-1",
        aggregate_id=order_id,
        timestamp=TEN_O_CLOCK,
        metadata=Metadata(),
    )


def mail(order_id: str = "o-1", to: str = str(ADA)) -> Mail:
    return render(command(order_id=order_id), parse_address(to), SENDER)


def parsed(value: bytes) -> EmailMessage:
    return message_from_bytes(value, policy=email.policy.default)


def headers_of(value: bytes) -> EmailMessage:
    text = value.decode()  # read as text: the parser of bytes knows no headers in UTF-8
    return message_from_string(text, policy=email.policy.default)


# ---- rendering

PLACED = """\
Message-ID: <7d354161-6dd4-5822-bc27-c79136e0d80e@shop.example>
Date: Wed, 01 Dec 2010 10:00:00 +0000
From: Our Shop <orders@shop.example>
To: ada@example.com
Subject: We have received your order o-1
Auto-Submitted: auto-generated
Content-Type: text/plain; charset="utf-8"
Content-Transfer-Encoding: 7bit
MIME-Version: 1.0

Hello,

thank you for your order. We have received it and are getting it ready. You
will hear from us again as soon as it is confirmed.

Your order o-1 of 2010-12-01:

  2 x SKU-1
      1.50 USD each, 3.00 USD
  12 x SKU-22
      1000.05 USD each, 12000.60 USD

Total: 12003.60 USD

If anything is not as you wanted it, just reply to this mail and name the
order number.

Kind regards
Your order team
"""

CONFIRMED = """\
Hello,

good news: your order is confirmed and will soon be on its way to you.

Your order o-1:

  2 x SKU-1
      1.50 USD each, 3.00 USD
  12 x SKU-22
      1000.05 USD each, 12000.60 USD

Total: 12003.60 USD

Thank you for shopping with us.

Kind regards
Your order team
"""

CANCELLED = """\
Hello,

your order has been cancelled, and none of it will be sent.

Reason: we do not have enough of it in stock

What was cancelled, order o-1:

  2 x SKU-1
      1.50 USD each, 3.00 USD
  12 x SKU-22
      1000.05 USD each, 12000.60 USD

Total: 12003.60 USD

If you have paid already, the full amount goes back to you the way it came;
there is nothing you need to do. If you did not expect this, please reply to
this mail and name the order number.

Kind regards
Your order team
"""

FAILED = """\
Hello,

unfortunately we could not collect the payment for your order. No money was
taken.

Your order o-1:

  2 x SKU-1
      1.50 USD each, 3.00 USD
  12 x SKU-22
      1000.05 USD each, 12000.60 USD

Total: 12003.60 USD

You are welcome to place the order again with another means of payment. If
you have questions, please reply to this mail and name the order number.

Kind regards
Your order team
"""


def test_a_placed_order_is_told_like_this_to_the_byte() -> None:
    assert render(command(), ADA, SENDER).encode() == PLACED.replace("\n", "\r\n").encode()


@pytest.mark.parametrize(
    ("kind", "reason", "subject", "body"),
    [
        ("order_confirmed", None, "Your order o-1 is confirmed", CONFIRMED),
        ("order_cancelled", "out_of_stock", "Your order o-1 is cancelled", CANCELLED),
        ("payment_failed", None, "The payment for your order o-1 did not go through", FAILED),
    ],
)
def test_each_kind_of_mail_reads_like_this(kind: NotificationKind, reason: str | None, subject: str, body: str) -> None:
    message = render(command(kind, reason=reason), ADA, SENDER).message
    assert message["Subject"] == subject
    assert message.get_content() == body


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("card_declined", "Reason: the card was declined"),
        ("fraud_suspected", "Reason: fraud suspected"),
        ("I found it for less\nelsewhere", "Reason: I found it for less elsewhere"),
        ("x" * 1000, f"Reason: {'x' * 197}..."),
    ],
)
def test_a_reason_is_shown_in_words_on_one_line(reason: str, shown: str) -> None:
    assert shown in render(command("order_cancelled", reason=reason), ADA, SENDER).message.get_content().split("\n")


def test_the_message_id_depends_on_order_and_kind_alone() -> None:
    same = render(command(), ADA, SENDER).message
    other = render(command(items=ITEMS[:1], email="x@example.com"), parse_address("x@example.com"), SENDER).message
    assert other["Message-ID"] == same["Message-ID"] == message_id("o-1", "order_placed", SENDER)
    kinds = get_args(NotificationKind)
    assert len({message_id(order_id, kind, SENDER) for order_id in ("o-1", "o-2") for kind in kinds}) == 2 * len(kinds)


anything = st.text(min_size=1, max_size=128)


@given(
    kind=st.sampled_from(get_args(NotificationKind)),
    order_id=anything,
    product_id=anything,
    currency=st.text(min_size=3, max_size=3),
    reason=st.none() | anything,
    local=st.sampled_from(["ada", "o'hara+x", "müller"]),
    shop=st.sampled_from(["", "Our Shop", 'Büro "A", Söhne']),
)
def test_whatever_an_order_is_called_a_mail_has_its_headers_once_and_no_others(
    kind: NotificationKind,
    order_id: str,
    product_id: str,
    currency: str,
    reason: str | None,
    local: str,
    shop: str,
) -> None:
    items = (OrderItem(product_id, 1, Money(Decimal("1"), currency)),)
    to = Mailbox(local, "example.com")
    sender = SENDER._replace(display_name=shop)
    rendered = render(command(kind, order_id, items=items, reason=reason), to, sender)
    value = rendered.encode()
    assert value == rendered.encode()
    assert value.isascii() or rendered.needs_utf8
    message = headers_of(value)
    assert sorted(message.keys()) == [
        "Auto-Submitted",
        "Content-Transfer-Encoding",
        "Content-Type",
        "Date",
        "From",
        "MIME-Version",
        "Message-ID",
        "Subject",
        "To",
    ]
    assert message["To"] == str(to)
    assert message["From"].addresses[0].addr_spec == "orders@shop.example"
    assert message["From"].addresses[0].display_name == shop
    assert message["Message-ID"] == message_id(order_id, kind, sender)
    expected = rendered.message.get_content().splitlines()
    assert parsed(value).get_content().splitlines() == expected
    frame = render(command(kind, reason="reason" if "Reason:" in str(expected) else None), ADA, SENDER).message
    assert len(expected) == len(frame.get_content().splitlines()) - 2  # one item instead of two


def test_a_large_order_is_one_mail_with_every_line_and_exact_totals() -> None:
    items = tuple(OrderItem(f"SKU-{number}", 10**9, usd("9999999999999.99")) for number in range(2000))
    content = parsed(render(command(items=items), ADA, SENDER).encode()).get_content()
    assert content.count("9999999999999.99 USD each, 9999999999999990000000.00 USD") == 2000
    assert "SKU-1999" in content


# ---- addresses


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("ada@example.com", "ada@example.com"),
        ("o'hara+orders=1@mail.example.co.uk", "o'hara+orders=1@mail.example.co.uk"),
        ("ada@localhost", "ada@localhost"),
        ("müller@exämple.de", "müller@xn--exmple-cua.de"),
        ("x@faß.de", "x@xn--fa-hia.de"),
        ("{a}!#$%&'*/=?^_`|~-@example.com", "{a}!#$%&'*/=?^_`|~-@example.com"),
    ],
)
def test_an_address_is_taken_and_its_domain_made_ascii(text: str, wire: str) -> None:
    assert str(parse_address(text)) == wire


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ada",
        "@example.com",
        "ada@",
        "a@b@example.com",
        "ada@example.com\r\nBcc: eve@example.com",
        "ada@example.com\nBcc: eve@example.com",
        "ada\0@example.com",
        "ada@exam\u2028ple.com",
        "a\u200bda@example.com",
        "a\u202eda@example.com",
        "ada@example.com> NOTIFY=SUCCESS",
        "ada@example.com>",
        "<ada@example.com>",
        "Ada <ada@example.com>",
        "ada@example.com, eve@example.com",
        "ada@example.com,eve@example.com",
        "ada @example.com",
        '"a da"@example.com',
        ".ada@example.com",
        "a..da@example.com",
        "ada@-example.com",
        "ada@example..com",
        "ada@exa_mple.com",
        "ada@[127.0.0.1]",
        "ada@example.com.",
        f"{'a' * 65}@example.com",
        f"ada@{'a' * 64}.com",
        f"ada@{'a.' * 130}com",
        "x@\u0378.de",
    ],
)
def test_what_cannot_be_an_address_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(InvalidAddress) as refused:
        parse_address(text)
    assert "example" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sender"),
    [
        ("orders@localhost", Mailbox("orders", "localhost")),
        (" <orders@shop.example> ", Mailbox("orders", "shop.example")),
        ("Our Shop <orders@shop.example>", Mailbox("orders", "shop.example", "Our Shop")),
        ('"Müller, Söhne" <orders@shop.example>', Mailbox("orders", "shop.example", "Müller, Söhne")),
    ],
)
def test_a_sender_may_have_a_name_to_show(text: str, sender: Mailbox) -> None:
    assert parse_sender(text) == sender
    assert Settings(_env_file=None, mail_from=text).mail_from == text


@pytest.mark.parametrize("text", ["", "nobody", "Shop", "a@x\r\nBcc: y@z", "Shop <nobody>", "müller@shop.example"])
def test_a_sender_that_is_no_address_is_refused_at_start(text: str) -> None:
    with pytest.raises(SettingsError, match=r"(?s)^ORDERS_MAIL_FROM=.*not the address of a sender"):
        load_settings(_env_file=None, mail_from=text)


# ---- which server


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail", ("smtp", "mail", 25, "", "")),
        ("smtps://mail.example/", ("smtps", "mail.example", 465, "", "")),
        ("smtp+starttls://[::1]", ("smtp+starttls", "::1", 587, "", "")),
        ("smtp://ada%40example.com:p%2Fw%3A%20x@mail:2525", ("smtp", "mail", 2525, "ada@example.com", "p/w: x")),
    ],
)
def test_a_mail_server_is_named_by_its_url(url: str, expected: tuple[object, ...]) -> None:
    server = parse_smtp_url(url)
    assert (server.scheme, server.host, server.port, server.username, server.password) == expected
    assert Settings(_env_file=None, smtp_url=url).smtp_url == url


@pytest.mark.parametrize(
    "url",
    [
        "mail.example",
        "http://mail.example",
        "smtp://",
        "smtp://:25",
        "smtp://ada:s3cret@",
        "smtp://ada:s3cret@mail:0",
        "smtp://ada:s3cret@mail:99999",
        "smtp://ada:s3cret@mail:x",
        "smtp://ada:s3cret/5@mail",
        "smtp://ada:s3cret#5@mail",
        "smtp://ada:s3cret@mail/?x=1",
        "smtp://ada:s3cret@mail\r\n",
        "smtp://ada:s3cret @mail",
        "smtp://s3cret@mail",
        "smtp://:s3cret@mail",
        "smtp://[s3cret",
        "imap://ada:s3cret@mail",
    ],
)
def test_a_url_that_names_no_mail_server_is_refused_at_start_and_its_password_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(_env_file=None, smtp_url=url)
    assert str(refused.value).startswith("ORDERS_SMTP_URL: not the address of a mail server: ")
    with pytest.raises(ValueError, match="smtp_url") as raw:
        Settings(_env_file=None, smtp_url=url)
    assert "s3cret" not in f"{refused.value}{raw.value}"


def test_settings_and_server_do_not_show_the_password() -> None:
    settings = Settings(_env_file=None, smtp_url="smtp://ada:s3cret@mail")
    server = parse_smtp_url(settings.smtp_url)
    assert "s3cret" not in f"{settings!r}{settings}{server!r}{server}"


# ---- into a folder


STRANGE_IDS = [
    "o-1",
    "O.1_2@x+y",
    "../../etc/passwd",
    "a/b",
    "a\\b",
    "a b",
    "a_b",
    ".",
    "..",
    "-rf",
    "\0",
    "\n",
    "ü",
    "é",
    "e\u0301",
    "日" * 128,
    "x" * 128,
    "x" * 127 + "y",
    "a~b",
]


async def test_mail_goes_into_the_data_folder_without_a_mail_server(tmp_path: Path) -> None:
    async with open_mailer(Settings(_env_file=None, data_dir=tmp_path)) as mailer:
        assert await mailer.deliver(mail()) == SENT
    written = tmp_path / "mail" / "o-1-order_placed.eml"
    assert written.read_bytes() == mail().encode()
    assert written.stat().st_mode & 0o077 == 0


async def test_each_order_has_a_file_of_its_own_in_the_folder_whatever_its_id(tmp_path: Path) -> None:
    mailer = FolderMailer(tmp_path / "mail")
    for order_id in STRANGE_IDS:
        await mailer.deliver(mail(order_id))
        assert (tmp_path / "mail" / file_name(order_id, "order_placed")).read_bytes() == mail(order_id).encode()
    assert len(list((tmp_path / "mail").iterdir())) == len(STRANGE_IDS)
    assert [path.name for path in tmp_path.iterdir()] == ["mail"]


@given(order_id=anything)
def test_a_file_name_is_short_visible_and_safe(order_id: str) -> None:
    name = file_name(order_id, "order_cancelled")
    assert len(name) <= 130
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set('/\\:*?"<>| ')
    assert name[0] not in ".-"


async def test_the_same_mail_again_gives_the_same_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    mailer = FolderMailer(tmp_path)
    for _ in range(3):
        await mailer.deliver(mail())
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [
        ("o-1-order_placed.eml", mail().encode())
    ]


async def test_a_folder_that_cannot_be_written_is_tried_again_later(tmp_path: Path) -> None:
    (tmp_path / "mail").write_text("in the way")
    mailer = FolderMailer(tmp_path / "mail")
    with pytest.raises(Unavailable, match="mail cannot be written"):
        await mailer.deliver(mail())
    (tmp_path / "mail").unlink()
    assert await mailer.deliver(mail()) == SENT


async def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "o-1-order_placed.eml").mkdir()
    with pytest.raises(Unavailable):
        await FolderMailer(tmp_path).deliver(mail())
    assert [path.name for path in tmp_path.iterdir()] == ["o-1-order_placed.eml"]


# ---- over SMTP


@asynccontextmanager
async def mailer_for(url: str, timeout_s: float = 10.0) -> AsyncIterator[SmtpMailer]:
    """Give a mailer for the server at a URL."""
    mailer = SmtpMailer(parse_smtp_url(url), SENDER, timeout_s)
    try:
        yield mailer
    finally:
        await mailer.close()


async def test_a_mail_arrives_as_it_was_rendered() -> None:
    async with mail_server() as server, mailer_for(server.url) as mailer:
        assert await mailer.deliver(mail()) == SENT
        (received,) = server.mails
        assert received.value == mail().encode()
        assert (received.to, server.senders) == ("ada@example.com", ["orders@shop.example"])


async def test_one_mail_after_the_other_goes_over_one_connection() -> None:
    async with mail_server() as server, mailer_for(server.url) as mailer:
        for number in range(10):
            await mailer.deliver(mail(f"o-{number}"))
        assert (len(server.mails), server.connections) == (10, 1)


async def test_many_mails_at_once_go_over_a_few_connections() -> None:
    async with mail_server() as server, mailer_for(server.url) as mailer:
        await asyncio.gather(*(mailer.deliver(mail(f"o-{number}")) for number in range(50)))
        assert len({str(received.message["Message-ID"]) for received in server.mails}) == len(server.mails) == 50
        assert server.connections == server.most_open == CONNECTIONS_MAX


async def test_a_broken_connection_is_replaced_before_anything_is_lost() -> None:
    async with mail_server() as server, mailer_for(server.url) as mailer:
        await mailer.deliver(mail("o-1"))
        await server.stop()
        await server.start()
        assert await mailer.deliver(mail("o-2")) == SENT
        server.drop_connections()
        assert await mailer.deliver(mail("o-3")) == SENT
        assert (len(server.mails), server.connections) == (3, 3)


async def test_connections_are_closed_with_the_mailer() -> None:
    async with mail_server() as server:
        async with mailer_for(server.url) as mailer:
            await asyncio.gather(*(mailer.deliver(mail(f"o-{number}")) for number in range(10)))
        await wait_until(lambda: not server.open_connections, "all connections are closed")


async def test_a_call_that_is_cancelled_leaves_no_connection_behind() -> None:
    async with mail_server() as server, mailer_for(server.url) as mailer:
        server.hold = asyncio.Event()
        call = asyncio.create_task(mailer.deliver(mail("o-1")))
        await wait_until(lambda: server.asked, "the mail is on its way")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        server.hold.set()
        assert await mailer.deliver(mail("o-2")) == SENT
        assert server.connections == 2


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("MAIL", "451 4.3.0 come back later"),
        ("RCPT", "450 4.2.1 come back later"),
        ("DATA", "452 4.3.1 come back later"),
        ("RCPT", "421 4.3.2 come back later"),
    ],
)
async def test_a_server_that_asks_to_come_back_later_is_unavailable(command: str, answer: str) -> None:
    async with mail_server() as server, mailer_for(server.url) as mailer:
        server.replies[command] = [answer]
        with pytest.raises(Unavailable, match=f"^mail server 127.0.0.1:{server.port}: {answer[:3]} .*come back later"):
            await mailer.deliver(mail())
        assert await mailer.deliver(mail()) == SENT


@pytest.mark.parametrize("command", ["RCPT", "DATA"])
async def test_a_refusal_for_good_is_undeliverable_in_the_servers_words_without_the_address(command: str) -> None:
    async with mail_server() as server, mailer_for(server.url) as mailer:
        server.replies[command] = ["550 5.1.1 <ADA@example.com>: no such user"]
        assert await mailer.deliver(mail()) == Delivery("undeliverable", "550 5.1.1 <the address>: no such user")
        assert await mailer.deliver(mail()) == SENT
        assert server.connections == 1


async def test_a_server_that_refuses_the_sender_is_unavailable_and_the_setting_is_named() -> None:
    async with mail_server() as server, mailer_for(server.url) as mailer:
        server.replies["MAIL"] = ["550 5.7.1 not yours"]
        with pytest.raises(Unavailable, match=r"ORDERS_MAIL_FROM: 550 5\.7\.1 not yours"):
            await mailer.deliver(mail())


async def test_a_server_that_wants_a_login_is_unavailable_rather_than_the_mail_undeliverable() -> None:
    async with mail_server() as server, mailer_for(server.url) as mailer:
        server.replies["RCPT"] = ["530 5.7.0 Authentication required"]
        with pytest.raises(Unavailable, match="530"):
            await mailer.deliver(mail())


async def test_a_login_is_used_and_a_wrong_one_named_without_the_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with mail_server(**accept_only("ada", "p/w: x")) as server:
        async with mailer_for(f"smtp://ada:p%2Fw%3A%20x@127.0.0.1:{server.port}") as mailer:
            assert await mailer.deliver(mail()) == SENT
        caplog.clear()
        async with mailer_for(f"smtp://ada:s3cret@127.0.0.1:{server.port}") as mailer:
            with pytest.raises(Unavailable, match="refuses the user and password of ORDERS_SMTP_URL") as refused:
                await mailer.deliver(mail())
    assert "s3cret" not in str(refused.value)
    ours = [
        record for record in caplog.records if not record.name.startswith("mail.")
    ]  # aiosmtpd's own are the server's
    assert "s3cret" not in str([record.getMessage() for record in ours])


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    port = unused_port()
    async with mailer_for(f"smtp://127.0.0.1:{port}") as mailer:
        with pytest.raises(Unavailable, match=f"mail server 127.0.0.1:{port}: "):
            await mailer.deliver(mail())


async def test_a_server_that_says_nothing_is_unavailable() -> None:
    silent: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: silent.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with mailer_for(f"smtp://127.0.0.1:{port}", timeout_s=0.1) as mailer:
        with pytest.raises(Unavailable, match=r"(?i)timed out"):
            await mailer.deliver(mail())
    for writer in silent:
        writer.close()
    server.close()


async def test_a_connection_that_ends_in_the_middle_of_a_mail_is_unavailable() -> None:
    async with mail_server() as server, mailer_for(server.url) as mailer:
        server.hold = asyncio.Event()
        call = asyncio.create_task(mailer.deliver(mail()))
        await wait_until(lambda: server.asked, "the mail is on its way")
        server.drop_connections()
        with pytest.raises(Unavailable):
            await call
        server.hold.set()


async def test_a_mailbox_that_is_not_ascii_needs_a_server_that_knows_it() -> None:
    async with mail_server() as server, mailer_for(server.url) as mailer:
        assert await mailer.deliver(mail(to="müller@exämple.de")) == SENT
        (received,) = server.mails
        assert received.to == headers_of(received.value)["To"] == "müller@xn--exmple-cua.de"
    async with mail_server(enable_SMTPUTF8=False) as server, mailer_for(server.url) as mailer:
        delivery = await mailer.deliver(mail(to="müller@exämple.de"))
        assert (delivery.state, server.asked) == ("undeliverable", [])
        assert await mailer.deliver(mail(to="mueller@exämple.de")) == SENT


# ---- encrypted


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Give a server's TLS for `localhost`, with a certificate that this process trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    made, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    arguments = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run(["openssl", *arguments.split(), "-keyout", key, "-out", made], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", os.fspath(made))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made, key)
    return context


async def test_smtps_is_encrypted_from_the_start(certificate: ssl.SSLContext) -> None:
    async with (
        mail_server(implicit_tls=certificate) as server,
        mailer_for(f"smtps://localhost:{server.port}") as mailer,
    ):
        assert await mailer.deliver(mail()) == SENT


async def test_starttls_encrypts_before_anything_is_said(certificate: ssl.SSLContext) -> None:
    async with (
        mail_server(tls_context=certificate, require_starttls=True) as server,
        mailer_for(f"smtp+starttls://localhost:{server.port}") as mailer,
    ):
        assert await mailer.deliver(mail()) == SENT


async def test_a_server_without_starttls_is_not_talked_to_in_the_clear() -> None:
    async with mail_server() as server, mailer_for(f"smtp+starttls://127.0.0.1:{server.port}") as mailer:
        with pytest.raises(Unavailable, match="STARTTLS"):
            await mailer.deliver(mail())
        assert server.asked == []


async def test_a_server_with_a_strange_certificate_is_not_talked_to(
    certificate: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    server: MailServer
    async with (
        mail_server(implicit_tls=certificate) as server,
        mailer_for(f"smtps://localhost:{server.port}") as mailer,
    ):
        with pytest.raises(Unavailable, match=r"(?i)certificate"):
            await mailer.deliver(mail())
        assert server.asked == []
