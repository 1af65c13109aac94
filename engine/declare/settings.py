"""Settings of the engine: environment variables with the application's prefix, or the same names in a `.env` file."""

import functools
import ipaddress
import socket
import ssl
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as NotParsed

from engine.declare.application import NAMELESS, Application
from engine.log.kafka.tls import UnusableTlsFiles, tls_context
from engine.log.ports import TOPIC_RECORD_BYTES_MAX

ENV_FILE = ".env"
RETRY_TOPICS_EXAMPLE = '{"readings": {"count": 5, "backoff": 0.5}}'
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

    An application derives its own class, with its `application` (whose name begins the environment variables), its
    default `app_id`, and settings of its own. Times are seconds unless the name says otherwise, sizes are bytes.
    Settings that may hold a secret are a SecretStr or have `repr=False`.
    """

    model_config = SettingsConfigDict(
        env_file=ENV_FILE, env_prefix=NAMELESS.prefix, extra="ignore", frozen=True, hide_input_in_errors=True
    )
    application: ClassVar[Application] = NAMELESS

    app_id: str = Field(
        pattern=APP_ID_PATTERN, description="name of the consumer group, and prefix of changelogs and transactional ids"
    )
    broker: str = Field(
        "embedded://",
        description="`embedded://` (a log in the data folder), `memory://` (nothing is kept) or "
        "`kafka://host:9092[,host...]`",
    )
    data_dir: Path = Field(Path("data"), description="folder of the stores and of the embedded log")
    web_host: str = Field(
        "127.0.0.1", description="address that the web view listens on; beyond this machine only with a token"
    )
    web_port: int = Field(6066, ge=1, le=65535, description="port of the web view")
    web_url: str = Field(
        "",
        description="address at which other workers and the command line reach this worker; by default "
        "`http://HOST:PORT` of the two settings before, with the name of this host where the web view listens on all "
        "addresses",
    )
    web_insecure: bool = Field(False, description="listen beyond this machine although everybody may change things")
    web_connections_max: int = Field(
        1000, ge=1, le=100_000, description="connections to the web view; further ones get a 503"
    )
    api_token: SecretStr = Field(
        SecretStr(""),
        description="when set, every request that changes something needs `Authorization: Bearer` with it",
    )
    partitions: int = Field(4, ge=1, le=1024, description="partitions of every topic; fixed once the topics exist")
    replication: int = Field(1, ge=1, le=16, description="replicas of the topics that are created on Kafka")
    commit_interval: float = Field(
        0.1, gt=0, le=5, description="longest time between commits of a busy partition; an idle one commits at once"
    )

    outside_calls_max: int = Field(
        64, ge=1, description="calls to the outside at the same time, for each agent and partition"
    )
    call_timeout: float = Field(
        60.0, gt=0, description="seconds after which a call to the outside is given up and made again"
    )
    circuit_pause: float = Field(
        1.0,
        gt=0,
        description="first pause in seconds before a call is tried while most calls fail; each pause is twice as long "
        "as the one before",
    )
    circuit_pause_max: float = Field(30.0, gt=0, description="longest such pause in seconds")

    retry_count: int = Field(3, ge=0, le=20, description="retries of a failed record before it becomes a dead letter")
    retry_backoff: float = Field(1.0, gt=0, le=86_400, description="seconds before the first retry")
    retry_factor: float = Field(
        2.0, ge=1, le=10, description="factor by which each pause is longer than the one before"
    )
    retry_jitter: float = Field(
        0.1, ge=0, le=1, description="part by which a pause may be longer or shorter, at random"
    )
    retry_topics: dict[str, TopicRetries] = Field(
        {}, description=f"exceptions for single topics, as JSON: `{RETRY_TOPICS_EXAMPLE}`"
    )
    waiting_per_aggregate_max: int = Field(
        1000,
        ge=1,
        description="most records of one aggregate that may wait, the failed one included; at the limit the topic "
        "stands still in that partition",
    )
    waiting_max: int = Field(
        100_000,
        ge=1,
        description="most records of one partition that may wait; at the limit the topic stands still there",
    )
    replays_max: int = Field(10, ge=1, le=50, description="most times that a dead letter may be retried")
    replay_max_age: float = Field(14 * 86_400.0, gt=0, description="seconds for which a dead letter may be retried")

    # Half of what a topic takes: a record that waits is kept as JSON, in which bytes need a third more room.
    record_bytes_max: int = Field(
        1 << 20,
        ge=1024,
        le=TOPIC_RECORD_BYTES_MAX // 2,
        description="bytes of the largest record value that is processed; a larger one becomes a dead letter",
    )
    commit_records_max: int = Field(20_000, ge=1, description="most records in one commit")
    cache_rows_max: int = Field(
        300_000, ge=0, description="rows that a worker keeps in memory, of about 1 KiB each; those used most stay"
    )
    dedupe_window: float = Field(
        21 * 86_400.0,
        gt=0,
        description="seconds for which repeated commands and Idempotency-Keys are recognised; must be above "
        "`replay_max_age`",
    )
    stalled_after: float = Field(
        90.0,
        gt=0,
        description="seconds after which an agent that has records and handles none is a fault, unless its calls are "
        "paused; keep it above `call_timeout`",
    )
    handler_timeout: float = Field(
        5.0,
        gt=0,
        description="seconds after which a handler that does not return is interrupted; keep it below "
        "`session_timeout`",
    )
    session_timeout: float = Field(
        10.0, ge=1, le=300, description="seconds after which Kafka gives the partitions of a silent worker to others"
    )
    transaction_timeout: float = Field(
        10.0, ge=1, le=10, description="seconds after which Kafka aborts an open transaction"
    )
    restart_backoff: float = Field(
        0.2,
        gt=0,
        description="first pause in seconds before a failed partition starts again; each pause is twice as long as "
        "the one before",
    )
    restart_backoff_max: float = Field(5.0, gt=0, description="longest such pause in seconds")
    disk_reserve: int = Field(
        256 << 20,
        ge=0,
        description="bytes of the disk that are kept back, on a small disk a sixteenth of it at most: with less, "
        "changes are refused (507) and nothing is committed until there is room",
    )
    delete_retention: float = Field(
        86_400.0,
        gt=0,
        description="seconds for which changelogs keep deletions; a store that is behind and older than half of it is "
        "restored from the beginning",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least level that is logged")
    log_format: Literal["text", "json"] = Field("text", description="lines for people, or one JSON object a line")

    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="how workers connect to Kafka"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="how workers log in with `SASL_PLAINTEXT` and `SASL_SSL`"
    )
    kafka_sasl_plain_username: str = Field("", description="user name for that")
    kafka_sasl_plain_password: SecretStr = Field(SecretStr(""), description="password for that")
    kafka_ssl_cafile: str = Field(
        "",
        description="PEM file with the authorities that Kafka's certificate is checked against; by default those of "
        "this machine",
    )
    kafka_ssl_certfile: str = Field("", description="PEM file with the worker's own certificate")
    kafka_ssl_keyfile: str = Field("", description="PEM file with the key of that certificate")
    kafka_ssl_password: SecretStr = Field(SecretStr(""), description="password of that key")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Look for the settings of the class under the prefix of its application."""
        super().__pydantic_init_subclass__(**kwargs)
        cls.model_config["env_prefix"] = cls.application.prefix

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
        """The environment variable of a setting, such as `SENSORS_WEB_PORT` for `web_port`."""
        return cls.application.variable(name)

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
            variable=self.variable,
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


@functools.cache
def own_address(bound: str) -> str:
    """The address that this machine's name stands for; the name where it is no use.

    `bound` is what the server listens on: 0.0.0.0 or ::, which are all addresses of one kind only. In a container the
    name stands for the container's own address, also where others could not look it up.
    """
    name, family = socket.gethostname(), socket.AF_INET6 if ":" in bound else socket.AF_INET
    try:
        found = socket.getaddrinfo(name, None, family, socket.SOCK_STREAM)
    except OSError:
        return name
    for address in (ipaddress.ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found):
        if not address.is_loopback and not address.is_link_local:
            return str(address)
    return name
