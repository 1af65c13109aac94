"""The web page in a real browser, against a real worker: what a shop and an operator do with it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.apps import unique
from tests.browser.buggy_worker import BUG
from tests.browser.chromium import Complaints, visiting
from tests.browser.shop import BUGGY_WORKER, MARKUP, PRODUCT, Shop, open_shop
from tests.kafka import unused_port as free_port

TOKEN = "a token"


def go(page: Page, address: str, heading: str) -> None:
    """Open a page by its address and wait until its heading is there."""
    page.goto(f"/#{address}")
    expect(page.get_by_role("heading", level=1)).to_have_text(heading)
    expect(page.get_by_role("banner").get_by_role("status")).to_have_text("live")


def fill_order(page: Page, customer_id: str) -> None:
    """Fill in the form of a new order."""
    page.get_by_label("Customer", exact=True).fill(customer_id)
    page.get_by_label("Product", exact=True).fill(PRODUCT)
    page.get_by_label("Quantity").fill("3")
    page.get_by_label("Price each").fill("4.50")


def open_order(page: Page, order_id: str) -> None:
    """Open an order's page."""
    go(page, f"/orders/{order_id}", f"Order {order_id}")


def check_state(page: Page, state: str) -> None:
    """Check the state of the order whose page is open."""
    expect(page.locator("#order-state")).to_have_text(state)


def hold_tokens(page: Page) -> list[Route]:
    """Keep the page's reads of orders with a token back; what is returned collects them."""
    held: list[Route] = []
    page.route(re.compile(r"/orders/[^/]+\?after="), lambda route: held.append(route))
    return held


def first_held(page: Page, held: list[Route]) -> Route:
    """Wait for the first request that is kept back; the page says that it is processing before it asks."""
    end = time.monotonic() + 5
    while not held:
        assert time.monotonic() < end, "the page asked for nothing"
        page.wait_for_timeout(10)
    return held[0]


# ---- what a shop does


def test_an_order_that_is_placed_is_processing_until_its_token_resolves_and_then_follows_its_saga(
    page: Page, shop: Shop
) -> None:
    held = hold_tokens(page)
    shop.hold_payments()
    try:
        go(page, "/new", "New order")
        customer_id = unique("c")
        fill_order(page, customer_id)
        page.get_by_role("button", name="Place order").click()
        row = page.get_by_role("row").filter(has_text=customer_id)
        expect(row).to_contain_text("processing")
        token_request = first_held(page, held)
        expect(row).to_contain_text("processing")
        token_request.continue_()
        expect(row).to_contain_text("pending")
        expect(row).to_contain_text("£13.50")
    finally:
        shop.let_payments_go()
    expect(row).to_contain_text("confirmed")
    order_id = row.get_by_role("link").first.inner_text()
    assert shop.site.get(f"/orders/{order_id}")["total"] == {"amount": "13.50", "currency": "GBP"}


def test_an_order_with_several_lines_can_be_placed_and_mistakes_are_told(page: Page, shop: Shop) -> None:
    go(page, "/new", "New order")
    customer_id = unique("c")
    fill_order(page, customer_id)
    page.get_by_role("button", name="Add a line").click()
    second = page.get_by_role("group", name="Line").nth(1)
    second.get_by_label("Product").fill(PRODUCT)
    second.get_by_label("Price each").fill("0")
    page.get_by_role("button", name="Place order").click()
    expect(page.get_by_role("alert")).to_contain_text("greater than 0")
    second.get_by_label("Price each").fill("0.50")
    page.get_by_role("button", name="Place order").click()
    expect(page.get_by_role("row").filter(has_text=customer_id)).to_contain_text("£14.00")
    expect(page.get_by_role("row").filter(has_text=customer_id)).to_contain_text("confirmed")


def test_an_order_can_be_placed_with_the_keyboard_alone(page: Page) -> None:
    customer_id = unique("c")
    go(page, "/", "Overview")
    press_tab_until(page, "New order")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("New order")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    for label, text in (("Customer", customer_id), ("Product", PRODUCT), ("Price each", "2")):
        press_tab_until(page, label)
        page.keyboard.type(text)
    press_tab_until(page, "Place order")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("row").filter(has_text=customer_id)).to_contain_text("confirmed")


def press_tab_until(page: Page, name: str) -> None:
    """Press Tab until what is called so has the focus."""
    called = """() => {
        const here = document.activeElement;
        return here.labels?.[0]?.textContent ?? here.getAttribute("aria-label") ?? here.textContent.trim();
    }"""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate(called) == name:
            return
    pytest.fail(f"no way to {name} with the keyboard")


def test_an_order_is_cancelled_from_its_page_and_the_page_follows(page: Page, shop: Shop) -> None:
    order_id = shop.place_confirmed()
    open_order(page, order_id)
    check_state(page, "confirmed")
    held = hold_tokens(page)
    page.get_by_role("button", name="Cancel order").click()
    dialog = page.get_by_role("dialog", name=f"Cancel order {order_id}?")
    expect(dialog.get_by_label("Reason")).to_be_focused()
    dialog.get_by_label("Reason").fill("too many teapots")
    dialog.get_by_role("button", name="Cancel the order").click()
    check_state(page, "processing")
    first_held(page, held).continue_()
    check_state(page, "cancelled")
    expect(page.get_by_role("region", name="What happened")).to_contain_text("too many teapots")
    expect(page.get_by_role("region", name="Payment and mails")).to_contain_text("refunded")
    expect(page.get_by_role("button", name="Cancel order")).to_have_count(0)


def test_a_dialog_can_be_put_away_and_changes_nothing(page: Page, shop: Shop) -> None:
    order_id = shop.place_confirmed()
    open_order(page, order_id)
    page.get_by_role("button", name="Cancel order").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Cancel order")).to_be_focused()
    check_state(page, "confirmed")
    assert shop.site.get(f"/orders/{order_id}")["status"] == "confirmed"


def test_a_command_that_is_refused_says_why(page: Page, shop: Shop) -> None:
    order_id = shop.place_confirmed()
    open_order(page, order_id)
    page.route("**/live", lambda route: route.abort())
    page.reload()
    check_state(page, "confirmed")
    shop.cancel(order_id)
    shop.wait_for(f"/orders/{order_id}", status="cancelled")
    page.get_by_role("button", name="Mark as shipped").click()
    expect(page.get_by_role("alert")).to_contain_text("Refused")
    check_state(page, "cancelled")


# ---- what is live


def test_orders_placed_elsewhere_appear_and_change_without_a_reload(page: Page, shop: Shop) -> None:
    before = shop.place_confirmed()
    go(page, "/orders", "Orders")
    expect(page.get_by_role("row").filter(has_text=before)).to_contain_text("confirmed")
    shop.hold_payments()
    try:
        order_id = shop.place()
        row = page.get_by_role("row").filter(has_text=order_id)
        expect(row).to_contain_text("pending")
    finally:
        shop.let_payments_go()
    expect(row).to_contain_text("confirmed")
    shop.cancel(order_id)
    expect(row).to_contain_text("cancelled")
    page.get_by_label("Status").select_option("cancelled")
    expect(page.get_by_role("row").filter(has_text=before)).to_have_count(0)
    expect(row).to_contain_text("cancelled")


def test_a_link_that_is_pressed_while_its_row_changes_is_followed_and_keeps_the_focus(page: Page, shop: Shop) -> None:
    order_id = shop.place_confirmed()
    go(page, "/orders", "Orders")
    row = page.get_by_role("row").filter(has_text=order_id)
    link = row.get_by_role("link", name=order_id)
    link.hover()
    page.mouse.down()
    shop.cancel(order_id)
    expect(row).to_contain_text("cancelled")
    expect(link).to_be_focused()
    page.mouse.up()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Order {order_id}")


def test_what_a_reader_has_opened_stays_open_when_the_page_follows(page: Page, shop: Shop) -> None:
    order_id = shop.place_confirmed()
    open_order(page, order_id)
    event = page.get_by_role("region", name="What happened").get_by_text("Event", exact=True).first
    event.click()
    shown = page.get_by_label("Event order.placed")
    expect(shown).to_be_visible()
    shop.cancel(order_id)
    check_state(page, "cancelled")
    expect(
        page.get_by_role("region", name="What happened").locator("[data-kind='order.cancelled']").first
    ).to_be_visible()
    expect(shown).to_be_visible()


def test_the_overview_has_figures_and_charts_that_move(page: Page, shop: Shop) -> None:
    go(page, "/", "Overview")
    figures = page.get_by_role("region", name="Key figures")
    before = int(figures.get_by_role("link", name="Orders placed").locator("strong").inner_text())
    shop.place_confirmed()
    expect(figures.get_by_role("link", name="Orders placed").locator("strong")).to_have_text(str(before + 1))
    for chart in ("Orders per day", "Revenue per day", "Throughput", "Lag", "Order funnel", "Best products by revenue"):
        canvas = page.get_by_role("region", name=chart).get_by_role("img")
        expect(canvas).to_have_accessible_name(re.compile(f"^{chart}: .+"))
        assert canvas.evaluate(PAINTED), f"{chart} is empty"
    page.get_by_role("region", name="Order funnel").get_by_text("As a table").click()
    expect(page.get_by_role("table", name="Order funnel").get_by_role("row").nth(1)).to_contain_text("placed")
    page.get_by_role("button", name="30 days").click()
    expect(page.get_by_role("button", name="30 days")).to_have_attribute("aria-pressed", "true")


PAINTED = """canvas => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.some((value) => value > 0);
}"""


# ---- finding things


def test_the_search_finds_an_order_a_customer_or_a_product(page: Page, shop: Shop) -> None:
    customer_id = unique("c")
    order_id = shop.place_confirmed(customer_id=customer_id)
    go(page, "/", "Overview")
    box = page.get_by_role("search").get_by_role("searchbox")
    wanted = {order_id: f"Order {order_id}", customer_id: f"Customer {customer_id}", PRODUCT: f"Product {PRODUCT}"}
    for text, heading in wanted.items():
        box.fill(f" {text} ")
        box.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text(heading)
        expect(page).to_have_title(f"{heading} · Orders")
    box.fill("nobody/at all?")
    box.press("Enter")
    expect(page.get_by_role("main")).to_contain_text("Nothing is called nobody/at all?")


def test_what_has_two_meanings_is_shown_with_both(page: Page, shop: Shop) -> None:
    name = unique("both")
    shop.place_confirmed(order_id=name, customer_id=name)
    shop.wait_for(f"/customers/{name}", customer_id=name)
    go(page, f"/search/{name}", f"Search for {name}")
    found = page.get_by_role("region", name="Found").get_by_role("listitem")
    expect(found).to_have_text([f"Order {name}", f"Customer {name}"])


def test_addresses_name_what_is_shown_and_the_back_button_works(page: Page, shop: Shop) -> None:
    order_id = shop.place_confirmed(customer_id=(customer_id := unique("c")))
    go(page, "/orders", "Orders")
    expect(page.get_by_role("navigation").get_by_role("link", name="Orders", exact=True)).to_have_attribute(
        "aria-current", "page"
    )
    go(page, f"/orders/{order_id}", f"Order {order_id}")
    page.get_by_role("link", name=customer_id).click()
    heading = page.get_by_role("heading", level=1)
    expect(heading).to_have_text(f"Customer {customer_id}")
    expect(heading).to_be_focused()
    page.go_back()
    expect(heading).to_have_text(f"Order {order_id}")
    expect(page).to_have_title(f"Order {order_id} · Orders")
    expect(heading).to_be_focused()
    check_state(page, "confirmed")
    go(page, "/nowhere", "Nothing here")
    go(page, "/orders/nobody", "Order nobody")
    expect(page.get_by_role("main")).to_contain_text("There is no order nobody.")


def test_an_order_shows_its_timeline_and_can_be_seen_as_it_was(page: Page, shop: Shop) -> None:
    order_id = shop.place_confirmed()
    shop.cancel(order_id, "changed my mind")
    shop.wait_for(f"/sagas/{order_id}", state="compensated")
    open_order(page, order_id)
    happened = page.get_by_role("region", name="What happened")
    events = happened.get_by_role("list").first.locator("> li > strong")
    expect(events).to_have_text(["order.placed", "order.confirmed", "order.cancelled"])
    happened.get_by_text("Commands and replies of the saga").click()
    expect(happened).to_contain_text("payment.refunded")
    steps = page.get_by_role("region", name="Saga", exact=True)
    expect(steps.get_by_role("row").filter(has_text="charge")).to_contain_text("undone")

    story = page.get_by_role("region", name="Story")
    expect(story.get_by_role("listitem").filter(has_text="order.cancelled").last).to_contain_text("payment.refunded")

    travel = page.get_by_role("region", name="Time travel")
    expect(travel).to_contain_text("After event 3 of 3, order.cancelled")
    slider = travel.get_by_role("slider", name="Event")
    slider.press("Home")
    expect(travel).to_contain_text("After event 1 of 3, order.placed")
    expect(travel.locator(".pill")).to_have_text("pending")
    slider.press("ArrowRight")
    expect(travel.locator(".pill")).to_have_text("confirmed")
    travel.get_by_label("Or a time (UTC)").fill("2001-01-01T00:00:00")
    expect(travel).to_contain_text("There was no order then.")
    travel.get_by_label("Or a time (UTC)").fill("2099-01-01T00:00:00")
    expect(travel.locator(".pill")).to_have_text("cancelled")


def test_a_customer_shows_figures_and_orders_that_follow(page: Page, shop: Shop) -> None:
    customer_id = unique("c")
    first = shop.place_confirmed(customer_id=customer_id)
    shop.wait_for(f"/customers/{customer_id}", customer_id=customer_id)
    go(page, f"/customers/{customer_id}", f"Customer {customer_id}")
    expect(page.get_by_role("row").filter(has_text=first)).to_contain_text("confirmed")
    expect(page.get_by_role("region", name="In figures")).to_contain_text("£39.98")
    second = shop.place_confirmed(customer_id=customer_id)
    expect(page.get_by_role("row").filter(has_text=second)).to_contain_text("confirmed")
    expect(page.get_by_role("region", name="In figures")).to_contain_text("£79.96")


def test_the_stock_of_a_product_can_be_set(page: Page, shop: Shop) -> None:
    product_id = unique("p")
    shop.stock(product_id, 5)
    go(page, f"/products/{product_id}", f"Product {product_id}")
    page.get_by_label("Pieces on hand").fill("42")
    page.get_by_role("button", name="Set").click()
    expect(page.get_by_role("region", name="Stock", exact=True)).to_contain_text("42")
    assert shop.site.get(f"/inventory/{product_id}")["available"] == 42


def test_a_stocktake_below_what_is_reserved_is_refused_and_the_page_says_why(page: Page, shop: Shop) -> None:
    product_id = unique("p")
    shop.stock(product_id, 5)
    shop.place_confirmed(items=[{"product_id": product_id, "quantity": 3, "price": {"amount": "1", "currency": "GBP"}}])
    go(page, f"/products/{product_id}", f"Product {product_id}")
    page.get_by_label("Pieces on hand").fill("2")
    page.get_by_role("button", name="Set").click()
    expect(page.get_by_role("alert")).to_contain_text("3 pieces are reserved")
    expect(page.get_by_role("region", name="Stock", exact=True)).to_contain_text("5")


# ---- what an operator does


def test_dead_letters_appear_are_retried_once_mended_and_discarded(page: Page, shop: Shop) -> None:
    shop.break_again()
    order_id, other = shop.place_confirmed(), shop.place_confirmed()
    go(page, "/dead-letters", "Dead letters")
    shop.cancel(order_id, BUG)
    letters = page.get_by_role("region", name="Letters")
    row = letters.get_by_role("row").filter(has_text=order_id)
    expect(row).to_contain_text(f"Bug: {BUG}")
    expect(page.get_by_role("region", name="What failed alike").first).to_contain_text("decide-orders")

    row.get_by_role("link").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Dead letter ")
    expect(page.get_by_role("region", name="The record")).to_contain_text(BUG)
    page.get_by_text("Trace", exact=True).click()
    expect(page.get_by_label("Trace")).to_contain_text("Bug")
    shop.mend()
    page.get_by_role("button", name=re.compile("^Retry ")).click()
    expect(page.get_by_role("main").locator(".page-head .pill")).to_have_text("resolved")
    shop.wait_for(f"/orders/{order_id}", status="cancelled")

    shop.break_again()
    page.get_by_role("link", name="Dead letters").click()
    shop.cancel(other, BUG)
    row = letters.get_by_role("row").filter(has_text=other)
    row.get_by_role("button", name=re.compile("^Discard ")).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("not worth it")
    dialog.get_by_role("button", name="Discard").click()
    expect(row).to_have_count(0)
    page.get_by_label("State", exact=True).select_option("discarded")
    expect(row).to_contain_text("discarded")
    assert shop.site.get(f"/orders/{other}")["status"] == "confirmed"


def test_a_letter_is_edited_and_tried_again(page: Page, shop: Shop) -> None:
    shop.break_again()
    order_id = shop.place_confirmed()
    shop.cancel(order_id, BUG)
    go(page, "/dead-letters", "Dead letters")
    page.get_by_role("row").filter(has_text=order_id).get_by_role("link").first.click()
    page.get_by_text("Edit and retry").click()
    payload = page.get_by_label("Another payload")
    payload.fill("{")
    page.get_by_role("button", name="Retry with this payload").click()
    expect(page.get_by_role("alert")).to_contain_text("not JSON")
    payload.fill(f'{{"orderId": "{order_id}", "reason": "harmless"}}')
    page.get_by_role("button", name="Retry with this payload").click()
    expect(page.get_by_role("main").locator(".page-head .pill")).to_have_text("resolved")
    assert shop.wait_for(f"/orders/{order_id}", status="cancelled")["cancel_reason"] == "harmless"


def test_stuck_sagas_are_listed_and_resumed(page: Page, shop: Shop) -> None:
    order_id = shop.place_confirmed()
    shop.payments.refunds_declined.add(order_id)
    before = len(shop.site.get("/sagas", state="compensation_failed")["items"])
    go(page, "/sagas", "Sagas")
    shop.cancel(order_id)
    stuck = page.get_by_role("region", name="Stuck sagas").first
    row = stuck.get_by_role("row").filter(has_text=order_id)
    expect(row).to_contain_text("charge")
    states = page.get_by_role("region", name="Sagas by state")
    count = states.locator(".tile").filter(has_text="compensation failed").locator("strong")
    expect(count).to_have_text(str(before + 1))
    shop.payments.accept_refund(order_id)
    row.get_by_role("button", name=f"Resume the saga of order {order_id}").click()
    expect(row).to_have_count(0)
    shop.wait_for(f"/sagas/{order_id}", state="compensated")
    expect(count).to_have_text(str(before))


# ---- what customers type is text


def test_markup_in_ids_countries_and_reasons_is_shown_as_text(page: Page, shop: Shop) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    order_id, customer_id = unique(MARKUP), unique(MARKUP)
    values = {"order_id": order_id, "customer_id": customer_id, "country": MARKUP, "email": f"{MARKUP}@example.com"}
    go(page, "/orders", "Orders")
    shop.send("POST", "/orders?wait=20s", {**values, "items": [item(MARKUP)]})
    expect(page.get_by_role("row").filter(has_text=order_id)).to_contain_text(customer_id)
    shop.send("POST", f"/orders/{quote(order_id, safe='')}/cancel", {"reason": MARKUP})
    page.get_by_role("link", name=order_id).click()
    check_state(page, "cancelled")
    for region in ("Order", "Items", "What happened"):
        expect(page.get_by_role("region", name=region, exact=True).first).to_contain_text(MARKUP)
    page.get_by_role("link", name=customer_id).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Customer {customer_id}")
    page.get_by_role("navigation").get_by_role("link", name="Overview").click()
    expect(page.get_by_role("row").filter(has_text=order_id)).to_contain_text(customer_id)
    go(page, f"/search/{quote(MARKUP, safe='')}", f"Search for {MARKUP}")
    assert page.locator("img[src=x]").count() == 0


def item(product_id: str) -> dict[str, object]:
    """One line of an order."""
    return {"product_id": product_id, "quantity": 1, "price": {"amount": "1.00", "currency": "GBP"}}


# ---- workers that want a token, and that go away


def test_a_worker_with_a_token_is_asked_for_it_once_and_a_worker_that_comes_back_is_live_again(
    browser: Browser, complaints: Complaints, tmp_path: Path
) -> None:
    with (
        open_shop(tmp_path, free_port(), api_token=TOKEN) as shop,
        visiting(browser, shop.url, complaints) as page,
    ):
        go(page, "/new", "New order")
        customer_id = unique("c")
        fill_order(page, customer_id)
        page.get_by_role("button", name="Place order").click()
        dialog = page.get_by_role("dialog", name="Token needed")
        dialog.get_by_label("ORDERS_API_TOKEN").fill("another")
        dialog.get_by_role("button", name="Go on").click()
        expect(dialog).to_contain_text("did not accept")
        dialog.get_by_label("ORDERS_API_TOKEN").fill(TOKEN)
        dialog.get_by_role("button", name="Go on").click()
        expect(page.get_by_role("row").filter(has_text=customer_id)).to_contain_text("cancelled")  # nothing is in stock
        page.get_by_role("button", name="Place order").click()
        expect(page.get_by_role("row").filter(has_text=customer_id)).to_have_count(2)
        assert page.evaluate("localStorage.length") == 0

        page.get_by_role("navigation").get_by_role("link", name="Orders").click()
        status = page.get_by_role("banner").get_by_role("status")
        expect(status).to_have_text("live")
        assert shop.worker.stop() == 0
        expect(status).to_have_text("reconnecting")
        with shop.site.start(command=BUGGY_WORKER) as again:
            again.wait_until_ready()
            expect(status).to_have_text("live")
            order_id = shop.place(token=TOKEN)
            expect(page.get_by_role("row").filter(has_text=order_id)).to_be_visible()
            complaints[:] = [text for text in complaints if "/live" not in text]  # the connection that was lost
