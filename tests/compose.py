"""What docker-compose.yml and the Dockerfile say, read as a container engine reads them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
COMPOSE: Mapping[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: Mapping[str, Mapping[str, Any]] = COMPOSE["services"]
NODES = ("kafka-1", "kafka-2", "kafka-3")
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


class Missing(Exception):
    """A variable that has to be given is not."""


def environment_of(service: str, given: Mapping[str, str]) -> dict[str, str]:
    """The variables of a service, with what `.env` gives put in."""

    def value_of(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if given.get(name):
            return given[name]
        if kind == "?":
            raise Missing(f"{name}: {rest}")
        return str(rest or "")

    return {name: _VARIABLE.sub(value_of, value) for name, value in SERVICES[service]["environment"].items()}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line]


def final_stage() -> list[tuple[str, str]]:
    """The instructions that make the image itself."""
    found = instructions()
    last = max(index for index, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def image_environment() -> dict[str, str]:
    """The variables the image sets."""
    pairs = [pair for name, rest in final_stage() if name == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def exec_form(instruction: str) -> list[str]:
    """The program of ENTRYPOINT, CMD or HEALTHCHECK, which are lists, so that no shell keeps signals to itself."""
    (rest,) = (rest for name, rest in final_stage() if name == instruction)
    command: list[str] = json.loads(rest[rest.index("[") :])
    return command


def kafka_properties(environment: Mapping[str, str]) -> dict[str, str]:
    """What the image of Kafka makes of its variables: KAFKA_LOG_DIRS is log.dirs."""
    settings = {name: value for name, value in environment.items() if name.startswith("KAFKA_")}
    del settings["KAFKA_HEAP_OPTS"]
    return {name.removeprefix("KAFKA_").lower().replace("_", "."): value for name, value in settings.items()}
