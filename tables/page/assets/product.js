// One product: what there is of it, and adding to it.

import { change, find, path } from "./api.js";
import { say, sayProblem } from "./dialogs.js";
import { card, el, facts, field, slot } from "./dom.js";
import { number } from "./format.js";
import { listen, soon } from "./live.js";

export async function productPage({ root, signal, id }) {
  const stock = slot("Stock");
  const draw = (found) =>
    stock.fill(
      found === null
        ? el("p", { class: "empty" }, "Nobody has said yet what there is of it.")
        : facts([
            ["On hand", number(found.on_hand)],
            ["Reserved", number(found.reserved)],
            ["Available", number(found.available)],
          ]),
    );
  const load = async (query = "") => draw(await find(path("inventory", id) + query, { signal }));
  const quantity = el("input", { type: "number", min: "0", max: "1000000000", step: "1", required: true });
  const form = el("form", { class: "row" }, field("Pieces on hand", quantity), el("button", { type: "submit", class: "primary" }, "Set"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const { token } = await change("PUT", `${path("inventory", id)}?wait=10s`, { quantity: Number(quantity.value) });
      say(token === undefined ? `Stock of ${id} is set` : `Stock of ${id} is being set`); // a token: it takes longer
      await load();
    } catch (error) {
      sayProblem(error);
    }
  });
  root.append(stock.section, card("Set the stock", null, form));
  listen("orders", signal, soon(() => load().catch(sayProblem), signal, 1000));
  await load();
}
