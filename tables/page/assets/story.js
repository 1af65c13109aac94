// The story of an order: what was asked, what happened and what was sent, each below what caused it.

import { card, el, pill, refill } from "./dom.js";
import { time } from "./format.js";

export function storyTree() {
  const tree = el("div", { class: "story scroll", role: "region", "aria-label": "Story", tabindex: "0" });
  const node = card("What caused what", null, tree);
  return {
    node,
    show(roots) {
      node.hidden = roots.length === 0;
      refill(tree, branches(roots));
    },
  };
}

function branches(nodes) {
  return el("ul", {}, nodes.map((node) => el("li", {}, line(node), node.children.length ? branches(node.children) : null)));
}

function line(node) {
  const about = [node.aggregate_id, node.state, node.detail].filter(Boolean).join(", ");
  return el("div", { class: "happening" }, pill(node.kind), el("strong", {}, node.type), time(node.at), about && el("span", {}, about));
}
