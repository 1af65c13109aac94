// One dead letter in full: the record, why it failed, what was done about it, and what waits behind it.

import { find, path } from "./api.js";
import { sayProblem } from "./dialogs.js";
import { card, el, facts, field, pill, refill, slot, table } from "./dom.js";
import { number, time } from "./format.js";
import { letterActions, send } from "./letter-actions.js";
import { keyLink } from "./links.js";
import { listen, soon } from "./live.js";

export async function letterPage({ root, head, signal, id }) {
  const state = el("span");
  const actions = el("div");
  head.append(state, actions);
  const why = slot("Why it failed");
  const about = slot("Where it comes from");
  const record = slot("The record");
  const done = actionTable();
  root.append(
    el("div", { class: "grid two" }, about.section, card("What was done", null, done.node)),
    why.section,
    record.section,
  );
  const load = async () => {
    const letter = await find(path("dead-letters", id), { signal });
    if (letter === null) throw Object.assign(new Error(`There is no dead letter ${id}.`), { status: 404 });
    refill(state, pill(letter.state));
    refill(actions, letterActions(letter, reload));
    about.fill(letterFacts(letter));
    why.fill(
      el("p", { class: "problem" }, `${letter.error_type}: ${letter.error}`),
      letter.refusal ? el("p", {}, letter.refusal.detail) : "",
      el("details", {}, el("summary", {}, "Trace"), el("pre", { tabindex: "0", "aria-label": "Trace" }, letter.trace)),
    );
    record.fill(recordOf(letter, reload));
    done.show(letter.actions);
  };
  const reload = soon(() => load().catch(sayProblem), signal, 150);
  listen("dead-letters", signal, ({ items, left_out }) => (left_out > 0 || items.some((one) => one.id === id)) && reload());
  listen("resync", signal, reload);
  await load();
}

function letterFacts(letter) {
  return facts([
    ["Key", keyLink(letter.key)],
    ["Type", letter.event_type],
    ["Topic", `${letter.topic}, partition ${letter.partition}, offset ${letter.offset}`],
    ["Agent", letter.agent],
    ["Failed", time(letter.failed_at)],
    ["Tried again", `${number(letter.retry_count)} times by itself, ${number(letter.replays)} times by hand`],
    ["Waiting behind it", number(letter.waiting)],
    ["Closed", time(letter.closed_at)],
  ]);
}

function actionTable() {
  return table(
    "What was done about the letter",
    [
      { name: "When", cell: (action) => time(action.at) },
      { name: "What", cell: (action) => (action.refused ? `${action.action}, not carried out: ${action.refused.detail}` : action.action) },
      { name: "Detail", cell: (action) => action.detail },
    ],
    { empty: "Nothing yet." },
  );
}

function recordOf(letter, changed) {
  const text = letter.value === undefined ? letter.value_base64 ?? "" : JSON.stringify(letter.value, null, 2);
  const shown = el("pre", { tabindex: "0", "aria-label": "The record" }, text || "It is too large to be kept here.");
  const payload = letter.value?.payload;
  if (letter.state !== "open" || typeof payload !== "object" || payload === null) return shown;
  return el("div", { class: "stack" }, shown, edit(letter.id, payload, changed));
}

function edit(id, payload, changed) {
  const text = el("textarea", { id: `payload-${id}`, rows: "8", spellcheck: "false" }, JSON.stringify(payload, null, 2));
  const form = el("form", { class: "stack" }, field("Another payload", text), el("div", { class: "actions" }, el("button", { type: "submit" }, "Retry with this payload")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    try {
      send(id, "retry", { payload: JSON.parse(text.value) }, changed);
    } catch (error) {
      sayProblem(new Error(`The payload is not JSON: ${error.message}`));
    }
  });
  return el("details", {}, el("summary", {}, "Edit and retry"), form);
}
