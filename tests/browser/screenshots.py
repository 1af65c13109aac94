"""Screenshots for the documentation: `python -m tests.browser.screenshots [FOLDER]`, on the bundled real orders."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from tests.browser.buggy_worker import BUG
from tests.browser.chromium import Complaints, find_chromium, launched, visiting
from tests.browser.shop import PRODUCT, Shop, open_shop
from tests.browser.test_everybody import DESK, PHONE
from tests.e2e.processes import REPOSITORY, SAMPLE, Site
from tests.kafka import unused_port

FOLDER = REPOSITORY / "docs" / "screenshots"
IMPORT_DEADLINE_S = 600.0
TRAFFIC_PAUSE_S = 0.15
HEIGHT_MAX = 1100
LOOK_MS = 20_000  # until the charts of this moment have something to show


def main() -> None:
    """Take them all."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    executable = find_chromium()
    if executable is None:
        sys.exit("there is no chromium on the path")
    with tempfile.TemporaryDirectory() as data:
        port = unused_port()
        _import(Site(Path(data), port, payment_decline=0.02))
        _take_all(Path(data), port, executable, folder)


def _import(site: Site) -> None:
    """Fill the data folder with the real orders; the simulated gateway takes their money."""
    with site.start("worker") as worker:
        worker.wait_until_ready()
        with site.start("import", str(SAMPLE)) as importing:
            if importing.process.wait(IMPORT_DEADLINE_S):
                sys.exit(importing.output)
        worker.stop()


def _take_all(data: Path, port: int, executable: str, folder: Path) -> None:
    with open_shop(data, port) as shop:
        shop.stock(PRODUCT, 1_000_000)
        addresses = _addresses(shop)
        with launched(executable) as browser, _traffic(shop):
            for look, options in _looks().items():
                with visiting(browser, shop.url, Complaints(), **options) as page:
                    shown = addresses if not look else {name: addresses[name] for name in ("overview", "order")}
                    for name, address in shown.items():
                        page.goto(f"/#{address}")
                        expect(page.locator("main [aria-busy]")).to_have_count(0)
                        page.wait_for_timeout(LOOK_MS if name == "overview" else 300)
                        height = min(page.evaluate("document.documentElement.scrollHeight"), HEIGHT_MAX)
                        page.set_viewport_size({"width": options["viewport"]["width"], "height": height})
                        page.screenshot(path=folder / f"{name}{look}.png")
                        page.set_viewport_size(options["viewport"])


def _looks() -> Mapping[str, Mapping[str, Any]]:
    return {
        "": {**DESK, "color_scheme": "light"},
        "-dark": {**DESK, "color_scheme": "dark"},
        "-phone": {**PHONE, "color_scheme": "light"},
    }


def _addresses(shop: Shop) -> Mapping[str, str]:
    """What is to be seen, with a saga that is stuck and a letter that is dead."""
    cancelled = shop.place_confirmed(order_id="teapots-1", customer_id="17850", country="United Kingdom")
    shop.cancel(cancelled, "changed my mind")
    stuck = shop.place_confirmed(order_id="teapots-2", customer_id="12583", country="France")
    shop.payments.refunds_declined.add(stuck)
    shop.cancel(stuck, "found it elsewhere")
    failing = shop.place_confirmed(order_id="teapots-3", customer_id="13047")
    shop.cancel(failing, BUG)
    shop.wait_for(f"/sagas/{stuck}", state="compensation_failed")
    shop.wait_for(f"/sagas/{cancelled}", state="compensated")
    shop.worker.wait_until(lambda: shop.site.get("/dead-letters")["items"], "the letter is there")
    (letter,) = shop.site.get("/dead-letters")["items"]
    return {
        "overview": "/",
        "orders": "/orders",
        "new-order": "/new",
        "order": f"/orders/{cancelled}",
        "customer": "/customers/17850",
        "sagas": "/sagas",
        "dead-letters": "/dead-letters",
        "dead-letter": f"/dead-letters/{letter['id']}",
    }


@contextmanager
def _traffic(shop: Shop) -> Iterator[None]:
    """Place an order now and then while the block lasts."""
    over = threading.Event()

    def place() -> None:
        number = 0
        while not over.wait(TRAFFIC_PAUSE_S):
            number += 1
            shop.place(order_id=f"teapots-{number + 100}", customer_id=str(12350 + number % 7), country="Germany")

    thread = threading.Thread(target=place, name="traffic")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()
