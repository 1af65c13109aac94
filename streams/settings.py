"""Settings: environment variables with the prefix ORDERS_, or the same names in a `.env` file."""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

TRANSPORTS = ("embedded", "memory", "kafka")


class Settings(BaseSettings):
    """Everything a worker can be told from outside; a value that cannot be used is refused at start.

    Times are seconds unless the name says otherwise, sizes are bytes.
    """

    model_config = SettingsConfigDict(env_prefix="ORDERS_", env_file=".env", extra="ignore", frozen=True)

    app_id: str = Field("orders", pattern=r"^[a-z][a-z0-9-]{0,62}$", description="consumer group, changelog prefix")
    broker: str = "embedded://"
    data_dir: Path = Path("data")
    web_host: str = "127.0.0.1"
    web_port: Annotated[int, Field(ge=1, le=65535)] = 6066
    web_url: str = ""
    api_token: str = ""
    partitions: Annotated[int, Field(ge=1, le=1024)] = 4
    replication: Annotated[int, Field(ge=1, le=16)] = 1
    commit_interval: Annotated[float, Field(gt=0, le=5)] = 0.1
    saga: Literal["orchestration", "choreography"] = "orchestration"
    smtp_url: str = ""

    record_bytes_max: Annotated[int, Field(ge=1024)] = 1 << 20
    commit_records_max: Annotated[int, Field(ge=1)] = 20_000
    cache_rows_max: Annotated[int, Field(ge=0)] = 100_000
    dedupe_window: Annotated[float, Field(gt=0)] = 7 * 86_400.0
    session_timeout: Annotated[float, Field(ge=1, le=300)] = 10.0
    transaction_timeout: Annotated[float, Field(ge=1, le=10)] = 10.0
    restart_backoff: Annotated[float, Field(gt=0)] = 0.2
    restart_backoff_max: Annotated[float, Field(gt=0)] = 5.0
    delete_retention: Annotated[float, Field(gt=0)] = 86_400.0
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    kafka_sasl_plain_username: str = ""
    kafka_sasl_plain_password: str = ""
    kafka_ssl_cafile: str = ""
    kafka_ssl_certfile: str = ""
    kafka_ssl_keyfile: str = ""

    @field_validator("broker")
    @classmethod
    def _known_transport(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in TRANSPORTS:
            raise ValueError(f"{value!r} is not a broker; use embedded://, memory:// or kafka://host:9092[,host...]")
        if parts.scheme == "kafka" and not parts.netloc:
            raise ValueError("kafka:// needs at least one host, like kafka://localhost:9092")
        return value

    @property
    def transport(self) -> str:
        """`embedded`, `memory` or `kafka`."""
        return urlsplit(self.broker).scheme

    @property
    def bootstrap_servers(self) -> list[str]:
        """Kafka brokers as `host:port`, 9092 where no port is given; empty on the other transports."""
        hosts = [host for host in urlsplit(self.broker).netloc.split(",") if host]
        return [host if ":" in host else f"{host}:9092" for host in hosts]

    @property
    def public_url(self) -> str:
        """Where other workers reach this one's web view."""
        return self.web_url or f"http://{self.web_host}:{self.web_port}"
