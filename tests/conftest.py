"""Fixtures for every test: a real Kafka and a real browser where they can be had, and a last word where not."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import pytest_asyncio

from tests import faulty_disk, kafka
from tests.browser.chromium import find_chromium
from tests.guarded_kafka import GuardedKafka
from tests.leftovers import end_leftovers
from tests.limits import FailuresAtOnce, Limits, Scheduling

LIMITS = "orders-limits"

pytest.register_assert_rewrite("tests.apps")  # what its checks have found is shown when they fail

# A shell starts what is to run in its background with Ctrl-C ignored, and those we start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Limit how long tests take, and say at once why they fail."""
    config.pluginmanager.register(Limits(config), LIMITS)
    config.pluginmanager.register(FailuresAtOnce(config))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling | None:
    """Run the rest of a file elsewhere when its process ended."""
    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest_asyncio.fixture
async def nothing_left_running(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Fail an async test that leaves something running, and end that; every async test has this."""
    limits = request.config.pluginmanager.getplugin(LIMITS)
    limits.loop = asyncio.get_running_loop()
    yield
    if problems := await end_leftovers():
        pytest.fail("\n".join(problems), pytrace=False)


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
        with start_broker(tmp_path_factory.mktemp("kafka")) as broker:
            yield SharedKafka(broker.bootstrap)


@pytest.fixture
def own_kafka() -> None:
    """Let a test run only where it can start brokers itself: KAFKA_BOOTSTRAP is not enough."""
    if (reason := _why_no_own_broker()) is not None:
        _missing(KAFKA, reason)


@pytest.fixture
def private_kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kafka.KafkaBroker]:
    """Start a Kafka that belongs to one test, which may stop, kill and restart it."""
    with start_broker(tmp_path_factory.mktemp("private-kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def guarded_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedKafka]:
    """Start a Kafka that wants TLS and logins, with a port for each way to connect."""
    if shutil.which("openssl") is None:
        _missing(KAFKA, "openssl is not installed, which makes its certificates")
    guarded = GuardedKafka(tmp_path_factory.mktemp("guarded-kafka"))
    with start_broker(guarded.folder, guarded.extras()):
        yield guarded


@pytest.fixture
def unused_port() -> int:
    """Give a loopback TCP port that nobody listens on."""
    return kafka.unused_port()


@pytest.fixture(scope="session")
def chromium() -> str:
    """Give the path of a Chromium."""
    found = find_chromium()
    assert found is not None, "tests with this fixture are not set up without one"
    return found


@pytest.fixture(scope="session")
def faulty_disk_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the library that lets calls to the operating system fail."""
    return faulty_disk.build(tmp_path_factory.mktemp("faulty-disk"))


@dataclass(frozen=True)
class Need:
    """Something that some tests need and not every machine has: tests that use a fixture of it are marked."""

    name: str
    fixtures: frozenset[str]
    why_missing: Callable[[], str | None]
    advice: str

    @property
    def marker(self) -> str:
        """What its tests are marked with."""
        return self.name.lower()

    @property
    def missing(self) -> str:
        """How reasons of skips begin."""
        return f"no {self.name} here: "


@functools.cache
def _why_no_kafka() -> str | None:
    return None if os.environ.get("KAFKA_BOOTSTRAP") else _why_no_own_broker()


@functools.cache
def _why_no_own_broker() -> str | None:
    return kafka.missing_tools()


def _why_no_chromium() -> str | None:
    return None if find_chromium() else "there is neither chromium nor google-chrome on the path"


KAFKA = Need(
    "Kafka",
    frozenset({"kafka_broker", "own_kafka", "private_kafka_broker", "guarded_kafka"}),
    _why_no_kafka,
    f"install Java {kafka.JAVA_VERSION_MIN}+ and Maven, or set KAFKA_BOOTSTRAP=host:port",
)
CHROMIUM = Need("Chromium", frozenset({"chromium"}), _why_no_chromium, "install chromium")
COMPILER = Need("Compiler", frozenset({"faulty_disk_library"}), faulty_disk.why_not_here, "install gcc")
NEEDS = (KAFKA, CHROMIUM, COMPILER)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that needs something special."""
    for item in items:
        for need in NEEDS:
            if need.fixtures & set(getattr(item, "fixturenames", ())):
                item.add_marker(need.marker)
        if pytest_asyncio.is_async_test(item):
            item.fixturenames.insert(0, nothing_left_running.__name__)  # first set up, so last torn down


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or under REQUIRE_KAFKA=1 fail, what cannot run here."""
    for need in NEEDS:
        if item.get_closest_marker(need.marker) and (reason := need.why_missing()) is not None:
            _missing(need, reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end whether tests were left out, and how to get them."""
    skips = [
        report.longrepr[2] for report in terminalreporter.getreports("skipped") if isinstance(report.longrepr, tuple)
    ]
    for need in NEEDS:
        skipped = [text for text in skips if need.missing in text]
        if not skipped:
            continue
        reason = skipped[0].split(need.missing, 1)[1].splitlines()[0]
        terminalreporter.section(need.name, yellow=True)
        terminalreporter.line(f"{len(skipped)} tests with a real {need.name} were SKIPPED: {reason}.", yellow=True)
        terminalreporter.line(
            f"To run them, {need.advice}. REQUIRE_KAFKA=1 turns such a skip into a failure, whatever is missing."
        )


@contextlib.contextmanager
def start_broker(folder: Path, extras: kafka.Extras | None = None) -> Iterator[kafka.KafkaBroker]:
    """A Kafka of its own while the block lasts; skips the test, or fails it, where none can be had."""
    if (reason := _why_no_own_broker()) is not None:
        _missing(KAFKA, reason)
    try:
        kafka.resolve_jars()
    except kafka.KafkaUnavailable as error:
        _missing(KAFKA, str(error))
    broker = kafka.KafkaBroker(folder, extras=extras)
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()  # nobody reads its data any more, and a proper end takes seconds


def _missing(need: Need, reason: str) -> NoReturn:
    if os.environ.get("REQUIRE_KAFKA", "") not in ("", "0"):
        pytest.fail(f"REQUIRE_KAFKA is set, but there is {need.missing}{reason}", pytrace=False)
    pytest.skip(need.missing + reason)


def _check_it_answers(bootstrap: str) -> None:
    host, _, port = bootstrap.split(",")[0].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        pytest.fail(f"KAFKA_BOOTSTRAP={bootstrap} does not answer: {error}", pytrace=False)
