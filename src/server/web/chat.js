/* The tab for conversations. */

import { contextUsed, follow, newAnswer } from "./answer.js";
import { append, newConversation, pathOf, select } from "./conversation.js";
import { byId, sparingly } from "./dom.js";
import { messageView } from "./message.js";
import { chatRequest } from "./request.js";
import { sidebar } from "./sidebar.js";
import { newId } from "./store.js";

const SAVE_MS = 500; // while an answer comes: as much is lost if the browser dies
const NEAR_END_PX = 60;

/* {fit(model), stop()}. `failed(error)`: an answer ended with it; `report(text)` tells the user; `keep(work)` does it, or tells
 * why it cannot be done. */
export function chatTab({ client, store, settings, report, keep, failed }) {
  const [log, say, system, send] = ["log", "say", "system", "send"].map(byId);
  let model; // once the server is there
  let shown; // the conversation
  let views = new Map(); // of its messages, by their places
  let running = null; // {conversation, stop(), save, isOver: what comes yet is not kept}

  const save = (conversation) => keep(() => store.save(conversation));
  const held = (id) => [shown, running?.conversation].find((one) => one?.id === id) ?? store.load(id);
  const stop = () => running?.stop();

  /* --- conversations --- */

  /* It is kept from its first message on. */
  function create() {
    show(newConversation(newId(), Date.now(), shown?.system));
    say.focus();
  }

  function open(id) {
    const conversation = held(id);
    if (!conversation) return report("this conversation cannot be read");
    keep(() => store.write("open", id));
    show(conversation);
  }

  function openLast() {
    const known = store.list().map(({ id }) => id);
    const last = store.read("open");
    if (known.length) open(known.includes(last) ? last : known[0]);
    else create();
  }

  function rename(id, title) {
    const conversation = held(id);
    conversation.title = title;
    save(conversation);
    showList();
  }

  function remove(id) {
    if (running?.conversation.id === id) {
      running.isOver = true;
      stop();
    }
    store.remove(id);
    if (shown.id !== id) return showList();
    shown = undefined;
    openLast();
  }

  /* Another window of this page has changed what is kept. */
  function takeOver({ key }) {
    const id = store.idOf(key);
    const changed = id === shown.id && running?.conversation !== shown && store.load(id);
    if (changed) show(changed);
    else if (id) showList();
  }

  /* What came stays as it is: that the connection is lost now is no error of the server. */
  function leave() {
    if (!running) return;
    running.save.now();
    running.isOver = true;
  }

  /* --- questions and answers --- */

  function isFree() {
    if (running) report("an answer is still being written (Esc stops it)");
    else if (!model) report("the server is not there yet");
    return !running && Boolean(model);
  }

  /* Behind `parent`: an edited question stands beside the one that was asked. Whether it was. */
  function ask(text, parent) {
    if (!text.trim() || !isFree()) return false;
    append(shown, parent, { role: "user", content: text });
    answer();
    return true;
  }

  function again(at) {
    if (!isFree()) return;
    shown.head = shown.messages[at].parent;
    answer();
  }

  /* What goes wrong with the request, too, is said in the answer's place. */
  async function* request(conversation, before, signal) {
    const body = chatRequest(model.id, before, conversation.system, settings.values);
    yield* client.stream("v1/chat/completions", body, signal);
  }

  async function answer() {
    const conversation = shown;
    const before = pathOf(conversation).map((at) => conversation.messages[at]);
    const made = append(conversation, conversation.head, newAnswer());
    const place = conversation.head;
    const abort = new AbortController();
    const saving = sparingly(SAVE_MS, () => running?.isOver || save(conversation));
    const showing = sparingly(0, () => update(conversation, place));
    running = { conversation, stop: () => abort.abort(), save: saving };
    conversation.updated = Date.now();
    saving.now();
    show(conversation);
    const error = await follow(made, request(conversation, before, abort.signal), () => {
      showing.soon();
      saving.soon();
    });
    saving.now();
    running = null;
    showing.now();
    showState();
    if (made.state === "failed") failed(error);
  }

  /* --- what is shown --- */

  function showBranch(at) {
    select(shown, at);
    save(shown);
    show(shown);
  }

  function show(conversation) {
    const edit = (at, text) => ask(text, conversation.messages[at].parent);
    const viewAt = (at) => messageView(conversation, at, { edit, again, show: showBranch });
    shown = conversation;
    views = new Map(pathOf(conversation).map((at) => [at, viewAt(at)]));
    log.replaceChildren(...[...views.values()].map(({ view }) => view));
    system.value = conversation.system;
    byId("system-panel").open = Boolean(conversation.system);
    log.scrollTop = log.scrollHeight;
    document.body.classList.remove("with-list");
    showList();
    showState();
  }

  /* Follows the text, unless the user has scrolled away from its end. */
  function update(conversation, place) {
    if (shown !== conversation) return;
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PX;
    views.get(place)?.update();
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  }

  const showList = () => list(shown.id);

  function showState() {
    const used = pathOf(shown).map((at) => contextUsed(shown.messages[at])).findLast(Boolean);
    send.textContent = running ? "Stop" : "Send";
    send.disabled = !running && !model?.hasChat;
    log.setAttribute("aria-busy", String(Boolean(running))); // read aloud when it is whole
    byId("context").textContent = used && model ? `${used} of ${model.context} tokens of context` : "";
  }

  /* As tall as its text, which is kept until it is sent. */
  function fitField() {
    say.style.height = "auto";
    say.style.height = `${say.scrollHeight + 2}px`;
    keep(() => store.write("draft", say.value));
  }

  function submit() {
    if (!ask(say.value, shown.head)) return;
    say.value = "";
    fitField();
  }

  byId("composer").onsubmit = (event) => {
    event.preventDefault();
    if (running) stop();
    else submit();
  };
  say.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  };
  say.oninput = fitField;
  say.value = store.read("draft", "");
  fitField();
  system.oninput = () => {
    shown.system = system.value;
    if (shown.messages.length) save(shown);
  };
  addEventListener("pagehide", leave);
  addEventListener("storage", takeOver);
  const list = sidebar(store, { open, create, rename, remove, changed: () => showList(), report });
  openLast();

  return {
    stop,
    fit(served) {
      model = served;
      byId("no-chat").hidden = model.hasChat;
      say.disabled = !model.hasChat;
      showState();
    },
  };
}
