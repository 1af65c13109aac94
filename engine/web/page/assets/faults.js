// What is missing, damaged or stands still: a sentence for each fault of any worker, above every page.

import { el } from "./dom.js";
import { listen } from "./live.js";

const place = document.getElementById("faults");
let shown = "";

/** Show the faults of the last figures, and nothing where there is none. */
export function startFaults() {
  listen("figures", new AbortController().signal, ({ faults = [] }) => {
    const now = JSON.stringify(faults);
    if (now === shown) return; // an alert that is replaced is read aloud again
    shown = now;
    place.hidden = faults.length === 0;
    place.replaceChildren(...faults.map((sentence) => el("p", {}, sentence)));
  });
}
