"""The log of a worker: every line of every library in one form, for people or as JSON.

A line about a record says which one it is. What was logged while a record is handled is about that record; other lines
name it with `extra=about(...)`. Whatever the line says, mail addresses and this worker's secrets are left out, and
control characters are escaped: what somebody writes into an event cannot look like a line of its own.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from engine.declare.settings import Settings, is_secret
from engine.observe.about import fields_of_record
from engine.observe.plain_text import plain_line
from engine.observe.tracing.current import current_trace_id
from engine.watchdog.watch import WATCH

REPEAT_PAUSE_S: Final = 1.0
REFUSAL: Final = "NotEnoughReplicasError"
REFUSALS_LAST_S: Final = 2.0  # longest of a healthy broker under load: 0.3 s
REFUSALS_GAP_S: Final = 0.2  # twice the slowest client's pause between two tries
EXPORTER: Final = "opentelemetry"
EXPORTER_PAUSE_S: Final = 60.0  # a collector that is away is worth a line now and then
SECRET_LENGTH_MIN: Final = 4  # a shorter one would be found everywhere
CONTINUED: Final = "\n    | "

_MAIL_ADDRESS = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+@(?:[\w-]+\.)+[^\W\d_]{2,}")
_PLAIN = re.compile(r'[^\s="]+')


def configure_logging(settings: Settings, others_level: str = "WARNING") -> None:
    """Log to stderr: the application and the engine at `log_level` of the settings, all others at `others_level`."""
    handler = log_handler(settings)
    if settings.log_level != "DEBUG" and others_level == "WARNING":
        handler.addFilter(_is_worth_reading)
        handler.addFilter(_RefusalsThatLast())
        handler.addFilter(_NotEveryTime(settings.application.own_packages))
    logging.basicConfig(level=others_level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for package in settings.application.own_packages:
        logging.getLogger(package).setLevel(settings.log_level)


def log_handler(settings: Settings) -> logging.Handler:
    """What writes every line to stderr, in the form of the setting `log_format`."""
    masks = Masks(secrets_of(settings, os.environ))
    handler = _CurrentStderr()
    handler.setFormatter(JsonFormatter(masks) if settings.log_format == "json" else TextFormatter(masks))
    return handler


class _CurrentStderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the moment: a progress bar may have put itself in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class _RefusalsThatLast(logging.Filter):
    """Holds back that a broker refuses records for want of replicas, until it has done so for a while.

    So it also asks a producer to wait for the end of its transaction before (it cannot say that better to aiokafka,
    which speaks an old version of the protocol). That is over after a few tries, milliseconds apart. When replicas are
    really missing, the tries go on. `clock` is monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._refused: dict[str, tuple[float, float]] = {}  # by topic and partition: since when, and when last

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is something else, or has lasted."""
        if not record.name.startswith("aiokafka.producer") or REFUSAL not in (message := record.getMessage()):
            return True
        now = self._clock()
        since, last = self._refused.get(message, (now, now))
        if now - last > REFUSALS_GAP_S:
            since = now
        self._refused[message] = since, now
        return now - since >= REFUSALS_LAST_S


class _NotEveryTime(logging.Filter):
    """Lets the same message of another library through now and then: aiokafka repeats one for every attempt."""

    def __init__(self, own_packages: Iterable[str]) -> None:
        super().__init__()
        self._own_packages = frozenset(own_packages)
        self._last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message was not seen for a while; ours always pass."""
        package = record.name.partition(".")[0]
        if package in self._own_packages:
            return True
        pause_s = EXPORTER_PAUSE_S if package == EXPORTER else REPEAT_PAUSE_S
        message, now = (record.name, str(record.msg)), time.monotonic()
        if now - self._last.get(message, -pause_s) < pause_s:
            return False
        self._last[message] = now
        return True


def _is_worth_reading(record: logging.LogRecord) -> bool:
    """Leave out what Faust says about starting and stopping its parts, and about a sensor we do not use."""
    message = str(record.msg)
    mundane = record.levelno < logging.WARNING and message.startswith("[^")
    return not mundane and "Missing sensor state" not in message


# ---- what a line says


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a line is about: the record that is being handled right now, and what whoever wrote the line says of it."""
    fields: dict[str, Any] = {}
    by, handled = WATCH.by, WATCH.record
    # Handlers run in the main thread: what other threads say meanwhile is not about the same record. Nor is it what
    # ends their spans, which says that it has no room for them.
    in_handler = record.thread == threading.main_thread().ident and not record.name.startswith(EXPORTER)
    if by is not None and handled is not None and in_handler:
        fields = fields_of_record(by.topic, by.stuck.number, handled, agent=by.agent)
    if (trace_id := current_trace_id()) is not None:
        fields["trace_id"] = trace_id
    return fields | getattr(record, "about", {})


class TextFormatter(logging.Formatter):
    """For people: time, level, message, and `name=value` for the rest. Traces follow in lines that are indented."""

    def __init__(self, masks: Masks) -> None:
        super().__init__()
        self._masks = masks

    def format(self, record: logging.LogRecord) -> str:
        """One line; more only for a trace."""
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        message = self._clean(record.getMessage(), getattr(record, "has_lines", False))
        fields = [f"{name}={self._value(value)}" for name, value in fields_of(record).items()]
        line = " ".join((f"{at} {record.levelname:<8} {message}", *fields))
        trace = _trace_of(record, self)
        return line + (CONTINUED + self._clean(trace, True) if trace else "")

    def _clean(self, text: str, has_lines: bool = False) -> str:
        masked = self._masks.apply(text)
        return CONTINUED.join(map(plain_line, masked.rstrip("\n").split("\n"))) if has_lines else plain_line(masked)

    def _value(self, value: object) -> str:
        text = self._clean(str(value))
        if _PLAIN.fullmatch(text):
            return text
        return '"' + text.replace('"', '\\"') + '"'


class JsonFormatter(logging.Formatter):
    """One JSON object for each line, in ASCII, with the time in UTC."""

    def __init__(self, masks: Masks) -> None:
        super().__init__()
        self._masks = masks

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "timestamp": at.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": self._masks.apply(record.getMessage()),
        }
        for name, value in fields_of(record).items():
            line.setdefault(name, self._masks.apply(value) if isinstance(value, str) else value)
        if trace := _trace_of(record, self):
            line["exception"] = self._masks.apply(trace)
        return json.dumps(line, ensure_ascii=True, default=str)


def _trace_of(record: logging.LogRecord, formatter: logging.Formatter) -> str:
    """The traces that belong to a line, as text."""
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)


# ---- what no line says


class Masks:
    """Leaves secrets and mail addresses out of texts."""

    def __init__(self, secrets: Iterable[str]) -> None:
        known = sorted({secret for secret in secrets if len(secret) >= SECRET_LENGTH_MIN}, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, known))) if known else None

    def apply(self, text: str) -> str:
        """The text, with stand-ins for what is not for everybody."""
        if self._secrets is not None:
            text = self._secrets.sub("[secret]", text)
        return _MAIL_ADDRESS.sub("[mail address]", text) if "@" in text else text


def secrets_of(settings: Settings, environ: Mapping[str, str]) -> set[str]:
    """What this worker knows and nobody else should: tokens and passwords, as they are and as they stand in URLs."""
    secrets = {value.get_secret_value() for _, value in settings if isinstance(value, SecretStr)}
    for url in (str(value) for name, value in settings if is_secret(type(settings), name)):
        try:
            password = urlsplit(url).password or ""
        except ValueError:
            continue
        secrets |= {password, unquote(password)}
    for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"):
        values = [pair.partition("=")[2].strip() for pair in environ.get(name, "").split(",")]
        secrets |= {form for value in values for form in (value, unquote(value))}
    return secrets - {""}
