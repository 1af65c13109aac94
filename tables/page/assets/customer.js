// One customer: figures, and all orders, newest first.

import { find, path, read } from "./api.js";
import { sayProblem } from "./dialogs.js";
import { card, el, slot, facts, moreButton } from "./dom.js";
import { money, number, time } from "./format.js";
import { listen, soon } from "./live.js";
import { merged, orderTable } from "./order-list.js";
import { onProcessing } from "./processing.js";

const PAGE = 20;

export async function customerPage({ root, signal, id }) {
  const figures = slot("In figures");
  const shown = orderTable(`Orders of ${id}`, { withCustomer: false });
  let orders = [];
  let cursor = null;
  const address = (from) => `${path("customers", id, "orders")}?${new URLSearchParams({ limit: PAGE, ...(from && { cursor: from }) })}`;
  const { button, offer } = moreButton(() => loadMore().catch(sayProblem));
  const take = (found, page) => {
    orders = found;
    offer((cursor = page.next_cursor));
    shown.show(orders);
  };
  const loadMore = async () => {
    const page = await read(address(cursor), { signal });
    take(merged([...orders, ...page.items], [], Infinity), page);
  };
  const load = async () => {
    const [customer, page] = await Promise.all([find(path("customers", id), { signal }), read(address(null), { signal })]);
    if (customer === null) throw Object.assign(new Error(`There is no customer ${id}.`), { status: 404 });
    figures.fill(customerFacts(customer));
    take(page.items, page);
  };
  const reload = soon(() => load().catch(sayProblem), signal, 400);
  listen("orders", signal, ({ items, left_out }) => {
    if (left_out > 0 || items.some((order) => order.customer_id === id)) reload();
  });
  listen("resync", signal, reload);
  onProcessing(signal, () => shown.show(orders));
  root.append(figures.section, card("Orders", null, shown.node, el("div", { class: "actions" }, button)));
  await load();
}

function customerFacts(customer) {
  const spent = (customer.spent ?? [customer.total_spent]).filter(Boolean).map((total) => money(total));
  return facts([
    ["Orders", number(customer.order_count)],
    ["Confirmed", number(customer.confirmed_count)],
    ["Cancelled", number(customer.cancelled_count)],
    ["Spent", spent.join(" + ") || money(null)],
    ["Last order", time(customer.last_order_at)],
  ]);
}
