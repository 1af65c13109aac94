"""The workload of rolling restarts: another one on workers of two releases, with clients who look for their orders."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from tests.chaos.driver import Driver
from tests.chaos.faults import ROLLING
from tests.chaos.release_worker import AFTER, BEFORE, CUSTOMER_COUNTS, PRODUCT_COUNTS, PRODUCT_LINES
from tests.chaos.verifier import EVENTS
from tests.chaos.workload import Urls, Workload
from tests.chaos.world import World

HTTP_SHARE = 0.5
RETRY_AFTER_S = 1.0  # what workers say


class Rolling:
    """What the inner workload does, on workers of two releases; rolling restarts go from one to the other."""

    releases: Sequence[Sequence[str]] = tuple(
        ("-m", "tests.chaos.release_worker", release) for release in (BEFORE, AFTER)
    )
    sound: Sequence[str] = releases[-1]

    def __init__(self, inner: Workload) -> None:
        self._inner = inner

    def settings(self, number: int) -> dict[str, str]:
        """See Workload. The group's session is as long as by default: who is told to stop must leave the group."""
        return self._inner.settings(number) | {"ORDERS_SESSION_TIMEOUT": "10"}

    def around(self, urls: Urls) -> AbstractAsyncContextManager[object]:
        """See Workload."""
        return self._inner.around(urls)

    def driver(self, seed: int, urls: Urls, bootstrap: str | None, http_share: float, orders_per_s: float) -> Driver:
        """See Workload."""
        driver = self._inner.driver(seed, urls, bootstrap, HTTP_SHARE, orders_per_s)
        driver.looks, driver.retry_max_s = True, RETRY_AFTER_S
        return driver

    def faults_are_over(self) -> None:
        """See Workload."""
        self._inner.faults_are_over()

    def is_settled(self, world: World) -> bool:
        """See Workload."""
        return self._inner.is_settled(world)

    def is_worth_a_look(self) -> bool:
        """See Workload."""
        return True

    def judge_moment(self, world: World) -> dict[str, list[str]]:
        """See Workload."""
        return self._inner.judge_moment(world)

    async def look(self, world: World, urls: Urls) -> None:
        """See Workload."""
        await self._inner.look(world, urls)

    def judge(self, world: World) -> tuple[dict[str, list[str]], tuple[int, int], dict[str, float]]:
        """See Workload."""
        found, broken, figures = self._inner.judge(world)
        versions = Counter(record.body["version"] for record in world.records(PRODUCT_LINES.name))
        figures = {**figures, **{f"lines_of_version_{version}": versions[version] for version in (1, 2)}}
        problems = check_counts(world)
        return found | ({"check_counts": problems} if problems else {}), broken, figures


def back_and_forth(minutes: float) -> Iterator[str]:
    """Rolling restarts until the time is over, of which the last one brings the later release."""
    until, number = time.monotonic() + minutes * 60, 0
    while time.monotonic() < until or number % 2 == 0:
        number += 1
        yield ROLLING


def check_counts(world: World) -> list[str]:
    """What the releases counted by product and by customer is what was placed: nothing twice, nothing left out."""
    products: defaultdict[str, Counter[str]] = defaultdict(Counter)
    customers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in world.records(EVENTS):
        body = record.body
        if body["eventType"] != "order.placed":
            continue
        items: Sequence[dict[str, Any]] = body["payload"]["items"]
        for item in items:
            products[item["productId"]].update(records=1, pieces=item["quantity"])
        customers[body["payload"]["customerId"]].update(records=1, pieces=sum(item["quantity"] for item in items))
    problems = []
    for table, expected in ((PRODUCT_COUNTS, products), (CUSTOMER_COUNTS, customers)):
        found = {key.decode(): Counter(row) for key, row in world.table(table.name)}
        problems += [
            f"{table.name} {key}: {found.get(key)}, placed were {expected.get(key)}"
            for key in found.keys() | expected.keys()
            if found.get(key) != expected.get(key)
        ]
    return problems
