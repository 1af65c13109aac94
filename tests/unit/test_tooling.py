"""The commands people start with, the rules they rely on, and the broker the other tests stand on."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests import kafka

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock")
SHOP = ("streams", "domain", "tables", "agents")
MODULES_MAX = 15
"""The most modules of a folder: a reader finds one by its name."""


@pytest.mark.parametrize("script", ["run", "test", "ops/setup.sh"])
def test_a_start_script_is_valid_shell(script: str) -> None:
    subprocess.run(["sh", "-n", ROOT / script], check=True)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_hashes_and_names_no_host(lock: str) -> None:
    text = (ROOT / lock).read_text()
    pins = re.findall(r"^\S+==.*(?:\n    .*)*", text, flags=re.MULTILINE)
    assert pins
    assert all("--hash=sha256:" in pin for pin in pins)
    assert "://" not in text


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    files = project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"]
    needed = [line for file in files for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    runtime = needed + project["dependency-groups"]["build"]
    for lock, wanted in zip(LOCKS, (runtime, runtime + project["dependency-groups"]["dev"]), strict=True):
        locked = set(re.findall(r"^([\w.-]+)==", (ROOT / lock).read_text(), flags=re.MULTILINE))
        names = {match[0] for requirement in wanted if (match := re.match(r"[\w.-]+", requirement))}
        assert names <= locked, lock


@pytest.mark.parametrize("package", SHOP)
def test_no_folder_of_the_shop_has_more_modules_than_a_reader_takes_in(package: str) -> None:
    folders = [ROOT / package, *(path for path in (ROOT / package).rglob("*") if path.is_dir())]
    modules = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: count for name, count in modules.items() if count > MODULES_MAX} == {}


@pytest.mark.parametrize("package", ["domain", "streams.events"])
def test_importing_decisions_and_events_loads_no_broker_store_or_web_server(package: str) -> None:
    program = f"""
import pkgutil, sys, {package} as package
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    __import__(module.name)
print(*sorted({{"faust", "mode", "aiokafka", "rocksdict", "aiohttp"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


async def test_a_broker_keeps_committed_records_over_a_restart_and_hides_aborted_ones(
    private_kafka_broker: kafka.KafkaBroker,
) -> None:
    bootstrap = private_kafka_broker.bootstrap
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic("kept", num_partitions=1, replication_factor=1)])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id="tooling") as producer:
        async with producer.transaction():
            await producer.send_and_wait("kept", b"committed")
        await producer.begin_transaction()
        await producer.send_and_wait("kept", b"aborted")
        await producer.abort_transaction()

    await asyncio.to_thread(private_kafka_broker.restart)

    partition = TopicPartition("kept", 0)
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed") as consumer:
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        values = []
        async with asyncio.timeout(30):
            while await consumer.position(partition) < end:
                fetched = await consumer.getmany(partition, timeout_ms=100)
                values += [record.value for record in fetched.get(partition, [])]
    assert values == [b"committed"]


def test_a_broker_ends_with_the_process_that_started_it_even_if_that_is_killed(own_kafka: None, tmp_path: Path) -> None:
    port = kafka.unused_port(also_next=True)
    program = f"""
import pathlib, sys
from tests.kafka import KafkaBroker
broker = KafkaBroker(pathlib.Path(sys.argv[1]), {port})
broker.start()
print("started", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "started\n"
        assert not kafka.port_is_free(port)
        owner.kill()
    deadline = time.monotonic() + 10
    while not kafka.port_is_free(port):
        assert time.monotonic() < deadline, "the broker outlived its owner"
        time.sleep(0.05)


def test_a_broker_on_a_taken_port_says_so(tmp_path: Path, unused_port: int) -> None:
    with (
        socket.create_server(("127.0.0.1", unused_port)),
        pytest.raises(kafka.KafkaFailed, match=f"port {unused_port} is in use"),
    ):
        kafka.KafkaBroker(tmp_path, unused_port).start()
