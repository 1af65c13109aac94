// What has happened to an order: its events by business time, and how its saga went by the worker's clock.

import { card, el, refill, slot } from "./dom.js";
import { time } from "./format.js";

export function timeline() {
  const events = slot("Timeline");
  const process = el("ol", { class: "timeline small" });
  const behind = el("details", {}, el("summary", {}, "Commands and replies of the saga"), process);
  return {
    node: card("What happened", null, events.body, behind),
    show(items, happenings) {
      events.fill(el("ol", { class: "timeline" }, items.map(entry)));
      behind.hidden = happenings.length === 0;
      refill(process, ...happenings.map(step));
    },
  };
}

function entry(event) {
  const said = event.payload.detail ?? event.payload.reason;
  const all = el(
    "details",
    { "data-event": event.event_id },
    el("summary", {}, "Event"),
    el("pre", { tabindex: "0", "aria-label": `Event ${event.event_type}` }, JSON.stringify(event, null, 2)),
  );
  return el("li", { "data-kind": event.event_type }, el("strong", {}, event.event_type), " ", time(event.timestamp), said && el("p", {}, said), all);
}

function step(happening) {
  const where = [happening.step, happening.line && `line ${happening.line}`, happening.detail].filter(Boolean).join(", ");
  return el("li", { "data-kind": happening.type }, el("strong", {}, happening.type), " ", time(happening.at), where && el("p", {}, where));
}
