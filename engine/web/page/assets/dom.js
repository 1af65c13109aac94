// Elements from data. Text goes in as text nodes only, so nothing that a customer has typed can become markup.

/** An element; `on…` attributes are listeners, true and false switch attributes on and off, null leaves them out. */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...present(children));
  return element;
}

const present = (children) => children.flat().filter((child) => child !== null && child !== undefined);

/** A card with a heading; `extra` stands beside the heading. */
export function card(title, extra, ...children) {
  const heading = el("h2", {}, title);
  return el("section", { class: "card", "aria-label": title }, el("div", { class: "card-head" }, heading, extra), ...children);
}

/** A card whose content comes later, and may change. */
export function slot(title, extra = null, attributes = {}) {
  const body = el("div", attributes);
  return { section: card(title, extra, body), fill: (...children) => refill(body, ...children), body };
}

/**
 * Give an element these children, leaving what looks the same where it is: a click that has begun there, or the focus,
 * is not lost. Listeners stay with what they are on, so what they act on has to show, in a label or an address.
 */
export function refill(element, ...children) {
  const wanted = document.createDocumentFragment();
  wanted.append(...present(children));
  const before = [...element.childNodes];
  const after = [...wanted.childNodes];
  after.forEach((child, index) => (index < before.length ? refresh(before[index], child) : element.append(child)));
  before.slice(after.length).forEach((child) => child.remove());
}

function refresh(node, fresh) {
  if (node.nodeName === "DETAILS") fresh.open = node.open; // what the reader has opened stays open
  if (node.isEqualNode(fresh)) return;
  const isAlike = node.cloneNode().isEqualNode(fresh.cloneNode());
  if (isAlike) refill(node, ...fresh.childNodes);
  else node.replaceWith(fresh);
}

/** The state of something as a word, coloured by what it means. */
export function pill(state, label = state.replaceAll("_", " ")) {
  return el("span", { class: "pill", "data-state": state }, label);
}

/** Facts as pairs of name and value; those without a value are left out. */
export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", { class: "facts" }, shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

/**
 * A table. A column is {name, cell: row => child, number?, minor?}: numbers are flush right, minor columns give way on
 * phones. Rows with the same key keep their elements, as `refill` does.
 */
export function table(caption, columns, { empty = "Nothing here." } = {}) {
  const head = el("tr", {}, columns.map((column) => el("th", { scope: "col", class: classOf(column) }, column.name)));
  const body = el("tbody");
  const none = el("p", { class: "empty" }, empty);
  const grid = el("table", {}, el("caption", { class: "hidden" }, caption), el("thead", {}, head), body);
  const wrap = el("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" }, grid);
  const node = el("div", {}, wrap, none);
  const drawn = new Map(); // key to [row element, what it shows]

  const cells = (row) => columns.map((column) => el("td", { class: classOf(column) }, column.cell(row) ?? "–"));
  const show = (rows, keyOf = (row) => JSON.stringify(row)) => {
    const kept = new Set();
    rows.forEach((row, index) => {
      const key = keyOf(row);
      const text = JSON.stringify(row);
      kept.add(key);
      const [element, before] = drawn.get(key) ?? [el("tr")];
      if (before !== text) refill(element, ...cells(row));
      drawn.set(key, [element, text]);
      if (body.children[index] !== element) body.insertBefore(element, body.children[index] ?? null);
    });
    for (const [key, [element]] of drawn) {
      if (kept.has(key)) continue;
      element.remove();
      drawn.delete(key);
    }
    wrap.hidden = rows.length === 0;
    none.hidden = rows.length !== 0;
  };
  show([]);
  return { node, show };
}

const classOf = (column) => [column.number && "number", column.minor && "minor"].filter(Boolean).join(" ") || null;

/** A field of a form with its label; `note` explains it. */
export function field(label, input, note = null) {
  const id = input.id || `f-${Math.random().toString(36).slice(2)}`;
  input.id = id;
  if (note) input.setAttribute("aria-describedby", `${id}-note`);
  return el("div", { class: "field" }, el("label", { for: id }, label), input, note && el("small", { id: `${id}-note` }, note));
}

/** A button that asks for the next page. */
export function moreButton(load) {
  const button = el("button", { type: "button", class: "quiet", hidden: true, onclick: load }, "Show more");
  return { button, offer: (cursor) => (button.hidden = !cursor) };
}
