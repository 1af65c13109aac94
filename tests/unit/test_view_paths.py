"""The paths by which tokens are resolved are those that records really take."""

from itertools import pairwise

import pytest

from streams.app import SERVICE_PACKAGES, discover
from streams.freshness import Path
from tables.customer_orders import CUSTOMER_ORDERS
from tables.orders import ORDERS
from tables.queries import CUSTOMER_ORDERS_PATH, ORDER_PATH

SERVICES = discover(SERVICE_PACKAGES)
AGENTS = {name: (topic, service) for service in SERVICES for name, (topic, _) in service.agents.items()}


@pytest.mark.parametrize(("path", "table"), [(ORDER_PATH, ORDERS), (CUSTOMER_ORDERS_PATH, CUSTOMER_ORDERS)])
def test_each_hop_is_an_agent_that_feeds_the_next_and_the_last_one_writes_the_view(path: Path, table: object) -> None:
    for hop in path:
        assert AGENTS[hop.agent][0] is hop.topic
    for hop, following in pairwise(path):
        assert following.topic in AGENTS[hop.agent][1].topics
    assert table in AGENTS[path[-1].agent][1].tables
