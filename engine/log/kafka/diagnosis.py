"""Why Kafka cannot be reached: aiokafka's clients only say that they could not, whatever the reason was."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from typing import Any

from aiokafka.conn import AIOKafkaConnection, collect_hosts
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from engine.declare.settings import Settings
from engine.log.ports import TransportError, TransportUnusable

TIMEOUT_MS = 5_000
CLOSE_TIMEOUT_S = 1.0

# OpenSSL's X509_V_ERR_...
_OTHER_NAME = {62, 64}
_UNKNOWN_AUTHORITY = {2, 18, 19, 20, 21}
_EXPIRED = {9, 10}


async def diagnose(settings: Settings, options: dict[str, Any], failure: Exception) -> TransportError:
    """The error that says why no broker could be reached and what to do; TransportUnusable if waiting does not help.

    Connects once more by hand, to each broker that the settings name. `options` are those of all clients.
    """
    for host, port, _ in collect_hosts(options["bootstrap_servers"]):
        try:
            await _try(host, port, options)
        except (KafkaError, OSError, TimeoutError, EOFError) as error:
            if (found := _explain(settings, f"{host}:{port}", error, failure)) is not None:
                return found
    return TransportError(
        f"cannot reach Kafka at {', '.join(settings.bootstrap_servers)} ({failure}); "
        f"is it running, and is {settings.variable('broker')} right?"
    )


async def _try(host: str, port: int, options: dict[str, Any]) -> None:
    """Connect, log in and ask for the cluster's metadata, as every client does first."""
    given = {name: value for name, value in options.items() if name not in ("bootstrap_servers", "request_timeout_ms")}
    connection = AIOKafkaConnection(host, port, **given, request_timeout_ms=TIMEOUT_MS)
    try:
        await connection.connect()
        async with asyncio.timeout(TIMEOUT_MS / 1000):
            await connection.send(MetadataRequest([]))
    finally:
        closed = connection.close()
        if connection._protocol is not None:  # it came as far as that there is something to close
            await asyncio.wait({closed}, timeout=CLOSE_TIMEOUT_S)


def _explain(settings: Settings, where: str, error: BaseException, handled: BaseException) -> TransportError | None:
    """What an error of a connection means for the settings; None when it says no more than that nobody answers.

    `handled` is what the caller is about: it is in the context of everything that is raised meanwhile.
    """
    chain = list(_causes(error, handled))
    for cause in chain:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return TransportUnusable(f"Kafka at {where} is not trusted: {_certificate(settings, cause)}")
        if isinstance(cause, ssl.SSLError):
            return _tls(settings, where, cause)
        if (refusal := _login(settings, cause)) is not None:
            return TransportUnusable(f"Kafka at {where} {refusal}")
    if any(isinstance(cause, KafkaError | ConnectionResetError | EOFError | TimeoutError) for cause in chain):
        return _hung_up(settings, where)
    return None


def _causes(error: BaseException | None, handled: BaseException) -> Iterator[BaseException]:
    while error is not None and error is not handled:
        yield error
        error = error.__cause__ or error.__context__


def _certificate(settings: Settings, error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _OTHER_NAME:
        broker = settings.variable("broker")
        return f"its certificate is for another host name; use a name that is in the certificate in {broker}"
    if error.verify_code in _UNKNOWN_AUTHORITY:
        cafile = settings.variable("kafka_ssl_cafile")
        known = f"in {cafile}={settings.kafka_ssl_cafile}" if settings.kafka_ssl_cafile else "of this system"
        wanted = "correct it" if settings.kafka_ssl_cafile else f"name the file of its authority in {cafile}"
        return f"no authority {known} has signed its certificate; {wanted}"
    if error.verify_code in _EXPIRED:
        return "its certificate is not valid at this time; renew it, or correct this machine's clock"
    return f"{error.verify_message}; see its certificate, and {settings.variable('kafka_ssl_cafile')}"


def _tls(settings: Settings, where: str, error: ssl.SSLError) -> TransportError:
    reason = (error.reason or str(error)).upper()
    if "ALERT" in reason:
        certfile = settings.variable("kafka_ssl_certfile")
        shown = f"{certfile}={settings.kafka_ssl_certfile}" if settings.kafka_ssl_certfile else "none"
        return TransportUnusable(
            f"Kafka at {where} does not accept this worker's certificate, which is {shown} "
            f"({reason.lower().replace('_', ' ')}); name one that it knows in "
            f"{certfile} and {settings.variable('kafka_ssl_keyfile')}"
        )
    return TransportError(
        f"Kafka at {where} does not speak TLS there ({reason.lower().replace('_', ' ')}); "
        f"check the port in {settings.variable('broker')}, and "
        f"{settings.variable('kafka_security_protocol')}={settings.kafka_security_protocol}"
    )


def _login(settings: Settings, error: BaseException) -> str | None:
    """What the broker says to user and password."""
    if isinstance(error, SaslAuthenticationFailed | AuthenticationFailedError):
        return (
            f"refuses the login of {settings.kafka_sasl_plain_username!r} with {settings.kafka_sasl_mechanism}; check "
            f"{settings.variable('kafka_sasl_plain_username')}, {settings.variable('kafka_sasl_plain_password')} and "
            f"{settings.variable('kafka_sasl_mechanism')}"
        )
    if isinstance(error, UnsupportedSaslMechanismError):
        return (
            f"knows no login with {settings.kafka_sasl_mechanism}; "
            f"set {settings.variable('kafka_sasl_mechanism')} to one that it does know"
        )
    if isinstance(error, IllegalSaslStateError):
        return (
            f"wants no login there; set {settings.variable('kafka_security_protocol')} to PLAINTEXT or SSL, or correct "
            f"the port in {settings.variable('broker')} "
            f"(it is {settings.kafka_security_protocol})"
        )
    return None


def _hung_up(settings: Settings, where: str) -> TransportError:
    protocol = settings.kafka_security_protocol
    return TransportError(
        f"Kafka at {where} ends the connection or does not answer; does it expect something else there than "
        f"{settings.variable('kafka_security_protocol')}={protocol}, or is it only starting?"
    )
