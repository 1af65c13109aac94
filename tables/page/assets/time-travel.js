// The order as it was: after any of its events, or at any time.

import { find, path } from "./api.js";
import { sayProblem } from "./dialogs.js";
import { card, el, facts, field, pill } from "./dom.js";
import { money, number, time } from "./format.js";

export function timeTravel(id, signal) {
  let events = [];
  const slider = el("input", { type: "range", min: "1", max: "1", value: "1", step: "1" });
  const at = el("input", { type: "datetime-local", step: "1" });
  const point = el("p", { class: "point", role: "status" });
  const state = el("div");
  let asked = 0;

  const show = async (query, said) => {
    const mine = ++asked;
    try {
      const order = await find(`${path("orders", id, "state")}?${query}`, { signal });
      if (mine !== asked) return;
      point.textContent = said;
      state.replaceChildren(order === null ? el("p", { class: "empty" }, "There was no order then.") : past(order));
    } catch (error) {
      sayProblem(error);
    }
  };
  const showVersion = () => {
    const version = Number(slider.value);
    const said = `After event ${version} of ${events.length}, ${events[version - 1].event_type}`;
    slider.setAttribute("aria-valuetext", said);
    return show(`version=${version}`, said);
  };
  slider.addEventListener("input", showVersion);
  at.addEventListener("change", () => {
    if (at.value) show(`at=${encodeURIComponent(`${at.value}Z`)}`, `At ${at.value.replace("T", " ")} UTC`);
  });

  return {
    node: card("Time travel", null, field("Event", slider), field("Or a time (UTC)", at), point, state),
    show(found) {
      const isFirst = events.length === 0;
      const wasLast = Number(slider.value) === events.length;
      const changed = found.length !== events.length;
      events = found;
      slider.max = String(Math.max(1, events.length));
      if (!changed || events.length === 0 || at.value) return;
      if (isFirst || wasLast) {
        slider.value = String(events.length);
        showVersion();
      }
    },
  };
}

function past(order) {
  return facts([
    ["Status", pill(order.status)],
    ["Total", money(order.total)],
    ["Pieces", number(order.item_count)],
    ["Placed", time(order.created_at)],
    ["Confirmed", time(order.confirmed_at)],
    ["Shipped", time(order.shipped_at)],
    ["Cancelled", time(order.cancelled_at)],
    ["Reason", order.cancel_reason],
  ]);
}
