// Links to what has a page of its own.

import { el } from "./dom.js";

const link = (kind, className = null) => (id, text = id) => (id ? el("a", { href: `#/${kind}/${encodeURIComponent(id)}`, class: className }, text) : null);

export const orderLink = link("orders");
export const customerLink = link("customers");
export const productLink = link("products");
export const letterLink = link("dead-letters", "id");

/** What the key of a record shows. */
export const keyLink = orderLink;
