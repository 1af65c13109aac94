"""A shop for the tests of the web page: a worker's process with stock, a payment gateway, and orders placed by HTTP."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

import httpx

from tests.apps import unique
from tests.browser.buggy_worker import MENDED
from tests.e2e.processes import Running, Site
from tests.payment_server import PaymentServer, payment_server

BUGGY_WORKER = (sys.executable, "-m", "tests.browser.buggy_worker")
MARKUP = "<img src=x onerror=alert('id')>"
PRODUCT = "TEAPOT"


class Shop:
    """A worker that runs at `url`, and what clients elsewhere ask of it."""

    def __init__(self, site: Site, worker: Running, gateway: Gateway) -> None:
        self.site = site
        self.url = site.url
        self.worker = worker
        self.payments = gateway.server
        self._loop = gateway.loop

    def send(self, method: str, path: str, body: Any, token: str | None = None) -> Any:
        """Send a changing request; the answer's JSON."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        answer = httpx.request(method, self.url + path, json=body, headers=headers, timeout=20)
        assert answer.is_success, answer.text
        return answer.json()

    def stock(self, product_id: str, quantity: int) -> None:
        """Say what there is of a product."""
        token = self.send("PUT", f"/inventory/{product_id}", {"quantity": quantity})["token"]
        self.site.get(f"/inventory/{product_id}", after=token, timeout="20s")

    def place(self, token: str | None = None, **changes: Any) -> str:
        """Place an order; its id."""
        price = {"amount": "19.99", "currency": "GBP"}
        body = {
            "order_id": unique("o"),
            "customer_id": unique("c"),
            "items": [{"product_id": PRODUCT, "quantity": 2, "price": price}],
            **changes,
        }
        return str(self.send("POST", "/orders?wait=20s", body, token)["order_id"])

    def place_confirmed(self, **changes: Any) -> str:
        """Place an order and wait until its saga has completed; its id."""
        order_id = self.place(**changes)
        self.wait_for(f"/orders/{order_id}", status="confirmed")
        return order_id

    def cancel(self, order_id: str, reason: str | None = None) -> None:
        """Ask for an order to be cancelled."""
        self.send("POST", f"/orders/{order_id}/cancel", {"reason": reason})

    def wait_for(self, path: str, **wanted: str) -> Mapping[str, Any]:
        """Wait until what is at a path has these values."""
        found: dict[str, Any] = {}

        def is_so() -> bool:
            found.update(self.site.get(path))
            return all(found.get(name) == value for name, value in wanted.items())

        self.worker.wait_until(is_so, f"{path} has {wanted}")
        return found

    def hold_payments(self) -> None:
        """Let the gateway keep its answers back."""
        self.payments.hold()

    def let_payments_go(self) -> None:
        """Let the gateway answer again."""
        self._loop.call_soon_threadsafe(self.payments.let_go.set)

    def mend(self) -> None:
        """Mend the bug."""
        (self.site.folder / MENDED).touch()

    def break_again(self) -> None:
        """Bring the bug back."""
        (self.site.folder / MENDED).unlink(missing_ok=True)


class Gateway(NamedTuple):
    """A payment gateway and the loop it runs in."""

    server: PaymentServer
    loop: asyncio.AbstractEventLoop


@contextmanager
def open_shop(folder: Path, port: int, **settings: object) -> Iterator[Shop]:
    """Run a shop while the block lasts."""
    with gateway_in_a_thread() as gateway:
        values = {"payment_url": gateway.server.url, "saga_retries": 0, "retry_backoff": 0.05, **settings}
        site = Site(folder, port, **values)
        with site.start(command=BUGGY_WORKER) as worker:
            worker.wait_until_ready()
            yield Shop(site, worker, gateway)


@contextmanager
def gateway_in_a_thread() -> Iterator[Gateway]:
    """Run a payment gateway while the block lasts."""
    started: Queue[Gateway] = Queue()
    stop = asyncio.Event()

    async def serve() -> None:
        async with payment_server() as server:
            started.put(Gateway(server, asyncio.get_running_loop()))
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="payment gateway")
    thread.start()
    gateway = started.get(timeout=20)
    try:
        yield gateway
    finally:
        gateway.loop.call_soon_threadsafe(stop.set)
        thread.join()
