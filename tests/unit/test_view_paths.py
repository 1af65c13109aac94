"""The paths by which tokens are resolved are those that records really take."""

from itertools import pairwise

import pytest

from engine.web.dead_letters.views import LETTER_PATH
from engine.web.freshness import Path
from streams.app import shop_services
from tables.analytics import ANALYTICS_COUNTRIES, ANALYTICS_DAYS, ANALYTICS_PRODUCTS, ANALYTICS_STATE, ANALYTICS_TOTALS
from tables.analytics.views import ANALYTICS_PATH
from tables.customers import CUSTOMERS, CUSTOMERS_PATH
from tables.inventory import INVENTORY_PATH, STOCK
from tables.notifications import NOTIFICATIONS, NOTIFICATIONS_PATH
from tables.orders import ORDERS
from tables.orders.customer_orders import CUSTOMER_ORDERS
from tables.orders.index import ORDERS_BY_CORRELATION, ORDERS_BY_TIME
from tables.orders.queries import CUSTOMER_ORDERS_PATH, ORDER_INDEX_PATH, ORDER_PATH, SAGA_PATH
from tables.payments import PAYMENT_PATH, PAYMENTS
from tables.sagas import SAGAS

SERVICES = shop_services()
AGENTS = {name: (agent.topic, service) for service in SERVICES for name, agent in service.agents.items()}
# What a service does in reaction to another's message is sent by the agent that delivers the message.
REACTIONS = {topic for service in SERVICES if service.reactions for topic in service.topics}


@pytest.mark.parametrize(
    ("path", "table"),
    [
        (ORDER_PATH, ORDERS),
        (CUSTOMER_ORDERS_PATH, CUSTOMER_ORDERS),
        (CUSTOMERS_PATH, CUSTOMERS),
        (ORDER_INDEX_PATH, ORDERS_BY_TIME),
        (ORDER_INDEX_PATH, ORDERS_BY_CORRELATION),
        (ANALYTICS_PATH, ANALYTICS_TOTALS),
        (ANALYTICS_PATH, ANALYTICS_DAYS),
        (ANALYTICS_PATH, ANALYTICS_PRODUCTS),
        (ANALYTICS_PATH, ANALYTICS_COUNTRIES),
        (ANALYTICS_PATH, ANALYTICS_STATE),
        (INVENTORY_PATH, STOCK),
        (NOTIFICATIONS_PATH, NOTIFICATIONS),
        (PAYMENT_PATH, PAYMENTS),
        (SAGA_PATH, SAGAS),
    ],
)
def test_each_hop_is_an_agent_that_feeds_the_next_and_the_last_one_writes_the_view(path: Path, table: object) -> None:
    check_agents(path)
    for hop, following in pairwise(path):
        assert following.topic in {*AGENTS[hop.name][1].topics, *REACTIONS}
    assert table in AGENTS[path[-1].name][1].tables


def test_dead_letters_are_the_engines_rows_and_one_agent_changes_them() -> None:
    check_agents(LETTER_PATH)


def check_agents(path: Path) -> None:
    """Check that each hop's agent takes records of the hop's topic."""
    for hop in path:
        assert AGENTS[hop.name][0] is hop.topic
