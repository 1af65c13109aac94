"""A real Prometheus with this project's own configuration, for tests; and what its rules and panels ask for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import yaml

from tests.kafka import kill_when_we_die, unused_port

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "ops" / "prometheus"
GRAFANA = ROOT / "ops" / "grafana"
DASHBOARD: Mapping[str, Any] = json.loads((GRAFANA / "dashboards" / "orders.json").read_text())
DEADLINE_S = 30.0


def need(program: str) -> str:
    """Path of a program of Prometheus; the test is skipped without it, or fails under REQUIRE_PROMETHEUS=1."""
    if (found := shutil.which(program)) is not None:
        return found
    reason = f"{program} is not installed (Debian, Ubuntu: apt install prometheus)"
    if os.environ.get("REQUIRE_PROMETHEUS", "") not in ("", "0"):
        pytest.fail(f"REQUIRE_PROMETHEUS is set, but {reason}", pytrace=False)
    pytest.skip(reason)


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool in the folder of the rules."""
    command = [need("promtool"), *map(str, arguments)]
    return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False)


def rules() -> Iterator[Mapping[str, Any]]:
    """Every rule of alerts.yml."""
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]:
        yield from group["rules"]


def panel_expressions() -> list[str]:
    """What the panels and annotations of the dashboard ask for."""
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return targets + [note["expr"] for note in DASHBOARD["annotations"]["list"]]


# ---- what an expression asks for

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABELS = re.compile(r"\{([^}]*)\}")
_NUMBER_OR_RANGE = re.compile(r"\[[^\]]*\]|(?<![\w:])\d[\w.]*")
_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_WORDS = frozenset(["and", "or", "unless", "offset", "bool", "group_left", "group_right", "inf", "nan"])


def names_in(expression: str) -> set[str]:
    """The metrics an expression of PromQL reads: its identifiers, without functions, keywords and labels."""
    text = _LABELS.sub(" ", _STRING.sub('""', expression))
    text = _GROUPING.sub(" ", _NUMBER_OR_RANGE.sub(" ", text))
    found = ((match[0], text[match.end() :].lstrip()) for match in _NAME.finditer(text))
    aggregated = ((name, rest) for name, rest in found if name.lower() not in _WORDS)
    return {name for name, rest in aggregated if not rest.startswith("(")}


def labels_in(expression: str) -> set[str]:
    """The labels an expression selects or groups by."""
    text = _STRING.sub('""', expression)
    selected = (part for labels in _LABELS.findall(text) for part in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels))
    grouped = (label for _, labels in _GROUPING.findall(text) for label in _NAME.findall(labels))
    return {*selected, *grouped}


# ---- a server


class Prometheus:
    """Prometheus on loopback with ops/prometheus, but quick: it scrapes and evaluates all the time.

    Every rule has the expression it has in alerts.yml; what holds for a while there has to hold for a second here.
    """

    def __init__(self, folder: Path, targets: Iterable[str]) -> None:
        self.url = f"http://127.0.0.1:{unused_port()}"
        self._folder = folder
        self._config = self._write(sorted(targets))
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    def _write(self, targets: Sequence[str]) -> Path:
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
        for job in config["scrape_configs"]:
            assert job.pop("dns_sd_configs")
            job["static_configs"] = [{"targets": targets}]
        hurried = yaml.safe_load((FOLDER / "alerts.yml").read_text())
        for group in hurried["groups"]:
            for rule in group["rules"]:
                if "for" in rule:
                    rule["for"] = "1s"
        (self._folder / "alerts.yml").write_text(yaml.safe_dump(hurried))
        path = self._folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        return path

    def __enter__(self) -> Self:
        log = (self._folder / "prometheus.log").open("wb")
        with log:
            self._process = subprocess.Popen(
                [
                    need("prometheus"),
                    f"--config.file={self._config}",
                    f"--storage.tsdb.path={self._folder / 'tsdb'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=log,
            )
        self._watcher = kill_when_we_die(self._process.pid)
        try:
            self.wait_until(self._is_ready, "it is ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._watcher is not None
        self._process.kill()
        self._process.wait()
        self._watcher.kill()
        self._watcher.communicate()

    def ask(self, path: str, **query: str) -> Any:
        """What its API answers."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=query, timeout=5, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def value(self, expression: str) -> float | None:
        """The value of an expression that has one series, None while it has none."""
        found = self.ask("query", query=expression)["result"]
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> dict[str, Mapping[str, Any]]:
        """The alerts that fire, by name."""
        alerts = self.ask("alerts")["alerts"]
        return {alert["labels"]["alertname"]: alert for alert in alerts if alert["state"] == "firing"}

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Return when `condition` holds; fails the test when it does not in time. Blocks: call it in a thread."""
        assert self._process is not None
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = (self._folder / "prometheus.log").read_text()
                pytest.fail(f"waited in vain until {what}; Prometheus says:\n{log[-3000:]}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:  # it does not listen yet
            return False
