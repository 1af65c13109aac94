// Questions that have to be answered before something happens, and messages about what has.

import { el, field } from "./dom.js";

/** Ask for one line of text; null when the question was put away. `input` are attributes of its field. */
export function ask({ title, text, label, action, input = {}, danger = false }) {
  const line = el("input", { type: "text", ...input });
  const form = el(
    "form",
    { novalidate: false },
    el("h2", { id: "dialog-title" }, title),
    text && el("p", {}, text),
    field(label, line),
    el(
      "div",
      { class: "actions" },
      el("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Not now"),
      el("button", { type: "submit", class: danger ? "danger" : "primary" }, action),
    ),
  );
  const dialog = el("dialog", { "aria-labelledby": "dialog-title" }, form);
  return new Promise((resolve) => {
    let answer = null;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      answer = line.value;
      dialog.close();
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
    line.focus();
  });
}

/** Ask for the worker's token. */
export function askForToken(wasRefused) {
  return ask({
    title: "Token needed",
    text: wasRefused ? "The worker did not accept that token." : "This worker lets only those change things who have its token.",
    label: "ORDERS_API_TOKEN",
    action: "Go on",
    input: { type: "password", required: true, autocomplete: "off", spellcheck: "false" },
  });
}

/** Say what has happened; read out by screen readers. An error stays until there is something else to say. */
export function say(text, isError = false) {
  forgetErrors();
  const box = el("div", { class: isError ? "message error" : "message", role: isError ? "alert" : null }, el("span", {}, text));
  box.append(el("button", { type: "button", class: "icon-button", "aria-label": "Dismiss", onclick: () => box.remove() }, "×"));
  document.getElementById("messages").append(box);
  if (!isError) setTimeout(() => box.remove(), 6000);
}

/** Take errors away that were said before. */
export function forgetErrors() {
  for (const old of document.querySelectorAll(".message.error")) old.remove();
}

/** Say why something did not work, unless it was only put away. */
export function sayProblem(error) {
  if (error.name === "AbortError") return;
  say(error.message, true);
}
