"""Fixtures for every test: a real Kafka where one can be had, and a last word where it cannot."""

from __future__ import annotations

import functools
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from tests import kafka
from tests.guarded_kafka import GuardedKafka

KAFKA_FIXTURES = frozenset({"kafka_broker", "own_kafka", "private_kafka_broker", "guarded_kafka"})
NO_KAFKA = "no Kafka here: "


@dataclass(frozen=True)
class SharedKafka:
    """The broker all tests share: use topic names of your own, and leave it running."""

    bootstrap: str  # host:port


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedKafka]:
    """Give the session's Kafka: the one at KAFKA_BOOTSTRAP, or one that is started now and ended with the session."""
    if external := os.environ.get("KAFKA_BOOTSTRAP"):
        _check_it_answers(external)
        yield SharedKafka(external)
    else:
        with _start_broker(tmp_path_factory.mktemp("kafka")) as broker:
            yield SharedKafka(broker.bootstrap)


@pytest.fixture
def own_kafka() -> None:
    """Let a test run only where it can start brokers itself: KAFKA_BOOTSTRAP is not enough."""
    if (reason := _why_no_own_broker()) is not None:
        _no_kafka(reason)


@pytest.fixture
def private_kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kafka.KafkaBroker]:
    """Start a Kafka that belongs to one test, which may stop, kill and restart it."""
    with _start_broker(tmp_path_factory.mktemp("private-kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def guarded_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedKafka]:
    """Start a Kafka that wants TLS and logins, with a port for each way to connect."""
    if shutil.which("openssl") is None:
        _no_kafka("openssl is not installed, which makes its certificates")
    guarded = GuardedKafka(tmp_path_factory.mktemp("guarded-kafka"))
    with _start_broker(guarded.folder, guarded.extras()):
        yield guarded


@pytest.fixture
def unused_port() -> int:
    """Give a loopback TCP port that nobody listens on."""
    return kafka.unused_port()


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses a broker."""
    for item in items:
        if KAFKA_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("kafka")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or under REQUIRE_KAFKA=1 fail, what needs a broker where none can be had."""
    if item.get_closest_marker("kafka") and (reason := _why_no_kafka()) is not None:
        _no_kafka(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end whether tests on Kafka were left out, and how to get them."""
    skipped = [
        report.longrepr[2]
        for report in terminalreporter.getreports("skipped")
        if isinstance(report.longrepr, tuple) and NO_KAFKA in report.longrepr[2]
    ]
    if skipped:
        reason = skipped[0].split(NO_KAFKA, 1)[1].splitlines()[0]
        terminalreporter.section("Kafka", yellow=True)
        terminalreporter.line(f"{len(skipped)} tests on real Kafka were SKIPPED: {reason}.", yellow=True)
        terminalreporter.line(
            f"To run them, install Java {kafka.JAVA_VERSION_MIN}+ and Maven, or set KAFKA_BOOTSTRAP=host:port. "
            "REQUIRE_KAFKA=1 turns such a skip into a failure."
        )


@functools.cache
def _why_no_kafka() -> str | None:
    return None if os.environ.get("KAFKA_BOOTSTRAP") else _why_no_own_broker()


@functools.cache
def _why_no_own_broker() -> str | None:
    return kafka.missing_tools()


def _start_broker(folder: Path, extras: kafka.Extras | None = None) -> kafka.KafkaBroker:
    if (reason := _why_no_own_broker()) is not None:
        _no_kafka(reason)
    try:
        kafka.resolve_jars()
    except kafka.KafkaUnavailable as error:
        _no_kafka(str(error))
    return kafka.KafkaBroker(folder, extras=extras)


def _no_kafka(reason: str) -> NoReturn:
    if os.environ.get("REQUIRE_KAFKA", "") not in ("", "0"):
        pytest.fail(f"REQUIRE_KAFKA is set, but there is {NO_KAFKA}{reason}", pytrace=False)
    pytest.skip(NO_KAFKA + reason)


def _check_it_answers(bootstrap: str) -> None:
    host, _, port = bootstrap.split(",")[0].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        pytest.fail(f"KAFKA_BOOTSTRAP={bootstrap} does not answer: {error}", pytrace=False)
