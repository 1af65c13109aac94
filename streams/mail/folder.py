"""Mail into a folder, where no mail server is named."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from pathlib import Path

from engine import Unavailable, calling, derived_id
from streams.mail.message import Mail
from streams.mail.outcome import SENT, Delivery

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._@+-]+")


class FolderMailer:
    """Writes each mail to `{order}-{kind}.eml`, readable for this user only.

    A file appears complete or not at all. Like the embedded log it is handed to the operating system, not forced to the
    disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def deliver(self, mail: Mail) -> Delivery:
        """Write a mail; the same mail again gives the same file. Raises Unavailable while it cannot be written."""
        try:
            with calling("write mail", {"orders.mail.kind": mail.kind}):
                await asyncio.to_thread(self._write, file_name(mail.order_id, mail.kind), mail.encode())
        except OSError as error:
            raise Unavailable(f"mail cannot be written to {self._folder}: {error}") from error
        return SENT

    def _write(self, name: str, value: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(dir=self._folder, prefix=".unfinished-")
        try:
            with open(descriptor, "wb") as file:
                file.write(value)
            os.replace(unfinished, self._folder / name)
        except BaseException:
            os.unlink(unfinished)
            raise


def file_name(order_id: str, kind: str) -> str:
    """A file name for any order id: the id itself where it is plain, else what is plain of it and a hash."""
    if not _PLAIN.fullmatch(order_id):
        # `~` is in no plain id, so the two kinds of names never meet.
        order_id = f"{_UNSAFE.sub('_', order_id)[:40].lstrip('.-')}~{derived_id(order_id, 'mail')}"
    return f"{order_id}-{kind}.eml"
