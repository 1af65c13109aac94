"""What payments need of a payment gateway, whoever runs it."""

from typing import Protocol

from streams.events.money import Money
from streams.events.payment_answers import Charged, Declined, Refunded


class PaymentGateway(Protocol):
    """Takes money and gives it back.

    `key` is an idempotency key: the same call under the same key takes effect once and is answered the same, however
    often it is made. Both raise `engine.declare.errors.Unavailable` when there is no answer; nobody knows then whether
    the call took effect, and it has to be made again under its key.
    """

    async def charge(self, order_id: str, customer_id: str, amount: Money, key: str) -> Charged | Declined:
        """Take the money of an order."""

    async def refund(self, order_id: str, reference: str, amount: Money, key: str) -> Refunded | Declined:
        """Give back what was taken as `reference`."""
