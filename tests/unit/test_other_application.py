"""An application never says the names of another one: in help, refused settings, the doctor, advice and refusals."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import click
import pytest
from click.testing import CliRunner
from pydantic import Field

from engine import Application, EngineApp, SettingsError, create_app, engine_services, load_settings
from engine import Settings as EngineSettings
from engine.cli import Program, command_line
from engine.installation.folder import Remembered
from engine.installation.mark import Mark, Release
from engine.installation.rules import Applicant, loss, refusal
from engine.log.embedded.broker import EmbeddedBroker
from engine.log.embedded.mark import mark_path
from engine.log.ports import TransportUnusable
from engine.web.binding import binding_problem, token_warning

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = re.compile(r"ORDERS?_|ENGINE_|\borders\b|\bengine \w|streams\.app|\bsaga|customer|payment", re.IGNORECASE)
SENSORS = Application("sensors", module="sensors.app")


class Settings(EngineSettings):
    """Settings of sensors."""

    application: ClassVar[Application] = SENSORS

    app_id: str = Field("sensors", description="name of the consumer group")


def create(settings: EngineSettings) -> EngineApp:
    return create_app(settings, engine_services())


MAIN = command_line(Program(Settings, create), "Sensors: figures of temperatures.")


def says_nothing_of_others(text: str) -> None:
    assert (found := FOREIGN.search(text)) is None, f"{found} in: {text}"


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CliRunner]:
    """The command line in an empty folder, without settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SENSORS_WEB_PORT", "6199")
    yield CliRunner()
    logging.disable(logging.NOTSET)  # which commands silence


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in group.commands.items():
        yield from commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]


@pytest.mark.parametrize("path", list(commands(MAIN)), ids=lambda path: " ".join(path) or "itself")
def test_help_names_the_command_and_the_variables_of_its_application(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(MAIN, [*path, "--help"])
    assert shown.exit_code == 0, shown.output
    assert "sensors" in shown.output
    assert re.search(r"\$[{a-z]", shown.output) is None
    says_nothing_of_others(shown.output)


def test_the_help_of_a_worker_names_the_variables_of_its_options() -> None:
    shown = CliRunner().invoke(MAIN, ["worker", "--help"]).output
    assert {"SENSORS_BROKER", "SENSORS_DATA_DIR", "SENSORS_WEB_HOST", "SENSORS_LOG_LEVEL"} <= set(
        re.findall(r"SENSORS_\w+", shown)
    )


@pytest.mark.parametrize(
    "given",
    [
        {"web_port": "0"},
        {"retry_topics": "no json"},
        {"dedupe_window": "1"},
        {"broker": "kafka://here", "kafka_security_protocol": "SASL_SSL"},
        {"broker": "kafka://here", "kafka_security_protocol": "SSL", "kafka_ssl_cafile": "nowhere.pem"},
        {"broker": "kafka://here", "kafka_security_protocol": "SSL", "kafka_ssl_keyfile": "nowhere.pem"},
    ],
    ids=str,
)
def test_refused_settings_name_their_own_variables(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"SENSORS_{name}".upper(), value)
        monkeypatch.setenv(f"ORDERS_{name}".upper(), "of somebody else")
    with pytest.raises(SettingsError) as refused:
        load_settings(Settings)
    assert "SENSORS_" in str(refused.value)
    says_nothing_of_others(str(refused.value))


def test_the_doctor_and_other_commands_speak_of_their_own_application_alone(outside: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no folder")
    shown = [
        outside.invoke(MAIN, line, env={"SENSORS_WEB_HOST": "192.0.2.1", "SENSORS_MISSPELT": "1", "ORDERS_OTHER": "1"})
        for line in (["doctor"], ["topics"], ["tail"], ["log", "check"], ["adopt", "--reason", "why"], ["rebuild", "t"])
    ]
    text = "\n".join(one.output for one in shown)
    assert "SENSORS_MISSPELT is no setting" in text
    assert "SENSORS_API_TOKEN" in text
    assert "`sensors worker`" in text
    says_nothing_of_others(text)


async def test_a_log_that_is_damaged_or_gone_is_advised_about_with_its_own_names(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path / "data")
    broker = EmbeddedBroker(settings)
    await broker.start()
    await broker.stop()
    mark_path(settings.data_dir / "log").write_bytes(b"nonsense")
    with pytest.raises(TransportUnusable) as refused:
        await EmbeddedBroker(settings).start()
    assert "`sensors log check`" in str(refused.value)
    says_nothing_of_others(str(refused.value))

    lost = Settings(_env_file=None, data_dir=tmp_path / "lost")
    (lost.data_dir / "stores" / "0").mkdir(parents=True)
    (lost.data_dir / "stores" / "0" / "CURRENT").touch()
    with pytest.raises(TransportUnusable) as refused:
        await EmbeddedBroker(lost).start()
    assert "SENSORS_DATA_DIR" in str(refused.value)
    says_nothing_of_others(str(refused.value))


def test_a_worker_on_anothers_topics_is_refused_with_its_own_names(tmp_path: Path) -> None:
    release = Release("1", 2, 1)
    mark = Mark(app_id="other", installation="i", topics=("readings",), release="1", level=2, oldest_beside=1,
                since="then", by="somebody")  # fmt: skip
    applicant = Applicant(SENSORS, "sensors", frozenset({"readings"}), release, tmp_path, None, True, False)
    remembering = applicant._replace(remembered=Remembered("before", "j"))
    said = [
        refusal(applicant, {"other": mark}, {}),
        refusal(remembering, {}, {}),
        refusal(applicant, {}, {}),
        loss(mark, frozenset({"readings"}), release, {}, SENSORS) or "",
        loss(replace_app(mark), frozenset({"readings"}), release, {"other": mark}, SENSORS),
    ]
    text = "\n".join(str(one) for one in said)
    assert "SENSORS_APP_ID" in text
    assert "`sensors adopt --reason TEXT`" in text
    says_nothing_of_others(text)


def replace_app(mark: Mark) -> Mark:
    return Mark(**{**{name: getattr(mark, name) for name in mark.__struct_fields__}, "app_id": "sensors"})


def test_who_may_reach_a_worker_is_said_with_its_own_names() -> None:
    settings = Settings(_env_file=None)
    problem = binding_problem(settings, "0.0.0.0")
    warning = token_warning(Settings(_env_file=None, api_token="hush"))
    assert "SENSORS_API_TOKEN" in str(problem)
    says_nothing_of_others(f"{problem}\n{warning}")


def test_what_is_called_differently_is_named_so_everywhere() -> None:
    changed = replace(SENSORS, name="cold-rooms")
    assert changed.variable("web_port") == "COLD_ROOMS_WEB_PORT"
    assert changed.command("doctor") == "`cold-rooms doctor`"
    assert changed.header("Forwarded") == "X-Cold-Rooms-Forwarded"
    assert changed.own_packages == ("engine",)


def test_no_module_of_the_engine_says_a_name_of_the_shop() -> None:
    words = re.compile(
        r"ORDERS_|\borders\b|orders-events|streams\.app|\bsagas?\b|\bcustomers?\b|payment", re.IGNORECASE
    )
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line}"
        for file in sorted((ROOT / "engine").rglob("*.py*"))
        if file.suffix in (".py", ".pyi")
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if words.search(line)
    ]
    assert found == []
