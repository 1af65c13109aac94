"""Where a worker may listen: on this machine only, unless a token protects what can be changed."""

from __future__ import annotations

import ipaddress

from engine.declare.settings import Settings

TOKEN_LENGTH_MIN = 16


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`: a name or an address, the empty one means all.

    Of names only `localhost` is known: what others stand for is decided elsewhere, and may change.
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def binding_problem(settings: Settings, host: str) -> str | None:
    """What keeps a worker from listening on `host`, with what to do about it; None when nothing does."""
    if is_loopback(host) or settings.api_token or settings.web_insecure:
        return None
    where = f"on {host}" if host else "on all addresses"
    return (
        f"the worker would listen {where}, where anybody who reaches this machine could "
        f"{settings.application.changes}. Set {settings.variable('api_token')} to a long random text "
        "(`openssl rand -hex 32` makes one), "
        f"or listen on this machine only with {settings.variable('web_host')}=127.0.0.1, "
        f"or say that you want it so with {settings.variable('web_insecure')}=true."
    )


def token_warning(settings: Settings) -> str | None:
    """What is to be said about a token that can be guessed."""
    if not settings.api_token or len(settings.api_token) >= TOKEN_LENGTH_MIN:
        return None
    return (
        f"{settings.variable('api_token')} has fewer than {TOKEN_LENGTH_MIN} characters and can be guessed: "
        "`openssl rand -hex 32` makes a better one"
    )
