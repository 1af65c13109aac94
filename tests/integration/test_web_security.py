"""What browsers and strangers must not do: change things for other sites, run what is in data, guess a token."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from urllib.parse import quote

import httpx
import msgspec
import pytest
import pytest_asyncio

from engine.faust.app import EngineApp
from engine.faust.web_server import WebServer
from engine.health.doctor import examine
from engine.web.routing import ROUTER
from streams.topics import ORDER_COMMANDS
from tests.apps import caught_up, make_settings, publish, running, unique
from tests.integration.web import check_problem, check_unavailable, client_of, order

TOKEN = "correct-horse-battery-staple"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
HOSTILE_IDS = (
    "<script>alert(1)</script>",
    "a\r\nSet-Cookie: stolen=1",
    "a\r\n\r\n<html>",
    "../../etc/passwd",
    "\x00\x1b]0;title\x07",
    "\u202e\u2028żółć 🛒",
    '"; DROP TABLE orders; --',
    "a%0d%0aX: 1",
)


@pytest_asyncio.fixture
async def app(tmp_path: Path) -> AsyncIterator[EngineApp]:
    async with running(make_settings("memory://", tmp_path, partitions=2)) as app:
        yield app


async def test_every_answer_is_only_data_to_a_browser(client: httpx.AsyncClient) -> None:
    for method, path, status in (
        ("GET", "/healthz", 200),
        ("GET", "/tables", 200),
        ("GET", "/metrics", 200),
        ("GET", "/orders/nobody", 404),
        ("GET", "/no/such/route", 404),
        ("PUT", "/healthz", 405),
        ("POST", "/orders", 422),
    ):
        answer = await client.request(method, path)
        assert answer.status_code == status
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert "html" not in answer.headers["Content-Type"]


async def test_faust_adds_no_pages_of_its_own(client: httpx.AsyncClient) -> None:
    for path in ("/router", "/table", "/graph", "/stats", "/performance", "/router/x/y"):
        check_problem(await client.get(path), 404)
        check_problem(await client.get(f"{path}/"), 404)


# ---- other sites


CROSS_SITE: tuple[Mapping[str, str], ...] = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
)


async def test_a_page_of_another_site_changes_nothing(client: httpx.AsyncClient) -> None:
    for headers in CROSS_SITE:
        id = unique("order")
        simple = {"Content-Type": "text/plain", **headers}  # what a form may send without asking first
        problem = check_problem(await client.post("/orders", json=order(order_id=id), headers=simple), 403)
        assert "ORDERS_WEB_URL" in problem["detail"]
        check_problem(await client.get(f"/orders/{id}"), 404)
        assert (await client.get("/healthz", headers=headers)).status_code == 200


async def test_own_pages_and_programs_may_change_things(client: httpx.AsyncClient) -> None:
    own = str(client.base_url).rstrip("/")
    for content_type in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
        for headers in ({}, {"Origin": own}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
            given = {"Content-Type": content_type, **headers}
            answer = await client.post("/orders", json=order(order_id=unique("order")), headers=given)
            assert answer.status_code == 202, answer.text


async def test_a_name_that_was_made_to_point_here_is_not_answered(client: httpx.AsyncClient) -> None:
    for host in ("evil.example", "evil.example:6066", "0.0.0.0:6066", "localhost.evil.example", "[", ""):
        problem = check_problem(await client.get("/tables", headers={"Host": host}), 421)
        assert "ORDERS_WEB_URL" in problem["detail"]
    for host in ("localhost", "LocalHost:6066", "127.0.0.1:1", "[::1]:6066"):
        assert (await client.get("/healthz", headers={"Host": host})).status_code == 200


async def test_a_proxy_before_the_worker_is_known_by_its_address(tmp_path: Path) -> None:
    settings = make_settings("memory://", tmp_path, web_url="https://Orders.Example")
    async with running(settings), httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.web_port}") as client:
        assert (await client.get("/healthz", headers={"Host": "orders.example"})).status_code == 200
        check_problem(await client.get("/healthz", headers={"Host": "evil.example"}), 421)
        for host in ("orders.example", "127.0.0.1"):  # as the browser asked, or as the proxy does
            headers = {"Host": host, "Origin": "https://orders.example"}
            answer = await client.post("/orders", json=order(order_id=unique("order")), headers=headers)
            assert answer.status_code == 202, answer.text


# ---- hostile data


async def test_ids_from_requests_stay_data(client: httpx.AsyncClient) -> None:
    for id in HOSTILE_IDS:
        answer = await client.post("/orders?wait=10s", json=order(customer_id=id, order_id=id))
        assert answer.status_code == 201, answer.text
        assert answer.headers["Location"] == f"/orders/{quote(id, safe='')}"
        assert "Set-Cookie" not in answer.headers
        found = await client.get(answer.headers["Location"])
        assert found.json()["order_id"] == id
        assert found.headers["Content-Type"] == "application/json"


async def test_ids_from_the_log_stay_data(app: EngineApp, client: httpx.AsyncClient) -> None:
    for id in HOSTILE_IDS:
        await publish(app, ORDER_COMMANDS, id, place_command(id))
    await caught_up(app)
    for id in HOSTILE_IDS:
        for path in ("/orders/{}", "/orders/{}/events", "/customers/{}/orders", "/tables/orders/{}"):
            answer = await client.get(path.format(quote(id, safe="")))
            assert answer.status_code == 200, answer.text
            assert answer.headers["Content-Type"] == "application/json"
            assert "Set-Cookie" not in answer.headers
        cancelled = await client.post(f"/orders/{quote(id, safe='')}/cancel")
        assert cancelled.status_code == 202, cancelled.text


def place_command(id: str) -> bytes:
    """A command as any program may write it, with `id` wherever there is room for a text."""
    items = [{"productId": id, "quantity": 2, "price": {"amount": "1.50", "currency": "USD"}}]
    value = {
        "eventId": id,
        "eventType": "order.place",
        "aggregateId": id,
        "aggregateType": "Order",
        "timestamp": "2026-11-23T10:00:00.000000Z",
        "version": 1,
        "metadata": {"correlationId": id, "causationId": id, "userId": id},
        "payload": {
            "orderId": id,
            "customerId": id,
            "items": items,
            "total": {"amount": "3.00", "currency": "USD"},
            "country": id,
            "email": id,
        },
    }
    return msgspec.json.encode(value)


async def test_a_header_from_a_request_is_data_too(client: httpx.AsyncClient) -> None:
    given = {"X-Correlation-Id": "<b>'\"", "Idempotency-Key": "<i>"}
    answer = await client.post("/orders", json=order(), headers=given)
    assert answer.status_code == 202
    assert "<b>" not in str(answer.headers)


# ---- secrets


async def test_the_token_is_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    settings = make_settings("memory://", tmp_path, api_token=TOKEN, kafka_sasl_plain_password="hush-hush")
    async with running(settings) as app, client_of(app) as client:
        seen = [str(await examine(app.engine)), repr(settings), str(settings), settings.model_dump_json()]
        paths = ("/doctor", "/metrics", "/tables", "/topics")
        seen += [(await client.get(path)).text for path in paths]
        refused = await client.post("/orders", json=order(), headers={"Authorization": f"Bearer {TOKEN}x"})
        seen.append(check_problem(refused, 401)["detail"])
        taken = await client.post("/orders", json=order(), headers={"Authorization": f"Bearer {TOKEN}"})
        assert taken.status_code == 202
    for text in (*seen, caplog.text):
        assert TOKEN not in text
        assert "hush-hush" not in text


async def test_only_the_very_token_opens(tmp_path: Path) -> None:
    async with running(make_settings("memory://", tmp_path, api_token=TOKEN)) as app, client_of(app) as client:
        for given in ("", "Bearer", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}.", "Bearer \xff"):
            headers = {b"Authorization": given.encode("latin-1")}
            answer = await client.post("/orders", json=order(), headers=headers)
            check_problem(answer, 401)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert (await client.get("/tables", headers=headers)).status_code == 200


async def test_every_changing_route_wants_the_token(tmp_path: Path) -> None:
    async with running(make_settings("memory://", tmp_path, api_token=TOKEN)) as app, client_of(app) as client:
        declared = [route for service in app.services for route in service.routes]
        routes = {(route.method, route.path) for route in declared if route.method not in ("GET", "HEAD")}
        assert ("POST", "/orders") in routes
        for method, path in sorted(routes):
            answer = await client.request(method, path.replace("{", "").replace("}", ""), content=b"{}")
            check_problem(answer, 401)


async def test_a_forwarded_request_keeps_its_token_and_goes_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (make_settings("memory://", tmp_path, api_token=TOKEN) for _ in range(2))
    async with running(one) as asked, running(other) as owner, client_of(asked) as client:
        for app, url in ((asked, other.public_url), (owner, one.public_url)):  # each believes the other owns everything
            server = app.web
            assert isinstance(server, WebServer)
            router = server.web_app[ROUTER]
            monkeypatch.setattr(router, "_owner_url", lambda number, url=url: url)
            if app is asked:
                monkeypatch.setattr(router, "here", lambda number: None)
        retry = "/dead-letters/0-1/retry"
        check_problem(await client.post(retry), 401)
        found = await client.post(retry, headers={"Authorization": f"Bearer {TOKEN}"})
        assert "no dead letter" in check_problem(found, 404)["detail"]  # the owner has looked
        monkeypatch.setattr(router, "here", lambda number: None)
        check_unavailable(await client.get("/orders/nobody"))
