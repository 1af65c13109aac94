"""The address a worker gives to others when it listens on all of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from engine.declare.settings import own_address
from streams.settings import Settings


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    own_address.cache_clear()
    yield
    own_address.cache_clear()


def found_at(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let the machine's name stand for these addresses."""

    def look_up(name: str, port: None, family: int, kind: int) -> list[tuple[object, ...]]:
        assert (name, port, kind) == ("box-7", None, socket.SOCK_STREAM)
        kinds = [(socket.AF_INET6 if ":" in address else socket.AF_INET, address) for address in addresses]
        found = [(of, kind, 6, "", (address, 0)) for of, address in kinds if family == of]
        if not found:
            raise socket.gaierror("unknown")
        return [*found]

    monkeypatch.setattr(socket, "gethostname", lambda: "box-7")
    monkeypatch.setattr(socket, "getaddrinfo", look_up)


BOTH = ("fe80::1%eth0", "fd00::7", "127.0.1.1", "172.18.0.5")


@pytest.mark.parametrize(
    ("addresses", "bound", "host"),
    [
        (("172.18.0.5",), "0.0.0.0", "172.18.0.5"),
        (BOTH, "0.0.0.0", "172.18.0.5"),
        (BOTH, "::", "[fd00::7]"),
        (("172.18.0.5",), "::", "box-7"),
        (("127.0.1.1",), "0.0.0.0", "box-7"),
        ((), "0.0.0.0", "box-7"),
    ],
)
def test_a_worker_on_all_addresses_goes_by_one_that_others_can_reach(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...], bound: str, host: str
) -> None:
    found_at(monkeypatch, *addresses)
    assert Settings(_env_file=None, web_host=bound, web_port=80).public_url == f"http://{host}:80"


def test_a_worker_on_one_address_or_with_a_url_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found_at(monkeypatch, "10.0.0.2")
    assert Settings(_env_file=None).public_url == "http://127.0.0.1:6066"
    given = Settings(_env_file=None, web_host="0.0.0.0", web_url="https://orders.example")
    assert given.public_url == "https://orders.example"
