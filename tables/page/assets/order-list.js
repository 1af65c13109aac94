// Lists of orders, as tables that follow what happens.

import { el, pill, table } from "./dom.js";
import { money, number, time } from "./format.js";
import { customerLink, orderLink } from "./links.js";
import { isProcessing } from "./processing.js";

/** A table of orders; `withCustomer` is false where all are of one. */
export function orderTable(caption, { withCustomer = true, empty = "No orders yet." } = {}) {
  const columns = [
    { name: "Order", cell: (order) => orderLink(order.order_id) },
    withCustomer && { name: "Customer", cell: (order) => customerLink(order.customer_id) },
    { name: "Status", cell: (order) => pill(order.status) },
    { name: "Pieces", number: true, minor: true, cell: (order) => number(order.item_count ?? 0) },
    { name: "Total", number: true, cell: (order) => money(order.total) },
    { name: "Placed", minor: true, cell: (order) => time(order.created_at) },
  ].filter(Boolean);
  const shown = table(caption, columns, { empty });
  return {
    node: shown.node,
    show: (orders) => shown.show(orders.map(summary), (order) => order.order_id),
  };
}

function summary({ order_id, customer_id, status, item_count, total, created_at }) {
  return { order_id, customer_id, status: isProcessing(order_id) ? "processing" : status, item_count, total, created_at };
}

/** Orders and changed ones, at most `limit`, those placed last first; an older state of an order changes nothing. */
export function merged(orders, changed, limit, takesNew = true) {
  const known = new Map(orders.map((order) => [order.order_id, order]));
  for (const order of changed) {
    const before = known.get(order.order_id);
    if (before ? order.version >= before.version : takesNew) known.set(order.order_id, { ...before, ...order });
  }
  return [...known.values()].sort((one, other) => placedAt(other) - placedAt(one)).slice(0, limit);
}

const placedAt = (order) => (order.created_at ? Date.parse(order.created_at) : Infinity);
