// Sagas: how many stand where, those that wait for somebody, and aggregates that stand still.

import { change, path, read } from "./api.js";
import { sayProblem, say } from "./dialogs.js";
import { card, el, table } from "./dom.js";
import { number, time } from "./format.js";
import { letterLink, orderLink } from "./links.js";
import { listen, soon } from "./live.js";
import { sagaFunnel, steps } from "./overview.js";

const STATES = ["running", "completed", "compensating", "compensated", "compensation_failed"];
const SHOWN = 100;

export async function sagasPage({ root, signal }) {
  const counts = stateTiles();
  const funnel = sagaFunnel();
  signal.addEventListener("abort", () => funnel.end());
  const stuck = stuckTable(async (orderId, button) => {
    button.disabled = true;
    try {
      await change("POST", path("sagas", orderId, "resume"));
      say(`The saga of order ${orderId} tries again`);
    } catch (error) {
      sayProblem(error);
    }
    button.disabled = false;
    reload();
  });
  const waiting = waitingTable();
  root.append(
    counts.node,
    card("Stuck sagas", null, el("p", { class: "note" }, "A step could not be undone. Mend the cause, then resume."), stuck.node),
    card("Aggregates that stand still", null, el("p", { class: "note" }, "Their records wait behind one that failed."), waiting.node),
    funnel.node,
  );
  const load = async () => {
    const [failed, lanes, summary] = await Promise.all([
      read(`/sagas?state=compensation_failed&limit=${SHOWN}`, { signal }),
      read(`/aggregates/waiting?limit=${SHOWN}`, { signal }),
      read("/analytics/summary", { signal }),
    ]);
    stuck.show(failed.items, (saga) => saga.order_id);
    waiting.show(lanes.items, (lane) => `${lane.partition} ${lane.agent} ${lane.key}`);
    funnel.show(...steps(summary));
  };
  const reload = soon(() => load().catch(sayProblem), signal, 400);
  listen("figures", signal, (figures) => counts.show(figures.sagas));
  for (const name of ["sagas", "dead-letters", "resync"]) listen(name, signal, reload);
  await load();
}

function stateTiles() {
  const values = new Map(STATES.map((state) => [state, el("strong", {}, "–")]));
  const tiles = STATES.map((state) => el("div", { class: "tile" }, el("span", {}, state.replaceAll("_", " ")), values.get(state)));
  return {
    node: el("section", { class: "tiles", "aria-label": "Sagas by state" }, tiles),
    show: (sagas) => STATES.forEach((state) => (values.get(state).textContent = number(sagas[state] ?? 0))),
  };
}

function stuckTable(resume) {
  return table(
    "Stuck sagas",
    [
      { name: "Order", cell: (saga) => orderLink(saga.order_id) },
      { name: "Step", cell: (saga) => (saga.line ? `${saga.step}, line ${saga.line}` : saga.step) },
      { name: "Error", cell: (saga) => saga.error },
      { name: "Since", minor: true, cell: (saga) => time(saga.failed_at) },
      {
        name: "Action",
        cell: (saga) =>
          el("button", { type: "button", "aria-label": `Resume the saga of order ${saga.order_id}`, onclick: (event) => resume(saga.order_id, event.target) }, "Resume"),
      },
    ],
    { empty: "No saga is stuck." },
  );
}

function waitingTable() {
  return table(
    "Aggregates that stand still",
    [
      { name: "Key", cell: (lane) => lane.key },
      { name: "Agent", cell: (lane) => lane.agent },
      { name: "Waiting", number: true, cell: (lane) => number(lane.waiting) },
      { name: "Since", minor: true, cell: (lane) => time(lane.since) },
      { name: "Goes on", cell: (lane) => (lane.dead_letter_id ? letterLink(lane.dead_letter_id, "after its dead letter") : time(lane.next_retry_at)) },
    ],
    { empty: "Nothing stands still." },
  );
}
