"""What the doctor says of a Kafka cluster: each setting that can lose records, alone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import (
    NodeNotReadyError,
    NotControllerError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
)

from engine.health.check import Check
from engine.health.durability import durability_checks
from engine.log.kafka import facts as kafka_facts
from engine.log.ports import LogFacts, TopicFacts, TopicSpec
from streams.settings import Settings

EVENTS = TopicSpec("events", 4, False, None)
COMMANDS = TopicSpec("commands", 4, False, 7 * 86_400_000)
CHANGELOG = TopicSpec("changelog", 4, True, None)
SPECS = (EVENTS, COMMANDS, CHANGELOG)
COMMON = {"min.insync.replicas": "2", "unclean.leader.election.enable": "false", "max.message.bytes": "5000000",
          "retention.bytes": "-1", "cleanup.policy": "delete"}  # fmt: skip
SOUND: Mapping[str, Mapping[str, str]] = {
    "events": COMMON | {"retention.ms": "-1"},
    "commands": COMMON | {"retention.ms": str(7 * 86_400_000)},
    "changelog": COMMON | {"cleanup.policy": "compact", "delete.retention.ms": "86400000", "retention.ms": "604800000"},
}


def cluster(
    changes: Mapping[str, str] | None = None,
    of: str = "",
    replicas: int = 3,
    in_sync: int = 3,
    longest_ms: int = 900_000,
) -> LogFacts:
    """A sound cluster of three brokers, with the settings of one topic changed."""
    topics = {
        name: TopicFacts(replicas, in_sync, {**settings, **(changes or {})} if name == of else settings)
        for name, settings in SOUND.items()
    }
    internal = {name: TopicFacts(3, 3, {}) for name in ("__consumer_offsets", "__transaction_state")}
    return LogFacts(3, {"transaction.max.timeout.ms": str(longest_ms)}, topics | internal)


def examined(facts: LogFacts, replication: int = 3) -> dict[str, Check]:
    """The checks by name."""
    settings = Settings(_env_file=None, replication=replication)
    return {check.check: check for check in durability_checks(settings, SPECS, facts)}


def test_a_sound_cluster_is_fine() -> None:
    checks = examined(cluster())
    assert {check.ok for check in checks.values()} == {True}
    assert {check.advice for check in checks.values()} == {None}
    assert set(checks) == {"copies", "elections", "retention", "record size", "transactions"}


def test_topics_whose_records_are_removed_by_their_producers_clocks_are_named_with_what_to_do() -> None:
    checks = examined(cluster({"message.timestamp.type": "CreateTime"}, "commands"))
    assert "commands go by the clocks of their producers" in checks["timestamps"].detail
    assert "message.timestamp.type=LogAppendTime" in (checks["timestamps"].advice or "")
    assert "timestamps" not in examined(cluster({"message.timestamp.type": "CreateTime"}, "events"))


@pytest.mark.parametrize(
    ("check", "topic", "changes", "said"),
    [
        ("copies", "events", {"min.insync.replicas": "1"}, "events acknowledge a record that a single broker has"),
        ("elections", "changelog", {"unclean.leader.election.enable": "true"}, "changelog may be led by"),
        ("retention", "events", {"retention.ms": "604800000"}, "events (retention.ms=604800000, not -1)"),
        ("retention", "events", {"retention.bytes": "1000"}, "events (retention.bytes=1000, not -1)"),
        ("retention", "events", {"cleanup.policy": "compact"}, "events (cleanup.policy=compact, not delete)"),
        ("retention", "commands", {"retention.ms": "86400000"}, "commands (retention.ms=86400000, not 604800000)"),
        (
            "retention",
            "changelog",
            {"cleanup.policy": "compact,delete"},
            "(cleanup.policy=compact,delete, not compact)",
        ),
        ("retention", "changelog", {"delete.retention.ms": "1"}, "(delete.retention.ms=1, not 86400000)"),
        ("record size", "commands", {"max.message.bytes": "1048588"}, "commands refuse records"),
    ],
)
def test_a_setting_that_loses_or_refuses_records_is_a_problem(
    check: str, topic: str, changes: Mapping[str, str], said: str
) -> None:
    checks = examined(cluster(changes, topic))
    assert [name for name, found in checks.items() if not found.ok] == [check]
    assert said in checks[check].detail
    assert "docs/operations.md" in str(checks[check].advice)


def test_more_than_is_needed_is_no_problem() -> None:
    assert examined(cluster({"retention.ms": "-1"}, "commands"))["retention"].ok
    assert examined(cluster({"max.message.bytes": "9000000"}, "events"))["record size"].ok


def test_fewer_copies_than_were_asked_for_are_a_problem() -> None:
    found = examined(cluster(replicas=2, in_sync=2))["copies"]
    assert not found.ok
    assert found.detail == "changelog, commands, events have fewer copies than ORDERS_REPLICATION=3"


def test_too_few_replicas_in_sync_are_a_problem_and_one_that_is_behind_is_not_yet() -> None:
    assert "take no records" in examined(cluster(in_sync=1))["copies"].detail
    behind = examined(cluster(in_sync=2))["copies"]
    assert behind.ok
    assert "not in sync" in behind.detail


def test_transactions_with_fewer_copies_than_topics_are_a_problem() -> None:
    facts = cluster()
    facts = facts._replace(topics={**facts.topics, "__transaction_state": TopicFacts(1, 1, {})})
    found = examined(facts)["copies"]
    assert not found.ok
    assert found.detail.startswith("__transaction_state have fewer copies")


def test_one_copy_is_pointed_out_where_it_was_asked_for() -> None:
    changes = {"min.insync.replicas": "1"}
    topics = {name: TopicFacts(1, 1, {**settings, **changes}) for name, settings in SOUND.items()}
    found = examined(LogFacts(1, {}, topics), replication=1)["copies"]
    assert found.ok
    assert "ORDERS_REPLICATION=3" in str(found.advice)


def test_a_broker_that_allows_shorter_transactions_is_a_problem() -> None:
    found = examined(cluster(longest_ms=5000))["transactions"]
    assert not found.ok
    assert "ORDERS_TRANSACTION_TIMEOUT" in str(found.advice)


def test_brokers_that_make_topics_of_any_name_are_pointed_out() -> None:
    facts = cluster()
    found = examined(facts._replace(settings={**facts.settings, "auto.create.topics.enable": "true"}))["new topics"]
    assert found.ok
    assert "auto.create.topics.enable=false" in str(found.advice)


def test_settings_that_cannot_be_read_are_said_not_to_be_checked() -> None:
    facts = LogFacts(3, {}, {name: TopicFacts(3, 3, {}) for name in SOUND})
    checks = examined(facts)
    assert checks["Kafka settings"].ok
    assert "DescribeConfigs" in str(checks["Kafka settings"].advice)
    assert set(checks) == {"copies", "Kafka settings"}  # and nothing is called in order


def test_a_cluster_without_topics_is_not_said_to_keep_them() -> None:
    assert set(examined(LogFacts(3, cluster().settings, {}))) == {"transactions"}


def test_without_a_controller_nothing_else_is_said_as_it_may_be_old() -> None:
    checks = examined(LogFacts(0, {}, {}, has_controller=False))
    assert {name: check.ok for name, check in checks.items()} == {"controllers": False}
    assert "majority" in (checks["controllers"].advice or "")


class Admin:
    """What the cluster says when it is asked whether a topic could be created."""

    def __init__(self, code: int | None, error: Exception | None = None) -> None:
        self._code = code
        self._error = error
        self.asked: dict[str, bool] = {}

    async def create_topics(self, topics: object, **options: bool) -> SimpleNamespace:
        self.asked = options
        if self._error is not None:
            raise self._error
        if self._code is None:
            await asyncio.sleep(60)
        return SimpleNamespace(topic_errors=[("__consumer_offsets", self._code, "")])


@pytest.mark.parametrize(
    ("admin", "answers"),
    [
        (Admin(TopicAlreadyExistsError.errno), True),
        (Admin(TopicAuthorizationFailedError.errno), True),
        (Admin(NotControllerError.errno), False),
        (Admin(None), False),
        (Admin(0, NodeNotReadyError()), False),
    ],
)
async def test_any_answer_of_a_controller_counts_and_nothing_is_created(
    admin: Any, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_facts, "CONTROLLER_TIMEOUT_S", 0.05)
    assert await kafka_facts.controller_answers(admin) is answers
    assert admin.asked == {"validate_only": True}
