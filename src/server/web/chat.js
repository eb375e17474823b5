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

export class Chat {
  /* `failed(error)`: an answer ended with it; `report(text)` tells the user. */
  constructor({ client, store, settings, report, failed }) {
    Object.assign(this, { client, store, settings, report, failed });
    this.views = new Map(); // of the messages shown, by their places
    this.running = null; // {conversation, place, stop(), save}
    this.log = byId("log");
    this.say = byId("say");
    this.system = byId("system");
    this.list = sidebar(store, {
      open: (id) => this.open(id),
      create: () => this.create(),
      rename: (id, title) => this.rename(id, title),
      remove: (id) => this.remove(id),
      changed: () => this.showList(),
      report,
    });
    this.listen();
    this.openLast();
  }

  listen() {
    byId("composer").onsubmit = (event) => {
      event.preventDefault();
      if (this.running) this.stop();
      else this.ask(this.say.value);
    };
    this.say.onkeydown = (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.running) this.ask(this.say.value);
    };
    this.say.oninput = () => {
      this.fitField();
      this.attempt(() => this.store.write("draft", this.say.value));
    };
    this.say.value = this.store.read("draft", "");
    this.system.oninput = () => {
      this.conversation.system = this.system.value;
      if (this.conversation.messages.length) this.save(this.conversation);
    };
    addEventListener("pagehide", () => this.running?.save.now());
    addEventListener("storage", ({ key }) => this.takeOver(key));
  }

  /* Once the server is there: {id, context, hasChat}. */
  fit(model) {
    this.model = model;
    byId("no-chat").hidden = model.hasChat;
    this.say.disabled = !model.hasChat;
    this.showState();
  }

  /* --- conversations --- */

  openLast() {
    const known = this.store.list();
    const last = known.find(({ id }) => id === this.store.read("open")) ?? known[0];
    if (last) this.open(last.id);
    else this.create();
  }

  /* It is kept from its first message on. */
  create() {
    this.show(newConversation(newId(), Date.now(), this.conversation?.system));
    this.say.focus();
  }

  open(id) {
    const isRunning = this.running?.conversation.id === id;
    const conversation = isRunning ? this.running.conversation : this.store.load(id);
    if (!conversation) return this.report("this conversation cannot be read");
    this.attempt(() => this.store.write("open", id));
    this.show(conversation);
  }

  rename(id, title) {
    const conversation = this.conversation.id === id ? this.conversation : this.store.load(id);
    conversation.title = title;
    this.save(conversation);
    this.showList();
  }

  remove(id) {
    if (this.running?.conversation.id === id) {
      this.running.isRemoved = true;
      this.stop();
    }
    this.store.remove(id);
    if (this.conversation.id === id) this.openLast();
    else this.showList();
  }

  /* Another window of this page has changed what is kept. */
  takeOver(key) {
    if (!this.store.isConversation(key)) return;
    const { id } = this.conversation;
    const changed = this.store.isConversation(key, id) && this.running?.conversation.id !== id && this.store.load(id);
    if (changed) this.show(changed);
    else this.showList();
  }

  save(conversation) {
    this.attempt(() => this.store.save(conversation));
  }

  /* The browser's storage may be full, or closed to pages. */
  attempt(work) {
    try {
      work();
    } catch (error) {
      this.report(`not kept by the browser: ${error.message}. Export conversations, and delete some.`);
    }
  }

  /* --- questions and answers --- */

  ask(text) {
    if (!text.trim() || !this.isFree()) return;
    append(this.conversation, this.conversation.head, { role: "user", content: text });
    this.say.value = "";
    this.store.forget("draft");
    this.fitField();
    this.answer();
  }

  /* The edited question stands beside the one that was asked. */
  edit(at, text) {
    if (!text.trim() || !this.isFree()) return;
    append(this.conversation, this.conversation.messages[at].parent, { role: "user", content: text });
    this.answer();
  }

  again(at) {
    if (!this.isFree()) return;
    this.conversation.head = this.conversation.messages[at].parent;
    this.answer();
  }

  isFree() {
    if (this.running) this.report("an answer is still being written (Esc stops it)");
    else if (!this.model) this.report("the server is not there yet");
    return !this.running && Boolean(this.model);
  }

  /* What goes wrong with the request, too, is said in the answer's place. */
  async *request(conversation, before, signal) {
    const body = chatRequest(this.model.id, before, conversation.system, this.settings.values);
    yield* this.client.stream("v1/chat/completions", body, signal);
  }

  async answer() {
    const { conversation } = this;
    const before = pathOf(conversation).map((at) => conversation.messages[at]);
    const answer = append(conversation, conversation.head, newAnswer());
    const place = conversation.head;
    const abort = new AbortController();
    const save = sparingly(SAVE_MS, () => this.running?.isRemoved || this.save(conversation));
    const update = sparingly(0, () => this.update(conversation, place));
    this.running = { conversation, place, stop: () => abort.abort(), save };
    conversation.updated = Date.now();
    save.now();
    this.show(conversation);
    const error = await follow(answer, this.request(conversation, before, abort.signal), () => {
      update.soon();
      save.soon();
    });
    save.now();
    this.running = null;
    update.now();
    this.showState();
    if (answer.state === "failed") this.failed(error);
  }

  stop() {
    this.running?.stop();
  }

  /* --- what is shown --- */

  show(conversation) {
    const actions = {
      edit: (at, text) => this.edit(at, text),
      again: (at) => this.again(at),
      show: (at) => {
        select(conversation, at);
        if (this.running?.conversation !== conversation) this.save(conversation);
        this.show(conversation);
      },
    };
    this.conversation = conversation;
    this.views = new Map(pathOf(conversation).map((at) => [at, messageView(conversation, at, actions)]));
    this.log.replaceChildren(...[...this.views.values()].map(({ view }) => view));
    this.system.value = conversation.system;
    byId("system-panel").open = Boolean(conversation.system);
    this.log.scrollTop = this.log.scrollHeight;
    document.body.classList.remove("with-list");
    this.showList();
    this.showState();
  }

  /* Follows the text, unless the user has scrolled away from its end. */
  update(conversation, place) {
    if (this.conversation !== conversation) return;
    const { log } = this;
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PX;
    this.views.get(place)?.update();
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  }

  showList() {
    this.list(this.conversation.id);
  }

  showState() {
    const isRunning = Boolean(this.running);
    const send = byId("send");
    send.textContent = isRunning ? "Stop" : "Send";
    send.disabled = !isRunning && !this.model?.hasChat;
    this.log.setAttribute("aria-busy", String(isRunning)); // read aloud when it is whole
    const used = pathOf(this.conversation).map((at) => contextUsed(this.conversation.messages[at])).findLast(Boolean);
    byId("context").textContent = used && this.model ? `${used} of ${this.model.context} tokens of context` : "";
  }

  /* As tall as its text. */
  fitField() {
    this.say.style.height = "auto";
    this.say.style.height = `${this.say.scrollHeight + 2}px`;
  }
}
