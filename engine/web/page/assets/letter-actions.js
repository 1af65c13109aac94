// What may be done about a dead letter.

import { change, path } from "./api.js";
import { ask, say, sayProblem } from "./dialogs.js";
import { el } from "./dom.js";

/** Buttons of a letter that is open; `changed` is called when the worker has taken the command. */
export function letterActions(letter, changed) {
  if (letter.state !== "open") return el("span", { class: "empty" }, "–");
  const retry = el("button", { type: "button", "aria-label": `Retry ${letter.id}`, onclick: () => send(letter.id, "retry", {}, changed) }, "Retry");
  const discard = el("button", { type: "button", class: "danger", "aria-label": `Discard ${letter.id}`, onclick: () => discardFor(letter.id, changed) }, "Discard");
  return el("div", { class: "actions tight" }, retry, discard);
}

async function discardFor(id, changed) {
  const reason = await ask({
    title: `Discard dead letter ${id}?`,
    text: "Its record is given up; what waits behind it goes on.",
    label: "Reason",
    action: "Discard",
    input: { required: true, maxlength: "500", autocomplete: "off" },
    danger: true,
  });
  if (reason !== null) await send(id, "discard", { reason }, changed);
}

/** Send a command about a letter; the answer is shown by `changed`, or as a message. */
export async function send(id, command, body, changed) {
  try {
    await change("POST", `${path("dead-letters", id, command)}?wait=2s`, body);
    say(command === "retry" ? `Letter ${id} is tried again` : `Letter ${id} is discarded`);
    changed();
  } catch (error) {
    sayProblem(error);
  }
}
