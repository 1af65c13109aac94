"""Faust's own command line: what works does as Faust says, and what cannot is refused with what to use instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.processes import FAUST, Site
from tests.kafka import KafkaBroker

COMMAND = json.dumps({"orderId": "o-1"})


@pytest.fixture
def site(tmp_path: Path, unused_port: int) -> Site:
    return Site(tmp_path, unused_port)


@pytest.mark.parametrize(
    ("command", "instead"),
    [("reset", "rebuild TABLE"), ("livecheck", "/healthz"), ("clean-versions", "one data folder")],
)
def test_a_command_that_cannot_be_honoured_names_another(site: Site, command: str, instead: str) -> None:
    refused = site.run(command, command=FAUST)
    assert refused.returncode == 2
    assert instead in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr


def test_a_data_folder_of_faust_is_refused(site: Site) -> None:
    refused = site.run("--datadir", str(site.folder / "elsewhere"), "tables", command=FAUST)
    assert refused.returncode == 2
    assert "ORDERS_DATA_DIR" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_banner_names_the_broker_the_stores_and_the_data_folder_that_are_used(site: Site) -> None:
    with site.start("worker", command=FAUST) as worker:
        worker.wait_until(lambda: site.status("/readyz") == 200, "the worker is ready")
        assert worker.stop() == 0
    cells = [[cell.strip() for cell in line.split("|")] for line in worker.output.splitlines() if line.startswith("|")]
    banner = {cell[1]: cell[2] for cell in reversed(cells)}  # the driver of the transport stands below it
    assert banner["transport"] == "embedded://"
    assert banner["store"] == "rocksdb"
    assert banner["datadir"] == str(site.folder / "data")
    assert "appdir" not in banner


def test_a_message_is_sent_to_the_embedded_log_unless_a_worker_holds_it(site: Site) -> None:
    with site.start("worker") as worker:
        worker.wait_until(lambda: site.status("/readyz") == 200, "the worker is ready")
        held = site.run("send", "order-commands", COMMAND, "-k", "o-1", command=FAUST)
        assert held.returncode == 1
        assert f"send commands to its HTTP view at {site.url}" in held.stderr
        assert "Traceback" not in held.stderr + held.stdout
        assert worker.stop() == 0
    sent = site.run("send", "@decide-orders", COMMAND, "-k", "o-1", command=FAUST)
    assert sent.returncode == 0, sent.stderr
    assert json.loads(sent.stdout)["topic"] == "order-commands"


@pytest.mark.parametrize("entity", ["no-such-topic", "@no-such-agent"])
def test_an_unknown_topic_or_agent_is_one_sentence(site: Site, entity: str) -> None:
    failed = site.run("send", entity, COMMAND, command=FAUST)
    assert failed.returncode == 1
    assert entity.removeprefix("@") in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_message_is_sent_to_kafka_while_a_worker_runs(
    private_kafka_broker: KafkaBroker, tmp_path: Path, unused_port: int
) -> None:
    site = Site(tmp_path, unused_port, broker=f"kafka://{private_kafka_broker.bootstrap}")
    with site.start("worker") as worker:
        worker.wait_until(lambda: site.status("/readyz") == 200, "the worker is ready")
        sent = site.run("send", "order-commands", COMMAND, "-k", "o-1", command=FAUST)
        assert sent.returncode == 0, sent.stderr
        place = json.loads(sent.stdout)
        page = site.get("/topics/order-commands/records", partition=place["partition"])
        assert [(record["key"], record["value"]) for record in page["items"]] == [("o-1", {"orderId": "o-1"})]
        assert worker.stop() == 0


OWN_COMMAND = """
from streams.app import create_app
from streams.settings import load_settings

app = create_app(load_settings())


@app.command()
async def greet(self):
    "Say hello."
    self.say(f"hello from {self.app.conf.id}")
"""


def test_a_command_of_ones_own_is_a_command_of_faust(site: Site) -> None:
    (site.folder / "greeting.py").write_text(OWN_COMMAND)
    greeted = site.run("greet", command=(*FAUST[:-1], "greeting"))
    assert greeted.returncode == 0, greeted.stderr
    assert "hello from orders" in greeted.stdout
