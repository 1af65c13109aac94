"""The broker that a benchmark runs on, and its topics."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.kafka import KafkaBroker

PARTITIONS = 4


@contextmanager
def running_broker(bootstrap: str | None, work_dir: Path) -> Iterator[str]:
    """Give the address of a broker: the one named (host:port), or a new one whose data is gone afterwards."""
    if bootstrap is not None:
        yield bootstrap
        return
    with (
        TemporaryDirectory(prefix="broker-", dir=work_dir) as folder,
        # Not the options of short-lived test brokers: nothing measured may wait for a slow broker. The heap is that of
        # Kafka's own start script.
        KafkaBroker(Path(folder), java_options=["-Xms1g", "-Xmx1g"]) as broker,
    ):
        yield broker.bootstrap


async def create_topic(bootstrap: str, name: str, configs: Mapping[str, str] | None = None) -> None:
    """Create a topic with PARTITIONS partitions; `configs` are Kafka's topic settings."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        answer = await admin.create_topics([NewTopic(name, PARTITIONS, 1, topic_configs=dict(configs or {}))])
        for _, code, message in answer.topic_errors:
            if code:
                raise RuntimeError(f"topic {name} was not created: {message} (Kafka error {code})")
    finally:
        await admin.close()


async def delete_topics(bootstrap: str, name_part: str) -> None:
    """Delete every topic with `name_part` in its name, those that a system made for itself included."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        names = [name for name in await admin.list_topics() if name_part in name]
        if names:
            await admin.delete_topics(names)
    finally:
        await admin.close()
