"""What docker-compose.yml describes, without containers: its Kafka, two of its workers, its Prometheus, and a mailbox.

Commands, settings and files are those of the services; only host names, ports and folders are others.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.compose import NODES, SERVICES, environment_of, exec_form, image_environment, kafka_properties
from tests.e2e.processes import ORDERS, Running, Site
from tests.integration.web import order
from tests.kafka import KafkaBroker, unused_port
from tests.mail_server import mail_server
from tests.prometheus import Prometheus

TOKEN = "a secret for the test"


@pytest.fixture
def composed_kafka(own_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start the Kafka nodes with the settings that their containers get; gives what stands for the address of each."""
    folder = tmp_path_factory.mktemp("composed-kafka")
    ports = {node: unused_port(also_next=True) for node in NODES}
    outside = {node: unused_port() for node in NODES}
    brokers = [
        KafkaBroker(folder / node, ports[node], properties=_properties(node, ports, outside[node])) for node in NODES
    ]
    with ExitStack() as stack, ThreadPoolExecutor(len(brokers)) as pool:
        for broker in brokers:
            stack.callback(broker.kill)
        for _ in pool.map(KafkaBroker.start, brokers):  # none answers before another one does
            pass
        yield {f"{node}:19092": broker.bootstrap for node, broker in zip(NODES, brokers, strict=True)}


def _properties(node: str, ports: Mapping[str, int], outside_port: int) -> str:
    """The settings of a node's container with the ports and folder of here; a controller is on the next port."""
    settings = kafka_properties(environment_of(node, {}))
    text = "\n".join(f"{name}={value}" for name, value in settings.items())
    here = {"/var/lib/kafka/data": "${data_dir}", r"localhost:\d+": f"127.0.0.1:{outside_port}"}
    for name, port in ports.items():
        here |= {f"{name}:19092": f"127.0.0.1:{port}", f"{name}:29093": f"127.0.0.1:{port + 1}"}
    here |= {
        "//:19092": f"//127.0.0.1:{ports[node]}",
        "//:29093": f"//127.0.0.1:{ports[node] + 1}",
        "//:9092": f"//127.0.0.1:{outside_port}",
    }
    for pattern, replacement in here.items():
        text = re.sub(pattern, replacement, text)
    return text


def site_of(folder: Path, kafka: Mapping[str, str], smtp: str) -> Site:
    """A worker's container: the image's variables and the service's, with the addresses of here."""
    site = Site(folder, unused_port())
    environment = image_environment() | environment_of("worker", {"ORDERS_API_TOKEN": TOKEN, "ORDERS_PARTITIONS": "4"})
    assert environment["ORDERS_WEB_HOST"] == "0.0.0.0"
    replaced = {**kafka, "mail:1025": smtp, "0.0.0.0": "127.0.0.1"}
    for name, value in environment.items():
        if name.startswith("ORDERS_") and name not in site.settings:
            for there, here in replaced.items():
                value = value.replace(there, here)
            site.settings[name] = value
    folder.mkdir()
    return site


def is_healthy(site: Site) -> bool:
    """What the image's health check says."""
    program, *arguments = exec_form("HEALTHCHECK")
    assert program == "python"
    done = subprocess.run([sys.executable, *arguments], env=site.environment({}), timeout=30, check=False)
    return done.returncode == 0


async def test_the_services_work_together(composed_kafka: Mapping[str, str], tmp_path: Path) -> None:
    async with mail_server() as mails:
        sites = [site_of(tmp_path / name, composed_kafka, f"127.0.0.1:{mails.port}") for name in "ab"]
        assert len(sites) == SERVICES["worker"]["deploy"]["replicas"]
        assert exec_form("ENTRYPOINT") == ["orders"]
        assert not is_healthy(sites[0])

        def start(site: Site) -> Running:
            return stack.enter_context(site.start(*SERVICES["worker"]["command"], command=ORDERS))

        with ExitStack() as stack:
            workers = [start(site) for site in sites]
            for worker in workers:
                await asyncio.to_thread(worker.wait_until_ready)
            assert await asyncio.to_thread(is_healthy, sites[0])
            targets = [site.url.removeprefix("http://") for site in sites]
            (tmp_path / "prometheus").mkdir()
            prometheus = await asyncio.to_thread(stack.enter_context, Prometheus(tmp_path / "prometheus", targets))

            async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
                assert (await client.post(f"{sites[0].url}/orders", json=order())).status_code == 401
                client.headers["Authorization"] = f"Bearer {TOKEN}"
                await client.put(f"{sites[0].url}/inventory/SKU-1", json={"quantity": 100})
                for number in range(8):  # over all partitions, so over both workers
                    body = order(order_id=f"o-{number}", email=f"c{number}@example.com")
                    placed = await client.post(f"{sites[number % 2].url}/orders", json=body)
                    assert placed.status_code == 202, placed.text
                    read = await client.get(
                        f"{sites[1 - number % 2].url}/orders/o-{number}",
                        params={"after": placed.json()["token"], "timeout": "20s"},
                    )
                    assert read.status_code == 200, read.text

            def all_is_well() -> bool:
                confirmed = prometheus.value('sum(events_processed_total{type="order.confirmed",status="ok"})')
                return bool(prometheus.value('sum(up{job="orders"})') == 2 and confirmed)

            await asyncio.to_thread(
                prometheus.wait_until, all_is_well, "both workers are scraped, and have done something"
            )
            assert prometheus.value("max(partitions_configured) - sum(partitions_owned)") == 0
            async with asyncio.timeout(30):
                while not all(mails.messages_to(f"c{number}@example.com") for number in range(8)):
                    await asyncio.sleep(0.05)
            for worker in workers:
                worker.process.send_signal(signal.SIGTERM)
            for worker in workers:
                assert await asyncio.to_thread(worker.process.wait, 15) == 0, worker.output
