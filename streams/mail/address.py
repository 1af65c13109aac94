"""Mail addresses: what can be one, and how it looks on the wire."""

from __future__ import annotations

import re
from email.utils import parseaddr
from typing import NamedTuple

import idna

ADDRESS_BYTES_MAX = 254
LOCAL_BYTES_MAX = 64

# Parts between dots; RFC 5322 calls it a dot-atom, RFC 6531 adds all letters that are not ASCII.
_LOCAL = re.compile(r"[^\s\x00-\x1f\x7f()<>\[\]:;@\\,\".]+(\.[^\s\x00-\x1f\x7f()<>\[\]:;@\\,\".]+)*")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


class InvalidAddress(ValueError):
    """The text cannot be a mail address; the message says why, without the text."""


class Mailbox(NamedTuple):
    """A mail address; the domain is ASCII, the name of the mailbox need not be. `display_name` may be empty."""

    local: str
    domain: str
    display_name: str = ""

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}"


def parse_address(text: str) -> Mailbox:
    """Read `name@domain`; a domain in another script becomes its ASCII form.

    Raises InvalidAddress for anything else. It refuses what could end a header or an SMTP command. Quoted names and
    numbers in place of a domain are legal but not supported.
    """
    if not text.isprintable() or " " in text:
        raise InvalidAddress("has spaces, line breaks or control characters")
    local, at, domain = text.rpartition("@")
    if not at:
        raise InvalidAddress("has no @")
    if len(local.encode()) > LOCAL_BYTES_MAX or not _LOCAL.fullmatch(local):
        raise InvalidAddress("has no usable name before the @")
    mailbox = Mailbox(local, _ascii_domain(domain))
    if len(str(mailbox).encode()) > ADDRESS_BYTES_MAX:
        raise InvalidAddress(f"has more than {ADDRESS_BYTES_MAX} bytes")
    return mailbox


def parse_sender(text: str) -> Mailbox:
    """Read a sender, `name@domain` or `Shown Name <name@domain>`; raises InvalidAddress.

    The name of its mailbox is ASCII, or every mail would need a server that knows SMTPUTF8.
    """
    if not text.isprintable():
        raise InvalidAddress("has line breaks or control characters")
    display_name, address = parseaddr(text)
    mailbox = parse_address(address if display_name else text.strip().removeprefix("<").removesuffix(">"))
    if not mailbox.local.isascii():
        raise InvalidAddress("has letters before the @ that are not ASCII")
    return mailbox._replace(display_name=display_name)


def _ascii_domain(domain: str) -> str:
    try:
        found = domain if domain.isascii() else idna.encode(domain, uts46=True).decode()
    except idna.IDNAError as error:
        raise InvalidAddress("has no usable domain after the @") from error
    if len(found) > 253 or not all(_LABEL.fullmatch(label) for label in found.split(".")):
        raise InvalidAddress("has no usable domain after the @")
    return found
