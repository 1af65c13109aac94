"""Settings of the engine: environment variables with the application's prefix, or the same names in a `.env` file."""

import ssl
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as NotParsed

from engine.declare.host import own_address
from engine.log.kafka.tls import UnusableTlsFiles, tls_context
from engine.log.ports import TOPIC_RECORD_BYTES_MAX

ENV_FILE = ".env"
RETRY_TOPICS_EXAMPLE = '{"payment-commands": {"count": 5, "backoff": 0.5}}'
# An empty folder would begin without the log and the stores that are in this one.
MOVE_DATA = "move the folder with all that is in it while no worker runs, and set ORDERS_DATA_DIR to where it is then"
TRANSPORTS = ("embedded", "memory", "kafka")
APP_ID_PATTERN = r"^[a-z][a-z0-9-]{0,62}$"
# What stands for every address of the machine, and where a program on the same machine then connects to.
ALL_ADDRESSES = {"0.0.0.0": "127.0.0.1", "::": "::1"}


S = TypeVar("S", bound="Settings")


class SettingsError(Exception):
    """Settings that cannot be used; the message has a line for each, with what is allowed."""


class TopicRetries(BaseModel):
    """What is different for the retries of one topic; what is not given is as for all others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: Annotated[int, Field(ge=0, le=20)] | None = None
    backoff: Annotated[float, Field(gt=0, le=86_400)] | None = None
    factor: Annotated[float, Field(ge=1, le=10)] | None = None
    jitter: Annotated[float, Field(ge=0, le=1)] | None = None


class Settings(BaseSettings):
    """What every worker can be told from outside; a value that cannot be used is refused at start.

    An application derives its own class, with its prefix of environment variables, its default `app_id`, and settings
    of its own. Times are seconds unless the name says otherwise, sizes are bytes. Settings that may hold a secret are
    a SecretStr or have `repr=False`.
    """

    model_config = SettingsConfigDict(env_file=ENV_FILE, extra="ignore", frozen=True, hide_input_in_errors=True)

    app_id: str = Field(pattern=APP_ID_PATTERN, description="consumer group, changelog prefix")
    broker: str = "embedded://"
    data_dir: Path = Path("data")
    web_host: str = "127.0.0.1"
    web_port: Annotated[int, Field(ge=1, le=65535)] = 6066
    web_url: str = ""
    web_insecure: Annotated[
        bool, Field(description="listen beyond this machine although anybody may change things")
    ] = False
    web_connections_max: Annotated[int, Field(ge=1, le=100_000)] = 1000
    api_token: SecretStr = SecretStr("")
    partitions: Annotated[int, Field(ge=1, le=1024)] = 4
    replication: Annotated[int, Field(ge=1, le=16)] = 1
    commit_interval: Annotated[float, Field(gt=0, le=5)] = 0.1

    outside_calls_max: Annotated[int, Field(ge=1)] = 64
    call_timeout: Annotated[float, Field(gt=0)] = 60.0
    circuit_pause: Annotated[float, Field(gt=0)] = 1.0
    circuit_pause_max: Annotated[float, Field(gt=0)] = 30.0

    retry_count: Annotated[int, Field(ge=0, le=20)] = 3
    retry_backoff: Annotated[float, Field(gt=0, le=86_400)] = 1.0
    retry_factor: Annotated[float, Field(ge=1, le=10)] = 2.0
    retry_jitter: Annotated[float, Field(ge=0, le=1)] = 0.1
    retry_topics: dict[str, TopicRetries] = {}
    waiting_per_aggregate_max: Annotated[int, Field(ge=1)] = 1000
    waiting_max: Annotated[int, Field(ge=1)] = 100_000
    replays_max: Annotated[int, Field(ge=1, le=50)] = 10
    replay_max_age: Annotated[float, Field(gt=0)] = 14 * 86_400.0

    # Half of what a topic takes: a record that waits is kept as JSON, in which bytes need a third more room.
    record_bytes_max: Annotated[int, Field(ge=1024, le=TOPIC_RECORD_BYTES_MAX // 2)] = 1 << 20
    commit_records_max: Annotated[int, Field(ge=1)] = 20_000
    cache_rows_max: Annotated[int, Field(ge=0)] = 300_000
    dedupe_window: Annotated[float, Field(gt=0)] = 21 * 86_400.0
    stalled_after: Annotated[float, Field(gt=0)] = 90.0
    handler_timeout: Annotated[float, Field(gt=0)] = 5.0
    session_timeout: Annotated[float, Field(ge=1, le=300)] = 10.0
    transaction_timeout: Annotated[float, Field(ge=1, le=10)] = 10.0
    restart_backoff: Annotated[float, Field(gt=0)] = 0.2
    restart_backoff_max: Annotated[float, Field(gt=0)] = 5.0
    disk_reserve: Annotated[int, Field(ge=0)] = 256 << 20
    delete_retention: Annotated[float, Field(gt=0)] = 86_400.0
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"

    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    kafka_sasl_plain_username: str = ""
    kafka_sasl_plain_password: SecretStr = SecretStr("")
    kafka_ssl_cafile: str = ""
    kafka_ssl_certfile: str = ""
    kafka_ssl_keyfile: str = ""
    kafka_ssl_password: SecretStr = SecretStr("")

    @field_validator("broker")
    @classmethod
    def _known_transport(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in TRANSPORTS:
            raise ValueError(f"{value!r} is not a broker; use embedded://, memory:// or kafka://host:9092[,host...]")
        if parts.scheme == "kafka" and not parts.netloc:
            raise ValueError("kafka:// needs at least one host, like kafka://localhost:9092")
        return value

    @field_validator("web_host")
    @classmethod
    def _usable_host(cls, value: str) -> str:
        if not is_http_url(f"http://{in_url(value)}"):
            raise ValueError("not an address to listen on; use 127.0.0.1, another address or name of this machine, "
                             "or 0.0.0.0 for all of them")  # fmt: skip
        return value

    @field_validator("web_url")
    @classmethod
    def _reachable_worker(cls, value: str) -> str:
        if value and not is_http_url(value):
            raise ValueError("not the address of a worker; use http(s)://host[:port] without ? and #")
        return value

    @field_validator("api_token")
    @classmethod
    def _fits_into_a_header(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if not text.isascii() or not text.isprintable() or text != text.strip():
            raise ValueError("a token is printable ASCII without spaces around it, for it travels in a header")
        return value

    @model_validator(mode="after")
    def _complete_login(self) -> Self:
        if self.transport != "kafka" or not self.kafka_security_protocol.startswith("SASL"):
            return self
        if not self.kafka_sasl_plain_username or not self.kafka_sasl_plain_password:
            raise ValueError(
                f"{self.variable('kafka_security_protocol')}={self.kafka_security_protocol} needs "
                f"{self.variable('kafka_sasl_plain_username')} and {self.variable('kafka_sasl_plain_password')}"
            )
        return self

    @model_validator(mode="after")
    def _usable_tls_files(self) -> Self:
        if self.transport == "kafka" and self.kafka_security_protocol.endswith("SSL"):
            try:
                self.kafka_tls_context()
            except UnusableTlsFiles as error:
                raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _marks_outlive_replays(self) -> Self:
        if self.dedupe_window <= self.replay_max_age:
            raise ValueError(
                f"{self.variable('dedupe_window')}={self.dedupe_window:.0f} must be above "
                f"{self.variable('replay_max_age')}={self.replay_max_age:.0f}: "
                "a dead letter that is tried again later than its copies are remembered would take effect twice"
            )
        return self

    @classmethod
    def variable(cls, name: str) -> str:
        """The environment variable of a setting, such as `ORDERS_WEB_PORT` for `web_port`."""
        return f"{cls.model_config.get('env_prefix', '')}{name}".upper()

    @property
    def transport(self) -> str:
        """`embedded`, `memory` or `kafka`."""
        return urlsplit(self.broker).scheme

    @property
    def bootstrap_servers(self) -> list[str]:
        """Kafka brokers as `host:port`, 9092 where no port is given; empty on the other transports."""
        hosts = [host for host in urlsplit(self.broker).netloc.split(",") if host]
        return [host if ":" in host else f"{host}:9092" for host in hosts]

    def kafka_tls_context(self) -> ssl.SSLContext:
        """How TLS connections to Kafka are made; raises UnusableTlsFiles."""
        return tls_context(
            cafile=self.kafka_ssl_cafile,
            certfile=self.kafka_ssl_certfile,
            keyfile=self.kafka_ssl_keyfile,
            password=self.kafka_ssl_password.get_secret_value(),
        )

    @property
    def public_url(self) -> str:
        """Where other workers reach this one's web view; one that listens on all addresses goes by its own."""
        host = own_address(self.web_host) if self.web_host in ALL_ADDRESSES else self.web_host
        return self.web_url or f"http://{in_url(host)}:{self.web_port}"

    @property
    def local_url(self) -> str:
        """Where a program on this machine reaches a worker with these settings."""
        host = ALL_ADDRESSES.get(self.web_host, self.web_host)
        return self.web_url.rstrip("/") or f"http://{in_url(host)}:{self.web_port}"


def in_url(host: str) -> str:
    """A host as it stands in an address: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def is_http_url(value: str) -> bool:
    """Whether paths can be added to it and it can be asked over HTTP."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return False
    if port == 0 or parts.scheme not in ("http", "https") or not parts.hostname:
        return False
    return value.isascii() and value.isprintable() and not set(value) & set(" ?#\\")


def load_settings(settings: type[S], **overrides: Any) -> S:
    """Settings of a class from the environment and `.env`; `overrides` that are not None win.

    Raises:
        SettingsError: a value cannot be used.
    """
    try:
        return settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        lines = [_explain(settings, problem["loc"], problem["input"], problem["msg"]) for problem in error.errors()]
        raise SettingsError("\n".join(lines)) from error
    except NotParsed as error:  # only fields that are JSON can be so
        raise SettingsError(
            f"{settings.variable('retry_topics')}: must be JSON, like {RETRY_TOPICS_EXAMPLE}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the file .env cannot be read: {error}") from error


def _explain(settings: type[Settings], location: tuple[int | str, ...], value: Any, message: str) -> str:
    """One line: the variable, what it holds (unless that is a secret), and what is allowed."""
    if not location:  # several settings do not fit each other, and the message names them
        return _plain(message)
    name = str(location[0])
    shown = "" if is_secret(settings, name) else f"={value}"
    inside = "".join(f"[{part!r}]" for part in location[1:])
    return f"{settings.variable(name)}{inside}{shown}: {_allowed(settings, name) or _plain(message)}"


def is_secret(settings: type[Settings], name: str) -> bool:
    """Whether a setting may hold a secret, so that its value is never shown."""
    field = settings.model_fields[name]
    return field.annotation is SecretStr or not field.repr


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should", "must", 1)


def _allowed(settings: type[Settings], name: str) -> str | None:
    """The range of a number in words, None for other settings, whose own message says what is allowed."""
    field = settings.model_fields[name]
    kind = {int: "a whole number", float: "a number"}.get(field.annotation)  # type: ignore[arg-type]
    if kind is None:
        return None
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = [f"{words[sign]} {bound}" for sign in words for rule in field.metadata
              if (bound := getattr(rule, sign, None)) is not None]  # fmt: skip
    return f"must be {kind}{', ' if limits else ''}{' and '.join(limits)}"
