"""How every client of this project connects to Kafka."""

import logging
from typing import Any

from engine.declare.settings import Settings
from engine.log.kafka import bootstrap as kafka_bootstrap
from engine.log.kafka import wire as kafka_wire

REQUEST_BYTES_MAX = 5 << 20  # one record of a topic's largest size and its batch around it
PRODUCE_BATCH_BYTES = 1 << 20
REQUEST_TIMEOUT_MS = 20_000

kafka_bootstrap.install()
kafka_wire.install()


def _shows_no_password(record: logging.LogRecord) -> bool:
    """Leave out what aiokafka logs of a login at DEBUG: with PLAIN the password is in it."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not any(type(argument).__name__.startswith("SaslAuthenticateRequest") for argument in arguments)


logging.getLogger("aiokafka.conn").addFilter(_shows_no_password)


def connection_options(settings: Settings) -> dict[str, Any]:
    """What every client needs to reach the brokers."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "security_protocol": settings.kafka_security_protocol,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
    }
    if settings.kafka_security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_sasl_plain_username
        options["sasl_plain_password"] = settings.kafka_sasl_plain_password.get_secret_value()
    if settings.kafka_security_protocol.endswith("SSL"):
        options["ssl_context"] = settings.kafka_tls_context()
    return options
