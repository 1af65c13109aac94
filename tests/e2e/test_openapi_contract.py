"""A live worker answers whatever schemathesis makes of its own `/openapi.json` as that document says."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import pytest

from streams.app import create_app
from streams.settings import Settings
from streams.topics import ORDER_COMMANDS
from tests.e2e.processes import REPOSITORY, Running, Site
from tests.integration.web import order

TOKEN = "a-token-for-tests"
PARTITIONS = 2
DEADLINE_S = 240.0  # it takes about 40 s on an idle machine
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "ignored_auth",
)
# A body that is too large is told so before anybody looks whether it is valid otherwise.
CONFIGURATION = """
hooks = "tests.e2e.schemathesis_hooks"
continue-on-failure = true
request-timeout = 40
warnings = false

[generation]
deterministic = true

[phases.coverage]
unexpected-methods = ["DELETE"]

[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422]
"""
NEED_DAMAGE = ("/partitions/{number}/repair", "/topics/{name}/partitions/{number}/accept-loss")
"""What has a good answer only where the log has less than it had: see test_engine_repair.py and test_web_losses.py."""

OPENAPI = "/openapi.json"
"""What schemathesis is given, and therefore leaves out."""

LETTERS = 40
MANY = ("/dead-letters/retry", "/dead-letters/discard")
"""What decides about all letters at once, and leaves none for the others."""


@pytest.fixture
def site(tmp_path: Path, unused_port: int) -> Site:
    return Site(tmp_path, unused_port, partitions=PARTITIONS, retry_count=0)


async def write_broken_commands(site: Site) -> None:
    """Put records into the log that will be dead letters, each with its own key."""
    settings = Settings(_env_file=None, data_dir=site.folder / "data", partitions=PARTITIONS)
    engine = create_app(settings).engine
    await engine.broker.start()
    try:
        await engine.broker.create_topics(engine.topic_specs())
        for number in range(LETTERS):
            key = f"broken-{number}".encode()
            await engine.broker.publish(ORDER_COMMANDS.name, engine.partition_for(key), [(key, b"no JSON", ())])
    finally:
        await engine.broker.stop()


def fill(site: Site, worker: Running) -> dict[str, list[str | int]]:
    """Give the worker orders, sagas, stock and dead letters; what there is, by the name that paths have for it."""
    with httpx.Client(base_url=site.url, timeout=30, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        client.put("/inventory/SKU-1", json={"quantity": 1_000_000}).raise_for_status()
        for number in range(6):
            body = order(f"c-{number % 2}", f"o-{number}", email="customer@example.com")
            client.post("/orders", json=body).raise_for_status()
        # An order that is cancelled before anybody is asked for money has no payment.
        for path in ("/orders/o-0", "/customers/c-0", "/sagas/o-0", "/payments/o-0", "/orders/o-0/notifications"):
            worker.wait_until(lambda path=path: client.get(path).is_success, f"{path} is there")  # type: ignore[misc]
        tokens = [client.post(f"/orders/o-{number}/cancel").json()["token"] for number in range(2)]

        def dead_letters() -> list[Any]:
            items: list[Any] = client.get("/dead-letters", params={"limit": LETTERS}).json()["items"]
            return items

        worker.wait_until(lambda: len(dead_letters()) == LETTERS, "the broken commands are dead letters")
        return {
            "order_id": [f"o-{number}" for number in range(6)],
            "customer_id": ["c-0", "c-1"],
            "product_id": ["SKU-1"],
            "id": [letter["id"] for letter in dead_letters()[:20]],
            "retried_id": [letter["id"] for letter in dead_letters()[20:]],  # not discarded before
            "name": ["orders", "positions", "order-events", "dead-letters"],
            "projection": ["customers", "no-table"],
            "key": ["o-0", "o-1"],
            "number": list(range(PARTITIONS)),
            "after": tokens,
        }


def configuration(known: dict[str, list[str | int]]) -> str:
    """The configuration with values that there are, for the parameters of these names."""
    lines = [CONFIGURATION]
    for name, values in known.items():
        lines.append(f"[dictionaries.{name}]\nvalues = {json.dumps(values)}")
    places = {name: "query" if name == "after" else "path" for name in known}
    lines += ["[parameters]", *(f'"{place}.{name}" = {{ dictionary = "{name}" }}' for name, place in places.items())]
    lines += [
        "[[operations]]",
        'include-name = "POST /dead-letters/{id}/retry"',
        'parameters = { "path.id" = { dictionary = "retried_id" } }',
        "[[operations]]",
        'include-path = "/tables/{name}/rebuild"',
        'parameters = { "path.name" = { dictionary = "projection" } }',
    ]
    return "\n".join(lines)


def ask(site: Site, configuration: str, *options: str) -> dict[str, set[int]]:
    """Let schemathesis ask the worker what it can think of: the statuses of each operation's answers.

    Fails the test when one of them is not as the contract says.
    """
    (site.folder / "schemathesis.toml").write_text(configuration)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "--no-color"),
        *("run", f"{site.url}{OPENAPI}", "--checks", ",".join(CHECKS), *options),
        *("--report", "ndjson", "--report-ndjson-path", "events.ndjson"),
    ]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = {**kept, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, cwd=site.folder, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    found: defaultdict[str, set[int]] = defaultdict(set)
    for line in (site.folder / "events.ndjson").read_text().splitlines():
        for kind, event in json.loads(line).items():
            if kind == "ScenarioFinished":
                answers = event["recorder"].get("interactions", {}).values()
                found[event["recorder"]["label"]].update(
                    answer["response"]["status_code"] for answer in answers if answer.get("response")
                )
    return found


@pytest.mark.slow
def test_a_live_worker_answers_as_its_contract_says(site: Site) -> None:
    asyncio.run(write_broken_commands(site))
    with site.start("worker") as worker:
        worker.wait_until_ready()
        known = fill(site, worker)
        left_out = [option for path in MANY for option in ("--exclude-path", path)]
        phases = ("--phases", "examples,coverage,fuzzing", "--max-examples", "5")
        about_known = ask(site, configuration(known), *phases, *left_out)
        nothing: dict[str, list[str | int]] = {name: ["0-1"] for name in known if name != "after"}
        reads = ("--phases", "fuzzing", "--max-examples", "8", "--include-name-regex", "^GET .*{")
        about_nothing = ask(site, configuration({**nothing, "after": known["after"]}), *reads)
        paths = site.get(OPENAPI)["paths"]
        assert "unexpected error" not in worker.output
    for path, operations in paths.items():
        for method, operation in operations.items():
            label = f"{method.upper()} {path}"
            if path in (*MANY, *NEED_DAMAGE, OPENAPI):
                continue
            answered = about_known[label] | about_nothing.get(label, set())
            assert any(status < 400 for status in answered), f"{label} had no good answer, so none was checked"
            if "404" in operation["responses"]:
                assert 404 in answered, f"{label} had no 404, so none was checked"


@pytest.mark.slow
def test_a_worker_with_a_token_refuses_changes_without_it_as_its_contract_says(site: Site) -> None:
    asyncio.run(write_broken_commands(site))
    with site.start("worker", ORDERS_API_TOKEN=TOKEN) as worker:
        worker.wait_until_ready()
        with_token = configuration(fill(site, worker)) + f'\n[auth.openapi.bearer]\nbearer = "{TOKEN}"\n'
        paths = [option for path in (*MANY, "/orders/{order_id}/cancel") for option in ("--include-path", path)]
        answered = ask(site, with_token, "--phases", "coverage", *paths)
    assert len(answered) == 3
    assert all(401 in statuses and statuses & {200, 202} for statuses in answered.values())
