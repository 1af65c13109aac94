// Requests to the worker. Answers are JSON; errors are problems (RFC 9457) and become `Problem`s.

import { askForToken } from "./dialogs.js";

const TOKEN = `${document.documentElement.dataset.application}-token`;

export class Problem extends Error {
  constructor(status, body) {
    const fields = (body.errors ?? []).map((error) => `${error.field}: ${error.message}`);
    super(fields.length ? fields.join("; ") : body.detail || `the worker answered ${status}`);
    this.status = status;
    this.reason = body.reason;
  }
}

/** A path of the API from its parts. */
export const path = (...parts) => parts.map((part) => `/${encodeURIComponent(part)}`).join("");

async function request(method, url, { body, headers = {}, signal } = {}) {
  const sent = { Accept: "application/json", ...headers };
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(url, { method, signal, headers: sent, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "the worker cannot be reached" });
  }
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Problem(answer.status, found);
  return found;
}

/** What is at an address. */
export const read = (url, options) => request("GET", url, options);

/** What is at an address, or null when there is nothing. */
export async function find(url, options) {
  try {
    return await read(url, options);
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** A changing request; where the worker wants a token, it is asked for and kept until the tab is closed. */
export async function change(method, url, body, headers = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const sent = token ? { ...headers, Authorization: `Bearer ${token}` } : headers;
    try {
      return await request(method, url, { body: body ?? {}, headers: sent });
    } catch (error) {
      if (error.status !== 401) throw error;
      sessionStorage.removeItem(TOKEN);
      const given = await askForToken(token !== null);
      if (given === null) throw error;
      sessionStorage.setItem(TOKEN, given);
    }
  }
}
