"""Settings of the shop: those of the engine and its own, environment variables with the prefix ORDERS_ or `.env`."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from engine.declare import settings as engine_settings
from engine.declare.settings import is_http_url
from streams.mail.address import InvalidAddress, parse_sender
from streams.mail.server import parse_smtp_url


class Settings(engine_settings.Settings):
    """Everything a worker of the shop can be told from outside; a value that cannot be used is refused at start.

    Times are seconds unless the name says otherwise.
    """

    model_config = SettingsConfigDict(env_prefix="ORDERS_")

    app_id: str = Field(
        "orders", pattern=engine_settings.APP_ID_PATTERN, description="consumer group, changelog prefix"
    )
    price_decimals: Annotated[int | None, Field(ge=0, le=28)] = None
    saga: Literal["orchestration", "choreography", "none"] = "orchestration"
    saga_step_timeout: Annotated[float, Field(ge=0.001)] = 300.0
    saga_retries: Annotated[int, Field(ge=0, le=20)] = 3
    saga_retry_backoff: Annotated[float, Field(ge=0.001)] = 1.0
    payment_url: Annotated[str, Field(repr=False)] = ""  # there may be a password in it
    payment_timeout: Annotated[float, Field(gt=0)] = 10.0
    payment_decline: Annotated[float, Field(ge=0, le=1)] = 0.0
    payment_latency: Annotated[float, Field(ge=0)] = 0.0
    payment_outage_every: Annotated[float, Field(ge=0)] = 0.0
    payment_outage_length: Annotated[float, Field(ge=0)] = 0.0
    smtp_url: Annotated[str, Field(repr=False)] = ""  # there may be a password in it
    smtp_timeout: Annotated[float, Field(gt=0)] = 10.0
    mail_from: str = "orders@localhost"
    audit_at: str = ""

    @field_validator("audit_at")
    @classmethod
    def _time_of_day(cls, value: str) -> str:
        if value and not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", value):
            raise ValueError("not a time of the day; use HH:MM in UTC, such as 03:00, or nothing for no nightly audit")
        return value

    @field_validator("payment_url")
    @classmethod
    def _reachable_gateway(cls, value: str) -> str:
        if value and not is_http_url(value):
            raise ValueError(
                "not the address of a payment gateway; use http(s)://host[:port][/path] without ? and #, "
                "or nothing for the simulator"
            )
        return value

    @field_validator("smtp_url")
    @classmethod
    def _known_mail_server(cls, value: str) -> str:
        if value:
            parse_smtp_url(value)
        return value

    @field_validator("mail_from")
    @classmethod
    def _usable_sender(cls, value: str) -> str:
        try:
            parse_sender(value)
        except InvalidAddress as error:
            raise ValueError(
                f"not the address of a sender: it {error}; use name@domain or Shown Name <name@domain>"
            ) from error
        return value


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment and `.env`; `overrides` that are not None win.

    Raises:
        SettingsError: a value cannot be used.
    """
    return engine_settings.load_settings(Settings, **overrides)


def shop_settings(settings: engine_settings.Settings) -> Settings:
    """The shop's settings, which the engine carries without knowing them; raises TypeError for others."""
    if not isinstance(settings, Settings):
        raise TypeError(f"an application of the shop needs {Settings!r}, not {type(settings)!r}")
    return settings
