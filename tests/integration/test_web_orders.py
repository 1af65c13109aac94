"""HTTP commands and reads of orders: every answer that the interface promises, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from aiohttp import web

from engine.declare.service import Service
from engine.faust.app import EngineApp
from streams.app import create_app
from tests.apps import make_settings, running
from tests.integration.web import (
    check_problem,
    check_unavailable,
    client_of,
    find,
    go_on,
    hold_up,
    order,
    place,
    too_expensive,
)


@pytest_asyncio.fixture
async def app(tmp_path: Path) -> AsyncIterator[EngineApp]:
    """Run the whole application, in memory: most of what is tested here is the same on every log."""
    async with running(make_settings("memory://", tmp_path)) as app:
        yield app


# ---- placing


async def test_an_order_is_accepted_with_a_token_and_can_be_read_with_it(client: httpx.AsyncClient) -> None:
    occurred_at = "2010-12-01T08:26:00+01:00"
    body = order("c-1", "o-1", occurred_at=occurred_at, country="France", email="a@example.com")
    answer = await client.post("/orders", json=body)
    assert answer.status_code == 202
    accepted = answer.json()
    assert accepted == {"order_id": "o-1", "status": "processing", "token": accepted["token"]}
    assert answer.headers["Location"] == "/orders/o-1"
    assert await find(client, "/orders/o-1", after=accepted["token"]) == {
        "order_id": "o-1",
        "customer_id": "c-1",
        "status": "pending",
        "item_count": 2,
        "total": {"amount": "3.00", "currency": "USD"},
        "created_at": "2010-12-01T07:26:00.000000Z",
        "confirmed_at": None,
        "cancelled_at": None,
        "version": 1,
        "country": "France",
        "items": [{"product_id": "SKU-1", "quantity": 2, "price": {"amount": "1.50", "currency": "USD"}}],
        "cancel_reason": None,
        "shipped_at": None,
    }


async def test_an_order_without_an_id_gets_one(client: httpx.AsyncClient) -> None:
    first = (await client.post("/orders", json=order())).json()
    second = (await client.post("/orders", json=order())).json()
    assert first["order_id"] != second["order_id"]
    assert (await find(client, f"/orders/{first['order_id']}", after=first["token"]))["status"] == "pending"


async def test_waiting_for_the_read_model_answers_201_with_the_order(client: httpx.AsyncClient) -> None:
    answer = await client.post("/orders?wait=10s", json=order(order_id="o-1"))
    assert answer.status_code == 201
    assert answer.headers["Location"] == "/orders/o-1"
    assert answer.json() == await find(client, "/orders/o-1")


async def test_waiting_in_vain_answers_202(app: EngineApp, client: httpx.AsyncClient) -> None:
    await hold_up(app)
    answer = await client.post("/orders?wait=20ms", json=order(order_id="o-1"))
    assert answer.status_code == 202
    await go_on(app)
    assert (await find(client, "/orders/o-1", after=answer.json()["token"]))["status"] == "pending"


async def test_waiting_for_an_order_that_is_refused_names_the_reason(client: httpx.AsyncClient) -> None:
    await client.post("/orders?wait=10s", json=order(order_id="o-1"))
    other = await client.post("/orders?wait=10s", json=order("another customer", "o-1"))
    assert check_problem(other, 409)["reason"] == "already_placed"
    unpayable = await client.post("/orders?wait=10s", json=too_expensive("o-2"))
    assert check_problem(unpayable, 422)["reason"] == "amount_out_of_range"
    assert (await find(client, "/orders/o-2"))["status"] == "rejected"


async def test_the_same_order_id_and_body_again_changes_nothing(client: httpx.AsyncClient) -> None:
    for _ in range(3):
        answer = await client.post("/orders?wait=10s", json=order(order_id="o-1"))
        assert answer.status_code == 201
    assert len((await find(client, "/orders/o-1/events"))["items"]) == 1


async def test_a_command_with_an_id_of_its_own_takes_effect_once(client: httpx.AsyncClient) -> None:
    for _ in range(2):
        await place(client, order(order_id="o-1", command_id="place-1"))
        answer = await client.post(
            "/orders/o-1/cancel", json={"command_id": "cancel-1", "occurred_at": "2011-01-01T00:00:00Z"}
        )
    events = (await find(client, "/orders/o-1/events", after=answer.json()["token"]))["items"]
    assert [(event["event_type"], event["metadata"]["causation_id"]) for event in events] == [
        ("order.placed", "place-1"),
        ("order.cancelled", "cancel-1"),
    ]
    assert (await find(client, "/orders/o-1"))["cancelled_at"] == "2011-01-01T00:00:00.000000Z"


STRANGE_IDS = [
    "a/b",
    "a b",
    "ü",
    "日本",
    "a?b#c%41",
    "%2F",
    "a\r\nSet-Cookie: x=1",
    "\u0000",
    "😀",
    "x" * 128,
    "a+b&c=d",
    '"',
    "<b>",
]


@pytest.mark.parametrize("order_id", STRANGE_IDS)
async def test_any_id_can_be_placed_read_and_cancelled_and_never_reaches_a_header_raw(
    client: httpx.AsyncClient, order_id: str
) -> None:
    answer = await client.post("/orders?wait=10s", json=order("c/ü", order_id))
    assert answer.status_code == 201
    assert "Set-Cookie" not in answer.headers
    location = answer.headers["Location"]
    assert location == f"/orders/{quote(order_id, safe='')}"
    assert (await find(client, location))["order_id"] == order_id
    assert (await find(client, f"{location}/events"))["order_id"] == order_id
    cancelled = await client.post(f"{location}/cancel")
    assert (await find(client, location, after=cancelled.json()["token"]))["status"] == "cancelled"
    assert (
        len(
            (await find(client, f"/customers/{quote('c/ü', safe='')}/orders", after=cancelled.json()["token"]))["items"]
        )
        == 1
    )


# ---- Idempotency-Key


async def test_the_same_key_and_body_is_the_same_order(client: httpx.AsyncClient) -> None:
    answers = [await client.post("/orders", json=order(), headers={"Idempotency-Key": "k"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202] * 3
    assert len({answer.json()["order_id"] for answer in answers}) == 1
    again = await client.post("/orders?wait=10s", json=order(), headers={"Idempotency-Key": "k"})
    assert again.status_code == 201
    assert again.json()["version"] == 1


async def test_the_same_key_with_another_body_is_a_conflict(client: httpx.AsyncClient) -> None:
    first = await client.post("/orders", json=order(), headers={"Idempotency-Key": "k"})
    other = await client.post("/orders", json=order(country="France"), headers={"Idempotency-Key": "k"})
    assert check_problem(other, 409)["order_id"] == first.json()["order_id"]


async def test_keys_of_different_customers_do_not_meet(client: httpx.AsyncClient) -> None:
    answers = [await client.post("/orders", json=order(f"c-{n}"), headers={"Idempotency-Key": "k"}) for n in range(3)]
    assert len({answer.json()["order_id"] for answer in answers}) == 3


async def test_ten_identical_requests_at_once_are_one_order(client: httpx.AsyncClient) -> None:
    requests = (client.post("/orders", json=order("c-1"), headers={"Idempotency-Key": "k"}) for _ in range(10))
    answers = await asyncio.gather(*requests)
    assert {answer.status_code for answer in answers} == {202}
    (order_id,) = {answer.json()["order_id"] for answer in answers}
    for answer in answers:
        listed = await find(client, "/customers/c-1/orders", after=answer.json()["token"])
        assert [(found["order_id"], found["version"]) for found in listed["items"]] == [(order_id, 1)]


async def test_of_different_bodies_under_one_key_at_once_one_wins(client: httpx.AsyncClient) -> None:
    requests = (
        client.post("/orders?wait=10s", json=order("c-1", country=f"country {n}"), headers={"Idempotency-Key": "k"})
        for n in range(10)
    )
    answers = await asyncio.gather(*requests)
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 9
    assert len((await find(client, "/customers/c-1/orders"))["items"]) == 1


async def test_an_order_id_given_with_a_key_is_kept(client: httpx.AsyncClient) -> None:
    answer = await client.post("/orders?wait=10s", json=order(order_id="o-1"), headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["order_id"]) == (201, "o-1")


async def test_a_key_whose_first_request_is_not_settled_in_time_can_be_tried_again(
    app: EngineApp, client: httpx.AsyncClient
) -> None:
    await hold_up(app)
    check_unavailable(await client.post("/orders", json=order("c-1"), headers={"Idempotency-Key": "k"}))
    await go_on(app)
    answer = await client.post("/orders?wait=10s", json=order("c-1"), headers={"Idempotency-Key": "k"})
    assert answer.status_code == 201
    assert len((await find(client, "/customers/c-1/orders", after=await place(client, order("c-1"))))["items"]) == 2


@pytest.mark.parametrize("key", ["", "x" * 129, "a\tb"])
async def test_a_key_that_is_none_is_refused(client: httpx.AsyncClient, key: str) -> None:
    problem = check_problem(await client.post("/orders", json=order(), headers={"Idempotency-Key": key}), 422)
    assert [error["field"] for error in problem["errors"]] == ["Idempotency-Key"]


async def test_the_same_key_makes_a_cancellation_one_command(client: httpx.AsyncClient) -> None:
    await place(client, order(order_id="o-1"))
    for _ in range(3):
        answer = await client.post("/orders/o-1/cancel", headers={"Idempotency-Key": "k"})
    assert len((await find(client, "/orders/o-1/events", after=answer.json()["token"]))["items"]) == 2


# ---- batch


async def test_each_line_of_a_batch_is_an_order_or_a_problem_of_its_own(client: httpx.AsyncClient) -> None:
    lines = [json.dumps(order(f"c-{n % 3}", f"o-{n}")) for n in range(20)]
    lines[4:4] = ["", "   ", "{", json.dumps(order(items=[])), json.dumps({"customer_id": "c"})]
    answer = await client.post("/orders/batch", content="\r\n".join(lines))
    assert answer.status_code == 202
    batch = answer.json()
    assert (batch["accepted"], batch["rejected"]) == (20, 3)
    assert [(problem["line"], problem["status"]) for problem in batch["problems"]] == [(7, 422), (8, 422), (9, 422)]
    assert [error["field"] for error in batch["problems"][1]["errors"]] == ["items"]
    for n in range(20):
        assert (await find(client, f"/orders/o-{n}", after=batch["token"]))["status"] == "pending"
    counts = [len((await find(client, f"/customers/c-{n}/orders", after=batch["token"]))["items"]) for n in range(3)]
    assert counts == [7, 7, 6]


async def test_a_batch_sent_twice_under_one_key_is_one_batch(client: httpx.AsyncClient) -> None:
    content = "\n".join(json.dumps(order("c-1")) for _ in range(5))
    for _ in range(2):
        answer = await client.post("/orders/batch", content=content, headers={"Idempotency-Key": "k"})
    listed = (await find(client, "/customers/c-1/orders", after=answer.json()["token"]))["items"]
    assert [found["version"] for found in listed] == [1] * 5


async def test_a_batch_without_an_order_has_no_token(client: httpx.AsyncClient) -> None:
    answer = await client.post("/orders/batch", content="\n\n")
    assert answer.json() == {"accepted": 0, "rejected": 0, "problems": [], "token": None}


async def test_problems_of_a_batch_are_counted_but_listed_up_to_a_limit(client: httpx.AsyncClient) -> None:
    answer = await client.post("/orders/batch", content="x\n" * 1500)
    assert (answer.json()["rejected"], len(answer.json()["problems"])) == (1500, 1000)


# ---- changing


async def test_an_order_is_confirmed_and_cancelled(client: httpx.AsyncClient) -> None:
    await place(client, order(order_id="o-1"))
    confirmed = await client.post("/orders/o-1/confirm")
    assert confirmed.status_code == 202
    assert (await find(client, "/orders/o-1", after=confirmed.json()["token"]))["status"] == "confirmed"
    cancelled = await client.post("/orders/o-1/cancel", json={"reason": "too late"})
    assert (cancelled.status_code, cancelled.json()["order_id"]) == (202, "o-1")
    found = await find(client, "/orders/o-1", after=cancelled.json()["token"])
    assert (found["status"], found["cancel_reason"], found["version"]) == ("cancelled", "too late", 3)


async def test_who_waits_for_a_change_is_told_what_became_of_it(client: httpx.AsyncClient) -> None:
    await place(client, order(order_id="o-1"))
    cancelled = await client.post("/orders/o-1/cancel?wait=10s", json={"reason": "too late"})
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    for command in ("cancel", "confirm", "ship"):
        refused = check_problem(await client.post(f"/orders/o-1/{command}?wait=10s"), 409)
        assert (refused["reason"], refused["order_id"]) == ("already_cancelled", "o-1")
    unknown = check_problem(await client.post("/orders/o-2/cancel?wait=10s"), 422)
    assert unknown["reason"] == "not_placed"


async def test_only_refused_commands_make_no_order(client: httpx.AsyncClient) -> None:
    cancelled = await client.post("/orders/o-1/cancel")
    check_problem(await client.get("/orders/o-1", params={"after": cancelled.json()["token"]}), 404)
    events = (await find(client, "/orders/o-1/events"))["items"]
    assert [event["payload"]["reason"] for event in events] == ["not_placed"]


async def test_a_cancellation_that_cannot_be_read_is_refused(client: httpx.AsyncClient) -> None:
    problem = check_problem(await client.post("/orders/o-1/cancel", json={"reason": 5, "occurred_at": "now"}), 422)
    assert [error["field"] for error in problem["errors"]] == ["occurred_at", "reason"]
    check_problem(await client.post(f"/orders/{'x' * 129}/cancel"), 422)


async def test_the_request_is_the_correlation_of_its_command(client: httpx.AsyncClient) -> None:
    token = await place(client, order("c-1", "o-1"), **{"X-Correlation-Id": "request-1"})
    (event,) = (await find(client, "/orders/o-1/events", after=token))["items"]
    assert (event["metadata"]["correlation_id"], event["metadata"]["user_id"]) == ("request-1", "c-1")


# ---- the past


async def test_the_audit_trail_and_the_order_as_it_was(client: httpx.AsyncClient) -> None:
    await place(client, order(order_id="o-1", occurred_at="2010-12-01T00:00:00Z", email="a@example.com"))
    body = {"occurred_at": "2010-12-03T00:00:00Z", "reason": "r"}
    token = (await client.post("/orders/o-1/cancel", json=body)).json()["token"]
    events = (await find(client, "/orders/o-1/events", after=token))["items"]
    assert [(event["event_type"], event["aggregate_version"]) for event in events] == [
        ("order.placed", 1),
        ("order.cancelled", 2),
    ]
    assert events[0]["payload"]["items"][0]["product_id"] == "SKU-1"
    assert "email" not in events[0]["payload"]
    placed = await find(client, "/orders/o-1/state", version=1)
    assert (placed["status"], placed["version"], placed["cancelled_at"]) == ("pending", 1, None)
    now = await find(client, "/orders/o-1")
    assert await find(client, "/orders/o-1/state", version=2) == now
    assert await find(client, "/orders/o-1/state", at="2010-12-03T00:00:00Z") == now
    assert await find(client, "/orders/o-1/state", at="2010-12-02T23:59:59.999999Z") == placed
    for query in ("version=3", "at=2010-11-30T00:00:00Z"):
        check_problem(await client.get(f"/orders/o-1/state?{query}"), 404)
    for query in ("", "version=1&at=2010-12-01T00:00:00Z", "version=0", "version=x", "at=x", "at=2010-12-01T00:00:00"):
        check_problem(await client.get(f"/orders/o-1/state?{query}"), 422)


# ---- customers


async def test_pages_of_a_customer_hold_every_order_once_newest_first(client: httpx.AsyncClient) -> None:
    times = [f"2010-12-{1 + n // 2:02}T00:00:00Z" for n in range(25)]
    lines = [json.dumps(order("c-1", f"o-{n}", occurred_at=time)) for n, time in enumerate(times)]
    lines += [json.dumps(order("c-10", "other")), json.dumps(order("c-", "another"))]
    token = (await client.post("/orders/batch", content="\n".join(lines))).json()["token"]
    for limit in (1, 7, 25, 1000):
        seen: list[tuple[str, str]] = []
        cursor = ""
        while True:
            page = await find(client, "/customers/c-1/orders", limit=limit, after=token, cursor=cursor)
            assert len(page["items"]) <= limit
            seen += [(found["created_at"], found["order_id"]) for found in page["items"]]
            if page["next_cursor"] is None:
                break
            cursor = page["next_cursor"]
        assert {order_id for _, order_id in seen} == {f"o-{n}" for n in range(25)}
        assert len(seen) == 25
        assert [time for time, _ in seen] == sorted((time for time, _ in seen), reverse=True)


async def test_a_customer_nobody_knows_has_no_orders(client: httpx.AsyncClient) -> None:
    assert await find(client, "/customers/nobody/orders") == {"items": [], "next_cursor": None}


# ---- problems


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/nothing", 404),
        ("GET", "/orders/nobody", 404),
        ("GET", "/orders/nobody/events", 404),
        ("GET", "/orders/nobody/state?version=1", 404),
        ("PUT", "/orders", 405),
        ("DELETE", "/orders/o-1", 405),
        ("PUT", "/orders/batch", 405),
        ("POST", "/orders", 422),
        ("POST", "/orders?wait=31s", 422),
        ("POST", "/orders?wait=soon", 422),
        ("GET", "/orders/o-1?after=x", 422),
        ("GET", "/orders/o-1?after=", 422),
        ("GET", "/customers/c/orders?limit=0", 422),
        ("GET", "/customers/c/orders?limit=1001", 422),
        ("GET", "/customers/c/orders?limit=x", 422),
        ("GET", "/customers/c/orders?cursor=%25", 422),
        ("GET", "/internal/positions/order-commands/0?agent=nobody", 404),
        ("GET", "/internal/positions/order-commands/99?agent=decide-orders", 503),
    ],
)
async def test_errors_are_problems(client: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    check_problem(await client.request(method, path), status)


async def test_a_wrong_method_says_which_ones_there_are(client: httpx.AsyncClient) -> None:
    assert (await client.delete("/orders")).headers["Allow"] == "GET, POST"


@pytest.mark.parametrize("path", ["/orders", "/orders/batch", "/orders/o-1/cancel"])
async def test_a_body_over_one_mebibyte_is_refused(client: httpx.AsyncClient, path: str) -> None:
    check_problem(await client.post(path, content=b" " * ((1 << 20) + 1)), 413)


async def test_a_body_whose_command_no_consumer_would_take_is_refused(tmp_path: Path) -> None:
    settings = make_settings("memory://", tmp_path, record_bytes_max=1024)
    async with running(settings) as app, client_of(app) as client:
        item = order()["items"][0]
        check_problem(await client.post("/orders", json=order(items=[item] * 50)), 413)
        batch = await client.post("/orders/batch", content=json.dumps(order(items=[item] * 50)))
        assert [problem["status"] for problem in batch.json()["problems"]] == [413]


async def test_an_unexpected_error_is_logged_and_its_trace_is_not_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Service("broken")

    @broken.route("GET", "/broken")
    async def fail(request: web.Request) -> web.StreamResponse:
        raise RuntimeError("a secret")

    async with running(make_settings("memory://", tmp_path), [broken]) as app, client_of(app) as client:
        with caplog.at_level(logging.ERROR):
            answer = await client.get("/broken")
    check_problem(answer, 500)
    assert "secret" not in answer.text
    assert "a secret" in caplog.text


async def test_a_log_that_cannot_be_written_is_unavailable(app: EngineApp, client: httpx.AsyncClient) -> None:
    await app.engine.broker.stop()
    problem = check_unavailable(await client.post("/orders", json=order()))
    assert "Idempotency-Key" in problem["detail"]
    check_unavailable(await client.post("/orders/batch", content=json.dumps(order())))
    await app.engine.broker.start()


async def test_changing_requests_need_the_token_where_one_is_set(tmp_path: Path) -> None:
    settings = make_settings("memory://", tmp_path, api_token="secret")
    async with running(settings) as app:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "secret"},
            {"Authorization": "Bearer"},
        ):
            async with client_of(app, **headers) as client:
                for path in ("/orders", "/orders/batch", "/orders/o-1/cancel", "/orders/o-1/confirm"):
                    answer = await client.post(path, json=order())
                    check_problem(answer, 401)
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert (await client.get("/readyz")).status_code == 200
        async with client_of(app, Authorization="Bearer secret") as client:
            assert (await client.post("/orders?wait=10s", json=order())).status_code == 201


# ---- restart


async def test_what_was_placed_is_never_missing_while_a_worker_starts_again(tmp_path: Path) -> None:
    settings = make_settings("embedded://", tmp_path)
    async with running(settings) as app, client_of(app) as client:
        lines = [json.dumps(order("c-1", f"o-{n}")) for n in range(500)]
        token = (await client.post("/orders/batch", content="\n".join(lines))).json()["token"]
        await find(client, "/customers/c-1/orders", after=token, timeout="30s")
    again = create_app(settings)
    again.finalize()
    starting = asyncio.create_task(again.start())
    statuses: list[int] = []
    try:
        async with client_of(again) as client:
            while statuses[-1:] != [200]:
                try:
                    statuses.append((await client.get("/orders/o-1")).status_code)
                except httpx.TransportError:
                    await asyncio.sleep(0.005)
            await starting
            assert set(statuses) <= {200, 503}
            assert len((await find(client, "/customers/c-1/orders", limit=1000))["items"]) == 500
    finally:
        await again.stop()
