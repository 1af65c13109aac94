"""Whether tracing is on: the standard variables of OpenTelemetry, as far as the SDK leaves their reading to us.

Everything else (sampler, resource, queue, endpoint, headers, timeouts) the SDK reads by itself.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTER: Final = "OTEL_TRACES_EXPORTER"
DISABLED: Final = "OTEL_SDK_DISABLED"


def is_on(environ: Mapping[str, str]) -> bool:
    """Whether spans are to be made: an exporter or an endpoint is named, and the SDK is not disabled."""
    if _value(environ, DISABLED) == "true":
        return False
    exporter = _value(environ, EXPORTER)
    return exporter == "otlp" if exporter else any(_value(environ, name) for name in ENDPOINTS)


def problem(environ: Mapping[str, str]) -> str | None:
    """What keeps tracing from being what was asked for, with what to do about it; None when nothing does."""
    exporter = _value(environ, EXPORTER)
    if exporter not in ("", "none", "otlp"):
        return f"{EXPORTER}={exporter}: must be otlp or none."
    if not is_on(environ):
        return None
    for name in PROTOCOLS:
        if _value(environ, name) not in ("", "http/protobuf"):
            return f"{name}={_value(environ, name)}: must be http/protobuf; most collectors take it on port 4318."
    for name in ENDPOINTS:
        if (url := environ.get(name, "").strip()) and not _is_http_url(url):
            return f"{name}: must be the address of a collector, like http://localhost:4318"  # a secret may be in it
    return None


def _value(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, "").strip().lower()


def _is_http_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
