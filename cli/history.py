"""Order history over HTTP: send it, wait until it is applied, and count what really became of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from cli.counting import EventCount
from cli.order_history import Cancellation, OrderHistory, Placement
from cli.report import Outcome
from cli.saga_waiting import SAGAS_STALLED_AFTER_S, wait_for_sagas
from cli.stocking import Stocking, refusal_of
from engine import format_timestamp, partition_for
from engine.cli import HttpRecords, Refused, Steps, WorkerClient, path_of, wait_for_token
from streams.topics import ORDER_EVENTS

CHUNK_BYTES_MAX = 512 * 1024  # a worker takes bodies of 1 MiB; smaller ones keep the progress bar moving
CHUNK_ORDERS_MAX = 500
CHUNKS_IN_FLIGHT_MAX = 2
CONCURRENT_REQUESTS = 16

_encode = msgspec.json.Encoder().encode


class HistoryImport:
    """One import into one worker.

    Products are on the shelf before the first order is sent, and all orders are sent before the first cancellation,
    which keeps each order before its own. What is there already is not sent again, so that an import can be repeated at
    any time, long after the system has forgotten command ids.
    """

    def __init__(
        self,
        client: WorkerClient,
        history: OrderHistory,
        progress: Steps,
        patience_s: float = SAGAS_STALLED_AFTER_S,
    ) -> None:
        self._client = client
        self._patience_s = patience_s  # with sagas that do not move
        self._supplies = history.supplies()
        self._placements = history.placements
        self._cancellations = history.cancellations
        self._progress = progress
        self._outcome = Outcome()
        self._sent: dict[str, Placement | Cancellation] = {}  # by command id, until their event is seen
        self._placed: set[str] = set()  # orders that were sent
        self._token: str | None = None  # of the last chunk
        self._slots = asyncio.Semaphore(CONCURRENT_REQUESTS)

    async def run(self) -> Outcome:
        """Send everything, wait for the sagas of all orders, and count what became of it; raises Failure."""
        events = HttpRecords(self._client, ORDER_EVENTS.name)
        before = {partition: end for partition, (_, end) in (await events.bounds()).items()}
        await Stocking(self._client, self._progress, self._outcome, len(before)).run(self._supplies)
        await self._place()
        await self._cancel()
        await self._projected(len(before))
        order_ids = [placement.order_id for placement in self._placements]
        self._outcome.is_stalled = not await wait_for_sagas(self._client, self._progress, order_ids, self._patience_s)
        await self._count(events, before)
        return self._outcome

    async def _place(self) -> None:
        """Send the orders, a few chunks ahead of what is applied."""
        self._progress.step("placing orders", len(self._placements))
        in_flight: deque[tuple[str, str, int]] = deque()
        for chunk in chunks(self._placements):
            missing = await self._missing(chunk)
            token = await self._send(missing) if missing else None
            if token is None:
                self._progress.advance(len(chunk))
            else:
                self._token = token
                in_flight.append((chunk[0].customer_id, token, len(chunk)))
            if len(in_flight) >= CHUNKS_IN_FLIGHT_MAX:
                await self._chunk_applied(*in_flight.popleft())
        for customer_id, token, count in in_flight:
            await self._chunk_applied(customer_id, token, count)

    async def _chunk_applied(self, customer_id: str, token: str, count: int) -> None:
        await self._applied(customer_id, token)
        self._progress.advance(count)

    async def _missing(self, chunk: Sequence[Placement]) -> Sequence[Placement]:
        """What has to be sent. Files are imported as a whole, so a missing first order stands for the chunk."""
        if await self._order(chunk[0].order_id) is None:
            return chunk
        found = await asyncio.gather(*(self._order(placement.order_id) for placement in chunk))
        for placement, order in zip(chunk, found, strict=True):
            if order is not None and is_same(placement, order):
                self._outcome.already_there += 1
            elif order is not None:
                self._outcome.refused["another order has this id"] += 1
        return [placement for placement, order in zip(chunk, found, strict=True) if order is None]

    async def _order(self, order_id: str, **query: str) -> Any | None:
        async with self._slots:
            return await self._client.find(path_of("orders", order_id), **query)

    async def _send(self, placements: Sequence[Placement]) -> str | None:
        """Send a chunk; its token, None when no line was accepted."""
        try:
            answer = await self._client.post_lines("/orders/batch", b"\n".join(map(batch_line, placements)))
        except Refused as too_large:
            if too_large.status != 413 or len(placements) > 1:
                raise
            self._outcome.refused["order too large"] += 1
            return None
        refused = {problem["line"]: problem for problem in answer["problems"]}
        for line, placement in enumerate(placements, start=1):
            if line in refused:
                self._outcome.refused[refusal_of(refused[line])] += 1
            else:
                self._sent[placement.command_id] = placement
                self._placed.add(placement.order_id)
        token: str | None = answer["token"]
        return token

    async def _projected(self, partitions: int) -> None:
        """Wait until the views of customers show everything: a customer in each partition stands for its view."""
        customers = {partition_for(p.customer_id.encode(), partitions): p.customer_id for p in self._placements}
        if self._token is not None:
            await asyncio.gather(*(self._applied(customer_id, self._token) for customer_id in customers.values()))

    async def _applied(self, customer_id: str, token: str) -> None:
        """Wait until all commands behind a token are decided, in all partitions, and the customer's view shows them.

        A customer's orders are a view with another key, so that reading it waits for every partition of the token.
        """
        await wait_for_token(self._client, path_of("customers", customer_id, "orders"), token, limit=1)

    async def _cancel(self) -> None:
        self._progress.step("cancelling orders", len(self._cancellations))
        await asyncio.gather(*(self._cancel_one(cancellation) for cancellation in self._cancellations))

    async def _cancel_one(self, cancellation: Cancellation) -> None:
        order = await self._order(cancellation.order_id)
        if order is None:
            self._outcome.refused["cancels an order that was not placed"] += 1
        elif order["status"] == "cancelled" and cancellation.order_id not in self._placed:
            self._outcome.already_there += 1
        else:
            body = {
                "reason": cancellation.reason,
                "occurred_at": format_timestamp(cancellation.occurred_at),
                "command_id": cancellation.command_id,
            }
            async with self._slots:
                _, answer = await self._client.post(path_of("orders", cancellation.order_id, "cancel"), body)
            self._sent[cancellation.command_id] = cancellation
            await self._order(cancellation.order_id, after=answer["token"], timeout="30s")
        self._progress.advance()

    async def _count(self, events: HttpRecords, before: Mapping[int, int]) -> None:
        """Read the events since the import began: those of its correlation say what its commands really did."""
        if not self._sent:
            return
        self._progress.step("counting what happened", len(self._sent))
        count = EventCount()
        for partition, offset in before.items():
            async for record in events.up_to_end(partition, offset):
                origin = record["value"]["metadata"]
                if origin.get("correlationId") == self._client.correlation_id:
                    command = self._sent.pop(origin.get("causationId"), None)
                    count.note(record["value"], command)
                    self._progress.advance(command is not None)
        count.add_to(self._outcome)
        # A command without an event did nothing: an interrupted import had sent it before, or it was lost.
        found = await asyncio.gather(*(self._is_there(command) for command in self._sent.values()))
        self._outcome.already_there += sum(found)
        self._outcome.unknown = len(found) - sum(found)

    async def _is_there(self, command: Placement | Cancellation) -> bool:
        order = await self._order(command.order_id)
        if order is None:
            return False
        return is_same(command, order) if isinstance(command, Placement) else order["status"] == "cancelled"


def chunks(placements: Iterable[Placement]) -> Iterator[Sequence[Placement]]:
    """Cut into pieces whose lines fit one request."""
    chunk: list[Placement] = []
    size = 0
    for placement in placements:
        line_bytes = len(batch_line(placement)) + 1
        if chunk and (size + line_bytes > CHUNK_BYTES_MAX or len(chunk) >= CHUNK_ORDERS_MAX):
            yield chunk
            chunk, size = [], 0
        chunk.append(placement)
        size += line_bytes
    if chunk:
        yield chunk


def batch_line(placement: Placement) -> bytes:
    """One line of `POST /orders/batch`."""
    body = {
        "order_id": placement.order_id,
        "customer_id": placement.customer_id,
        "items": placement.items,
        "occurred_at": format_timestamp(placement.occurred_at),
        "country": placement.country,
        "command_id": placement.command_id,
    }
    return _encode(body)


def is_same(placement: Placement, order: Mapping[str, Any]) -> bool:
    """Whether an order as the web view shows it is the one of the file, whatever has become of it since."""
    total = order.get("total") or {}
    return (
        order.get("customer_id") == placement.customer_id
        and order.get("created_at") == format_timestamp(placement.occurred_at)
        and total.get("currency") == placement.total.currency
        and Decimal(total.get("amount", "0")) == placement.total.amount
    )
