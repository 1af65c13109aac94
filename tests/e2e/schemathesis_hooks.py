"""What schemathesis cannot know by itself: how newline-delimited JSON is sent. Loaded by its command line."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import strategies

ITEM = b'{"product_id": "SKU-1", "quantity": 1, "price": {"amount": "2.50", "currency": "USD"}}'
LINES = (
    b'{"customer_id": "c-1", "items": [' + ITEM + b"]}",
    b'{"product_id": "SKU-1", "quantity": 3}',
    b'{"customer_id": ""}',
    b"{}",
    b"null",
    b"no JSON",
    b"\xff\x00",
    b"",
)

schemathesis.openapi.media_type(
    "application/x-ndjson", strategies.lists(strategies.sampled_from(LINES), max_size=5).map(b"\n".join)
)


@schemathesis.serializer("application/x-ndjson")
def send_lines(context: Any, value: Any) -> Any:
    """Lines are sent as they are."""
    return value if isinstance(value, bytes) else str(value).encode()
