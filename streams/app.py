"""The composition root of the shop: `create_app` makes its Faust application; `faust -A streams.app worker` runs it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine import EngineApp, EventRegistry, Service, app_from_environment, discover, engine_services
from engine import create_app as create_engine_app
from streams.events.orders import registry as order_registry
from streams.settings import Settings

# Packages whose modules may declare services; named here so that streams imports none of them.
SERVICE_PACKAGES = ("tables", "agents")


def shop_services() -> tuple[Service, ...]:
    """The services of the shop, with those that every application has."""
    return (*engine_services(), *discover(SERVICE_PACKAGES))


def create_app(
    settings: Settings | None = None,
    *,
    services: Iterable[Service] | None = None,
    registry: EventRegistry | None = None,
) -> EngineApp:
    """Compose the shop, or an application of other `services`; may be called several times in a process.

    Without `services`, it is made of `shop_services()`.
    """
    found = shop_services() if services is None else services
    return create_engine_app(settings or Settings(), found, registry=registry or order_registry())


def __getattr__(name: str) -> Any:
    """`app`, made from the environment when `faust -A streams.app` asks for it, so that importing makes none."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    app = globals()["app"] = app_from_environment(Settings, create_app)
    return app
