"""Settings of the shop: those of the engine and its own, environment variables with the prefix ORDERS_ or `.env`."""

import re
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, field_validator

import engine
from engine import Application, is_http_url
from streams.mail.address import InvalidAddress, parse_sender
from streams.mail.server import parse_smtp_url

_MONEY: Final = {"amount": "39.98", "currency": "USD"}
_EXAMPLE_VALUES: Final = {
    "orderId": "order-123",
    "customerId": "customer-456",
    "productId": "SKU-1",
    "total": _MONEY,
    "price": {"amount": "19.99", "currency": "USD"},
    "currency": "USD",
    "quantity": 2,
    "country": "France",
    "email": "customer@example.com",
    "command": "order.cancel",
    "change": "order.confirmed",
    "status": "confirmed",
    "reason": "out_of_stock",
    "detail": "there are not enough pieces",
    "reference": "reference-1",
}

APPLICATION: Final = Application(
    "orders",
    module="streams.app",
    title="Orders",
    description="the order system",
    summary="Event-driven order processing",
    distribution="orders-events",
    example_values=_EXAMPLE_VALUES,
    packages=("streams", "domain", "tables", "agents", "cli"),
    changes="place and cancel orders",
    called=(("payments", "payment_url"), ("mail", "smtp_url")),
    page="tables.page",
    foreign_variables=frozenset({"ORDERS_KAFKA_JARS"}),  # read by the tests' own Kafka, not by a worker
)


class Settings(engine.Settings):
    """Everything a worker of the shop can be told from outside; a value that cannot be used is refused at start.

    Times are seconds unless the name says otherwise.
    """

    application: ClassVar[Application] = APPLICATION

    app_id: str = Field(
        "orders",
        pattern=engine.APP_ID_PATTERN,
        description=engine.Settings.model_fields["app_id"].description,
    )
    price_decimals: int | None = Field(
        None,
        ge=0,
        le=28,
        description="decimals that prices may have where their currency (ISO 4217) has fewer; `3` for the bundled "
        "orders, which `./run` sets",
    )
    saga: Literal["orchestration", "choreography", "none"] = Field(
        "orchestration", description="style of the sagas that begin; `none` leaves orders pending"
    )
    saga_step_timeout: float = Field(300.0, ge=0.001, description="seconds in which a step of a saga is answered")
    saga_retries: int = Field(3, ge=0, le=20, description="retries of a compensation that failed")
    saga_retry_backoff: float = Field(
        1.0, ge=0.001, description="seconds before the first of them; each pause is twice as long as the one before"
    )
    # repr=False: there may be a password in it.
    payment_url: str = Field(
        "", repr=False, description="address of the payment gateway; without it a simulator answers"
    )
    payment_timeout: float = Field(10.0, gt=0, description="seconds to wait for an answer of the payment gateway")
    payment_decline: float = Field(0.0, ge=0, le=1, description="share of the orders that the simulator declines")
    payment_latency: float = Field(0.0, ge=0, description="seconds that the simulator takes to answer")
    payment_outage_every: float = Field(
        0.0, ge=0, description="seconds from one outage of the simulator to the next; 0: it has none"
    )
    payment_outage_length: float = Field(0.0, ge=0, description="seconds that each outage lasts")
    smtp_url: str = Field(
        "",
        repr=False,
        description="mail server, as `smtp://`, `smtps://` or `smtp+starttls://[user:password@]host[:port]`; without "
        "it mails are files in the data folder",
    )
    smtp_timeout: float = Field(10.0, gt=0, description="seconds to wait for an answer of the mail server")
    mail_from: str = Field("orders@localhost", description="sender of mails")
    audit_at: str = Field(
        "",
        description="time of the day (UTC), such as `03:00`, at which each worker audits its partitions as `orders "
        "audit` does; without it none does",
    )

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
    return engine.load_settings(Settings, **overrides)


def shop_settings(settings: engine.Settings) -> Settings:
    """The shop's settings, which the engine carries without knowing them; raises TypeError for others."""
    if not isinstance(settings, Settings):
        raise TypeError(f"an application of the shop needs {Settings!r}, not {type(settings)!r}")
    return settings
