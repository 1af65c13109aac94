"""A payment gateway that takes nobody's money, for trying things out."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Final

from engine import Unavailable
from streams.events.money import Money
from streams.events.payment_answers import Charged, Declined, Refunded
from streams.settings import Settings

CARD_DECLINED: Final = "card_declined"


class SimulatedGateway:
    """Answers from the order id alone, so that it needs no memory and every run has the same outcomes.

    `payment_decline` is the share of orders whose charge is declined; refunds never are. It is away during the last
    `payment_outage_length` seconds of every `payment_outage_every` seconds since it was made, by `clock`.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._latency_s = settings.payment_latency
        self._decline = settings.payment_decline
        self._every_s = settings.payment_outage_every
        self._up_s = settings.payment_outage_every - settings.payment_outage_length
        self._clock = clock
        self._began = clock()

    async def charge(self, order_id: str, customer_id: str, amount: Money, key: str) -> Charged | Declined:
        """Take the money of an order, or decline."""
        await self._answer()
        if self._decline and _share(order_id) < self._decline:
            return Declined(CARD_DECLINED)
        return Charged(f"charge-{order_id}")

    async def refund(self, order_id: str, reference: str, amount: Money, key: str) -> Refunded | Declined:
        """Give the money of an order back."""
        await self._answer()
        return Refunded(f"refund-{order_id}")

    async def _answer(self) -> None:
        """Take the time an answer takes; raises Unavailable when there is none."""
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        if self._every_s and (self._clock() - self._began) % self._every_s >= self._up_s:
            raise Unavailable("the simulated payment gateway is away (ORDERS_PAYMENT_OUTAGE_LENGTH)")


def _share(order_id: str) -> float:
    """A number from 0 to 1 (exclusive) that an order id always has; evenly spread over ids."""
    digest = hashlib.blake2b(order_id.encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / (1 << 48)
