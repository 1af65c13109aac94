// The overview: figures of this moment, the tables and the topics.

import { read } from "./api.js";
import { sayProblem } from "./dialogs.js";
import { card, el, refill, table } from "./dom.js";
import { number, perSecond, seconds } from "./format.js";
import { listen, soon } from "./live.js";

const PAUSE_MS = 3000;

export async function overviewPage({ root, signal }) {
  const tiles = el("section", { class: "tiles", "aria-label": "Key figures" });
  const tables = table("Tables", [
    { name: "Table", cell: (one) => one.name },
    { name: "Rows", number: true, cell: (one) => `${number(one.rows)}${one.rows_are_more ? " or more" : ""}` },
    { name: "What it is", minor: true, cell: (one) => one.help },
  ]);
  const topics = table("Topics", [
    { name: "Topic", cell: (one) => one.name },
    { name: "Records", number: true, cell: (one) => number(recordsIn(one)) },
    { name: "What it is", minor: true, cell: (one) => one.help },
  ]);
  root.append(tiles, el("div", { class: "grid two" }, card("Tables", null, tables.node), card("Topics", null, topics.node)));
  const load = async () => {
    const [stored, logged] = await Promise.all([read("/tables", { signal }), read("/topics", { signal })]);
    tables.show(stored.items, (one) => one.name);
    topics.show(logged.items.filter((one) => !one.name.endsWith("-changelog")), (one) => one.name);
  };
  const reload = soon(() => load().catch(sayProblem), signal, PAUSE_MS);
  listen("figures", signal, (figures) => {
    refill(tiles, ...tilesOf(figures));
    if (figures.records_per_second > 0) reload();
  });
  listen("resync", signal, reload);
  await load();
}

const recordsIn = (topic) => topic.partitions.reduce((all, { start_offset, end_offset }) => all + end_offset - start_offset, 0);

function tilesOf(figures) {
  const waiting = figures.aggregates_waiting;
  return [
    tile("Throughput", perSecond(figures.records_per_second), `${perSecond(figures.commits_per_second)} commits`),
    tile("Lag", number(figures.lag_records), figures.lag_seconds ? `oldest ${seconds(figures.lag_seconds)}` : "nothing waits"),
    tile("Dead letters", number(figures.dead_letters), waiting ? `${number(waiting)} waiting behind them` : "nothing waits", "#/dead-letters"),
    tile("Partitions", number(figures.partitions), figures.workers === 1 ? "1 worker" : `${number(figures.workers)} workers`),
  ];
}

function tile(name, value, note, href = null) {
  const inside = [el("span", {}, name), el("strong", {}, value), el("small", {}, note)];
  return href ? el("a", { class: "tile", href }, inside) : el("div", { class: "tile" }, inside);
}
