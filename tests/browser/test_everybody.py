"""The web page for everybody: by keyboard and screen reader, in the light and in the dark, on a desk and on a phone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.apps import unique
from tests.browser.buggy_worker import BUG
from tests.browser.chromium import Complaints, visiting
from tests.browser.shop import MARKUP, Shop

DESK: Mapping[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: Mapping[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
LOOKS = {
    "desk, light": {**DESK, "color_scheme": "light"},
    "desk, dark": {**DESK, "color_scheme": "dark"},
    "phone, light": {**PHONE, "color_scheme": "light"},
    "phone, dark": {**PHONE, "color_scheme": "dark"},
}

# Texts with less contrast than WCAG AA wants: [text, ratio, wanted].
TOO_FAINT = """() => {
    const numbers = (colour) => {
        const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = ([r, g, b, a], ground) => [r, g, b].map((value, index) => value * a + ground[index] * (1 - a));
    const groundOf = (element) => {
        if (element === null) return [255, 255, 255];
        const own = numbers(getComputedStyle(element).backgroundColor);
        return own[3] === 1 ? own.slice(0, 3) : over(own, groundOf(element.parentElement));
    };
    const light = (colour) => {
        const [r, g, b] = colour.map((value) => {
            const part = value / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node; (node = texts.nextNode()); ) {
        const element = node.parentElement;
        const isShown = element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
        if (!node.textContent.trim() || !isShown || element.closest(".hidden, :disabled, noscript")) continue;
        const style = getComputedStyle(element);
        const ground = groundOf(element);
        const [one, other] = [light(over(numbers(style.color), ground)), light(ground)].sort((a, b) => b - a);
        const ratio = (one + 0.05) / (other + 0.05);
        const size = parseFloat(style.fontSize);
        const wanted = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
        if (ratio < wanted) found.push([node.textContent.trim(), ratio.toFixed(2), wanted]);
    }
    return found;
}"""
WIDER_THAN_THE_SCREEN = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
NAMED = ("button", "link", "textbox", "searchbox", "combobox", "spinbutton", "slider", "img", "dialog", "table", "form")


@pytest.fixture(scope="module")
def addresses(shop: Shop) -> dict[str, str]:
    """Give the address of each page by its heading, each with something to show."""
    shop.break_again()
    customer_id = unique("a-customer-with-a-name-that-is-rather-long-and-has-no-place-to-break")
    order_id = shop.place_confirmed(customer_id=customer_id, country=MARKUP)
    stuck = shop.place_confirmed(customer_id=customer_id)
    shop.payments.refunds_declined.add(stuck)
    shop.cancel(stuck, "changed my mind")
    shop.wait_for(f"/sagas/{stuck}", state="compensation_failed")
    shop.cancel(order_id, BUG)
    shop.worker.wait_until(lambda: shop.site.get("/dead-letters", key=order_id)["items"], "the letter is there")
    (letter,) = shop.site.get("/dead-letters", key=order_id)["items"]
    return {
        "Overview": "/",
        "Orders": "/orders",
        "New order": "/new",
        f"Order {stuck}": f"/orders/{stuck}",
        f"Customer {customer_id}": f"/customers/{customer_id}",
        "Product TEAPOT": "/products/TEAPOT",
        "Sagas": "/sagas",
        "Dead letters": "/dead-letters",
        f"Dead letter {letter['id']}": f"/dead-letters/{letter['id']}",
        "Search for nobody": "/search/nobody",
        "Nothing here": "/nowhere",
    }


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_can_be_read_by_everybody(
    browser: Browser, shop: Shop, complaints: Complaints, addresses: Mapping[str, str], look: str
) -> None:
    with visiting(browser, shop.url, complaints, **LOOKS[look]) as page:
        for heading, address in addresses.items():
            page.goto(f"/#{address}")
            expect(page.get_by_role("heading", level=1)).to_have_text(heading)
            page.wait_for_load_state("load")
            expect(page.locator("main [aria-busy]")).to_have_count(0)
            page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
            assert page.evaluate(TOO_FAINT) == [], heading
            assert page.evaluate(WIDER_THAN_THE_SCREEN) <= 0, f"{heading} is too wide"
            check_structure(page, heading)


def check_structure(page: Page, heading: str) -> None:
    """Check what a screen reader makes of the page: landmarks, headings in order, and names for all that has one."""
    snapshot = page.locator("body").aria_snapshot()
    for landmark in ("banner", "main", "navigation", "search"):
        assert re.search(rf"^ *- {landmark}\b", snapshot, re.MULTILINE), f"{heading} has no {landmark}"
    levels = [int(level) for level in re.findall(r"- heading .*\[level=(\d)\]", snapshot)]
    assert levels[0] == 1, heading
    assert levels.count(1) == 1, heading
    assert all(after <= before + 1 for before, after in pairwise(levels)), f"{heading}: {levels}"
    nameless = re.findall(rf"^ *- '?(?:{'|'.join(NAMED)})(?! [\"/])[^\n]*", snapshot, re.MULTILINE)
    assert nameless == [], heading
    for table in page.get_by_role("table").all():
        assert table.get_by_role("columnheader").count() > 0, heading
    assert page.locator("html").get_attribute("lang") == "en"


def test_the_theme_is_the_systems_until_somebody_chooses(
    browser: Browser, shop: Shop, complaints: Complaints, addresses: Mapping[str, str]
) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with visiting(browser, shop.url, complaints, color_scheme="dark") as page:
        page.goto("/")
        dark = page.evaluate(ground)
        switch = page.get_by_role("button", name="Dark theme")
        expect(switch).to_have_attribute("aria-pressed", "true")
        page.emulate_media(color_scheme="light")
        expect(switch).to_have_attribute("aria-pressed", "false")
        light = page.evaluate(ground)
        assert light != dark
        switch.click()
        assert page.evaluate(ground) == dark
        page.reload()
        expect(switch).to_have_attribute("aria-pressed", "true")
        assert page.evaluate(ground) == dark


def test_who_wants_less_motion_gets_none(page: Page) -> None:
    duration = "getComputedStyle(document.querySelector('nav a')).transitionDuration"
    page.goto("/")
    assert page.evaluate(duration) != "0s"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(duration) == "0s"


def test_one_can_skip_to_the_content(page: Page) -> None:
    page.goto("/#/sagas")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sagas")
    page.keyboard.press("Tab")
    link = page.get_by_role("link", name="Skip to content")
    expect(link).to_be_focused()
    expect(link).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sagas")
