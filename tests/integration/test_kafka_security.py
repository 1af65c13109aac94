"""Kafka over TLS and with logins, on a real broker: every way works, and every mistake is named with what to check."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest

from engine.declare.settings import SettingsError
from engine.log.ports import TopicSpec, TransportError, TransportUnusable
from streams.settings import Settings, load_settings
from tests.apps import connected, make_settings, read_committed, unique
from tests.guarded_kafka import MECHANISMS, PASSWORD, GuardedKafka

WAYS = (
    ("TLS", ""),
    ("MTLS", ""),
    *(("LOGIN", mechanism) for mechanism in MECHANISMS),
    *(("SAFE", mechanism) for mechanism in MECHANISMS),
)


def settings_for(folder: Path, given: Mapping[str, str], **changes: str) -> Settings:
    values = {**given, **changes}
    return make_settings(values.pop("broker"), folder, **values)


@pytest.mark.parametrize(("listener", "mechanism"), WAYS)
async def test_every_way_to_connect_works(
    guarded_kafka: GuardedKafka, tmp_path: Path, listener: str, mechanism: str
) -> None:
    topic = TopicSpec(unique("guarded"), 1, False, None)
    settings = settings_for(tmp_path, guarded_kafka.settings(listener, mechanism))
    async with connected(settings, [topic]) as broker:  # admin, publisher and client of offsets
        await broker.publish(topic.name, 0, [(b"k", b"published", ())])
        producer = broker.producer(0)
        await producer.start()
        await producer.begin()
        await producer.send({(topic.name, 0): [(b"k", b"committed", ())]})
        await producer.commit()
        end = await broker.end_offset(topic.name, 0)
        assert [record.value for record in await read_committed(broker, topic.name, 0, end)] == [
            b"published",
            b"committed",
        ]
        await producer.close()


async def refusal(settings: Settings) -> TransportError:
    """What is said when these settings cannot connect."""
    with pytest.raises(TransportError) as refused:
        async with connected(settings):
            pass
    return refused.value


@pytest.mark.parametrize(
    ("listener", "mechanism", "change", "said"),
    [
        ("LOGIN", "PLAIN", {"kafka_sasl_plain_password": "wrong-one"}, "ORDERS_KAFKA_SASL_PLAIN_PASSWORD"),
        ("SAFE", "SCRAM-SHA-256", {"kafka_sasl_plain_password": "wrong-one"}, "ORDERS_KAFKA_SASL_PLAIN_PASSWORD"),
        ("SAFE", "SCRAM-SHA-512", {"kafka_sasl_plain_username": "nobody"}, "'nobody'"),
        ("TLS", "", {"kafka_ssl_cafile": "other-ca.pem"}, "ORDERS_KAFKA_SSL_CAFILE"),
        ("TLS", "", {"kafka_ssl_cafile": ""}, "ORDERS_KAFKA_SSL_CAFILE"),
        ("SAFE", "PLAIN", {"kafka_ssl_cafile": "other-ca.pem"}, "ORDERS_KAFKA_SSL_CAFILE"),
        ("TLS", "", {"host": "localhost"}, "another host name"),
        ("MTLS", "", {"kafka_ssl_certfile": "", "kafka_ssl_keyfile": ""}, "ORDERS_KAFKA_SSL_CERTFILE"),
        ("MTLS", "", {"kafka_ssl_certfile": "stranger.pem", "kafka_ssl_keyfile": "stranger.key"}, "stranger.pem"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
async def test_what_waiting_does_not_mend_is_named_at_once(
    guarded_kafka: GuardedKafka,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    listener: str,
    mechanism: str,
    change: dict[str, str],
    said: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    host = {"host": change["host"]} if "host" in change else {}
    files = {
        name: str(guarded_kafka.folder / value) for name, value in change.items() if value.endswith((".pem", ".key"))
    }
    changed = {name: value for name, value in {**change, **files}.items() if name != "host"}
    given = guarded_kafka.settings(listener, mechanism, **host)
    error = await refusal(settings_for(tmp_path, given, **changed))
    assert isinstance(error, TransportUnusable), error
    assert said in str(error)
    for text in (str(error), caplog.text):
        assert PASSWORD not in text
        assert "wrong-one" not in text


@pytest.mark.parametrize(
    ("listener", "protocol"),
    [("TLS", "PLAINTEXT"), ("LOGIN", "PLAINTEXT"), ("LOGIN", "SSL"), ("SAFE", "SSL"), ("TLS", "SASL_SSL")],
)
async def test_the_wrong_protocol_is_named(
    guarded_kafka: GuardedKafka, tmp_path: Path, listener: str, protocol: str
) -> None:
    given = {**guarded_kafka.settings("SAFE"), "broker": guarded_kafka.settings(listener)["broker"]}
    error = await refusal(settings_for(tmp_path, given, kafka_security_protocol=protocol))
    assert "ORDERS_KAFKA_SECURITY_PROTOCOL" in str(error)
    assert PASSWORD not in str(error)


async def test_nobody_there_is_not_taken_for_a_wrong_setting(
    guarded_kafka: GuardedKafka, tmp_path: Path, unused_port: int
) -> None:
    given = {**guarded_kafka.settings("SAFE"), "broker": f"kafka://127.0.0.1:{unused_port}"}
    error = await refusal(settings_for(tmp_path, given))
    assert not isinstance(error, TransportUnusable)
    assert "is it running" in str(error)


# ---- settings that cannot be meant, without a broker


def refused_settings(**given: str) -> str:
    with pytest.raises(SettingsError) as refused:
        load_settings(_env_file=None, broker="kafka://127.0.0.1:9092", **given)
    assert PASSWORD not in str(refused.value)
    return str(refused.value)


def test_a_login_without_user_or_password_is_refused_at_start() -> None:
    for given in ({}, {"kafka_sasl_plain_username": "orders"}, {"kafka_sasl_plain_password": PASSWORD}):
        assert "ORDERS_KAFKA_SASL_PLAIN_PASSWORD" in refused_settings(kafka_security_protocol="SASL_SSL", **given)


def test_files_that_are_no_certificates_are_refused_at_start(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    for given, said in (
        ({"kafka_ssl_cafile": "/no/such.pem"}, "ORDERS_KAFKA_SSL_CAFILE=/no/such.pem: No such file"),
        ({"kafka_ssl_cafile": str(empty)}, "no certificate is in it"),
        ({"kafka_ssl_certfile": str(empty)}, f"ORDERS_KAFKA_SSL_CERTFILE={empty}: it is not PEM"),
        ({"kafka_ssl_keyfile": str(empty)}, "ORDERS_KAFKA_SSL_KEYFILE needs ORDERS_KAFKA_SSL_CERTFILE"),
    ):
        assert said in refused_settings(kafka_security_protocol="SSL", **given)


def test_files_are_not_looked_at_where_they_are_not_used() -> None:
    settings = load_settings(_env_file=None, broker="kafka://127.0.0.1:9092", kafka_ssl_cafile="/no/such.pem")
    assert settings.kafka_security_protocol == "PLAINTEXT"
