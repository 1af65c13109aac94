"""Importing order history into a running application: what is counted is what happened."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import pytest
import pytest_asyncio

from cli.audit import audit_partitions
from cli.history import HistoryImport, batch_line
from cli.order_history import OrderHistory, parse_order_history
from cli.report import ImportReport, Outcome
from cli.run import SAMPLE_PRICE_DECIMALS
from cli.saga_waiting import wait_for_sagas
from cli.stocking import stock_line
from cli.sums import Reconciliation, reconcile
from engine.cli.client import WorkerClient
from engine.cli.console import Failure, PlainSteps
from engine.faust.app import EngineApp
from tests.apps import at_rest, make_settings, running
from tests.payment_server import PaymentServer, payment_server

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
LINES = [
    HEADER,
    "1,A,a thing,2,2010-12-01 08:00,1.50,17850,France",
    "2,B,another,1,2010-12-01 09:00,2.50,17850,France",
    "3,C,a third,1,2010-12-01 10:00,3.50,17851,",
    "C4,B,another,-1,2010-12-02 09:00,2.50,17850,France",
]


@pytest.fixture
def history() -> OrderHistory:
    return parse_order_history(LINES)


@pytest_asyncio.fixture(params=["orchestration", "choreography"])
async def app(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EngineApp]:
    """Run the whole application."""
    settings = make_settings("memory://", tmp_path, saga=request.param, price_decimals=SAMPLE_PRICE_DECIMALS)
    async with running(settings) as app:
        yield app


@pytest.fixture
def worker(app: EngineApp) -> str:
    """The address of the running application."""
    return app.engine.settings.local_url


@asynccontextmanager
async def paid_at(server: PaymentServer, folder: Path) -> AsyncIterator[str]:
    """Run an application whose money is taken there; its address. A failed refund is not tried again soon."""
    settings = make_settings(
        "memory://",
        folder,
        saga="orchestration",
        payment_url=server.url,
        saga_retry_backoff=1000.0,
        price_decimals=SAMPLE_PRICE_DECIMALS,
    )
    async with running(settings):
        yield settings.local_url


async def imported(
    url: str, history: OrderHistory, patience_s: float = 30.0, kind: type[HistoryImport] = HistoryImport
) -> Outcome:
    async with WorkerClient(url) as client:
        return await kind(client, history, PlainSteps(lambda text: None), patience_s).run()


async def sums(url: str) -> Reconciliation:
    async with WorkerClient(url) as client:
        return await reconcile(client)


async def test_orders_go_through_their_sagas_with_the_times_of_the_file(worker: str, history: OrderHistory) -> None:
    assert await imported(worker, history) == Outcome(stocked=3, placed=3, confirmed=2, cancelled=1)
    async with WorkerClient(worker) as client:
        order = await client.get("/orders/2")
        kept = await client.get("/orders/1")
        stock = await client.get("/tables/stock")
        events = await client.get("/topics/inventory-events/records?partition=0&limit=1000")
    assert order["status"] == "cancelled"
    assert order["cancel_reason"] == "invoice C4"
    assert order["created_at"] == "2010-12-01T09:00:00.000000Z"
    assert order["cancelled_at"] == "2010-12-02T09:00:00.000000Z"
    assert (kept["status"], kept["confirmed_at"][:16]) == ("confirmed", "2010-12-01T08:00")
    pieces = {item["key"]: (item["row"]["on_hand"], item["row"]["reserved"]) for item in stock["items"]}
    assert pieces == {"A": (2, 2), "B": (1, 0), "C": (1, 1)}
    assert all(record["value"]["timestamp"].startswith("2010-12-0") for record in events["items"])
    found = await sums(worker)
    assert (found.adds_up, found.is_settled, found.sagas["completed"], found.sagas["compensated"]) == (True, True, 2, 1)
    async with WorkerClient(worker) as client:
        reports = await audit_partitions(client, PlainSteps(lambda text: None))
    assert {report["state"] for report in reports} == {"clean"}, reports


async def test_a_second_import_sends_nothing(app: EngineApp, worker: str, history: OrderHistory) -> None:
    await imported(worker, history)
    await at_rest(app)  # what follows from it may be committed later
    async with WorkerClient(worker) as client:
        before = await client.get("/topics")
        assert await imported(worker, history) == Outcome(already_there=4)
        assert await client.get("/topics") == before


async def test_an_import_that_was_interrupted_is_taken_to_its_end(worker: str, history: OrderHistory) -> None:
    first, second, *_ = history.placements
    async with WorkerClient(worker) as client:
        # The first order is there already; the second one's command is in the log and may not be decided yet.
        await client.post_lines("/inventory/batch", b"\n".join(map(stock_line, history.supplies()[:2])))
        answer = await client.post_lines("/orders/batch", batch_line(first))
        await client.get(f"/orders/{first.order_id}", after=answer["token"])
        await client.post_lines("/orders/batch", batch_line(second))
    outcome = await imported(worker, history)
    assert (outcome.cancelled, outcome.refused, outcome.unknown, outcome.stocked) == (1, {}, 0, 1)
    assert outcome.placed + outcome.already_there == 3
    assert outcome.placed >= 1
    found = await sums(worker)
    assert (found.adds_up, found.sagas["completed"], found.sagas["compensated"]) == (True, 2, 1)


async def test_imports_at_the_same_time_do_everything_once(worker: str, history: OrderHistory) -> None:
    outcomes = await asyncio.gather(*(imported(worker, history) for _ in range(3)))
    assert sum(outcome.placed for outcome in outcomes) == 3
    assert sum(outcome.cancelled for outcome in outcomes) == 1
    assert not any(outcome.refused or outcome.unknown for outcome in outcomes)
    async with WorkerClient(worker) as client:
        versions = [(await client.get(f"/inventory/{product}"))["on_hand"] for product in ("A", "B", "C")]
    assert versions == [2, 1, 1]
    found = await sums(worker)
    assert (found.adds_up, found.sagas["completed"], found.sagas["compensated"]) == (True, 2, 1)


async def test_what_is_on_the_shelf_is_left_alone_and_who_comes_too_late_gets_nothing(
    worker: str, history: OrderHistory
) -> None:
    async with WorkerClient(worker) as client:
        answer = await client.post_lines("/inventory/batch", b'{"product_id": "A", "quantity": 1}')
        await client.get("/inventory/A", after=answer["token"])
    outcome = await imported(worker, history)
    assert outcome == Outcome(stocked=2, placed=3, confirmed=1, cancelled=1, cancelled_by_saga=Counter(out_of_stock=1))
    assert (await sums(worker)).adds_up


async def test_another_order_under_the_same_id_is_told_and_left_alone(worker: str, history: OrderHistory) -> None:
    async with WorkerClient(worker) as client:
        price = {"amount": "9.99", "currency": "GBP"}
        body = {"order_id": "1", "customer_id": "c", "items": [{"product_id": "X", "quantity": 1, "price": price}]}
        _, other = await client.post("/orders", body, wait="30s")
        outcome = await imported(worker, history)
        assert outcome == Outcome(stocked=3, placed=2, confirmed=1, cancelled=1, refused=outcome.refused)
        assert outcome.refused == {"another order has this id": 1}
        found = await client.get("/orders/1")
    assert (found["customer_id"], found["items"]) == (other["customer_id"], other["items"])


@pytest.mark.parametrize("lines", [12_000, 20_000])  # too many items for an order; a body of more than 1 MiB
async def test_an_order_that_is_turned_down_is_counted_and_the_others_are_placed(worker: str, lines: int) -> None:
    large = [f"1,P{number},x,1,2010-12-01 08:00,1.00,1,France" for number in range(lines)]
    history = parse_order_history([HEADER, *large, "2,B,another,1,2010-12-01 09:00,2.50,17850,France"])
    outcome = await imported(worker, history)
    assert (outcome.placed, outcome.unknown) == (1, 0)
    assert sum(outcome.refused.values()) == 1


# ---- payments


class LateCancellations(HistoryImport):
    """An import whose customers cancel only when all sagas have ended."""

    async def _cancel(self) -> None:
        assert await wait_for_sagas(self._client, self._progress, [order.order_id for order in self._placements])
        await super()._cancel()


async def test_cancelling_what_a_declined_payment_has_cancelled_is_told_and_no_failure(
    tmp_path: Path, history: OrderHistory
) -> None:
    async with payment_server() as server, paid_at(server, tmp_path) as url:
        server.declined = {"2", "3"}
        outcome = await imported(url, history, kind=LateCancellations)
        declined = Counter(card_declined=2)
        assert outcome == Outcome(stocked=3, placed=3, confirmed=1, cancelled_by_saga=declined, cancelled_before=1)
        assert ImportReport("f", history.summary(), outcome, await sums(url), 1.0).is_complete()
        # The order is cancelled, as the file wants it.
        assert await imported(url, history) == Outcome(already_there=4)


async def test_an_order_cancelled_after_it_was_paid_gets_its_money_and_gives_its_pieces_back(
    tmp_path: Path, history: OrderHistory
) -> None:
    async with payment_server() as server, paid_at(server, tmp_path) as url:
        outcome = await imported(url, history, kind=LateCancellations)
        assert outcome == Outcome(stocked=3, placed=3, confirmed=2, cancelled=1)
        assert (server.paths("2"), server.money["2"]) == (["/charges", "/refunds"], Decimal(0))
        assert sum(server.money.values()) == Decimal("6.50")
        assert (await sums(url)).adds_up


async def test_an_import_gives_up_waiting_for_a_gateway_that_is_away_and_a_later_one_sees_the_end(
    tmp_path: Path, history: OrderHistory
) -> None:
    async with payment_server() as server, paid_at(server, tmp_path) as url:
        await server.stop()
        outcome = await imported(url, history, patience_s=0.5)
        assert outcome == Outcome(stocked=3, placed=3, pending=2, cancelled=1, is_stalled=True)
        assert not ImportReport("f", history.summary(), outcome, await sums(url), 1.0).is_complete()
        await server.start()
        outcome = await imported(url, history)
        assert outcome == Outcome(already_there=4)
        found = await sums(url)
        assert (found.adds_up, found.is_settled, found.sagas["completed"]) == (True, True, 2)
        assert ImportReport("f", history.summary(), outcome, found, 1.0).is_complete()


async def test_an_import_does_not_wait_for_the_sagas_of_others(tmp_path: Path, history: OrderHistory) -> None:
    async with payment_server() as server, paid_at(server, tmp_path) as url:
        server.refunds_declined = {"other"}
        async with WorkerClient(url) as client:
            await client.post_lines("/inventory/batch", b'{"product_id": "X", "quantity": 1}')
            item = {"product_id": "X", "quantity": 1, "price": {"amount": "9.99", "currency": "GBP"}}
            await client.post("/orders", {"order_id": "other", "customer_id": "c", "items": [item]}, wait="30s")
            assert await wait_for_sagas(client, PlainSteps(lambda text: None), ["other"])
            _, answer = await client.post("/orders/other/cancel", {})
            await client.get("/orders/other", after=answer["token"])
            outcome = await imported(url, history, patience_s=1.0)
            assert outcome == Outcome(stocked=3, placed=3, confirmed=2, cancelled=1)
            assert (await client.get("/sagas/other"))["state"] == "compensating"
        found = await sums(url)
        assert not found.is_settled
        assert ImportReport("f", history.summary(), outcome, found, 1.0).is_complete()


async def test_a_worker_that_goes_away_is_a_failure_with_a_sentence(history: OrderHistory, unused_port: int) -> None:
    with pytest.raises(Failure, match="no worker answers"):
        await imported(f"http://127.0.0.1:{unused_port}", history)
