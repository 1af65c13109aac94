// Links to what has a page of its own; an application has its own file of this name where it has more of them.

import { el } from "./dom.js";

/** A maker of links to the page `kind` of an id. */
export const link = (kind, className = null) => (id, text = id) => (id ? el("a", { href: `#/${kind}/${encodeURIComponent(id)}`, class: className }, text) : null);

export const letterLink = link("dead-letters", "id");

/** What the key of a record shows: here there is no page of aggregates. */
export const keyLink = (key) => key;
