// The pages of the shop, beside those that every application has.

import { customerPage } from "./customer.js";
import { startFrame } from "./frame.js";
import { letterPage } from "./letter.js";
import { lettersPage } from "./letters.js";
import { newOrderPage } from "./new-order.js";
import { orderPage } from "./order.js";
import { ordersPage } from "./orders.js";
import { overviewPage } from "./overview.js";
import { productPage } from "./product.js";
import { sagasPage } from "./sagas.js";
import { searchPage } from "./search.js";

startFrame([
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
]);
