// The frame around all pages: routes, titles, focus, navigation and the search.

import { forgetErrors, sayProblem } from "./dialogs.js";
import { el } from "./dom.js";
import { startFaults } from "./faults.js";
import { start } from "./live.js";
import { customerPage } from "./customer.js";
import { letterPage } from "./letter.js";
import { lettersPage } from "./letters.js";
import { newOrderPage } from "./new-order.js";
import { orderPage } from "./order.js";
import { ordersPage } from "./orders.js";
import { overviewPage } from "./overview.js";
import { productPage } from "./product.js";
import { sagasPage } from "./sagas.js";
import { searchPage } from "./search.js";

// A page is called with {root, signal, id}: where to draw, when to stop, and what the address names.
const ROUTES = [
  [/^\/?$/, "Overview", overviewPage],
  [/^\/orders$/, "Orders", ordersPage],
  [/^\/orders\/([^/]+)$/, (id) => `Order ${id}`, orderPage],
  [/^\/new$/, "New order", newOrderPage],
  [/^\/customers\/([^/]+)$/, (id) => `Customer ${id}`, customerPage],
  [/^\/products\/([^/]+)$/, (id) => `Product ${id}`, productPage],
  [/^\/sagas$/, "Sagas", sagasPage],
  [/^\/dead-letters$/, "Dead letters", lettersPage],
  [/^\/dead-letters\/([^/]+)$/, (id) => `Dead letter ${id}`, letterPage],
  [/^\/search\/([^/]+)$/, (id) => `Search for ${id}`, searchPage],
  [/^/, "Nothing here", nothing],
];

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
  const [found, name, page] = ROUTES.map(([pattern, ...rest]) => [address.match(pattern), ...rest]).find(([match]) => match);
  const id = found[1] === undefined ? undefined : decoded(found[1]);
  const title = typeof name === "string" ? name : name(id);
  const heading = el("h1", { tabindex: "-1" }, title);
  const root = el("div", { class: "page", "aria-busy": "true" });
  document.title = `${title} · Orders`;
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

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
document.getElementById("search").addEventListener("submit", (event) => {
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
