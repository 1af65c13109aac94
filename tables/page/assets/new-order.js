// Placing an order, and what becomes of the orders that were placed here.

import { change, path, read } from "./api.js";
import { card, el, field } from "./dom.js";
import { say, sayProblem } from "./dialogs.js";
import { listen } from "./live.js";
import { merged, orderTable } from "./order-list.js";
import { onProcessing, outcome } from "./processing.js";

const KEPT_MAX = 20;
let placed = []; // by this page since it was opened

export async function newOrderPage({ root, signal }) {
  const list = orderTable("Orders placed here", { empty: "Orders that you place appear here, and change as they go on." });
  const draw = () => list.show(placed);
  const keep = (order) => {
    placed = merged(placed, [order], KEPT_MAX);
    draw();
  };
  root.append(el("div", { class: "grid form-beside" }, orderForm(keep, signal), card("Placed here", null, list.node)));
  onProcessing(signal, draw);
  listen("orders", signal, ({ items }) => {
    placed = merged(placed, items, KEPT_MAX, false);
    draw();
  });
  listen("resync", signal, async () => {
    for (const { order_id } of placed) keep(await read(path("orders", order_id), { signal }));
  });
  draw();
}

function orderForm(keep, signal) {
  const customer = el("input", { name: "customer", required: true, maxlength: "128", autocomplete: "off" });
  const country = el("input", { name: "country", maxlength: "128", autocomplete: "country-name" });
  const email = el("input", { name: "email", type: "text", inputmode: "email", maxlength: "320", autocomplete: "off" });
  const currency = el("input", { name: "currency", value: "GBP", required: true, pattern: "[A-Z]{3}", maxlength: "3", title: "three capital letters" });
  const known = new Map(); // product id to its price
  const suggestions = el("datalist", { id: "products" });
  const lines = el("div", { class: "lines" });
  const submit = el("button", { type: "submit", class: "primary" }, "Place order");
  const add = () => lines.append(lineFields(known, lines));
  const form = el(
    "form",
    { class: "stack", "aria-label": "New order" },
    field("Customer", customer),
    el("div", { class: "row" }, field("Country", country), field("Email", email), field("Currency", currency)),
    lines,
    el("div", { class: "actions" }, el("button", { type: "button", class: "quiet", onclick: add }, "Add a line"), submit),
    suggestions,
  );
  add();
  suggest(known, suggestions, currency, signal);

  let key = newKey(); // the same until the order is accepted, so that sending it twice makes one order
  let lastBody = null;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const items = [...lines.children].map((line) => line.item(currency.value));
    const body = { customer_id: customer.value, items, country: country.value || null, email: email.value || null };
    if (lastBody !== JSON.stringify(body)) key = newKey();
    lastBody = JSON.stringify(body);
    submit.disabled = true;
    try {
      const accepted = await change("POST", "/orders", body, { "Idempotency-Key": key });
      lastBody = null;
      follow(accepted, customer.value, keep);
    } catch (error) {
      sayProblem(error);
    } finally {
      submit.disabled = false;
    }
  });
  return card("What is ordered", null, form);
}

async function follow({ order_id, token }, customerId, keep) {
  const result = outcome(order_id, token);
  keep({ order_id, customer_id: customerId, status: "pending", version: 0, created_at: new Date().toISOString() });
  say(`Order ${order_id} is processing`);
  try {
    const order = await result;
    if (order === null) return;
    keep(order);
    say(`Order ${order_id} was placed and is ${order.status}`);
  } catch (error) {
    sayProblem(error);
  }
}

function lineFields(known, lines) {
  const product = el("input", { name: "product", required: true, maxlength: "128", list: "products", autocomplete: "off" });
  const quantity = el("input", { name: "quantity", type: "number", min: "1", max: "1000000000", step: "1", value: "1", required: true });
  const price = el("input", { name: "price", inputmode: "decimal", required: true, pattern: "[0-9]{1,28}(\\.[0-9]{1,6})?", title: "a decimal such as 19.99", autocomplete: "off" });
  let suggested = ""; // gives way to the next product's, and never replaces what somebody has typed
  product.addEventListener("input", () => {
    if (price.value === suggested) price.value = suggested = known.get(product.value) ?? "";
  });
  const remove = el("button", { type: "button", class: "quiet", onclick: () => lines.children.length > 1 && line.remove() }, "Remove");
  const line = el(
    "fieldset",
    { class: "line" },
    el("legend", {}, "Line"),
    field("Product", product),
    field("Quantity", quantity),
    field("Price each", price),
    remove,
  );
  line.item = (currency) => ({
    product_id: product.value,
    quantity: Number(quantity.value),
    price: { amount: price.value, currency },
  });
  return line;
}

/** Offer products that have been sold, with what they cost on average. */
async function suggest(known, suggestions, currency, signal) {
  const { items } = await read("/analytics/products?limit=50", { signal }).catch(() => ({ items: [] }));
  if (items.length) currency.value = items[0].currency;
  for (const item of items) {
    if (item.currency !== currency.value || known.has(item.product_id)) continue;
    known.set(item.product_id, (item.placed_revenue / item.quantity).toFixed(2));
    suggestions.append(el("option", { value: item.product_id }, `about ${known.get(item.product_id)} ${item.currency}`));
  }
}

/** A random key; randomUUID is not there on plain HTTP. */
function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
