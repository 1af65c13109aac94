"""Mail over SMTP: a few connections that are used again and again."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import Final

from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPDataError,
    SMTPException,
    SMTPNotSupported,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPSenderRefused,
)

from engine import Attributes, Unavailable, annotate, calling
from engine.inspection import slot
from streams.mail.address import Mailbox
from streams.mail.message import Mail
from streams.mail.outcome import SENT, Delivery
from streams.mail.server import MailServer
from streams.mail.text import one_line

CONNECTIONS_MAX: Final = 4
QUIT_TIMEOUT_S: Final = 1.0

_NO_SMTPUTF8 = Delivery("undeliverable", "the mail server takes only ASCII letters before the @ of an address")
_ERRORS = (SMTPException, OSError)  # what aiosmtplib raises when a server or the way to it fails
_LOGIN_CODES = frozenset((530, 534, 535, 538))  # who we are is not enough: nothing that the mail is to blame for


class SmtpMailer:
    """Delivers to one server over at most CONNECTIONS_MAX connections.

    A connection on which anything but a clear answer to a mail came is not used again. A mail whose last answer was
    lost is sent once more, under the same Message-ID.
    """

    def __init__(self, server: MailServer, sender: Mailbox, timeout_s: float) -> None:
        self._server = server
        self._sender = str(sender)
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(CONNECTIONS_MAX)
        self._idle: list[SMTP] = []
        self._closed = False

    async def deliver(self, mail: Mail) -> Delivery:
        """Hand a mail to the server; raises Unavailable when it cannot be reached or asks to come back later."""
        told: Attributes = {
            "server.address": self._server.host,
            "server.port": self._server.port,
            "orders.mail.kind": mail.kind,
        }
        async with slot(self._slots):
            with calling("send mail", told):
                delivery = await self._deliver(mail)
                annotate("orders.mail.state", delivery.state)
                return delivery

    async def _deliver(self, mail: Mail) -> Delivery:
        connection = await self._take()
        try:
            delivery = await self._send(connection, mail)
        except BaseException:
            connection.close()
            raise
        if self._closed:
            connection.close()
        else:
            self._idle.append(connection)
        return delivery

    async def close(self) -> None:
        """Say goodbye on idle connections; one in use is closed by whoever uses it."""
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(_quit(connection) for connection in idle))

    async def _take(self) -> SMTP:
        """An idle connection that still works, else a new one."""
        while self._idle:
            connection = self._idle.pop()
            try:
                await connection.rset()
                return connection
            except BaseException as error:
                connection.close()
                if not isinstance(error, _ERRORS):
                    raise
        return await self._connect()

    async def _connect(self) -> SMTP:
        server = self._server
        connection = SMTP(
            hostname=server.host,
            port=server.port,
            username=server.username or None,
            password=server.password or None,
            use_tls=server.scheme == "smtps",
            start_tls=server.scheme == "smtp+starttls",
            timeout=self._timeout_s,
        )
        try:
            await connection.connect()
        except BaseException as error:
            connection.close()
            if isinstance(error, SMTPAuthenticationError):
                # Without the server's words: some repeat what they were sent.
                raise Unavailable(
                    f"mail server {server} refuses the user and password of ORDERS_SMTP_URL ({error.code})"
                ) from None
            if isinstance(error, _ERRORS):
                raise self._unavailable(error) from error
            raise
        return connection

    async def _send(self, connection: SMTP, mail: Mail) -> Delivery:
        options = ["SMTPUTF8", "BODY=8BITMIME"] if mail.needs_utf8 else []
        try:
            await connection.sendmail(self._sender, [mail.to], mail.encode(), mail_options=options)
        except SMTPNotSupported:
            return _NO_SMTPUTF8
        except _ERRORS as error:
            refusal = permanent_refusal(error)
            if refusal is None:
                raise self._unavailable(error, mail.to) from error
            return Delivery("undeliverable", _without_address(refusal, mail.to))
        return SENT

    def _unavailable(self, error: Exception, to: str = "") -> Unavailable:
        if isinstance(error, SMTPSenderRefused) and error.code >= 500:
            return Unavailable(f"mail server {self._server} refuses the sender ORDERS_MAIL_FROM: {_words(error)}")
        if isinstance(error, SMTPRecipientsRefused):
            error = error.recipients[0]
        words = _words(error) if isinstance(error, SMTPResponseException) else one_line(str(error))
        words = _without_address(words, to) if to else words
        return Unavailable(f"mail server {self._server}: {words or type(error).__name__}")


def permanent_refusal(error: Exception) -> str | None:
    """The server's words when it refuses this recipient or this mail for good, else None."""
    if isinstance(error, SMTPRecipientsRefused):
        error = error.recipients[0]
    elif not isinstance(error, SMTPDataError):
        return None
    if not isinstance(error, SMTPResponseException) or not 500 <= error.code < 600 or error.code in _LOGIN_CODES:
        return None
    return _words(error)


def _words(answer: SMTPResponseException) -> str:
    return one_line(f"{answer.code} {answer.message}", 500)


def _without_address(words: str, address: str) -> str:
    """Servers repeat the address, which is not for everybody's eyes."""
    return re.sub(re.escape(address), "the address", words, flags=re.IGNORECASE)


async def _quit(connection: SMTP) -> None:
    with suppress(*_ERRORS):
        await connection.quit(timeout=QUIT_TIMEOUT_S)
    connection.close()
