"""What customers asked for under which Idempotency-Key."""

import msgspec

from engine import Table

FINGERPRINT_HEADER = "body_fingerprint"
"""The header of a request's record that tells bodies apart."""


class OrderRequest(msgspec.Struct, frozen=True, gc=False):
    """The first request under a key: its order, its command and the fingerprint of its body.

    `marked_at_ms` is production time (epoch).
    """

    order_id: str
    command_id: str
    fingerprint: str
    marked_at_ms: int


ORDER_REQUESTS: Table[str, OrderRequest] = Table(
    "order-requests",
    OrderRequest,
    help="orders by customer and Idempotency-Key, so that a repeated request is the same order",
    marked_at_ms=lambda row: row.marked_at_ms,
)


def request_key(customer_id: str, idempotency_key: str) -> str:
    """Key of a request; the length keeps two pairs of customer and key from running together."""
    return f"{len(customer_id)}:{customer_id}:{idempotency_key}"
