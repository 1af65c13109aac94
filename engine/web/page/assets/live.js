// What happens now, from the worker's stream of server-sent events; one connection for all of the page.

const EVENTS = new Set(["dead-letters", "figures", "resync"]); // and those that pages listen to
const RETRY_MS = 2000;
const HIDDEN_MS = 15000; // a tab that nobody looks at gives its connection back: browsers have few for one address

const events = new EventTarget();
let source = null;
let wasOpen = false;
let hiding = null;

let figures = null; // the last ones

/**
 * Call `take` with what an event says, until `signal` is aborted. `resync` means: read anew what you show. Figures of
 * the last second are told at once.
 */
export function listen(name, signal, take) {
  if (name === "figures" && figures !== null) take(figures);
  events.addEventListener(name, (event) => take(event.detail), { signal });
  if (EVENTS.has(name)) return;
  EVENTS.add(name);
  if (source !== null) hear(source, name);
}

function tell(name, detail) {
  if (name === "figures") figures = detail;
  events.dispatchEvent(new CustomEvent(name, { detail }));
}

function show(state, label) {
  const pill = document.getElementById("live");
  if (pill.dataset.state === state) return;
  pill.dataset.state = state;
  pill.textContent = label;
}

function connect() {
  if (source !== null) return;
  const stream = (source = new EventSource("/live"));
  stream.addEventListener("open", () => {
    show("live", "live");
    if (wasOpen) tell("resync", {});
    wasOpen = true;
  });
  stream.addEventListener("error", () => {
    show("offline", "reconnecting");
    if (stream.readyState !== EventSource.CLOSED || source !== stream) return;
    source = null; // the worker said no, so the browser does not ask again by itself
    setTimeout(connect, RETRY_MS);
  });
  for (const name of EVENTS) hear(stream, name);
}

function hear(stream, name) {
  stream.addEventListener(name, (event) => tell(name, JSON.parse(event.data)));
}

function disconnect() {
  source?.close();
  source = null;
  show("offline", "paused");
}

export function start() {
  connect();
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) hiding = setTimeout(disconnect, HIDDEN_MS);
    else connect();
  });
  addEventListener("pagehide", disconnect);
  addEventListener("pageshow", (event) => event.persisted && connect());
}

/** A function that calls `run` soon, once for many calls, and never again while it still runs. */
export function soon(run, signal, pauseMs = 250) {
  let timer = null;
  let isRunning = false;
  let isWanted = false;
  const go = async () => {
    timer = null;
    if (signal.aborted) return;
    isRunning = true;
    isWanted = false;
    try {
      await run();
    } finally {
      isRunning = false;
      if (isWanted) call();
    }
  };
  const call = () => {
    isWanted = true;
    if (timer === null && !isRunning) timer = setTimeout(go, pauseMs);
  };
  return call;
}
