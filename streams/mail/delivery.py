"""Which way mail goes: to the mail server of the settings, or into the data folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from streams.mail.address import parse_sender
from streams.mail.folder import FolderMailer
from streams.mail.message import Mail
from streams.mail.outcome import Delivery
from streams.mail.server import parse_smtp_url
from streams.mail.smtp import SmtpMailer
from streams.settings import Settings


class Mailer(Protocol):
    """A way for mail to leave."""

    async def deliver(self, mail: Mail) -> Delivery:
        """Hand a mail over; raises Unavailable when that has to be tried again later."""


@asynccontextmanager
async def open_mailer(settings: Settings) -> AsyncIterator[Mailer]:
    """The mailer of these settings while the block lasts: SMTP, or without ORDERS_SMTP_URL `{data_dir}/mail`."""
    if not settings.smtp_url:
        yield FolderMailer(settings.data_dir / "mail")
        return
    server, sender = parse_smtp_url(settings.smtp_url), parse_sender(settings.mail_from)
    mailer = SmtpMailer(server, sender, settings.smtp_timeout)
    try:
        yield mailer
    finally:
        await mailer.close()
