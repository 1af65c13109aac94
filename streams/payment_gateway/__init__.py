"""Payment gateways: the port, an adapter for HTTP, and a simulator."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from streams.payment_gateway.port import PaymentGateway
from streams.payment_gateway.simulator import SimulatedGateway
from streams.settings import Settings


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[PaymentGateway]:
    """Give the gateway at ORDERS_PAYMENT_URL, the simulator when none is set; its connections close with the block."""
    if not settings.payment_url:
        yield SimulatedGateway(settings)
        return
    from streams.payment_gateway.http import HttpGateway  # an HTTP client is slow to import, and often not needed

    gateway = HttpGateway(settings)
    try:
        yield gateway
    finally:
        await _to_the_end(gateway.close())


async def _to_the_end(closing: Coroutine[Any, Any, None]) -> None:
    """Close what is to be closed although a worker that stops cancels its agents meanwhile."""
    task = asyncio.create_task(closing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
