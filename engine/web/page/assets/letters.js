// Dead letters: what failed alike, and each of them, to be tried again or given up.

import { read } from "./api.js";
import { sayProblem } from "./dialogs.js";
import { card, el, field, moreButton, pill, table } from "./dom.js";
import { number, time } from "./format.js";
import { letterActions } from "./letter-actions.js";
import { letterLink } from "./links.js";
import { listen, soon } from "./live.js";

const PAGE = 50;

export async function lettersPage({ root, signal }) {
  const state = select("State", ["open", "retrying", "resolved", "discarded", "all"]);
  const error = el("input", { type: "search", maxlength: "200", placeholder: "type or text", onchange: () => reload() });
  const groups = groupTable();
  const letters = letterTable(() => reload());
  let items = [];
  let cursor = null;
  const query = (more) => new URLSearchParams({ state: state.value, ...(error.value && { error: error.value }), ...more });
  const { button, offer } = moreButton(() => loadMore().catch(sayProblem));
  const show = (page) => {
    offer((cursor = page.next_cursor));
    letters.show(items, (letter) => letter.id);
  };
  const loadMore = async () => {
    const page = await read(`/dead-letters?${query({ limit: PAGE, cursor })}`, { signal });
    items = [...items, ...page.items];
    show(page);
  };
  const load = async () => {
    const [page, alike] = await Promise.all([
      read(`/dead-letters?${query({ limit: PAGE })}`, { signal }),
      read(`/dead-letters/groups?${query({ limit: 20 })}`, { signal }),
    ]);
    items = page.items;
    show(page);
    groups.show(alike.items, (group) => group.fingerprint);
  };
  const reload = soon(() => load().catch(sayProblem), signal, 150);
  state.addEventListener("change", reload);
  listen("dead-letters", signal, reload);
  listen("resync", signal, reload);
  root.append(
    el("div", { class: "row filters" }, field("State", state), field("Error", error)),
    card("What failed alike", null, groups.node),
    card("Letters", null, letters.node, el("div", { class: "actions" }, button)),
  );
  await load();
}

function select(name, values) {
  return el("select", { name }, values.map((value) => el("option", { value }, value)));
}

function groupTable() {
  return table(
    "What failed alike",
    [
      { name: "Count", cell: (group) => number(group.count) },
      { name: "Error", cell: (group) => el("span", { class: "clamp" }, `${group.error_type}: ${group.error}`) },
      { name: "Agent", minor: true, cell: (group) => group.agent },
      { name: "Waiting", number: true, minor: true, cell: (group) => number(group.waiting) },
      { name: "Example", cell: (group) => letterLink(group.example_id, "example") },
    ],
    { empty: "Nothing has failed." },
  );
}

function letterTable(changed) {
  return table(
    "Dead letters",
    [
      { name: "Letter", cell: (letter) => letterLink(letter.id) },
      { name: "State", minor: true, cell: (letter) => pill(letter.state) },
      { name: "Key", cell: (letter) => letter.key },
      { name: "Error", cell: (letter) => el("span", { class: "clamp" }, `${letter.error_type}: ${letter.error}`) },
      { name: "Topic", minor: true, cell: (letter) => letter.topic },
      { name: "Failed", minor: true, cell: (letter) => time(letter.failed_at) },
      { name: "Actions", cell: (letter) => letterActions(letter, changed) },
    ],
    { empty: "No dead letters." },
  );
}
