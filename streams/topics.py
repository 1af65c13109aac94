"""Every topic of the shop as a typed object: the one place for names, retention and who may write."""

from engine import DAY_MS, Published, Topic
from streams.events.integration import CLOUD_EVENT_HEADERS, published_values, to_integration
from streams.events.inventory import INVENTORY_COMMAND_TYPES, INVENTORY_EVENT_TYPES, LINE_EVENT_TYPES
from streams.events.notifications import NOTIFICATION_TYPES
from streams.events.orders import ORDER_COMMAND_TYPES, ORDER_EVENT_TYPES, OrderSummaryChanged, PlaceOrder
from streams.events.payments import PAYMENT_COMMAND_TYPES, PAYMENT_EVENT_TYPES
from streams.events.sagas import SAGA_TYPES

ORDER_COMMANDS = Topic(
    "order-commands",
    "what customers and programs ask of orders; key = order id",
    retention_ms=7 * DAY_MS,
    strict=True,
    key="order id",
    carries=ORDER_COMMAND_TYPES,
)
ORDER_REQUESTS = Topic(
    "order-requests",
    "orders placed with an Idempotency-Key; key = customer and idempotency key",
    retention_ms=7 * DAY_MS,
    strict=True,
    own_key=False,
    key="customer id and idempotency key",
    carries=(PlaceOrder,),
)
ORDER_EVENTS = Topic(
    "order-events",
    "what happened to orders, kept for ever; key = order id",
    key="order id",
    carries=ORDER_EVENT_TYPES,
)
CUSTOMER_ORDER_EVENTS = Topic(
    "customer-order-events",
    "each order as it is after an event, keyed by customer id for projections",
    own_key=False,
    key="customer id",
    carries=(OrderSummaryChanged,),
)
INVENTORY_COMMANDS = Topic(
    "inventory-commands",
    "what is asked of stock; key = product id",
    retention_ms=7 * DAY_MS,
    strict=True,
    key="product id",
    carries=INVENTORY_COMMAND_TYPES,
)
INVENTORY_EVENTS = Topic(
    "inventory-events",
    "what happened to stock, kept for ever; key = product id",
    key="product id",
    carries=INVENTORY_EVENT_TYPES,
)
PAYMENT_COMMANDS = Topic(
    "payment-commands",
    "what is asked of payments; key = order id",
    retention_ms=7 * DAY_MS,
    strict=True,
    key="order id",
    carries=PAYMENT_COMMAND_TYPES,
)
PAYMENT_EVENTS = Topic(
    "payment-events",
    "what happened to payments, kept for ever; key = order id",
    key="order id",
    carries=PAYMENT_EVENT_TYPES,
)
SAGA_REPLIES = Topic(
    "saga-replies",
    "what services answer to the saga of an order; key = order id",
    retention_ms=7 * DAY_MS,
    own_key=False,
    key="order id",
    carries=(*LINE_EVENT_TYPES, *PAYMENT_EVENT_TYPES),
)
SAGA_COMMANDS = Topic(
    "saga-commands",
    "what operators ask of sagas; key = order id",
    retention_ms=7 * DAY_MS,
    strict=True,
    key="order id",
    carries=SAGA_TYPES,
)
NOTIFICATION_COMMANDS = Topic(
    "notification-commands",
    "mails to be sent; key = order id",
    retention_ms=30 * DAY_MS,
    strict=True,
    key="order id",
    carries=NOTIFICATION_TYPES,
)
INTEGRATION_EVENTS = Topic(
    "integration-events",
    "the stable contract for other systems",
    retention_ms=30 * DAY_MS,
    key="id of the order or product",
    published=Published(
        "integration",
        published_values,
        to_integration,
        CLOUD_EVENT_HEADERS,
        note="with CloudEvents 1.0 headers in Kafka's binary mode",
    ),
)
