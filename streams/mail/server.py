"""Which mail server: ORDERS_SMTP_URL taken apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

DEFAULT_PORTS: Final = {"smtp": 25, "smtps": 465, "smtp+starttls": 587}


@dataclass(frozen=True)
class MailServer:
    """A mail server; `scheme` is one of DEFAULT_PORTS, an empty username means no login. The password is not shown."""

    scheme: str
    host: str
    port: int
    username: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_smtp_url(url: str) -> MailServer:
    """Take `smtp://[user:password@]host[:port]` (also smtps:// and smtp+starttls://) apart.

    User and password may be percent-encoded. Raises ValueError, whose message never repeats the URL: there may be a
    password in it.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _not_a_server("host or port cannot be read") from None  # the cause repeats parts of the URL
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise _not_a_server("it has letters that have to be percent-encoded")
    if parts.scheme not in DEFAULT_PORTS:
        raise _not_a_server("it begins differently")
    if not parts.hostname or port == 0:
        raise _not_a_server("it has no host or a port of 0")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _not_a_server("it goes on after the host; in a password write / as %2F, ? as %3F and # as %23")
    if "@" in parts.netloc and not (parts.username and parts.password):
        raise _not_a_server("it has a user without a password, or the other way round")
    return MailServer(
        parts.scheme,
        parts.hostname,
        DEFAULT_PORTS[parts.scheme] if port is None else port,
        unquote(parts.username or ""),
        unquote(parts.password or ""),
    )


def _not_a_server(problem: str) -> ValueError:
    return ValueError(
        f"not the address of a mail server: {problem}; use smtp://[user:password@]host[:port], smtps:// (TLS from the "
        "start) or smtp+starttls://, or nothing to write mail into the data folder"
    )
