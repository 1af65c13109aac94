"""What an earlier release has written is opened, is answered as it answered, and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.processes import Site
from tests.integration.web import order
from tests.kafka import KafkaBroker
from tests.release_data import CUSTOMER, answers, answers_of, site_of, unpack

# Whether a letter may still be tried again depends on how old it is.
AGES = {"refusal", "age_seconds", "lag_seconds"}


def is_in(old: Any, new: Any) -> bool:
    """Whether an answer says all that the old one says; it may say more."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(name in new and (name in AGES or is_in(value, new[name])) for name, value in old.items())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(is_in, old, new))
    return bool(old == new)


def check_goes_on(kind: str, site: Site) -> None:
    """Start a worker on the data: it answers as before, and takes orders."""
    before = json.loads(answers_of(kind).read_text())
    with site.start("worker") as worker:
        worker.wait_until_ready()
        now = answers(site)
        different = {path: (before[path], now[path]) for path in before if not is_in(before[path], now[path])}
        assert not different
        assert httpx.post(f"{site.url}/orders", json=order(CUSTOMER, "new"), timeout=30).status_code == 202
        worker.wait_until(
            lambda: site.status("/orders/new") == 200 and site.get("/orders/new")["status"] == "confirmed",
            "a new order is confirmed",
        )
        (letter,) = site.get("/dead-letters")["items"]
        discard = httpx.post(f"{site.url}/dead-letters/{letter['id']}/discard", json={"reason": "a test"}, timeout=30)
        assert discard.status_code == 202, discard.text
        worker.wait_until(lambda: not site.get("/dead-letters", state="open")["items"], "the dead letter is discarded")
        assert site.status("/healthz") == 200
        assert worker.stop() == 0


def test_the_embedded_log_and_the_stores_of_an_earlier_release_go_on(tmp_path: Path) -> None:
    unpack("embedded", tmp_path)
    check_goes_on("embedded", site_of(tmp_path, "embedded://"))


@pytest.mark.usefixtures("own_kafka")
@pytest.mark.parametrize("with_stores", [True, False], ids=["with its stores", "without its stores"])
def test_the_topics_of_an_earlier_release_in_kafka_go_on(tmp_path: Path, with_stores: bool) -> None:
    unpack("kafka", tmp_path)
    if not with_stores:
        (tmp_path / "data").rename(tmp_path / "put aside")
    with KafkaBroker(tmp_path / "kafka") as broker:
        check_goes_on("kafka", site_of(tmp_path, f"kafka://{broker.bootstrap}"))
