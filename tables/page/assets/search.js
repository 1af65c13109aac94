// The search: an id may be that of an order, a customer or a product; the only one there is is shown at once.

import { find, path } from "./api.js";
import { card, el } from "./dom.js";
import { customerLink, orderLink, productLink } from "./links.js";

const KINDS = [
  ["Order", "orders", orderLink],
  ["Customer", "customers", customerLink],
  ["Product", "inventory", productLink],
];

export async function searchPage({ root, signal, id }) {
  const answers = await Promise.all(KINDS.map(([, kind]) => find(path(kind, id), { signal })));
  const found = KINDS.filter((_, index) => answers[index] !== null).map(([name, , link]) => [name, link(id)]);
  if (found.length === 1) {
    location.replace(found[0][1].hash);
    return;
  }
  if (found.length === 0) {
    root.append(el("p", { role: "status" }, `Nothing is called ${id}: no order, no customer, no product. Ids have to be complete.`));
    return;
  }
  root.append(card("Found", null, el("ul", { class: "plain" }, found.map(([name, link]) => el("li", {}, `${name} `, link)))));
}
