"""The first connection of a client of aiokafka is closed when the client is given up while it connects.

Until the cluster's metadata has come, only a variable of aiokafka's `bootstrap` has that connection. When the start is
cancelled meanwhile, as that of a partition is by the next assignment, nothing closes it: it stays open at the broker
until it is collected here.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

from aiokafka import client
from aiokafka.conn import AIOKafkaConnection

_create_conn: Final = client.create_conn


def install() -> None:
    """Let all clients do so; doing so again changes nothing."""
    client.create_conn = _create


async def _create(*args: Any, **options: Any) -> AIOKafkaConnection:
    connection = await _create_conn(*args, **options)
    if "on_close" not in options:  # a client is told when one of its connections closes, but for the first one
        connection.send = partial(_send_first, connection)
    return connection


async def _send_first(connection: AIOKafkaConnection, *args: Any, **options: Any) -> Any:
    """Ask for the metadata; the client has the connection itself afterwards, or has closed it."""
    del connection.send
    try:
        return await connection.send(*args, **options)
    except asyncio.CancelledError:
        connection.close()
        raise
