/* As much of a browser as the page touches: elements with properties and children, the elements of index.html by their ids (an
 * unknown id gives null, as there), storage, and a server that is a function. Nothing is laid out or drawn. */
import fs from "node:fs";
import { webcrypto } from "node:crypto";

const HTML = fs.readFileSync(new URL("../../src/server/web/index.html", import.meta.url), "utf-8");

class Element {
  nodes = []; // elements and texts
  parent = null;
  attributes = {};
  classes = new Set();
  style = {};
  dataset = {};
  hidden = false;
  disabled = false;
  checked = false;
  value = "";
  scrollTop = 0;
  scrollHeight = 0;
  clientHeight = 0;

  constructor(tag) {
    this.tag = tag;
    this.classList = {
      add: (name) => this.classes.add(name),
      remove: (name) => this.classes.delete(name),
      toggle: (name, on = !this.classes.has(name)) => (on ? this.classes.add(name) : this.classes.delete(name)),
    };
  }
  get children() {
    return this.nodes.filter((node) => node instanceof Element);
  }
  get lastElementChild() {
    return this.children.at(-1) ?? null;
  }
  get textContent() {
    return this.nodes.map((node) => node.textContent ?? node).join("");
  }
  set textContent(text) {
    this.nodes = [String(text)];
  }
  set innerHTML(text) {
    throw new Error(`markup of a string: ${text}`);
  }
  append(...nodes) {
    for (const node of nodes) if (node instanceof Element) node.parent = this;
    this.nodes.push(...nodes);
  }
  replaceChildren(...nodes) {
    this.nodes = [];
    this.append(...nodes);
  }
  replaceWith(node) {
    node.parent = this.parent;
    this.parent.nodes[this.parent.nodes.indexOf(this)] = node;
  }
  after(node) {
    node.parent = this.parent;
    this.parent.nodes.splice(this.parent.nodes.indexOf(this) + 1, 0, node);
  }
  remove() {
    this.parent.nodes.splice(this.parent.nodes.indexOf(this), 1);
  }
  setAttribute(name, value) {
    this.attributes[name] = value;
  }
  focus() {}
  showModal() {
    this.open = true;
  }
  close() {
    this.open = false;
  }
  click() {
    this.onclick({ preventDefault() {} });
  }
  submit() {
    this.onsubmit({ preventDefault() {} });
  }
  type(text) {
    this.value = text;
    this.oninput();
  }
  press(key, more = {}) {
    this.onkeydown({ key, preventDefault() {}, stopPropagation() {}, ...more });
  }

  /* For tests: all elements below, and the first one with this text. */
  *all() {
    for (const child of this.children) {
      yield child;
      yield* child.all();
    }
  }
  find(tag, text) {
    return [...this.all()].find((one) => one.tag === tag && (text === undefined || one.textContent === text));
  }
}

/* A browser's Storage, with room for so many characters. */
export class Storage {
  items = new Map();
  constructor(room = Infinity) {
    this.room = room;
  }
  get length() {
    return this.items.size;
  }
  key(at) {
    return [...this.items.keys()][at] ?? null;
  }
  getItem(name) {
    return this.items.get(name) ?? null;
  }
  setItem(name, text) {
    if (name.length + text.length > this.room) throw new Error("QuotaExceededError");
    this.items.set(name, String(text));
  }
  removeItem(name) {
    this.items.delete(name);
  }
}

function newDocument() {
  const body = new Element("body");
  const byId = new Map();
  for (const [, tag, id] of HTML.matchAll(/<(\w+)[^>]*\bid="([^"]*)"/g)) {
    byId.set(id, new Element(tag));
    body.append(byId.get(id));
  }
  return {
    body,
    getElementById: (id) => byId.get(id) ?? null,
    createElement: (tag) => new Element(tag),
    querySelector: (what) => [...byId.values()].find((one) => what === "dialog[open]" && one.tag === "dialog" && one.open) ?? null,
  };
}

let pages = 0;

/* Opens the page at `href` with what `storage` holds; `fetch` is the server. {byId, body, fire(event, more)}. */
export async function openPage({ href, storage, fetch }) {
  const listeners = {};
  const document = newDocument();
  const addEventListener = (name, work) => (listeners[name] ??= []).push(work);
  Object.assign(globalThis, { document, addEventListener, fetch, location: { href }, localStorage: storage, confirm: () => true, prompt: () => "A title" });
  globalThis.crypto ??= webcrypto;
  const ready = import(`../../src/server/web/app.js?${++pages}`); // its modules hold nothing, so this is a page of its own
  ready.catch(() => {}); // told by who waits for it
  const fire = (name, more = {}) => (listeners[name] ?? []).forEach((work) => work({ ...more }));
  return { ready, fire, body: document.body, byId: document.getElementById };
}

export async function until(condition, what) {
  for (let left = 500; left; left--) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 4));
  }
  throw new Error(`never: ${what ?? condition}`);
}
