/* The page: waits for the server, and shows its tabs. */

import { chatTab } from "./chat.js";
import { Client } from "./client.js";
import { completeTab } from "./complete.js";
import { byId } from "./dom.js";
import { askForKey, settingsPanel } from "./settings.js";
import { Store } from "./store.js";

const AGAIN_MS = 1000;
const NOTE_MS = 8000;

const place = new URL(".", location.href); // the server may be below a path
const store = new Store(localStorage, place.pathname);
const client = new Client(place);
client.key = store.read("key", "");

/* --- what the user is told --- */

let noteTimer;

/* For a while, or (`stays`) until the next one; "": nothing. */
function report(text, stays = false) {
  const note = byId("note");
  clearTimeout(noteTimer);
  note.textContent = text;
  note.hidden = !text;
  if (text && !stays) noteTimer = setTimeout(() => report(""), NOTE_MS);
}

/* The browser's storage may be full, or closed to pages. */
function keep(work) {
  try {
    work();
  } catch (error) {
    report(`not kept (${error.message}): export conversations, and delete some`);
  }
}

/* --- tabs --- */

const TABS = ["chat", "complete"];
const tabOf = (name) => byId("tab-" + name);
const shownTab = () => TABS.find((name) => !byId(name).hidden);

function showTab(name) {
  for (const other of TABS) {
    byId(other).hidden = other !== name;
    tabOf(other).setAttribute("aria-selected", String(other === name));
    tabOf(other).tabIndex = other === name ? 0 : -1;
  }
  document.body.dataset.tab = name;
}

function listenToTabs() {
  for (const name of TABS) {
    tabOf(name).onclick = () => showTab(name);
    tabOf(name).onkeydown = ({ key }) => {
      if (key !== "ArrowLeft" && key !== "ArrowRight") return;
      const other = TABS.find((tab) => tab !== name);
      showTab(other);
      tabOf(other).focus();
    };
  }
  byId("menu").onclick = () => document.body.classList.toggle("with-list");
}

/* --- the server --- */

/* What the tabs must know of the model. */
async function describe() {
  const [first] = (await client.get("v1/models")).data;
  const props = await client.get("props");
  const { capabilities } = await client.post("api/show", { model: first.id });
  return {
    id: first.id,
    context: first.max_model_len,
    hasChat: first.chat,
    hasHoles: first.fim,
    canThink: capabilities.includes("thinking"),
    defaults: props.openai_defaults,
  };
}

const STATUS_TEXTS = { loading: "The model is loading …", draining: "The server is shutting down …" };

/* Waits until the server is there and takes the key. */
async function connect() {
  for (;;) {
    try {
      const status = await client.health();
      if (status === "ok") return await describe();
      report(STATUS_TEXTS[status] ?? `The server says: ${status}`, true);
    } catch (error) {
      if (error.status === 401) {
        client.key = await askForKey(store, keep, error.message);
        continue;
      }
      report(`${error.message}; trying again …`, true);
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

let connecting = null;

async function start() {
  const model = await connect();
  report("");
  byId("model").textContent = model.id;
  document.title = `${model.id} – Moebius`;
  settings.fit(model);
  for (const tab of Object.values(tabs)) tab.fit(model);
  return model;
}

/* An answer failed: where the server is gone, or wants another key, that is seen to. */
function failed({ status }) {
  if (status !== 0 && status !== 401 && status !== 503) return;
  connecting ??= start().finally(() => (connecting = null));
}

const settings = settingsPanel(store, keep);
const world = { client, store, settings, report, keep, failed };
const tabs = { chat: chatTab(world), complete: completeTab(world) };

listenToTabs();
showTab("chat");
addEventListener("keydown", ({ key }) => {
  if (key === "Escape" && !document.querySelector("dialog[open]")) tabs[shownTab()].stop();
});
const { hasChat } = await start();
if (!hasChat) {
  tabOf("complete").after(tabOf("chat")); // what works comes first
  showTab("complete");
}
