"""The banner of the page shows what really is missing, and goes when a person has decided about it."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, expect

from engine.log.embedded.log import Log, NewRecord, RocksStorage
from streams.topics import ORDER_COMMANDS
from tests.browser.chromium import Complaints, visiting
from tests.browser.shop import PRODUCT, open_shop
from tests.kafka import unused_port as free_port
from tests.lost_records import remove_from_log


def test_the_banner_names_records_that_were_removed_unread_until_the_loss_is_accepted(
    browser: Browser, tmp_path: Path, complaints: Complaints
) -> None:
    with open_shop(tmp_path, free_port(), saga="none") as shop:
        shop.stock(PRODUCT, 10)
        shop.place()
    remove_unread(tmp_path / "data" / "log", partition=1, count=7)
    with (
        open_shop(tmp_path, free_port(), saga="none") as shop,
        visiting(browser, shop.url, complaints) as page,
    ):
        page.goto("/")
        banner = page.locator("#faults")
        expect(banner).to_contain_text("7 records, offsets ")
        expect(banner).to_contain_text("were removed before decide-orders had read them")
        expect(banner).to_contain_text("orders accept-loss order-commands 1 --reason")
        shop.send("POST", "/topics/order-commands/partitions/1/accept-loss", {"reason": "customers were asked again"})
        expect(banner).to_be_hidden()


def remove_unread(folder: Path, partition: int, count: int) -> None:
    """Write commands to the log of a worker that is not there, and remove them again."""
    log = Log(RocksStorage(folder))
    try:
        log.append(ORDER_COMMANDS.name, partition, [NewRecord(b"o", b"{}")] * count)
        remove_from_log(log, ORDER_COMMANDS.name, partition, log.end_offset(ORDER_COMMANDS.name, partition))
    finally:
        log.close()
