"""The image and docker-compose.yml: valid, locked, without root, stopped in time, and nothing they name is missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from engine.faust.worker import STOP_TIMEOUT_S
from streams.settings import Settings, load_settings
from tests.compose import (
    COMPOSE,
    NODES,
    ROOT,
    SERVICES,
    Missing,
    environment_of,
    exec_form,
    final_stage,
    image_environment,
    instructions,
)

GIVEN = {"ORDERS_API_TOKEN": "secret", "GRAFANA_PASSWORD": "secret"}


def lint(program: str, *arguments: str) -> None:
    """Run a linter that lives beside this Python."""
    command = [str(Path(sys.executable).parent / program), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_has_nothing_to_complain_about() -> None:
    lint("hadolint", "--failure-threshold", "style", "Dockerfile")


def test_yaml_files_are_tidy() -> None:
    lint("yamllint", "--strict", "docker-compose.yml", "ops", ".yamllint.yaml")


def test_the_compose_file_is_one() -> None:
    schema = json.loads((ROOT / "tests/data/compose-spec.json").read_text())
    jsonschema.Draft7Validator(schema).validate(COMPOSE)


# ---- the image


def test_what_the_image_is_made_of_is_there_and_not_ignored() -> None:
    copies = [rest.split() for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    copied = [source for *sources, _ in copies for source in sources]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == allowed
    assert all((ROOT / path).exists() for path in copied)


def test_packages_of_the_image_are_locked_with_hashes() -> None:
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert "-r requirements.lock" in installs[0]
    assert "--no-deps --no-build-isolation" in installs[1]


def test_the_image_runs_a_worker_without_root_or_shell() -> None:
    stage = dict(final_stage())
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", stage["USER"])
    assert stage["STOPSIGNAL"] == "SIGTERM"
    assert exec_form("ENTRYPOINT") + exec_form("CMD") == ["orders", "worker"]
    assert "/readyz" in exec_form("HEALTHCHECK")[-1]


# ---- the services


@pytest.mark.parametrize("variable", GIVEN)
def test_what_has_to_be_secret_has_no_default(variable: str) -> None:
    given = {name: value for name, value in GIVEN.items() if name != variable}
    service = "worker" if variable.startswith("ORDERS_") else "grafana"
    with pytest.raises(Missing, match=r"set it in \.env"):
        environment_of(service, given)
    assert f"{variable}=\n" in (ROOT / ".env.example").read_text()


def test_the_workers_settings_are_settings() -> None:
    environment = {**image_environment(), **environment_of("worker", GIVEN)}
    named = {name.removeprefix("ORDERS_").lower(): value for name, value in environment.items() if "ORDERS_" in name}
    assert set(named) <= set(Settings.model_fields)
    settings = load_settings(_env_file=None, **named)
    assert settings.api_token
    assert settings.bootstrap_servers == [f"{node}:19092" for node in NODES]
    assert settings.replication == len(NODES)


def test_one_of_three_kafka_nodes_may_be_away_without_loss_or_standstill() -> None:
    nodes = [environment_of(node, GIVEN) for node in NODES]
    assert [node["KAFKA_NODE_ID"] for node in nodes] == ["1", "2", "3"]
    assert len({SERVICES[node]["volumes"][0] for node in NODES}) == 3
    for name, value in nodes[0].items():
        if "REPLICATION_FACTOR" in name:
            assert value == "3", name
        if name.endswith(("MIN_ISR", "MIN_INSYNC_REPLICAS")):
            assert value == "2", name
    assert {node["KAFKA_CONTROLLER_QUORUM_VOTERS"].count("@") for node in nodes} == {3}
    assert set(SERVICES["worker"]["depends_on"]) >= set(NODES)


def test_workers_scale_and_have_time_to_stop() -> None:
    worker = SERVICES["worker"]
    assert worker["deploy"]["replicas"] == 2
    assert "container_name" not in worker
    assert "ORDERS_WEB_URL" not in worker["environment"]
    assert re.fullmatch(r"127\.0\.0\.1:\d+-\d+:6066", worker["ports"][0])
    assert int(worker["stop_grace_period"].removesuffix("s")) > STOP_TIMEOUT_S
    assert all(":" not in volume for volume in worker["volumes"])


def test_nothing_is_published_to_other_machines() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(ports) == 7
    assert len(set(ports)) == 7
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_files_that_services_mount_exist() -> None:
    volumes = [volume for service in SERVICES.values() for volume in service.get("volumes", ())]
    mounted = [volume.split(":")[0] for volume in volumes if volume.startswith("./")]
    assert len(mounted) == 3
    assert all((ROOT / path).exists() for path in mounted)
    named = {volume.split(":")[0] for volume in volumes if re.match(r"\w[\w-]*:", volume)}
    assert named == set(COMPOSE["volumes"])


def test_versions_are_pinned_and_kafka_is_the_one_that_is_tested() -> None:
    images = {name: service["image"] for name, service in SERVICES.items()}
    assert all(re.search(r":v?\d+\.\d+", image) for name, image in images.items() if name != "worker")
    pom = (ROOT / "ops/kafka/pom.xml").read_text()
    assert {f"<kafka.version>{images[node].split(':')[1]}</kafka.version>" in pom for node in NODES} == {True}
