"""Where a worker may listen: beyond this machine only with a token, or when told so."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.web.binding import binding_problem, is_loopback, token_warning
from streams.settings import Settings
from tests.apps import make_settings

LOOPBACK = ("127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST")
BEYOND = ("0.0.0.0", "::", "", "192.0.2.7", "2001:db8::7", "orders.example", "localhost.example", "127.0.0.1.example")


def settings_with(folder: Path, **changes: object) -> Settings:
    return make_settings("memory://", folder, **changes)


@pytest.mark.parametrize("host", LOOPBACK)
def test_this_machine_may_always_be_listened_on(tmp_path: Path, host: str) -> None:
    assert is_loopback(host)
    assert binding_problem(settings_with(tmp_path), host) is None


@pytest.mark.parametrize("host", BEYOND)
def test_the_network_only_with_a_token_or_when_told_so(tmp_path: Path, host: str) -> None:
    assert not is_loopback(host)
    problem = binding_problem(settings_with(tmp_path), host)
    assert problem is not None
    for way_out in ("ORDERS_API_TOKEN", "ORDERS_WEB_HOST=127.0.0.1", "ORDERS_WEB_INSECURE=true"):
        assert way_out in problem
    assert binding_problem(settings_with(tmp_path, api_token="secret"), host) is None
    assert binding_problem(settings_with(tmp_path, web_insecure=True), host) is None


def test_a_token_that_can_be_guessed_is_named_without_being_shown(tmp_path: Path) -> None:
    assert token_warning(settings_with(tmp_path)) is None
    assert token_warning(settings_with(tmp_path, api_token="0123456789abcdef")) is None
    warning = token_warning(settings_with(tmp_path, api_token="hush"))
    assert warning is not None
    assert "hush" not in warning
