// The frame around all pages: titles, focus, navigation and the search.

import { forgetErrors, sayProblem } from "./dialogs.js";
import { el } from "./dom.js";
import { startFaults } from "./faults.js";
import { start } from "./live.js";

const NAME = document.title;
let routes = [];

const main = document.getElementById("main");
let current = null;

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

async function show(isFirst) {
  current?.abort();
  const control = (current = new AbortController());
  const address = location.hash.replace(/^#/, "") || "/";
  const [found, name, page] = routes.map(([pattern, ...rest]) => [address.match(pattern), ...rest]).find(([match]) => match);
  const id = found[1] === undefined ? undefined : decoded(found[1]);
  const title = typeof name === "string" ? name : name(id);
  const heading = el("h1", { tabindex: "-1" }, title);
  const root = el("div", { class: "page", "aria-busy": "true" });
  document.title = `${title} · ${NAME}`;
  mark(address);
  main.replaceChildren(el("div", { class: "page-head" }, heading), root);
  if (!isFirst) {
    scrollTo(0, 0);
    heading.focus({ preventScroll: true });
  }
  try {
    await page({ root, head: heading.parentElement, signal: control.signal, id });
  } catch (error) {
    if (control.signal.aborted) return;
    root.append(el("p", { class: "problem" }, error.message));
    if (error.status === undefined) throw error;
  } finally {
    root.removeAttribute("aria-busy");
  }
}

function nothing({ root }) {
  root.append(el("p", {}, "There is no such page. ", el("a", { href: "#/" }, "Go to the overview")));
}

function mark(address) {
  for (const link of document.querySelectorAll("#nav a")) {
    const target = link.hash.replace(/^#/, "");
    const isHere = target === "/" ? address === "/" : address === target || address.startsWith(`${target}/`);
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

/**
 * Show the page that the address asks for, from now on. A route is [pattern, title, page]; the title may be a function of
 * what the pattern has found. A page is called with {root, head, signal, id}: where to draw, when to stop, and what the
 * address names.
 */
export function startFrame(found) {
  routes = [...found, [/^/, "Nothing here", nothing]];
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });
  document.getElementById("search")?.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = document.getElementById("search-text").value.trim();
    if (text) location.hash = `#/search/${encodeURIComponent(text)}`;
  });
  addEventListener("hashchange", () => {
    forgetErrors();
    show(false);
  });
  addEventListener("unhandledrejection", (event) => sayProblem(event.reason));
  startFaults();
  start();
  show(true);
}
