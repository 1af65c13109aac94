// All orders, newest first, as they happen.

import { read } from "./api.js";
import { card, el, field, moreButton } from "./dom.js";
import { sayProblem } from "./dialogs.js";
import { listen, soon } from "./live.js";
import { merged, orderTable } from "./order-list.js";
import { onProcessing } from "./processing.js";

const SHOWN_MAX = 50;
const STATUSES = ["pending", "confirmed", "cancelled", "rejected"];

/** A live list of the latest orders; those before the page was opened come with `load`. */
export function latestOrders(signal, limit = SHOWN_MAX, { status = () => "", onPage = () => {} } = {}) {
  const shown = orderTable("Latest orders", { empty: "No orders here yet. New ones appear by themselves." });
  let orders = [];
  let most = limit;
  const draw = () => shown.show(status() ? orders.filter((order) => order.status === status()) : orders);
  const fetchPage = async (cursor = null) => {
    const query = new URLSearchParams({ limit: String(limit), ...(status() && { status: status() }), ...(cursor && { cursor }) });
    return read(`/orders?${query}`, { signal });
  };
  const load = async () => {
    const page = await fetchPage();
    most = limit;
    orders = merged(page.items, orders, most); // what was told meanwhile may be newer
    onPage(page.next_cursor);
    draw();
  };
  const restart = () => {
    orders = [];
    return load();
  };
  const more = async (cursor) => {
    const page = await fetchPage(cursor);
    most += page.items.length;
    orders = merged([...orders, ...page.items], [], most);
    onPage(page.next_cursor);
    draw();
  };
  listen("orders", signal, ({ items }) => {
    orders = merged(orders, items, most);
    draw();
  });
  listen("resync", signal, soon(() => load().catch(sayProblem), signal));
  onProcessing(signal, draw);
  draw();
  return { node: shown.node, load, restart, more };
}

export async function ordersPage({ root, head, signal }) {
  const choice = el(
    "select",
    { onchange: () => list.restart().catch(sayProblem) },
    el("option", { value: "" }, "any status"),
    STATUSES.map((status) => el("option", { value: status }, status)),
  );
  let cursor = null;
  const { button, offer } = moreButton(() => list.more(cursor).catch(sayProblem));
  const onPage = (next) => offer((cursor = next));
  const list = latestOrders(signal, SHOWN_MAX, { status: () => choice.value, onPage });
  head.append(el("a", { class: "button primary", href: "#/new" }, "New order"));
  root.append(card("Live orders", field("Status", choice), list.node, el("div", { class: "actions" }, button)));
  await list.load();
}
