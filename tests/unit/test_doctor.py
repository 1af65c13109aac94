"""What the doctor says of topics: enough to know what is wrong, on a line that can be read."""

from __future__ import annotations

from typing import Any

import pytest

from engine.health.doctor import check_broker
from engine.log.ports import TopicSpec
from streams.settings import Settings

SPECS = [TopicSpec(f"topic-{number:02}", 4, False, None) for number in range(50)]
NAMES = [spec.name for spec in SPECS]


class BrokerWith:
    """A broker that has these topics, with these numbers of partitions."""

    def __init__(self, found: dict[str, int]) -> None:
        self._found = found

    async def topics(self) -> dict[str, int]:
        return self._found

    async def facts(self, topics: object) -> None:
        return None


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (dict.fromkeys(NAMES, 4), "50 topics with 4 partitions each"),
        (dict.fromkeys(NAMES[2:], 4), "missing: topic-00, topic-01"),
        ({}, "missing: topic-00, topic-01, topic-02, topic-03, topic-04 and 45 more"),
        (
            dict.fromkeys(NAMES, 8),
            "topic-00 has 8, topic-01 has 8, topic-02 has 8, topic-03 has 8, topic-04 has 8 and 45 more",
        ),
    ],
)
async def test_of_many_topics_with_a_problem_only_some_are_named(found: dict[str, int], said: str) -> None:
    broker: Any = BrokerWith(found)
    checks = await check_broker(Settings(_env_file=None, partitions=4), broker, SPECS)
    assert {check.check: check.detail for check in checks}["topics"] == said


@pytest.mark.parametrize(
    ("found", "advised"),
    [
        (dict.fromkeys(NAMES, 8), "all topics have 8: set ORDERS_PARTITIONS to that, and delete nothing"),
        (dict.fromkeys(NAMES[1:], 4) | {NAMES[0]: 8}, "delete no topic, events are nowhere else"),
    ],
)
async def test_advice_about_topics_of_another_size_keeps_what_is_in_them(found: dict[str, int], advised: str) -> None:
    broker: Any = BrokerWith(found)
    checks = await check_broker(Settings(_env_file=None, partitions=4), broker, SPECS)
    assert advised in {check.check: str(check.advice) for check in checks}["topics"]
