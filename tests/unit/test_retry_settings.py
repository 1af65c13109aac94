"""Retries by settings: what is given for a topic wins there, and what cannot be used is refused in one line."""

from __future__ import annotations

import pytest

from engine.declare.settings import SettingsError, TopicRetries
from engine.failures.classify import RetryPolicy
from streams.settings import Settings, load_settings


def test_what_is_given_for_a_topic_wins_there_and_the_rest_is_as_for_all() -> None:
    settings = Settings(
        _env_file=None, retry_count=4, retry_backoff=2.0, retry_topics={"payment-commands": TopicRetries(count=9)}
    )
    assert RetryPolicy.of(settings, "order-commands") == RetryPolicy(4, 2.0, 2.0, 0.1)
    assert RetryPolicy.of(settings, "payment-commands") == RetryPolicy(9, 2.0, 2.0, 0.1)


def test_pauses_are_1_2_and_4_seconds_give_or_take_the_jitter() -> None:
    policy = RetryPolicy.of(Settings(_env_file=None), "order-commands")
    assert policy.retries == 3
    for retry_count, seconds in enumerate((1, 2, 4)):
        pauses = [policy.pause_ms(retry_count) for _ in range(200)]
        assert all(seconds * 900 <= pause <= seconds * 1100 for pause in pauses)
        assert len(set(pauses)) > 1
    assert [policy._replace(jitter=0.0).pause_ms(count) for count in range(3)] == [1000, 2000, 4000]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ORDERS_RETRY_TOPICS", "x", "ORDERS_RETRY_TOPICS: must be JSON, like"),
        ("ORDERS_RETRY_TOPICS", '{"a": {"count": -1}}', "ORDERS_RETRY_TOPICS['a']['count']=-1: must be greater than"),
        ("ORDERS_RETRY_TOPICS", '{"a": {"cuont": 1}}', "ORDERS_RETRY_TOPICS['a']['cuont']=1:"),
        ("ORDERS_RETRY_COUNT", "21", "ORDERS_RETRY_COUNT=21: must be a whole number, at least 0 and at most 20"),
        ("ORDERS_DEDUPE_WINDOW", "60", "ORDERS_DEDUPE_WINDOW=60 must be above ORDERS_REPLAY_MAX_AGE=1209600"),
        ("ORDERS_RECORD_BYTES_MAX", "3000000", "ORDERS_RECORD_BYTES_MAX=3000000: must be a whole number"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        load_settings(_env_file=None)
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)
