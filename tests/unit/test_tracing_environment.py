"""Whether tracing is on is told by OpenTelemetry's own variables, and what cannot be done is refused."""

from __future__ import annotations

import pytest

from engine.observe.tracing.environment import is_on, problem

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "orders"}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, False),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "false"}, True),
    ],
)
def test_it_is_on_when_it_is_asked_for(environ: dict[str, str], expected: bool) -> None:
    assert is_on(environ) is expected
    assert problem(environ) is None


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER=zipkin: must be otlp or none"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "must be http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"}, "must be the address of a collector"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:secret@host:nan"}, "must be the address of a collector"),
    ],
)
def test_what_cannot_be_done_is_refused_and_no_secret_told(environ: dict[str, str], words: str) -> None:
    told = problem(environ)
    assert told is not None
    assert words in told
    assert "secret" not in told


def test_what_is_off_is_not_looked_at() -> None:
    assert problem({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "nonsense"}) is None
