"""The doctor on a real Kafka: topics as the system makes them are fine, and what somebody changes is found."""

from __future__ import annotations

import re
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from engine.health.doctor import check_broker
from engine.log.ports import Broker, TopicSpec
from tests.apps import connected, make_settings, read_committed, unique
from tests.conftest import SharedKafka


async def change(bootstrap: str, topic: str, **settings: str) -> None:
    """Change settings of a topic, as kafka-configs.sh does; others go back to their defaults."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        configs = {name.replace("_", "."): value for name, value in settings.items()}
        (answer,) = await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs)])
        assert [resource[0] for resource in answer.resources] == [0]
    finally:
        await admin.close()


def settings_advised(advice: str, topic: str) -> dict[str, str]:
    """The settings that an advice wants to be given to a topic in one go."""
    (wanted,) = re.findall(rf"([a-z][^ ;]*) to [^;]*{topic}", advice)
    return {name.replace(".", "_"): value for name, _, value in (pair.partition("=") for pair in wanted.split(","))}


async def test_topics_are_made_as_the_doctor_wants_them_and_changes_are_found(
    kafka_broker: SharedKafka, tmp_path: Path
) -> None:
    settings = make_settings(f"kafka://{kafka_broker.bootstrap}", tmp_path)
    events = TopicSpec(unique("events"), 4, False, None)
    changelog = TopicSpec(unique("changelog"), 4, True, None)

    async def problems(broker: Broker) -> dict[str, str]:
        found = await check_broker(settings, broker, [events, changelog])
        assert {"copies", "elections", "retention", "record size", "transactions"} < {check.check for check in found}
        return {check.check: check.detail for check in found if not check.ok}

    async with connected(settings, [events, changelog]) as broker:
        assert await problems(broker) == {}
        await broker.publish(events.name, 0, [(b"key", b"kept", ())])
        await change(kafka_broker.bootstrap, events.name, retention_ms="1000", max_message_bytes="1000")
        await change(kafka_broker.bootstrap, changelog.name, unclean_leader_election_enable="true")
        found = await problems(broker)
        advice = {check.check: str(check.advice) for check in await check_broker(settings, broker, [events, changelog])}
        for topic in (events, changelog):
            await change(kafka_broker.bootstrap, topic.name, **settings_advised(advice["retention"], topic.name))
        assert "retention" not in await problems(broker), "the advice was followed"
        assert len(await read_committed(broker, events.name, 0)) == 1
    assert set(found) == {"retention", "record size", "elections"}
    assert f"{events.name} (retention.ms=1000, not -1)" in found["retention"]
    assert f"{changelog.name} (cleanup.policy=delete, not compact)" in found["retention"]
    assert found["record size"].startswith(f"{events.name} refuse")
    assert found["elections"].startswith(changelog.name)
