"""The HTTP adapter against a real server, whatever that answers; and the simulator, whose runs repeat."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from engine.declare.errors import Unavailable
from engine.declare.settings import SettingsError
from streams.events.money import Money
from streams.events.payment_answers import Charged, Declined, Refunded
from streams.payment_gateway import open_gateway
from streams.payment_gateway.http import ANSWER_BYTES_MAX, HttpGateway
from streams.payment_gateway.port import PaymentGateway
from streams.payment_gateway.simulator import SimulatedGateway
from streams.settings import Settings, load_settings
from tests.apps import wait_until
from tests.payment_server import PaymentServer, Request, payment_server

AMOUNT = Money(Decimal("19.90"), "USD")
AMOUNT_JSON = {"amount": "19.90", "currency": "USD"}


def make_settings(**changes: Any) -> Settings:
    return Settings(_env_file=None, **changes)


async def charge(gateway: PaymentGateway, order_id: str = "order-1") -> Charged | Declined:
    return await gateway.charge(order_id, "customer-1", AMOUNT, order_id)


async def refund(gateway: PaymentGateway) -> Refunded | Declined:
    return await gateway.refund("order-1", "ch-order-1", AMOUNT, "refund:order-1:1")


@asynccontextmanager
async def raw_server(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """Talk to whoever connects, then hang up; gives the URL."""
    talks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        try:
            with suppress(ConnectionError, asyncio.CancelledError):
                await talk(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks)
        await asyncio.sleep(0)  # transports close in the loop's next turn


# ---- HTTP


@pytest_asyncio.fixture
async def server() -> AsyncIterator[PaymentServer]:
    async with payment_server() as server:
        yield server


@pytest_asyncio.fixture
async def gateway(server: PaymentServer) -> AsyncIterator[PaymentGateway]:
    async with open_gateway(make_settings(payment_url=server.url)) as gateway:
        yield gateway


async def test_a_charge_and_a_refund_are_sent_as_json_under_their_keys(
    server: PaymentServer, gateway: PaymentGateway
) -> None:
    assert await charge(gateway) == Charged("ch-order-1")
    assert await refund(gateway) == Refunded("re-order-1")
    charged = {"order_id": "order-1", "customer_id": "customer-1", "amount": AMOUNT_JSON}
    refunded = {"order_id": "order-1", "reference": "ch-order-1", "amount": AMOUNT_JSON}
    assert server.requests == [
        Request("/charges", "order-1", charged),
        Request("/refunds", "refund:order-1:1", refunded),
    ]


async def test_the_same_call_under_the_same_key_takes_money_once(
    server: PaymentServer, gateway: PaymentGateway
) -> None:
    assert await charge(gateway) == await charge(gateway)
    assert server.money == {"order-1": Decimal("19.90")}


@pytest.mark.parametrize("status", [402, 409, 422])
async def test_a_reason_declines(server: PaymentServer, gateway: PaymentGateway, status: int) -> None:
    for _ in range(2):
        server.answers.append(web.json_response({"reason": "no_funds", "more": 1}, status=status))
    assert await charge(gateway) == Declined("no_funds")
    assert await refund(gateway) == Declined("no_funds")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
async def test_a_gateway_that_cannot_answer_now_is_unavailable(
    server: PaymentServer, gateway: PaymentGateway, status: int
) -> None:
    for call in (charge, refund):
        server.answers.append(web.json_response({"reason": "busy"}, status=status))
        with pytest.raises(Unavailable, match=str(status)):
            await call(gateway)
    assert await charge(gateway) == Charged("ch-order-1")


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 405, 410, 413])
async def test_a_mistake_in_the_configuration_loses_no_payment_and_says_once_what_to_check(
    server: PaymentServer, gateway: PaymentGateway, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    for call in (charge, refund):
        headers = {"Location": "/v1/charges"} if status == 302 else None
        server.answers.append(web.json_response({"reason": "no"}, status=status, headers=headers))
        with caplog.at_level(logging.ERROR), pytest.raises(Unavailable, match=f"{status}.*ORDERS_PAYMENT_URL"):
            await call(gateway)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "ORDERS_PAYMENT_URL" in record.getMessage()


@pytest.mark.parametrize("status", [200, 402, 409])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>welcome</html>",
        b"{}",
        b"[]",
        b'{"reference": "", "reason": ""}',
        b'{"reference": 1, "reason": null}',
        b'{"reference": "\xff", "reason": "\xff"}',
        b"[" * 10_000,
        b'{"reference": "x", "reason": "x"}' + b" " * ANSWER_BYTES_MAX,
    ],
)
async def test_what_cannot_be_read_is_no_answer(
    server: PaymentServer, gateway: PaymentGateway, status: int, body: bytes
) -> None:
    server.answers.append(web.Response(body=body, status=status))
    with pytest.raises(Unavailable):
        await charge(gateway)


async def test_a_body_that_is_not_compressed_as_it_says_is_no_answer(
    server: PaymentServer, gateway: PaymentGateway
) -> None:
    server.answers.append(web.Response(body=b'{"reference": "x"}', headers={"Content-Encoding": "gzip"}))
    with pytest.raises(Unavailable):
        await charge(gateway)


async def test_nobody_waits_longer_than_the_timeout_also_not_for_one_who_answers_drop_by_drop() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with raw_server(drip) as url, open_gateway(make_settings(payment_url=url, payment_timeout=0.2)) as gateway:
        with pytest.raises(Unavailable, match=r"within 0\.2 s"):
            await charge(gateway)


async def test_a_gateway_that_is_away_is_unavailable_and_answers_when_it_is_back(
    server: PaymentServer, gateway: PaymentGateway
) -> None:
    await charge(gateway)
    await server.stop()
    with pytest.raises(Unavailable, match="cannot be reached"):
        await charge(gateway)
    await server.start()
    assert await charge(gateway) == Charged("ch-order-1")


async def test_one_who_hangs_up_in_the_middle_of_an_answer_is_unavailable() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

    async with raw_server(hang_up) as url, open_gateway(make_settings(payment_url=url)) as gateway:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await charge(gateway)


async def test_no_more_connections_are_open_than_calls_allowed(server: PaymentServer) -> None:
    async with open_gateway(make_settings(payment_url=server.url, outside_calls_max=2)) as gateway:
        server.hold()
        calls = [asyncio.create_task(charge(gateway, f"order-{number}")) for number in range(6)]
        await wait_until(lambda: server.open == 2, "both connections are busy")
        server.let_go.set()
        assert await asyncio.gather(*calls) == [Charged(f"ch-order-{number}") for number in range(6)]
        assert server.most_open == 2


async def test_a_call_that_waits_for_a_connection_does_not_use_up_its_time(server: PaymentServer) -> None:
    settings = make_settings(payment_url=server.url, outside_calls_max=2, payment_timeout=0.3)
    async with open_gateway(settings) as gateway:
        server.hold()
        results = await asyncio.gather(*(charge(gateway, f"order-{n}") for n in range(6)), return_exceptions=True)
        assert {str(result) for result in results} == {"the payment gateway does not answer /charges within 0.3 s"}
        assert len(server.requests) == 6  # the last two waited for two timeouts, and were sent all the same


async def test_calls_that_still_run_when_the_connections_close_find_no_answer(server: PaymentServer) -> None:
    async with open_gateway(make_settings(payment_url=server.url, outside_calls_max=2)) as gateway:
        server.hold()
        calls = [asyncio.create_task(charge(gateway, f"order-{number}")) for number in range(3)]
        await wait_until(lambda: server.open == 2, "both connections are busy")
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * 3
    with pytest.raises(Unavailable, match="closed"):
        await charge(gateway)


async def test_user_and_password_of_the_url_are_sent_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str | None] = []

    async def look(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({}, status=401)

    application = web.Application()
    application.router.add_post("/charges", look)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        with caplog.at_level(logging.DEBUG), pytest.raises(Unavailable) as raised:
            async with open_gateway(make_settings(payment_url=f"http://me:secret@127.0.0.1:{port}/")) as gateway:
                await charge(gateway)
    finally:
        await runner.cleanup()
    assert seen == ["Basic bWU6c2VjcmV0"]
    assert "secret" not in f"{raised.value}{caplog.text}"


@pytest.mark.parametrize(
    "url",
    ["payments.example", "ftp://payments.example", "http://", "http://:80", "http://host:port", "http://host:70000",
     "http://host/?a=b", "http://host/#a", "http://ho st/", "http://[::1", "https:host", "http://host/ä"],
)  # fmt: skip
def test_a_url_that_cannot_be_used_is_refused_at_start(url: str) -> None:
    with pytest.raises(SettingsError, match=r"ORDERS_PAYMENT_URL.*http\(s\)://host"):
        load_settings(payment_url=url)


def test_a_password_in_a_url_that_cannot_be_used_is_not_shown() -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(payment_url="http://me:secret@host:port")
    assert "secret" not in str(raised.value)
    assert "secret" not in repr(make_settings(payment_url="http://me:secret@host"))


@pytest.mark.parametrize("url", ["http://localhost:8080", "https://payments.example/v1/", "http://[::1]:80/a"])
async def test_a_url_chooses_the_http_adapter_and_none_the_simulator(url: str) -> None:
    async with open_gateway(load_settings(payment_url=url)) as gateway:
        assert isinstance(gateway, HttpGateway)
    async with open_gateway(load_settings(payment_url="")) as gateway:
        assert isinstance(gateway, SimulatedGateway)


# ---- the simulator


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_the_simulator_takes_the_money_of_every_order_when_nothing_else_is_said() -> None:
    gateway = SimulatedGateway(make_settings())
    assert await charge(gateway) == Charged("charge-order-1")
    assert await refund(gateway) == Refunded("refund-order-1")


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("pattern", ["order-{}", "{}", "5363{:05}"])
async def test_the_simulator_declines_the_same_share_of_orders_in_every_run(rate: float, pattern: str) -> None:
    ids = [pattern.format(number) for number in range(10_000)]
    runs = [SimulatedGateway(make_settings(payment_decline=rate)) for _ in range(2)]
    first, second = [[await charge(gateway, order_id) for order_id in ids] for gateway in runs]
    assert first == second
    declined = [answer for answer in first if isinstance(answer, Declined)]
    assert set(declined) == {Declined("card_declined")}
    assert abs(len(declined) / len(ids) - rate) < 0.02  # four standard deviations of a fair coin


async def test_the_simulator_declines_all_or_nothing_at_the_ends() -> None:
    for rate, kind in ((0.0, Charged), (1.0, Declined)):
        gateway = SimulatedGateway(make_settings(payment_decline=rate))
        assert {type(await charge(gateway, f"order-{number}")) for number in range(1000)} == {kind}


async def test_an_order_declined_at_a_low_rate_is_declined_at_a_higher_one() -> None:
    low, high = (SimulatedGateway(make_settings(payment_decline=rate)) for rate in (0.1, 0.2))
    for number in range(1000):
        if isinstance(await charge(low, f"order-{number}"), Declined):
            assert isinstance(await charge(high, f"order-{number}"), Declined)


async def test_the_simulator_is_away_during_the_last_seconds_of_every_span() -> None:
    clock = Clock()
    settings = make_settings(payment_outage_every=60.0, payment_outage_length=5.0)
    gateway, began = SimulatedGateway(settings, clock), clock.now
    for span in (0, 60, 600):
        for second, away in ((0, False), (54.9, False), (55, True), (59.9, True)):
            clock.now = began + span + second
            if away:
                with pytest.raises(Unavailable):
                    await charge(gateway)
                with pytest.raises(Unavailable):
                    await refund(gateway)
            else:
                assert await charge(gateway) == Charged("charge-order-1")


async def test_the_simulator_takes_the_time_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await charge(SimulatedGateway(make_settings(payment_latency=0.25)))
    await charge(SimulatedGateway(make_settings()))
    assert slept == [0.25]


def test_without_latency_the_simulator_answers_at_once() -> None:
    call = SimulatedGateway(make_settings(payment_decline=0.5)).charge("order-1", "customer-1", AMOUNT, "order-1")
    with pytest.raises(StopIteration):
        call.send(None)
