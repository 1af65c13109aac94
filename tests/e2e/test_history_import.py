"""Importing order history into a running application: what is counted is what happened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agents.cli.client import WorkerClient
from agents.cli.console import Failure, PlainSteps
from agents.cli.history import HistoryImport, batch_line
from agents.cli.report import Outcome
from agents.domain.order_history import OrderHistory, Placement, parse_order_history
from tests.apps import make_settings, running

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


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a running application."""
    settings = make_settings("memory://", tmp_path)
    async with running(settings):
        yield settings.local_url


async def imported(url: str, history: OrderHistory) -> Outcome:
    async with WorkerClient(url) as client:
        return await HistoryImport(client, history, PlainSteps(lambda text: None)).run()


async def test_orders_are_placed_then_cancelled_with_the_times_of_the_file(worker: str, history: OrderHistory) -> None:
    assert await imported(worker, history) == Outcome(placed=3, cancelled=1)
    async with WorkerClient(worker) as client:
        order = await client.get("/orders/2")
    assert order["status"] == "cancelled"
    assert order["cancel_reason"] == "invoice C4"
    assert order["created_at"] == "2010-12-01T09:00:00.000000Z"
    assert order["cancelled_at"] == "2010-12-02T09:00:00.000000Z"


async def test_a_second_import_sends_nothing(worker: str, history: OrderHistory) -> None:
    await imported(worker, history)
    async with WorkerClient(worker) as client:
        before = await client.get("/topics")
        assert await imported(worker, history) == Outcome(already_there=4)
        assert await client.get("/topics") == before


async def test_an_import_that_was_interrupted_is_taken_to_its_end(worker: str, history: OrderHistory) -> None:
    first, second, *_ = [command for command in history.commands if isinstance(command, Placement)]
    async with WorkerClient(worker) as client:
        # The first order is there already; the second one's command is in the log and may not be decided yet.
        answer = await client.post_lines("/orders/batch", batch_line(first))
        await client.get(f"/orders/{first.order_id}", after=answer["token"])
        await client.post_lines("/orders/batch", batch_line(second))
    outcome = await imported(worker, history)
    assert (outcome.cancelled, outcome.refused, outcome.unknown) == (1, {}, 0)
    assert outcome.placed + outcome.already_there == 3
    assert outcome.placed >= 1


async def test_another_order_under_the_same_id_is_told_and_left_alone(worker: str, history: OrderHistory) -> None:
    async with WorkerClient(worker) as client:
        price = {"amount": "9.99", "currency": "GBP"}
        body = {"order_id": "1", "customer_id": "c", "items": [{"product_id": "X", "quantity": 1, "price": price}]}
        _, other = await client.post("/orders", body, wait="30s")
        outcome = await imported(worker, history)
        assert outcome == Outcome(placed=2, cancelled=1, refused=outcome.refused)
        assert outcome.refused == {"another order has this id": 1}
        assert await client.get("/orders/1") == other


@pytest.mark.parametrize("lines", [12_000, 20_000])  # too many items for an order; a body of more than 1 MiB
async def test_an_order_that_is_turned_down_is_counted_and_the_others_are_placed(worker: str, lines: int) -> None:
    large = [f"1,P{number},x,1,2010-12-01 08:00,1.00,1,France" for number in range(lines)]
    history = parse_order_history([HEADER, *large, "2,B,another,1,2010-12-01 09:00,2.50,17850,France"])
    outcome = await imported(worker, history)
    assert (outcome.placed, outcome.unknown) == (1, 0)
    assert sum(outcome.refused.values()) == 1


async def test_a_worker_that_goes_away_is_a_failure_with_a_sentence(history: OrderHistory, unused_port: int) -> None:
    with pytest.raises(Failure, match="no worker answers"):
        await imported(f"http://127.0.0.1:{unused_port}", history)
