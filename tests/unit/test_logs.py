"""Lines of the log: one form for all, nothing that could forge one, and no secrets or mail addresses."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import NotEnoughReplicasError
from aiokafka.producer import sender
from hypothesis import given
from hypothesis import strategies as st

from engine.declare.errors import Unavailable
from engine.log.ports import Record
from engine.observe.about import about, told
from engine.observe.logs import (
    JsonFormatter,
    Masks,
    TextFormatter,
    _NotEveryTime,
    _RefusalsThatLast,
    fields_of,
    secrets_of,
)
from engine.watchdog.stuck import StuckRecords
from engine.watchdog.watch import Handling, watched
from streams.settings import Settings

TEXT, JSON = TextFormatter(Masks(())), JsonFormatter(Masks(()))
VALUE = (
    b'{"eventId": "e-1", "eventType": "order.place", "aggregateId": "order-1", "aggregateType": "Order",'
    b' "metadata": {"correlationId": "req-1"}, "payload": {"email": "jane@example.com"}}'
)


def line(message: object, *args: object, name: str = "streams.test", **more: Any) -> logging.LogRecord:
    """A log record at WARNING."""
    logger = logging.getLogger(name)
    return logger.makeRecord(name, logging.WARNING, __file__, 1, message, args, more.pop("exc_info", None), **more)


def test_json_has_time_in_utc_level_logger_message_and_fields() -> None:
    record = line("%s is away", "the broker", extra=about(partition=3, offset=7, correlation_id="req-1", agent=None))
    record.created = 1_764_000_000.25
    assert json.loads(JSON.format(record)) == {
        "timestamp": "2025-11-24T16:00:00.250Z",
        "level": "WARNING",
        "logger": "streams.test",
        "message": "the broker is away",
        "partition": 3,
        "offset": 7,
        "correlation_id": "req-1",
    }


def test_fields_never_take_the_place_of_what_every_line_has() -> None:
    assert json.loads(JSON.format(line("true", extra=about(message="forged", level="DEBUG"))))["message"] == "true"


def test_text_has_the_fields_behind_the_message() -> None:
    said = TEXT.format(line("it failed", extra=about(partition=3, correlation_id='two words "and" quotes=x')))
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d WARNING  it failed partition=3 correlation_id="two words \\"and\\" quotes=x"', said
    )


def failed(words: str) -> Any:
    """What sys.exc_info gives for an error with these words."""
    try:
        raise ValueError(words)
    except ValueError:
        return sys.exc_info()


def test_a_trace_is_a_text_field_in_json_and_indented_lines_in_text() -> None:
    record = line("it failed", exc_info=failed("no\n12:00:00 CRITICAL forged"))
    trace = json.loads(JSON.format(record))["exception"]
    assert trace.startswith("Traceback (most recent call last):\n")
    assert trace.endswith("ValueError: no\n12:00:00 CRITICAL forged")
    first, *others = TEXT.format(record).splitlines()
    assert first.endswith("WARNING  it failed")
    assert all(text.startswith("    | ") for text in others)
    assert others[-1] == "    | 12:00:00 CRITICAL forged"


@given(st.text(), st.text())
def test_whatever_is_in_a_message_it_is_one_line_without_control_characters(text: str, value: str) -> None:
    record = line("%s", text, extra=about(correlation_id=value))
    for formatted in (TEXT.format(record), JSON.format(record)):
        assert len(formatted.splitlines()) == 1
        assert not re.search("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", formatted)
        formatted.encode()
    assert "correlation_id" in json.loads(JSON.format(record))


def test_messages_of_our_own_with_many_lines_are_indented() -> None:
    record = line("stuck\n%s", "  File a\n  File b", extra={"has_lines": True})
    assert TEXT.format(record).split("\n")[1:] == ["    |   File a", "    |   File b"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("550 no mailbox for <jane.doe+x@mail.example.com>", "550 no mailbox for <[mail address]>"),
        ("zoë@exämple.de und o'neil@example.org", "[mail address] und [mail address]"),
        ("order-commands/1@5 failed", "order-commands/1@5 failed"),
        ("535 not hunter2!x for jane", "535 not [secret] for jane"),
        ("https://me:hunter2%21x@pay.example.com", "https://me:[secret]@pay.example.com"),
    ],
)
def test_mail_addresses_and_secrets_are_left_out(text: str, masked: str) -> None:
    settings = Settings(_env_file=None, smtp_url="smtp://me:hunter2%21x@mail.example.com", api_token="t0ken")
    masks = Masks(secrets_of(settings, {}))
    said = TextFormatter(masks).format(line("%s", text)).split("WARNING  ")[1]
    assert said == masked or ("secret" in masked and "hunter2" not in said)
    assert "hunter2" not in JsonFormatter(masks).format(line("x", exc_info=failed(text), extra=about(detail=text)))


def test_every_secret_of_the_settings_is_known() -> None:
    settings = Settings(
        _env_file=None,
        api_token="api-t0ken",
        smtp_url="smtp://u:mail%2Fpass@host",
        payment_url="https://u:pay-pass@host/v1",
        kafka_sasl_plain_password="kafka-pass",
        kafka_ssl_password="key-pass",
    )
    environ = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20otel-key,x=y"}
    assert secrets_of(settings, environ) == {
        "api-t0ken", "mail%2Fpass", "mail/pass", "pay-pass", "kafka-pass", "key-pass", "Bearer%20otel-key",
        "Bearer otel-key", "y",
    }  # fmt: skip


def test_a_line_logged_while_a_record_is_handled_is_about_that_record(tmp_path: Path) -> None:
    by = Handling("decide-orders", "order-commands", StuckRecords(Settings(_env_file=None, data_dir=tmp_path), 2))
    of_record, elsewhere = {}, {}

    def handle() -> None:
        of_record.update(fields_of(line("x", extra=about(order_id="order-1"))))
        thread = threading.Thread(target=lambda: elsewhere.update(fields_of(line("x"))))
        thread.start()
        thread.join()

    watched(by, Record(7, 0, b"order-1", VALUE, ()), handle)
    assert of_record == {
        "topic": "order-commands",
        "partition": 2,
        "offset": 7,
        "agent": "decide-orders",
        "event_type": "order.place",
        "event_id": "e-1",
        "aggregate_id": "order-1",
        "correlation_id": "req-1",
        "order_id": "order-1",
    }
    assert elsewhere == {}
    assert fields_of(line("x")) == {}


def test_an_error_of_a_record_is_told_without_its_words_unless_somebody_debugs() -> None:
    error = failed("jane@example.com")[1]
    assert told(error) == "ValueError in failed"
    assert told(Unavailable("the gateway is away")) == "Unavailable: the gateway is away"
    logger = logging.getLogger("engine")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        assert told(error) == "ValueError: jane@example.com"
    finally:
        logger.setLevel(before)


def test_a_collector_that_is_away_and_a_broker_that_is_are_said_now_and_then() -> None:
    quiet = _NotEveryTime(("engine", "agents"))
    for name in ("opentelemetry.exporter", "aiokafka"):
        assert [quiet.filter(line("away", name=name)) for _ in range(3)] == [True, False, False]
    assert all(quiet.filter(line("away", name="engine.partition")) for _ in range(3))


def refusal(partition: int) -> logging.LogRecord:
    """What aiokafka logs when a broker refuses records for want of replicas."""
    logged: list[logging.LogRecord] = []
    batches = {TopicPartition("orders", partition): object()}
    handler = SimpleNamespace(_batches=batches, _can_retry=lambda error, batch: True, _to_reenqueue=[])
    response = SimpleNamespace(
        API_VERSION=7, topics=[("orders", [(partition, NotEnoughReplicasError.errno, -1, -1, -1)])]
    )
    sender.log.addFilter(logged.append)
    try:
        sender.SendProduceReqHandler.handle_response(handler, response)
    finally:
        sender.log.removeFilter(logged.append)
    return logged[0]


def test_refused_records_are_said_when_it_lasts_for_one_partition() -> None:
    now = 100.0
    lasting = _RefusalsThatLast(lambda: now)
    said = []
    for turn in range(60):  # always one of them, none for long
        said.append(lasting.filter(refusal(turn % 3)))
        now += 0.125
    assert not any(said)
    said = []
    for _ in range(30):
        said.append(lasting.filter(refusal(0)))
        now += 0.125
    assert said == [False] * 16 + [True] * 14
    now += 1
    assert not lasting.filter(refusal(0)), "it had ended meanwhile"
    assert lasting.filter(line("something else", name="aiokafka.producer.sender"))
    assert lasting.filter(line("NotEnoughReplicasError", name="engine.partition"))
