"""The address a worker gives to others when it listens on all of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from streams.host import own_address
from streams.settings import Settings


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    own_address.cache_clear()
    yield
    own_address.cache_clear()


def found_at(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let the machine's name stand for these addresses."""

    def look_up(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        assert name == "box-7"
        if not addresses:
            raise socket.gaierror("unknown")
        return [(None, None, 6, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "gethostname", lambda: "box-7")
    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize(
    ("addresses", "host"),
    [
        (("172.18.0.5",), "172.18.0.5"),
        (("127.0.1.1", "10.0.0.2"), "10.0.0.2"),
        (("fe80::1%eth0", "fd00::7"), "[fd00::7]"),
        (("127.0.1.1",), "box-7"),
        ((), "box-7"),
    ],
)
@pytest.mark.parametrize("bound", ["0.0.0.0", "::", ""])
def test_a_worker_on_all_addresses_goes_by_one_that_others_can_reach(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...], host: str, bound: str
) -> None:
    found_at(monkeypatch, *addresses)
    assert Settings(_env_file=None, web_host=bound, web_port=80).public_url == f"http://{host}:80"


def test_a_worker_on_one_address_or_with_a_url_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found_at(monkeypatch, "10.0.0.2")
    assert Settings(_env_file=None).public_url == "http://127.0.0.1:6066"
    given = Settings(_env_file=None, web_host="0.0.0.0", web_url="https://orders.example")
    assert given.public_url == "https://orders.example"
