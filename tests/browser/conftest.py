"""Fixtures of the browser's tests: one browser and one shop for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.chromium import Complaints, launched, visiting
from tests.browser.shop import PRODUCT, Shop, open_shop
from tests.kafka import unused_port as free_port


@pytest.fixture(scope="package")
def browser(chromium: str) -> Iterator[Browser]:
    """Give a browser, to this package only: its event loop stays in the thread, where async tests would meet it."""
    with launched(chromium) as browser:
        yield browser


@pytest.fixture(scope="package")
def shop(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Give a shop with teapots in stock."""
    with open_shop(tmp_path_factory.mktemp("shop"), free_port()) as shop:
        shop.stock(PRODUCT, 100_000)
        yield shop


@pytest.fixture
def complaints() -> Iterator[Complaints]:
    """Collect what the browser complains about; there must be nothing, in any test."""
    complaints = Complaints()
    yield complaints
    assert complaints == []


@pytest.fixture
def page(browser: Browser, shop: Shop, complaints: Complaints) -> Iterator[Page]:
    """Give a browser's page on a desk, which has been nowhere yet."""
    with visiting(browser, shop.url, complaints) as page:
        yield page
