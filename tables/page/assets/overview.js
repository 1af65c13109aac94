// The overview: figures of this moment, orders and revenue over time, what sells, and the latest orders.

import { read } from "./api.js";
import { chart } from "./charts.js";
import { card, el } from "./dom.js";
import { approximately, compact, dayOf, money, number, perSecond, seconds, share } from "./format.js";
import { listen, soon } from "./live.js";
import { latestOrders } from "./orders.js";

const SAMPLES = 120; // seconds of throughput and lag
const ANALYTICS_PAUSE_MS = 3000;
const PERIODS = [
  ["30 days", 30],
  ["90 days", 90],
  ["all", Infinity],
];

const samples = []; // kept over navigation, so that coming back shows what was there

/** Take note of the worker's figures from the start, whatever page is shown. */
listen("figures", new AbortController().signal, (figures) => {
  samples.push({ at: Date.now(), ...figures });
  samples.splice(0, samples.length - SAMPLES);
});

export async function overviewPage({ root, signal }) {
  const key = keyFigures();
  const now = throughputAndLag();
  const history = overTime();
  const sales = whatSells();
  const funnel = sagaFunnel();
  const orders = latestOrders(signal, 8);
  const charts = [...now.charts, ...history.charts, ...sales.charts, funnel];
  signal.addEventListener("abort", () => charts.forEach((drawn) => drawn.end()));
  root.append(
    key.node,
    el("div", { class: "grid two" }, history.charts.map((drawn) => drawn.node)),
    el("div", { class: "grid three" }, [...now.charts, funnel].map((drawn) => drawn.node)),
    card("Latest orders", el("a", { href: "#/orders" }, "All orders"), orders.node),
    el("div", { class: "grid two" }, sales.charts.map((drawn) => drawn.node)),
  );

  const showNow = () => {
    now.show();
    key.showFigures(samples.at(-1));
  };
  const load = async () => {
    const [summary, daily, products, countries] = await Promise.all([
      read("/analytics/summary", { signal }),
      read("/analytics/daily", { signal }),
      read("/analytics/products?limit=8", { signal }),
      read("/analytics/countries?limit=8", { signal }),
    ]);
    key.showSummary(summary);
    history.show(daily.items, summary.revenue);
    sales.show(products.items, countries.items);
    funnel.show(...steps(summary));
  };
  const reload = soon(() => load().catch(() => {}), signal, ANALYTICS_PAUSE_MS);
  listen("figures", signal, showNow);
  listen("orders", signal, reload);
  listen("resync", signal, reload);
  showNow();
  await Promise.all([load(), orders.load()]);
}

function keyFigures() {
  const tile = (name, href = null) => {
    const value = el("strong", {}, "–");
    const note = el("small", {}, "\u00a0");
    const inside = [el("span", {}, name), value, note];
    const node = href ? el("a", { class: "tile", href }, inside) : el("div", { class: "tile" }, inside);
    return { node, show: (text, more = "\u00a0") => ((value.textContent = text), (note.textContent = more)) };
  };
  const tiles = {
    placed: tile("Orders placed", "#/orders"),
    revenue: tile("Revenue"),
    throughput: tile("Throughput"),
    lag: tile("Lag"),
    sagas: tile("Sagas under way", "#/sagas"),
    letters: tile("Dead letters", "#/dead-letters"),
  };
  return {
    node: el("section", { class: "tiles", "aria-label": "Key figures" }, Object.values(tiles).map((one) => one.node)),
    showSummary(summary) {
      const [first] = summary.revenue;
      const confirmed = summary.placed_count ? summary.confirmed_count / summary.placed_count : 0;
      tiles.placed.show(number(summary.placed_count), `${share(confirmed)} confirmed, ${number(summary.cancelled_count)} cancelled`);
      const more = summary.revenue.length > 1 ? `and ${summary.revenue.length - 1} more currencies` : "confirmed less refunded";
      tiles.revenue.show(first ? money({ amount: first.revenue, currency: first.currency }, { maximumFractionDigits: 0 }) : "–", more);
    },
    showFigures(figures) {
      if (!figures) return;
      const stuck = figures.sagas.compensation_failed;
      tiles.throughput.show(perSecond(figures.records_per_second), `${perSecond(figures.commits_per_second)} commits`);
      tiles.lag.show(number(figures.lag_records), figures.lag_seconds ? `oldest ${seconds(figures.lag_seconds)}` : "nothing waits");
      tiles.sagas.show(number(figures.sagas.running + figures.sagas.compensating), stuck ? `${number(stuck)} stuck` : "none stuck");
      tiles.letters.show(number(figures.dead_letters), waiting(figures.aggregates_waiting));
    },
  };
}

function waiting(count) {
  if (!count) return "nothing waits";
  return count === 1 ? "1 aggregate waits" : `${number(count)} aggregates wait`;
}

function throughputAndLag() {
  const throughput = chart("Throughput", {
    first: "Time",
    unit: "second",
    sets: [{ label: "records per second", colour: "series-1" }],
    format: (value) => compact(value),
    summary: (_, [rates]) => `${perSecond(rates.at(-1) ?? 0)} now`,
  });
  const lag = chart("Lag", {
    first: "Time",
    unit: "second",
    sets: [{ label: "records behind", colour: "series-3" }],
    format: (value) => compact(value),
    summary: (_, [behind]) => `${number(behind.at(-1) ?? 0)} records now`,
  });
  return {
    charts: [throughput, lag],
    show() {
      const times = samples.map((sample) => sample.at);
      throughput.show(times, [samples.map((sample) => sample.records_per_second)]);
      lag.show(times, [samples.map((sample) => sample.lag_records)]);
    },
  };
}

function overTime() {
  let items = [];
  let days = Infinity;
  const choice = el(
    "div",
    { class: "choice", role: "group", "aria-label": "Period" },
    PERIODS.map(([name, length]) => {
      const pressed = String(length === days);
      return el("button", { type: "button", "aria-pressed": pressed, onclick: (event) => choose(event.target, length) }, name);
    }),
  );
  const orders = chart("Orders per day", {
    type: "bar",
    first: "Day",
    extra: choice,
    sets: [{ label: "placed", colour: "series-1" }, { label: "cancelled", colour: "series-4" }],
    format: compact,
    summary: (labels, [placed]) => spoken(labels, placed, number),
  });
  const revenue = chart("Revenue per day", {
    first: "Day",
    sets: [{ label: "revenue", colour: "series-2" }],
    format: compact,
    summary: (labels, [amounts]) => spoken(labels, amounts, compact),
  });
  let currency = null;

  function choose(button, length) {
    days = length;
    for (const other of choice.children) other.setAttribute("aria-pressed", String(other === button));
    draw();
  }

  function draw() {
    const names = [...new Set(items.map((item) => item.day))]; // days without orders are left out
    const shown = days === Infinity ? names : names.slice(-days);
    const labels = shown.map(dayOf);
    const sum = (pick) => shown.map((day) => items.filter((item) => item.day === day).reduce((all, item) => all + pick(item), 0));
    orders.show(labels, [sum((item) => item.placed_count), sum((item) => item.cancelled_count)]);
    revenue.show(labels, [sum((item) => (item.currency === currency ? approximately(item.revenue) : 0))]);
  }

  return {
    charts: [orders, revenue],
    show(found, revenues) {
      items = found;
      currency = revenues[0]?.currency ?? null;
      draw();
    },
  };
}

function spoken(labels, values, format) {
  if (!labels.length) return "none yet";
  return `${labels.length} days, from ${labels[0]} to ${labels.at(-1)}, ${format(values.at(-1))} on the last one`;
}

function whatSells() {
  const bars = (title, first, colour) =>
    chart(title, {
      first,
      type: "bar",
      horizontal: true,
      sets: [{ label: "revenue", colour }],
      format: compact,
      summary: (labels) => (labels.length ? `most at ${labels[0]}` : "none yet"),
    });
  const products = bars("Best products by revenue", "Product", "series-1");
  const countries = bars("Countries by revenue", "Country", "series-2");
  const show = (drawn, items, name) => drawn.show(items.map((item) => item[name]), [items.map((item) => approximately(item.revenue))]);
  return {
    charts: [products, countries],
    show(sold, places) {
      show(products, sold, "product_id");
      show(countries, places, "country");
    },
  };
}

/** The funnel of all orders through their sagas. */
export function sagaFunnel() {
  return chart("Order funnel", {
    first: "Step",
    type: "bar",
    horizontal: true,
    sets: [{ label: "orders", colour: "series-5" }],
    format: compact,
    summary: (labels, [counts]) => labels.map((label, index) => `${label} ${number(counts[index])}`).join(", "),
  });
}

/** What `sagaFunnel` shows of the summary of orders. */
export function steps(summary) {
  return [summary.funnel.map((step) => step.step), [summary.funnel.map((step) => step.count)]];
}
