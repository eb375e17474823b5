/* What the browser keeps: each conversation under a name of its own, so that windows do not write over each other's. `storage` is
 * a Storage, which may be full: then writing throws. */

import { readConversation, titleOf } from "./conversation.js";

const FORMAT = "moebius-conversations";

/* crypto.randomUUID() is not there for pages that come by plain http from another machine. */
export const newId = () => Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("-");

export class Store {
  /* `place`: the page's path: several servers may be behind one name. */
  constructor(storage, place) {
    this.storage = storage;
    this.front = `moebius:${place}:`;
  }

  read(name, otherwise) {
    try {
      return JSON.parse(this.storage.getItem(this.front + name)) ?? otherwise;
    } catch {
      return otherwise;
    }
  }

  write(name, value) {
    this.storage.setItem(this.front + name, JSON.stringify(value));
  }

  forget(name) {
    this.storage.removeItem(this.front + name);
  }

  /* --- conversations --- */

  #ids() {
    return Array.from({ length: this.storage.length }, (_, at) => this.idOf(this.storage.key(at))).filter(Boolean);
  }

  /* The conversation, or undefined: one that cannot be read is left where it is. */
  load(id) {
    try {
      return readConversation(this.read("chat:" + id));
    } catch {
      return undefined;
    }
  }

  save(conversation) {
    this.write("chat:" + conversation.id, conversation);
  }

  remove(id) {
    this.forget("chat:" + id);
  }

  /* The id of the conversation that goes by `name` in the storage, or undefined. */
  idOf(name) {
    const front = this.front + "chat:";
    return name?.startsWith(front) ? name.slice(front.length) : undefined;
  }

  #all() {
    const all = this.#ids().map((id) => this.load(id)).filter(Boolean);
    return all.sort((a, b) => b.updated - a.updated);
  }

  /* [{id, title, updated}], the newest first. */
  list() {
    return this.#all().map((conversation) => ({ id: conversation.id, title: titleOf(conversation), updated: conversation.updated }));
  }

  exported() {
    return JSON.stringify({ format: FORMAT, conversations: this.#all() }, null, 1);
  }

  /* How many conversations of the file's text were new. All of them are looked at before one is written; what is here stays. */
  take(text, newId) {
    const file = JSON.parse(text);
    if (file?.format !== FORMAT || !Array.isArray(file.conversations)) throw new Error("no file of conversations");
    const read = file.conversations.map(readConversation).filter((conversation) => !this.#has(conversation));
    for (const conversation of read) {
      if (this.#ids().includes(conversation.id)) conversation.id = newId();
      this.save(conversation);
    }
    return read.length;
  }

  #has(conversation) {
    return JSON.stringify(this.load(conversation.id)) === JSON.stringify(conversation);
  }
}
