// Commands on their way: an order is "processing" until the token of its command resolves.

import { find, path, read } from "./api.js";

const WAIT = "10s";
const PAUSE_MS = 1000;

const events = new EventTarget();
const underWay = new Map(); // order id to how many commands

export const isProcessing = (orderId) => underWay.has(orderId);

/** Call `take` with an order's id whenever it begins or ends to be processing. */
export function onProcessing(signal, take) {
  events.addEventListener("change", (event) => take(event.detail), { signal });
}

function count(orderId, change) {
  const now = (underWay.get(orderId) ?? 0) + change;
  if (now > 0) underWay.set(orderId, now);
  else underWay.delete(orderId);
  events.dispatchEvent(new CustomEvent("change", { detail: orderId }));
}

/** The order as the command with this token has left it, however long that takes; null when there is none. */
export async function outcome(orderId, token) {
  count(orderId, 1);
  try {
    for (;;) {
      try {
        return await find(`${path("orders", orderId)}?after=${encodeURIComponent(token)}&timeout=${WAIT}`);
      } catch (error) {
        if (![0, 503, 504].includes(error.status)) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  } finally {
    count(orderId, -1);
  }
}

/** Why the latest command of an order was refused, or null when it was not. */
export async function refusal(orderId) {
  const { items } = await read(path("orders", orderId, "events"));
  const last = items.at(-1);
  return last?.event_type === "order.rejected" ? (last.payload.detail ?? last.payload.reason ?? "refused") : null;
}
