// The pages that every application has; one with more of them has its own file of this name.

import { startFrame } from "./frame.js";
import { letterPage } from "./letter.js";
import { lettersPage } from "./letters.js";
import { overviewPage } from "./overview.js";

startFrame([
  [/^\/?$/, "Overview", overviewPage],
  [/^\/dead-letters$/, "Dead letters", lettersPage],
  [/^\/dead-letters\/([^/]+)$/, (id) => `Dead letter ${id}`, letterPage],
]);
