// One order: what it is, what may be done, how its saga goes, what has happened, and how it was at any time.

import { change, find, path, read } from "./api.js";
import { ask, say, sayProblem } from "./dialogs.js";
import { card, el, facts, pill, refill, slot, table } from "./dom.js";
import { money, number, time } from "./format.js";
import { customerLink, productLink } from "./links.js";
import { listen, soon } from "./live.js";
import { isProcessing, onProcessing, outcome, refusal } from "./processing.js";
import { storyTree } from "./story.js";
import { timeline } from "./timeline.js";
import { timeTravel } from "./time-travel.js";

export async function orderPage({ root, head, signal, id }) {
  const state = el("span", { id: "order-state" });
  const actions = el("div", { class: "actions" });
  head.append(state, actions);
  const summary = slot("Order");
  const items = itemTable();
  const saga = slot("Saga");
  const payment = slot("Payment and mails");
  const happened = timeline();
  const travel = timeTravel(id, signal);
  const story = storyTree();
  root.append(
    el("div", { class: "grid two" }, summary.section, payment.section),
    card("Items", null, items.node),
    el("div", { class: "grid two" }, el("div", { class: "stack" }, happened.node, saga.section), travel.node),
    story.node,
  );

  let order = null;
  const draw = () => {
    if (order === null) return;
    const shown = isProcessing(id) ? "processing" : order.status;
    refill(state, pill(shown));
    refill(actions, ...buttons(order, shown, load));
  };
  const load = async () => {
    const [found, events, sagaFound, paid, mails, told] = await Promise.all([
      find(path("orders", id), { signal }),
      find(path("orders", id, "events"), { signal }),
      find(path("sagas", id), { signal }),
      find(path("payments", id), { signal }),
      find(path("orders", id, "notifications"), { signal }),
      find(path("orders", id, "story"), { signal }),
    ]);
    if (found === null) throw Object.assign(new Error(`There is no order ${id}.`), { status: 404 });
    order = found;
    draw();
    summary.fill(orderFacts(order));
    items.show(order.items);
    payment.fill(paymentFacts(paid), mailList(mails?.items ?? []));
    saga.fill(sagaFound === null ? el("p", { class: "empty" }, "This order has no saga.") : sagaSteps(sagaFound));
    happened.show(events?.items ?? [], sagaFound?.timeline ?? []);
    travel.show(events?.items ?? []);
    story.show(told?.roots ?? []);
  };
  const reload = soon(() => load().catch(sayProblem), signal, 150);
  const isOurs = ({ items: changed, left_out }) => left_out > 0 || changed.some((one) => one.order_id === id);
  for (const name of ["orders", "sagas"]) listen(name, signal, (event) => isOurs(event) && reload());
  listen("resync", signal, reload);
  onProcessing(signal, (changed) => changed === id && draw());
  await load();
}

function buttons(order, shown, reload) {
  if (shown === "processing") return [];
  const found = [];
  if (order.status === "confirmed" && !order.shipped_at) {
    found.push(el("button", { type: "button", onclick: () => command(order, "ship", {}, reload) }, "Mark as shipped"));
  }
  if (["pending", "confirmed"].includes(order.status) && !order.shipped_at) {
    found.push(el("button", { type: "button", class: "danger", onclick: () => cancel(order, reload) }, "Cancel order"));
  }
  return found;
}

async function cancel(order, reload) {
  const reason = await ask({
    title: `Cancel order ${order.order_id}?`,
    text: "Reserved pieces are given back, and a payment is refunded.",
    label: "Reason (optional)",
    action: "Cancel the order",
    input: { maxlength: "1000", autocomplete: "off" },
    danger: true,
  });
  if (reason !== null) await command(order, "cancel", { reason: reason || null }, reload);
}

async function command(order, name, body, reload) {
  const id = order.order_id;
  try {
    const { token } = await change("POST", path("orders", id, name), body);
    say(`Order ${id} is processing`);
    const after = await outcome(id, token);
    const wasDone = name === "cancel" ? after?.status === "cancelled" : Boolean(after?.shipped_at);
    const why = wasDone ? null : await refusal(id);
    if (why) say(`Refused: ${why}`, true);
    else say(`Order ${id} is ${name === "ship" ? "shipped" : after?.status}`);
    await reload();
  } catch (error) {
    sayProblem(error);
  }
}

function orderFacts(order) {
  return facts([
    ["Customer", customerLink(order.customer_id)],
    ["Total", money(order.total)],
    ["Pieces", number(order.item_count)],
    ["Country", order.country],
    ["Placed", time(order.created_at)],
    ["Confirmed", time(order.confirmed_at)],
    ["Shipped", time(order.shipped_at)],
    ["Cancelled", time(order.cancelled_at)],
    ["Reason", order.cancel_reason],
    ["Version", number(order.version)],
  ]);
}

function itemTable() {
  const columns = [
    { name: "Product", cell: (item) => productLink(item.product_id) },
    { name: "Quantity", number: true, cell: (item) => number(item.quantity) },
    { name: "Price each", number: true, cell: (item) => money(item.price) },
  ];
  const shown = table("Items of the order", columns, { empty: "No items: the order was refused." });
  return { node: shown.node, show: (items) => shown.show(items.map((item, line) => ({ line, ...item })), (item) => item.line) };
}

function paymentFacts(payment) {
  if (payment === null) return el("p", { class: "empty" }, "There is no payment.");
  return facts([
    ["Payment", pill(payment.status)],
    ["Amount", money(payment.amount)],
    ["Charged", time(payment.charged_at)],
    ["Failed", time(payment.failed_at)],
    ["Refunded", time(payment.refunded_at)],
    ["Reason", payment.reason],
    ["Reference", payment.reference],
  ]);
}

function mailList(mails) {
  if (!mails.length) return null;
  const shown = mails.map((mail) => el("li", {}, pill(mail.state), ` ${mail.kind.replaceAll("_", " ")} `, time(mail.sent_at), mail.detail && ` ${mail.detail}`));
  return el("ul", { class: "plain", "aria-label": "Mails" }, shown);
}

function sagaSteps(saga) {
  const columns = [
    { name: "Step", cell: (step) => [step.step, step.product_id && " ", productLink(step.product_id)] },
    { name: "State", cell: (step) => pill(step.state) },
    { name: "Error", minor: true, cell: (step) => step.compensation?.error ?? step.action.error },
  ];
  const steps = table("Steps of the saga", columns.map((column) => ({ ...column, cell: (row) => wrap(column.cell(row)) })));
  steps.show(saga.steps);
  return el(
    "div",
    { class: "stack" },
    facts([
      ["State", pill(saga.state)],
      ["Style", saga.style],
      ["Reason", saga.reason],
      ["Goes on by itself", time(saga.deadline)],
    ]),
    steps.node,
  );
}

function wrap(content) {
  if (content === null || content === undefined) return null;
  return el("span", {}, content);
}
