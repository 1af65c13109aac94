"""Every topic of the system as a typed object: the one place for names, retention and who may write."""

import msgspec

from streams.transport.base import DEAD_LETTER_BYTES_MAX, TOPIC_RECORD_BYTES_MAX

DAY_MS = 86_400_000


class Topic(msgspec.Struct, frozen=True):
    """A topic; all topics of an application have the same number of partitions.

    `retention_ms` None keeps records for ever. `strict` topics carry only types their consumer knows: another type
    there is a dead letter, while consumers of event topics ignore types they do not handle. `own_key`: records are
    keyed by the envelope's aggregate id; False where another key re-partitions them for a projection.
    """

    name: str
    help: str
    retention_ms: int | None = None
    compacted: bool = False
    strict: bool = False
    own_key: bool = True
    record_bytes_max: int = TOPIC_RECORD_BYTES_MAX


ORDER_COMMANDS = Topic(
    "order-commands", "what customers and programs ask of orders; key = order id", retention_ms=7 * DAY_MS, strict=True
)
ORDER_REQUESTS = Topic(
    "order-requests",
    "orders placed with an Idempotency-Key; key = customer and idempotency key",
    retention_ms=7 * DAY_MS,
    strict=True,
    own_key=False,
)
ORDER_EVENTS = Topic("order-events", "what happened to orders, kept for ever; key = order id")
CUSTOMER_ORDER_EVENTS = Topic(
    "customer-order-events", "each order as it is after an event, keyed by customer id for projections", own_key=False
)
INVENTORY_COMMANDS = Topic(
    "inventory-commands", "what is asked of stock; key = product id", retention_ms=7 * DAY_MS, strict=True
)
INVENTORY_EVENTS = Topic("inventory-events", "what happened to stock, kept for ever; key = product id")
PAYMENT_COMMANDS = Topic(
    "payment-commands", "what is asked of payments; key = order id", retention_ms=7 * DAY_MS, strict=True
)
PAYMENT_EVENTS = Topic("payment-events", "what happened to payments, kept for ever; key = order id")
SAGA_REPLIES = Topic(
    "saga-replies",
    "what services answer to the saga of an order; key = order id",
    retention_ms=7 * DAY_MS,
    own_key=False,
)
SAGA_COMMANDS = Topic(
    "saga-commands", "what operators ask of sagas; key = order id", retention_ms=7 * DAY_MS, strict=True
)
NOTIFICATION_COMMANDS = Topic(
    "notification-commands", "mails to be sent; key = order id", retention_ms=30 * DAY_MS, strict=True
)
DEAD_LETTER_COMMANDS = Topic(
    "dead-letter-commands",
    "what people decide about dead letters; key = the letter's id, in the letter's partition",
    retention_ms=7 * DAY_MS,
)
INTEGRATION_EVENTS = Topic("integration-events", "the stable contract for other systems", retention_ms=30 * DAY_MS)
DEAD_LETTERS = Topic(
    "dead-letters",
    "records that could not be processed, byte for byte",
    retention_ms=90 * DAY_MS,
    record_bytes_max=DEAD_LETTER_BYTES_MAX,
)
