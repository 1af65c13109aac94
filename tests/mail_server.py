"""A mail server on the loopback for tests: keeps what it accepts, and refuses what it is told to."""

from __future__ import annotations

import asyncio
import email.policy
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes
from email.message import EmailMessage
from typing import Any, NamedTuple

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword


class Received(NamedTuple):
    """A mail that was accepted."""

    to: str
    message: EmailMessage
    value: bytes


class MailServer:
    """A real SMTP server (aiosmtpd) in the test's loop.

    `replies` has answers to give to MAIL, RCPT or DATA, oldest first, before all is accepted; `refused` what to answer
    to a recipient whenever it is named. It may be stopped, and started again on the same port.
    """

    def __init__(self, port: int = 0, implicit_tls: ssl.SSLContext | None = None, **options: Any) -> None:
        self.port = port
        self.replies: dict[str, list[str]] = {"MAIL": [], "RCPT": [], "DATA": []}
        self.refused: dict[str, str] = {}
        self.mails: list[Received] = []
        self.asked: list[str] = []  # recipients, whatever the answer was
        self.senders: list[str] = []
        self.connections = 0
        self.hold: asyncio.Event | None = None  # answers to DATA wait for it
        self.most_open = 0
        self._implicit_tls = implicit_tls
        self._options = {"enable_SMTPUTF8": True, "hostname": "mail.test", **options}
        self._open: set[_Protocol] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """ORDERS_SMTP_URL of this server."""
        return f"smtp://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        """How many clients are connected."""
        return len(self._open)

    def messages_to(self, address: str) -> list[EmailMessage]:
        """The mails that were accepted for an address."""
        return [mail.message for mail in self.mails if mail.to == address]

    async def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connect, "127.0.0.1", self.port, ssl=self._implicit_tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and every connection, in the middle of whatever it is."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.drop_connections()
        await asyncio.sleep(0)

    def drop_connections(self) -> None:
        """Close every connection without a word."""
        for protocol in list(self._open):
            if protocol.transport is not None:
                protocol.transport.abort()  # type: ignore[attr-defined]

    async def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        """Take the sender."""
        self.senders.append(address)
        if self.replies["MAIL"]:
            return self.replies["MAIL"].pop(0)
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        """Take a recipient."""
        self.asked.append(address)
        if address in self.refused:
            return self.refused[address]
        if self.replies["RCPT"]:
            return self.replies["RCPT"].pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Take the mail."""
        if self.replies["DATA"]:
            return self.replies["DATA"].pop(0)
        if self.hold is not None:
            await self.hold.wait()
        message = message_from_bytes(envelope.content, policy=email.policy.default)
        self.mails.append(Received(envelope.rcpt_tos[0], message, envelope.content))
        return "250 OK"

    def _connect(self) -> _Protocol:
        return _Protocol(self, self._options)

    def opened(self, protocol: _Protocol) -> None:
        """A client has come."""
        self.connections += 1
        self._open.add(protocol)
        self.most_open = max(self.most_open, len(self._open))

    def closed(self, protocol: _Protocol) -> None:
        """A client has gone."""
        self._open.discard(protocol)


class _Protocol(SMTP):
    """One connection, which the server knows of."""

    def __init__(self, owner: MailServer, options: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a login in the clear is what some tests are about
            super().__init__(owner, loop=asyncio.get_running_loop(), **options)
        self._owner = owner

    def connection_made(self, transport: Any) -> None:
        """Note it; STARTTLS makes the connection a second time."""
        if self not in self._owner._open:
            self._owner.opened(self)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Note it."""
        self._owner.closed(self)
        super().connection_lost(error)


def accept_only(username: str, password: str) -> dict[str, Any]:
    """Options of a server that wants this login; to others it repeats what they sent."""

    def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: LoginPassword) -> AuthResult:
        if (data.login, data.password) == (username.encode(), password.encode()):
            return AuthResult(success=True)
        return AuthResult(success=False, handled=False, message=f"535 5.7.8 not {data.password.decode()}")

    return {"authenticator": authenticate, "auth_required": True, "auth_require_tls": False}


@asynccontextmanager
async def mail_server(**options: Any) -> AsyncIterator[MailServer]:
    """Run a mail server while the block lasts."""
    server = MailServer(**options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
